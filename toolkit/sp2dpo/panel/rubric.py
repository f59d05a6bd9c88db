"""Load rubrics, and write the requests that teachers get.

A rubric is a YAML file; `PACKAGED` ones are in the folder `rubrics`. The messages, the JSON schema
of a reply and all lists of categories derive from it.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import resources
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationInfo, field_validator

from sp2dpo.pairs.pair import Message, Pair
from sp2dpo.settings import NAME, Settings, did_you_mean, key_problems, number, one_of, validate
from sp2dpo.text import canonical_json, has_chat_marks, split_chat_marks
from sp2dpo.yaml_files import Keys, read_yaml_file

PACKAGED = ("semantic-gap", "semantic-gap-blind")
CHOSEN_FIRST = "chosen-first"
REJECTED_FIRST = "rejected-first"
BETTER = ("A", "B", "tie")
"""Values of `better` under the blind protocol; A is the response shown first."""
_PARTS = {"labelled": ("prompt", "chosen", "rejected"), "blind": ("prompt", "a", "b")}
"""The parts of a request, by protocol."""
_TOKENS = {"task": ("{categories}", "{magnitude}", "{confidence}"), "fence": ("{mark}",)}
"""Placeholders that each text of a rubric must contain."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """An integer scale.

    Attributes:
        min: Lowest value.
        max: Highest value.
        text: Description of the scale, as teachers read it.
    """

    min: int
    max: int
    text: str

    def share(self, value: Any) -> Any:
        """Return the position of a number, or of each number in a column, on the scale: [0, 1]."""
        return (value - self.min) / (self.max - self.min)

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of a value."""
        return {"type": "integer", "minimum": self.min, "maximum": self.max}


