"""The rubric: what a teacher is told, and what it may answer.

A rubric is data (rubrics/semantic-gap.yaml is the packaged one). The messages, the JSON schema of a
reply and every list of categories downstream derive from it.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from sp2dpo.pairs.pair import Message, Pair
from sp2dpo.settings import check_keys, check_name, check_type, did_you_mean, read_yaml
from sp2dpo.text import canonical_json

PACKAGED = ("semantic-gap", "semantic-gap-blind")
CHOSEN_FIRST = "chosen-first"
REJECTED_FIRST = "rejected-first"
BETTER = ("A", "B", "tie")
"""What a reply under the blind protocol may call better; A is the response shown first."""
_PARTS = {"labelled": ("prompt", "chosen", "rejected"), "blind": ("prompt", "a", "b")}
"""The parts of a request, by protocol."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """An integer scale from `min` to `max`, in the words of the rubric."""

    min: int
    max: int
    text: str

    def share(self, value: float) -> float:
        """Where a value stands on the scale, in [0, 1]."""
        return (value - self.min) / (self.max - self.min)

    def schema(self) -> dict[str, Any]:
        """The JSON schema of a value."""
        return {"type": "integer", "minimum": self.min, "maximum": self.max}


@dataclass(frozen=True, kw_only=True)
class Rubric:
    """What a teacher is told about every pair.

    Attributes:
        name: for people.
        system: the system message; empty for none.
        task: the text that all requests share.
        fence: the sentence that explains the marks around the pair; holds `{mark}`.
        parts: what the rubric calls prompt, chosen and rejected; blind: prompt, a and b.
        categories: name -> description, in order of priority (ties go to the earlier).
        magnitude: how much better `chosen` is; blind: the response that the reply names.
        confidence: how sure the teacher is.
        rationale_length: in characters.
        variants: name -> closing paragraph.
        protocol: `labelled` (SP2DPO's) says which response is `chosen`; `blind` (ours) does not,
            and asks in both orders which one is better.
    """

    name: str
    system: str
    task: str
    fence: str
    parts: Mapping[str, str]
    categories: Mapping[str, str]
    magnitude: Scale
    confidence: Scale
    rationale_length: int
    variants: Mapping[str, str]
    protocol: str = "labelled"

    @property
    def blind(self) -> bool:
        """Whether the teacher is not told which response is `chosen`."""
        return self.protocol == "blind"

    @property
    def hash(self) -> str:
        """64 hexadecimal digits over everything but the name; order of categories counts."""
        said = self.as_mapping()
        del said["name"]
        said["categories"] = list(self.categories.items())
        return hashlib.sha256(canonical_json(said).encode()).hexdigest()

    def as_mapping(self) -> dict[str, Any]:
        """What its YAML file says; `parse_rubric` reads it back."""
        said = asdict(self)
        if not self.blind:
            del said["protocol"]  # as files leave it out
        return said

    def orders(self, pair_id: str) -> tuple[str, ...]:
        """The orders in which the responses of a pair are shown, the one to ask first at its head.

        Which one that is under the blind protocol depends on the pair's id alone, so that neither
        order comes first more often, and no reader of the mark can tell it. Our choice.
        """
        if not self.blind:
            return (CHOSEN_FIRST,)
        drawn = hashlib.sha256(f"order of {pair_id}".encode()).digest()[0]
        orders = (CHOSEN_FIRST, REJECTED_FIRST)
        return orders if drawn % 2 else orders[::-1]

    @property
    def reply_keys(self) -> tuple[str, ...]:
        """The keys of a reply; the rationale comes first so that it informs the rest."""
        better = ("better",) if self.blind else ()
        return ("rationale", "category", *better, "magnitude", "confidence")

    def schema(self) -> dict[str, Any]:
        """The JSON schema of a reply."""
        known = {
            "rationale": {"type": "string", "maxLength": self.rationale_length},
            "category": {"type": "string", "enum": list(self.categories)},
            "better": {"type": "string", "enum": list(BETTER)},
            "magnitude": self.magnitude.schema(),
            "confidence": self.confidence.schema(),
        }
        fields = {key: known[key] for key in self.reply_keys}
        return {
            "type": "object",
            "properties": fields,
            "required": list(fields),
            "additionalProperties": False,
        }

    def shared(self, pair: Pair, order: str = CHOSEN_FIRST) -> str:
        """What the requests about a pair have in common: the task, and the pair behind its fence.

        Raises:
            ValueError: the protocol does not show the responses in that order.
        """
        if order not in self.orders(pair.id):
            raise ValueError(f"the {self.protocol} protocol knows no order {order!r}")
        return f"{self._asked_of_all}\n\n{fence(pair, self.fence, self._shown(pair, order))}"

    def messages(
        self, pair: Pair, variant: str, order: str = CHOSEN_FIRST, *, shared: str | None = None
    ) -> list[dict[str, str]]:
        """The chat that asks for one annotation.

        Everything up to the last paragraph is the same for all variants of a pair in one order, so
        that a server's prefix cache serves all variants but the first.

        Args:
            pair: what is judged.
            variant: whose paragraph closes the request.
            order: in which the responses are shown.
            shared: what `shared` gives for the pair and the order, where it is at hand.

        Raises:
            ValueError: as `shared`.
        """
        if shared is None:
            shared = self.shared(pair, order)
        messages = [{"role": "user", "content": f"{shared}\n\n{self.variants[variant].strip()}"}]
        if self.system.strip():
            messages.insert(0, {"role": "system", "content": self.system.strip()})
        return messages

    @cached_property
    def _asked_of_all(self) -> str:
        """The task, its tokens filled in: what the requests about all pairs begin with."""
        listed = "\n".join(
            f"  {number}. `{name}`: {text}"
            for number, (name, text) in enumerate(self.categories.items(), start=1)
        )
        texts = {
            "  {categories}": listed,
            "{categories}": listed,
            "{magnitude}": self.magnitude.text.strip(),
            "{confidence}": self.confidence.text.strip(),
            "{rationale_length}": str(self.rationale_length),
        }
        # In one pass: a category's description may itself say {magnitude}.
        tokens = "|".join(map(re.escape, texts))
        return re.sub(tokens, lambda found: texts[found[0]], self.task.strip())

    def _shown(self, pair: Pair, order: str) -> list[tuple[str, tuple[Message, ...]]]:
        """The parts of a pair under their names, in the order in which they are shown."""
        responses = (pair.chosen, pair.rejected)
        parts = (pair.prompt, *(responses if order == CHOSEN_FIRST else responses[::-1]))
        names = (self.parts[part] for part in _PARTS[self.protocol])
        return list(zip(names, parts, strict=True))


def load_rubric(name: str, *, beside: Path | None = None) -> Rubric:
    """The packaged rubric of that name, or the one in a YAML file.

    Args:
        name: `semantic-gap`, `semantic-gap-blind`, or a path; a relative one counts from `beside`.
        beside: the folder of the panel that names it.

    Raises:
        ValueError: naming the file and all that is wrong with it.
        OSError: the file cannot be read.
    """
    if "/" not in name and not name.endswith((".yaml", ".yml")):
        packaged = resources.files("sp2dpo.panel") / "rubrics" / f"{name}.yaml"
        if not packaged.is_file():
            raise ValueError(
                f"no packaged rubric is called {name!r}{did_you_mean(name, PACKAGED)} "
                f"(known: {', '.join(PACKAGED)})"
            )
        with resources.as_file(packaged) as path:
            return read_rubric(path)
    return read_rubric((beside or Path()) / name)


def read_rubric(path: Path) -> Rubric:
    """The rubric in a YAML file; see `load_rubric`."""
    return parse_rubric(read_yaml(path), where=str(path))


def parse_rubric(said: dict[str, Any], *, where: str) -> Rubric:
    """The rubric that a mapping says, checked.

    Raises:
        ValueError: with `where` and what is wrong.
    """
    required = [key for key in Rubric.__dataclass_fields__ if key != "protocol"]
    check_keys(where, said, required=required, optional=["protocol"])
    for key in ("name", "system", "task", "fence"):
        check_type(where, key, said[key], str)
    for key in ("parts", "categories", "variants"):
        _check_texts(where, key, said[key])
    _check_parts(where, said["parts"], said.get("protocol", "labelled"))
    check_type(where, "rationale_length", said["rationale_length"], int)
    if said["rationale_length"] < 1:
        raise ValueError(f"{where}: rationale_length {said['rationale_length']} must be at least 1")
    needed = {"task": ("{categories}", "{magnitude}", "{confidence}"), "fence": ("{mark}",)}
    for key, tokens in needed.items():
        for token in tokens:
            if token not in said[key]:
                raise ValueError(f"{where}: {key} must hold {token}, or no teacher reads of it")
    scales: dict[str, Any] = {
        key: _scale(f"{where}: {key}", said[key]) for key in ("magnitude", "confidence")
    }
    return Rubric(**(said | scales))


def _check_parts(where: str, parts: dict[str, str], protocol: Any) -> None:
    check_type(where, "protocol", protocol, str)
    if protocol not in _PARTS:
        known = ", ".join(_PARTS)
        hint = did_you_mean(protocol, _PARTS)
        raise ValueError(f"{where}: protocol {protocol!r} is not known{hint} (known: {known})")
    check_keys(f"{where}: parts", parts, required=_PARTS[protocol])
    if protocol == "blind" and parts["a"] == parts["b"]:
        raise ValueError(f"{where}: parts: a and b are both called {parts['a']!r}")


def _check_texts(where: str, key: str, value: Any) -> None:
    check_type(where, key, value, dict)
    if not value:
        raise ValueError(f"{where}: {key} is empty")
    for name, text in value.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise ValueError(f"{where}: {key} must map names to texts; put {name!r} in quotes")
        check_name(where, f"a name of {key}", name)


def _scale(where: str, said: Any) -> Scale:
    check_type(where, "the scale", said, dict)
    check_keys(where, said, required=("min", "max", "text"))
    check_type(where, "min", said["min"], int)
    check_type(where, "max", said["max"], int)
    check_type(where, "text", said["text"], str)
    if said["min"] >= said["max"]:
        raise ValueError(f"{where}: min {said['min']} must be below max {said['max']}")
    return Scale(**said)


def fence(pair: Pair, sentence: str, shown: Sequence[tuple[str, Sequence[Message]]]) -> str:
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
