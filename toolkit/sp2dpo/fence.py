"""The fence: how the texts of a pair stand in a request, so that none can leave its place."""

import hashlib
from collections.abc import Sequence

from sp2dpo.pairs import Message, Pair, canonical_json


def fenced(pair: Pair, sentence: str, shown: Sequence[tuple[str, Sequence[Message]]]) -> str:
    """The pair between marks, and before it the sentence that explains them.

    Args:
        pair: whose texts they are.
        sentence: holds `{mark}`.
        shown: the parts of the pair, each with its name, in the order in which they stand.
    """
    mark = _mark(pair)
    lines = [sentence.strip().replace("{mark}", mark), ""]
    for name, turns in shown:
        for turn in turns:
            lines += [f"{mark} {name} ({turn['role']})", _spoken(turn)]
    if pair.tools:
        lines += [f"{mark} tools", canonical_json(pair.tools)]
    lines.append(mark)
    return "\n".join(lines)


def _mark(pair: Pair) -> str:
    """A mark that no text of the pair holds: a piece of the pair's own hash.

    A text would have to contain a piece of a hash over itself; should it ever, the next piece is
    taken.
    """
    turns = (*pair.prompt, *pair.chosen, *pair.rejected)
    texts = [text for turn in turns for text in (turn["role"], _spoken(turn))]
    texts.append(canonical_json(pair.tools))
    seed = pair.id
    while any(seed[:16] in text for text in texts):
        seed = hashlib.sha256(seed.encode()).hexdigest()
    return f"#{seed[:16]}#"


def _spoken(turn: Message) -> str:
    """What a turn says, tool calls and other keys as JSON behind the text."""
    more = {key: turn[key] for key in turn if key not in ("role", "content")}
    said = [turn.get("content") or ""]
    if more:
        said.append(canonical_json(more))
    return "\n".join(text for text in said if text)