@dataclass(frozen=True, kw_only=True)
class Rubric:
    """Instructions and answer format that all teachers of a panel get.

    Attributes:
        name: Name for people; it is not part of `hash`.
        system: System message; empty for none.
        task: Text that all requests share.
        fence: Sentence that explains the marks around the pair; contains `{mark}`.
        parts: Headings of `prompt`, `chosen` and `rejected`; under the blind protocol of `prompt`,
            `a` and `b`.
        categories: Descriptions by name, in order of priority: a tie goes to the earlier one.
        magnitude: Scale of how much better the better response is: `chosen` under the labelled
            protocol, the response that the reply names under the blind one.
        confidence: Scale of how sure the teacher is.
        rationale_length: Maximum length of a rationale, in characters.
        variants: Closing paragraphs of the request, by name.
        protocol: `labelled` (the paper's) tells teachers which response is chosen; `blind` (ours)
            does not, and asks in both orders which one is better.
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
        """SHA-256 of everything but the name, as 64 hexadecimal digits."""
        config = self.as_mapping()
        del config["name"]
        # As a list, because canonical JSON sorts keys and the order of categories has a meaning.
        config["categories"] = list(self.categories.items())
        return hashlib.sha256(canonical_json(config).encode()).hexdigest()

    def as_mapping(self) -> dict[str, Any]:
        """Return the contents of its YAML file; `parse_rubric` is the inverse."""
        config = asdict(self)
        if not self.blind:
            del config["protocol"]  # the default; hashes of older rubrics do not include it
        return config

    def orders(self, pair_id: str) -> tuple[str, ...]:
        """Return the orders in which the responses of a pair are shown, the first to ask first.

        Under the blind protocol, a hash of the pair's id decides which one comes first, so that
        both come first equally often and the request does not reveal the order. Our choice.
        """
        if not self.blind:
            return (CHOSEN_FIRST,)
        # A hash, not a random number, so that a run that resumes asks in the same order.
        drawn = hashlib.sha256(f"order of {pair_id}".encode()).digest()[0]
        orders = (CHOSEN_FIRST, REJECTED_FIRST)
        return orders if drawn % 2 else orders[::-1]

    @property
    def reply_keys(self) -> tuple[str, ...]:
        """Keys of a reply. The rationale is first, so that the scores can depend on it."""
        better = ("better",) if self.blind else ()
        return ("rationale", "category", *better, "magnitude", "confidence")

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of a reply."""
        schemas = {
            # Bounded, because text without a limit often runs into the token limit of a request.
            "rationale": {"type": "string", "maxLength": self.rationale_length},
            "category": {"type": "string", "enum": list(self.categories)},
            "better": {"type": "string", "enum": list(BETTER)},
            "magnitude": self.magnitude.schema(),
            "confidence": self.confidence.schema(),
        }
        fields = {key: schemas[key] for key in self.reply_keys}
        return {
            "type": "object",
            "properties": fields,
            "required": list(fields),
            "additionalProperties": False,
        }

    @property
    def undescribed(self) -> list[str]:
        """What the task must name for teachers that do not get the schema, and does not."""
        return [word for word in ("JSON", *self.reply_keys) if word not in self._task_text]

    def check_category(self, category: str, *, where: str = "") -> None:
        """Refuse a category that the rubric does not have.

        Raises:
            ValueError: The message begins with `where`, and lists the categories of the rubric.
        """
        if category not in self.categories:
            raise ValueError(
                f"{where}the rubric {self.name} has no category {category!r}"
                f"{did_you_mean(category, self.categories)} (known: {', '.join(self.categories)})"
            )

    def shared(self, pair: Pair, order: str = CHOSEN_FIRST) -> str:
        """Return what all requests about a pair in one order begin with: the task and the pair.

        Raises:
            ValueError: If the protocol does not show the responses in that order.
        """
        if order not in self.orders(pair.id):
            raise ValueError(f"the {self.protocol} protocol has no order {order!r}")
        return f"{self._task_text}\n\n{_fence(pair, self.fence, self._shown(pair, order))}"

    def messages(
        self, pair: Pair, variant: str, order: str = CHOSEN_FIRST, *, shared: str | None = None
    ) -> list[dict[str, Any]]:
        """Return the chat messages that ask for one annotation.

        Everything before the last paragraph is the same for all variants of a pair in one order, so
        that a server's prefix cache can serve it. If the pair has images, the content is a list of
        parts: the text with their numbers, the images, and the last paragraph.

        Args:
            pair: Pair to annotate.
            variant: Variant whose paragraph closes the request.
            order: Order in which the responses are shown.
            shared: Result of `shared` for the pair and the order; None to compute it.

        Raises:
            ValueError: If the protocol does not show the responses in that order.
        """
        if shared is None:
            shared = self.shared(pair, order)
        closing = self.variants[variant].strip()
        content: Any = f"{shared}\n\n{closing}"
        if images := _images(self._shown(pair, order)):
            parts = [{"type": "image_url", "image_url": {"url": image}} for image in images]
            content = [_text_part(shared), *parts, _text_part(closing)]
        messages = [{"role": "user", "content": content}]
        # Some chat templates have no system role, so an empty message must not be sent.
        if self.system.strip():
            messages.insert(0, {"role": "system", "content": self.system.strip()})
        return messages

    @cached_property
    def _task_text(self) -> str:
        """The task with its placeholders filled in."""
        listed = "\n".join(
            f"  {number}. `{name}`: {text}"
            for number, (name, text) in enumerate(self.categories.items(), start=1)
        )
        texts = {
            # The list is indented itself, so the indent of its placeholder is replaced, too.
            "  {categories}": listed,
            "{categories}": listed,
            "{magnitude}": self.magnitude.text.strip(),
            "{confidence}": self.confidence.text.strip(),
            "{rationale_length}": str(self.rationale_length),
        }
        # In one pass, because a description may itself contain a placeholder.
        tokens = "|".join(map(re.escape, texts))
        return re.sub(tokens, lambda match: texts[match[0]], self.task.strip())

    def _shown(self, pair: Pair, order: str) -> list[tuple[str, tuple[Message, ...]]]:
        """Return the parts of a pair with their headings, in the order in which they are shown."""
        responses = (pair.chosen, pair.rejected)
        parts = (pair.prompt, *(responses if order == CHOSEN_FIRST else responses[::-1]))
        names = (self.parts[part] for part in _PARTS[self.protocol])
        return list(zip(names, parts, strict=True))


