"""The rubric: what a teacher is told, and what it may answer.

A rubric is data (rubrics/semantic-gap.yaml is the packaged one). The messages, the JSON schema of a
reply and every list of categories downstream derive from it.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from sp2dpo.pairs import Message, Pair, canonical_json
from sp2dpo.settings import check_keys, check_name, check_type, did_you_mean, read_yaml

PACKAGED = "semantic-gap"
_PARTS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """An integer scale from `min` to `max`, in the words of the rubric."""

    min: int
    max: int
    text: str

    def share(self, value: float) -> float:
        """Where a value stands on the scale, in [0, 1]."""
        return (value - self.min) / (self.max - self.min)


@dataclass(frozen=True, kw_only=True)
class Rubric:
    """What a teacher is told about every pair.

    Attributes:
        name: for people.
        system: the system message; empty for none.
        task: the text that all requests share.
        fence: the sentence that explains the marks around the pair; holds `{mark}`.
        parts: what the rubric calls prompt, chosen and rejected.
        categories: name -> description, in order of priority (ties go to the earlier).
        magnitude: how much better `chosen` is.
        confidence: how sure the teacher is.
        rationale_length: in characters.
        variants: name -> closing paragraph.
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

    @property
    def hash(self) -> str:
        """64 hexadecimal digits over everything but the name; order of categories counts."""
        said = self.as_mapping()
        del said["name"]
        said["categories"] = list(self.categories.items())
        return hashlib.sha256(canonical_json(said).encode()).hexdigest()

    def as_mapping(self) -> dict[str, Any]:
        """What its YAML file says; `rubric_of` reads it back."""
        return asdict(self)

    def schema(self) -> dict[str, Any]:
        """The JSON schema of a reply; the rationale comes first so that it informs the rest."""
        fields = {
            "rationale": {"type": "string", "maxLength": self.rationale_length},
            "category": {"type": "string", "enum": list(self.categories)},
            "magnitude": {
                "type": "integer",
                "minimum": self.magnitude.min,
                "maximum": self.magnitude.max,
            },
            "confidence": {
                "type": "integer",
                "minimum": self.confidence.min,
                "maximum": self.confidence.max,
            },
        }
        return {
            "type": "object",
            "properties": fields,
            "required": list(fields),
            "additionalProperties": False,
        }

    def messages(self, pair: Pair, variant: str) -> list[dict[str, str]]:
        """The chat that asks for one annotation.

        Everything up to the last paragraph is the same for all variants of a pair, so that a
        server's prefix cache serves all variants but the first.
        """
        asked = "\n\n".join((self._task(), self._fenced(pair), self.variants[variant].strip()))
        messages = [{"role": "user", "content": asked}]
        if self.system.strip():
            messages.insert(0, {"role": "system", "content": self.system.strip()})
        return messages

    def _task(self) -> str:
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

    def _fenced(self, pair: Pair) -> str:
        mark = _mark(pair)
        lines = [self.fence.strip().replace("{mark}", mark), ""]
        for part in _PARTS:
            name = self.parts[part]
            for turn in getattr(pair, part):
                lines += [f"{mark} {name} ({turn['role']})", _spoken(turn)]
        if pair.tools:
            lines += [f"{mark} tools", canonical_json(pair.tools)]
        lines.append(mark)
        return "\n".join(lines)


def _mark(pair: Pair) -> str:
    """A fence that no text of the pair holds: a piece of the pair's own hash.

    A text would have to contain a piece of a hash over itself; should it ever, the next piece is
    taken.
    """
    texts = [canonical_json(turn) for part in _PARTS for turn in getattr(pair, part)]
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


def load_rubric(name: str, *, beside: Path | None = None) -> Rubric:
    """The packaged rubric of that name, or the one in a YAML file.

    Args:
        name: `semantic-gap`, or a path; a relative one counts from `beside`.
        beside: the folder of the panel that names it.

    Raises:
        ValueError: naming the file and all that is wrong with it.
        OSError: the file cannot be read.
    """
    if "/" not in name and not name.endswith((".yaml", ".yml")):
        packaged = resources.files("sp2dpo") / "rubrics" / f"{name}.yaml"
        if not packaged.is_file():
            hint = did_you_mean(name, [PACKAGED])
            raise ValueError(f"no packaged rubric is called {name!r}{hint} (known: {PACKAGED})")
        with resources.as_file(packaged) as path:
            return read_rubric(path)
    return read_rubric((beside or Path()) / name)


def read_rubric(path: Path) -> Rubric:
    """The rubric in a YAML file; see `load_rubric`."""
    return rubric_of(read_yaml(path), where=str(path))


def rubric_of(said: dict[str, Any], *, where: str) -> Rubric:
    """The rubric that a mapping says, checked.

    Raises:
        ValueError: with `where` and what is wrong.
    """
    check_keys(where, said, required=list(Rubric.__dataclass_fields__))
    for key in ("name", "system", "task", "fence"):
        check_type(where, key, said[key], str)
    for key in ("parts", "categories", "variants"):
        _check_texts(where, key, said[key])
    check_keys(f"{where}: parts", said["parts"], required=_PARTS)
    check_type(where, "rationale_length", said["rationale_length"], int)
    if said["rationale_length"] < 1:
        raise ValueError(f"{where}: rationale_length {said['rationale_length']} must be at least 1")
    needed = {"task": ("{categories}", "{magnitude}", "{confidence}"), "fence": ("{mark}",)}
    for key, tokens in needed.items():
        for token in tokens:
            if token not in said[key]:
                raise ValueError(f"{where}: {key} must hold {token}, or no teacher reads of it")
    return Rubric(
        name=said["name"],
        system=said["system"],
        task=said["task"],
        fence=said["fence"],
        parts=said["parts"],
        categories=said["categories"],
        magnitude=_scale(f"{where}: magnitude", said["magnitude"]),
        confidence=_scale(f"{where}: confidence", said["confidence"]),
        rationale_length=said["rationale_length"],
        variants=said["variants"],
    )


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
