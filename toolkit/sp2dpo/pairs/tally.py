"""Count how the rows of a source were read: their shapes and their implicit prompts."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Self

from sp2dpo.pairs.sources import SetAside, SourceRow
from sp2dpo.text import count_noun, shorten

_SHOWN = 60
"""Number of characters of a repeated prompt that are shown."""
_COLUMNS = 40
"""Number of columns that are listed."""
_TEMPLATE = re.compile(
    r"<\|(?:im_start|prompter|user|assistant|start_header_id|eot_id|endoftext)\|>|\[/INST\]"
)
"""Marks of chat templates."""
_ASKS = re.compile(r"^[#* ]*(?:Human|User)[* ]*:", re.MULTILINE)
_ANSWERS = re.compile(r"^[#* ]*(?:Assistant|AI|Bot)[* ]*:", re.MULTILINE)
"""Beginnings of lines that two speakers of a dialogue have; `\\r` belongs to the line before."""


@dataclass(frozen=True, kw_only=True)
class ReadingSummary:
    """How the rows of a source were read.

    Attributes:
        shapes: Number of usable rows by shape, without those in TRL's own formats.
        options: Command line options that say how the rows are read; empty without any.
        implicit: Number of rows whose prompt is the beginning that their responses share.
        repeated: Number of implicit prompts that more than one pair has.
        most_repeated: Beginning of the implicit prompt that the most pairs have; None if none
            repeats.
        most_pairs: Number of pairs that have it.
        marked: Number of rows whose prompt is one text with the marks of a dialogue in it.
    """

    shapes: dict[str, int] = field(default_factory=dict)
    options: str = ""
    implicit: int = 0
    repeated: int = 0
    most_repeated: str | None = None
    most_pairs: int = 0
    marked: int = 0

    def dump(self) -> str:
        """Return JSON from which `load` restores this."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> Self:
        """Return the summary that `dump` wrote."""
        return cls(**json.loads(text))

    def lines(self) -> list[str]:
        """Return lines for people; none for a source in TRL's formats with explicit prompts."""
        lines = [f"  read with {self.options}"] if self.options else []
        lines += [
            f"  read as {shape} ({count_noun(count, 'row')})"
            for shape, count in self.shapes.items()
        ]
        if self.implicit:
            prompts = count_noun(self.implicit, "implicit prompt")
            lines.append(f"  {prompts}: the beginning that chosen and rejected share")
        if self.most_repeated is not None:
            repeats = "1 of them repeats" if self.repeated == 1 else f"{self.repeated} repeat"
            lines.append(
                f"  WARNING: {repeats} over different pairs, most often {self.most_repeated!r} "
                f"({self.most_pairs} pairs): check that it is a prompt; --columns prompt=COLUMN "
                "names a column that holds it"
            )
        if self.marked:
            lines.append(
                f"  WARNING: the prompts of {count_noun(self.marked, 'row')} have marks of a "
                "dialogue or a chat template in their text, such as 'Human:' or '<|im_start|>': "
                "they are judged as one turn of the user; give them as lists of messages"
            )
        return lines


class ReadingTally:
    """Counts rows as they are read, without keeping their texts."""

    def __init__(self) -> None:
        self._shapes: Counter[str] = Counter()
        self._implicit = 0
        self._marked = 0
        # Hashes of pairs and prompts, because a corpus may hold millions.
        self._pairs: set[int] = set()
        self._prompts: Counter[int] = Counter()
        self._repeated: dict[int, str] = {}

    def add(self, row: SourceRow | SetAside) -> None:
        """Count a row."""
        if isinstance(row, SetAside):
            return
        if row.shape:
            self._shapes[row.shape] += 1
        self._marked += _is_marked(row)
        if not row.implicit:
            return
        self._implicit += 1
        pair, prompt = hash(row.pair.id), _prompt_text(row)
        if pair in self._pairs:
            return
        self._pairs.add(pair)
        self._prompts[hash(prompt)] += 1
        if self._prompts[hash(prompt)] > 1:
            self._repeated.setdefault(hash(prompt), shorten(prompt, _SHOWN))

    def summary(self, options: str = "") -> ReadingSummary:
        """Return the counts, with the options that say how the rows are read."""
        most = max(self._repeated, key=lambda prompt: self._prompts[prompt], default=None)
        return ReadingSummary(
            shapes=dict(self._shapes.most_common()),
            options=options,
            implicit=self._implicit,
            repeated=len(self._repeated),
            most_repeated=None if most is None else self._repeated[most],
            most_pairs=0 if most is None else self._prompts[most],
            marked=self._marked,
        )


def _is_marked(row: SourceRow) -> bool:
    asked = [turn.get("content") for turn in row.pair.prompt if turn["role"] == "user"]
    if len(asked) != 1 or not isinstance(asked[0], str):
        return False
    text = asked[0]
    return bool(_TEMPLATE.search(text) or (_ASKS.search(text) and _ANSWERS.search(text)))


def _prompt_text(row: SourceRow) -> str:
    return "\n".join(str(turn.get("content") or "") for turn in row.pair.prompt)


def no_pair_error(source: str, reasons: Mapping[str, int], example: str | None) -> ValueError:
    """Return the error about a source without a usable pair.

    Args:
        source: Name of the source.
        reasons: Number of rows by the reason why they were set aside.
        example: Content of the first of these rows as JSON; None if there are no rows.
    """
    problem = f"{source}: no row holds a preference pair"
    if not reasons or example is None:
        return ValueError(f"{problem}: it has no rows")
    reason = max(reasons, key=lambda reason: reasons[reason])
    if "--columns" in reason:
        return ValueError(f"{problem}: {reason}")
    columns = ", ".join(map(repr, list(json.loads(example))[:_COLUMNS]))
    roles = "chosen=COLUMN,rejected=COLUMN"
    if reason == "missing column chosen" and re.search("response|answer|output|winner", columns):
        roles += ", or prompt=COLUMN,response_a=COLUMN,response_b=COLUMN,winner=COLUMN"
    return ValueError(
        f"{problem}: {reason}. Its columns are {columns}; if some of them are a pair's, name them "
        f"with --columns prompt=COLUMN,{roles}"
    )