def load_rubric(name: str | Path, *, beside: Path | str | None = None) -> Rubric:
    """Load a packaged rubric or one from a YAML file.

    Args:
        name: `semantic-gap`, `semantic-gap-blind`, or the path of a file.
        beside: Folder that a relative path starts from; None for the current folder.

    Raises:
        ValueError: If there is no packaged rubric of that name, or with every problem of the file.
        OSError: If the file cannot be read.
    """
    name = str(name)
    if "/" not in name and not name.endswith((".yaml", ".yml")):
        packaged = resources.files("sp2dpo.panel") / "rubrics" / f"{name}.yaml"
        if not packaged.is_file():
            raise ValueError(
                f"no packaged rubric is called {name!r}{did_you_mean(name, PACKAGED)} "
                f"(known: {', '.join(PACKAGED)})"
            )
        with resources.as_file(packaged) as path:  # the package may be in a zip archive
            return read_rubric(path)
    return read_rubric(Path(beside or "") / name)


class ScaleConfig(Settings):
    """A scale of whole numbers."""

    min: int
    """Lowest value."""
    max: int
    """Highest value."""
    text: str
    """Description of the scale, as teachers read it."""

    @field_validator("max")
    @classmethod
    def _is_above_min(cls, highest: int, info: ValidationInfo) -> int:
        lowest = info.data.get("min")
        # A share divides by max - min; min is absent if it is invalid itself.
        if lowest is not None and lowest >= highest:
            raise ValueError(f"min {lowest} must be below max {highest}")
        return highest


_Texts = Annotated[dict[Annotated[str, NAME], str], Field(min_length=1)]


class RubricConfig(Settings):
    """Instructions and answer format that all teachers of a panel get."""

    model_config = ConfigDict(title="SP2DPO rubric")

    name: str
    """Name of the rubric, for people."""
    protocol: Annotated[str, one_of(tuple(_PARTS))] = Rubric.protocol
    """labelled tells teachers which response is chosen; blind does not, and asks in both orders."""
    system: str
    """System message; empty for none."""
    task: str
    """Text that all requests share; holds {categories}, {magnitude} and {confidence}."""
    fence: str
    """Sentence that explains the marks around a pair; holds {mark}."""
    parts: _Texts
    """Names of prompt, chosen and rejected, as teachers read them; blind: prompt, a and b."""
    categories: _Texts
    """Descriptions of the categories by name, in order of priority."""
    magnitude: ScaleConfig
    """Scale of how much better one response is."""
    confidence: ScaleConfig
    """Scale of how sure a teacher is."""
    rationale_length: Annotated[int, number(least=1, integer=True)]
    """Characters of a rationale, at most."""
    variants: _Texts
    """Closing paragraphs of a request, by the name of the variant."""

    @field_validator("task", "fence")
    @classmethod
    def _holds_its_tokens(cls, text: str, info: ValidationInfo) -> str:
        missing = [token for token in _TOKENS[str(info.field_name)] if token not in text]
        if missing:
            raise ValueError(f"must contain {', '.join(missing)}, which the request fills in")
        return text

    @classmethod
    def conflicts(cls, values: Mapping[str, Any]) -> Iterator[tuple[Keys, str]]:
        """Yield a problem if the parts are not those of the protocol, or two have one name."""
        parts, protocol = values.get("parts"), values.get("protocol", Rubric.protocol)
        # Values are as written and not validated yet; an invalid one reports itself.
        if not isinstance(parts, dict) or not parts or protocol not in tuple(_PARTS):
            return
        if problems := key_problems(parts, required=_PARTS[protocol]):
            yield ("parts",), problems
        names = {key: name.strip() for key, name in parts.items() if isinstance(name, str)}
        for first, second in combinations(names, 2):
            # A teacher could not tell which part it reads, or which response it names.
            if names[first] == names[second]:
                yield ("parts",), f"{first} and {second} are both called {names[first]!r}"

    def build(self) -> Rubric:
        """Return the rubric."""
        values: dict[str, Any] = self.model_dump()
        values |= {name: Scale(**values[name]) for name in ("magnitude", "confidence")}
        return Rubric(**values)


def read_rubric(path: Path, *, aliases: bool = True) -> Rubric:
    """Load a rubric from a YAML file, with or without aliases; raises like `load_rubric`."""
    source = read_yaml_file(path, aliases=aliases)
    return validate(RubricConfig, source.values, where=str(path), source=source).build()


def parse_rubric(config: Mapping[str, Any], *, where: str) -> Rubric:
    """Return a mapping, as `Rubric.as_mapping` gives it, as a rubric.

    Raises:
        ValueError: With every problem.
    """
    return validate(RubricConfig, config, where=where).build()


def holds_chat_marks(pair: Pair) -> bool:
    """Return whether a pair contains control tokens of chat templates; requests split them."""
    return any(map(has_chat_marks, _texts(pair)))


def _fence(pair: Pair, sentence: str, shown: Sequence[tuple[str, Sequence[Message]]]) -> str:
    """Return the pair's parts with headings between marks, after the sentence on the marks.

    Control tokens in them are split: a server would read them as the end of the request, whatever
    surrounds them.
    """
    mark, images = _mark(pair), 0
    # `format` would fail on other braces in the sentence.
    lines = [sentence.strip().replace("{mark}", mark), ""]
    for name, turns in shown:
        for turn in turns:
            role, text = split_chat_marks(turn["role"]), split_chat_marks(_turn_text(turn))
            lines += [f"{mark} {name} ({role})", text]
            for _ in turn.get("images") or ():
                images += 1
                lines.append(f"[image {images}]")
    if pair.tools:
        lines += [f"{mark} tools", split_chat_marks(canonical_json(pair.tools))]
    lines.append(mark)
    return "\n".join(lines)


def _images(shown: Sequence[tuple[str, Sequence[Message]]]) -> list[str]:
    """Return the URIs of a pair's images in the order of their numbers."""
    return [image for _, turns in shown for turn in turns for image in turn.get("images") or ()]


def _text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def message_text(message: Mapping[str, Any]) -> str:
    """Return the text of a chat message, without its images."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")


def count_images(pair: Pair) -> int:
    """Return how many images a pair has."""
    turns = (*pair.prompt, *pair.chosen, *pair.rejected)
    return sum(len(turn.get("images") or ()) for turn in turns)


def _texts(pair: Pair) -> list[str]:
    """Return all texts of a pair that a request shows."""
    turns = (*pair.prompt, *pair.chosen, *pair.rejected)
    texts = [text for turn in turns for text in (turn["role"], _turn_text(turn))]
    return [*texts, canonical_json(pair.tools)]


def _mark(pair: Pair) -> str:
    """Return a mark that no text of the pair contains: the beginning of the pair's hash."""
    texts = _texts(pair)
    # Not random: a mark that changes with each request would defeat a server's prefix cache.
    seed = pair.id
    # A text would have to contain the beginning of a hash over itself, which is hard but possible.
    while any(seed[:16] in text for text in texts):
        seed = hashlib.sha256(seed.encode()).hexdigest()
    return f"#{seed[:16]}#"


def _turn_text(turn: Message) -> str:
    """Return the text of a turn, followed by tool calls and other keys as JSON."""
    # Images are sent as such.
    extra = {key: turn[key] for key in turn if key not in ("role", "content", "images")}
    # The content is null where a turn only calls tools.
    texts = [turn.get("content") or "", canonical_json(extra) if extra else ""]
    return "\n".join(text for text in texts if text)
