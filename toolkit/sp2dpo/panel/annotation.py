"""Parse a teacher's reply strictly: a guessed annotation is worse than none."""

import json
import re
from dataclasses import dataclass
from typing import Any

from sp2dpo.files import DuplicateKey, refuse_duplicate_keys
from sp2dpo.inference.thinking import FINAL, THINKING_END, THINKING_START, strip_end_mark
from sp2dpo.panel.rubric import BETTER, CHOSEN_FIRST, Rubric, Scale

_CODE_BLOCK = re.compile(r"\s*(`{3,}|~{3,})[\w+#.-]{0,20}\s(?P<inner>.*)\s\1\s*", re.I | re.DOTALL)
_ENDS_WITH_MARK = re.compile(r"[}`~]\s*[<\[][^{}`~]*[>\]]$")
_LONGEST_MARK = 80
_BLANK = " \t\r\n\ufeff\u00a0"


@dataclass(frozen=True, kw_only=True)
class Key:
    """Permanent key of a reply in a store.

    Attributes:
        pair_id: Id of the pair.
        teacher: Name of the teacher.
        variant: Variant of the rubric.
        order: Order in which the responses were shown; one of `Rubric.orders`.
        attempt: Number of earlier replies to the same question that were refused.
    """

    pair_id: str
    teacher: str
    variant: str
    order: str = CHOSEN_FIRST
    attempt: int = 0


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """The content of a valid reply.

    Attributes:
        category: A category of the rubric.
        magnitude: How much better one response is, on the rubric's scale.
        confidence: How sure the teacher is, on the rubric's scale.
        rationale: Explanation of at most the rubric's `rationale_length` characters.
        better: `A` (the response shown first), `B` or `tie`; None under the labelled protocol.
    """

    category: str
    magnitude: int
    confidence: int
    rationale: str
    better: str | None = None


class Refusal(ValueError):
    """A reply that does not contain a valid annotation.

    Attributes:
        reason: A short word by which refused replies are counted.
        detail: What is wrong with the reply.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


def parse_annotation(text: str, rubric: Rubric) -> Annotation:
    """Return the annotation in the text of a reply.

    Args:
        text: One JSON object that conforms to `rubric.schema()`. The model's thinking may stand
            before it, and it may be one Markdown code block; anything else is refused.
        rubric: Rubric of the question.

    Raises:
        Refusal: `empty`, `reasoning-only`, `not-json`, or `schema` with what is wrong.
    """
    if not text.strip():
        raise Refusal("empty", "")
    start, end = object_span(text)
    if is_thinking(text):
        raise Refusal("reasoning-only", "the reply is thinking without an answer after it")
    try:
        values = json.loads(text[start:end], object_pairs_hook=refuse_duplicate_keys)
    # JSONDecodeError and DuplicateKey are ValueErrors, so they must come before it.
    except json.JSONDecodeError as error:
        place = start + error.pos + 1
        raise Refusal("not-json", f"{error.msg} at character {place}") from error
    except DuplicateKey as error:
        raise Refusal("schema", "duplicate key") from error
    except ValueError as error:  # a number of thousands of digits
        raise Refusal("schema", str(error)) from error
    except RecursionError as error:
        raise Refusal("schema", "nested too deeply") from error
    if not isinstance(values, dict):
        raise Refusal("schema", f"expected a JSON object, got {type(values).__name__}")
    expected = rubric.reply_keys
    if set(values) != set(expected):
        raise Refusal(
            "schema", f"keys {', '.join(map(repr, values))} instead of {', '.join(expected)}"
        )
    return Annotation(
        rationale=_rationale(values["rationale"], rubric),
        category=_category(values["category"], rubric),
        magnitude=_score("magnitude", values["magnitude"], rubric.magnitude),
        confidence=_score("confidence", values["confidence"], rubric.confidence),
        better=_better(values["better"]) if rubric.blind else None,
    )


def object_span(text: str) -> tuple[int, int]:
    """Return where the answer of a reply is: the text after its thinking, inside its code block.

    The thinking may lack its first mark, which chat templates write into the prompt, and the text
    on either side may mention the last one: the answer begins after the first mark that leaves one
    JSON object. If there is none, the span is of what looks most like an answer, for messages.
    """
    likely = None
    for start, mark in [(0, ""), *((end.end(), end[0]) for end in THINKING_END.finditer(text))]:
        start, end = _unwrap(text, start, mark)
        if start == end or text[start] in "{[":
            likely = likely or (start, end)
            if text[start:end][:1] == "{" and _is_json(text[start:end]):
                return start, end
    return likely or (0, len(text))


def _unwrap(text: str, start: int, mark: str) -> tuple[int, int]:
    """Return the span of a reply's end without blanks and without the code block around it."""
    end = len(text)
    while start < end and text[end - 1] in _BLANK:
        end -= 1
    # A mark after a JSON object or its code block cannot belong to either. Only the end of a text
    # is searched, which may be long and have thousands of marks.
    tail = text[max(start, end - _LONGEST_MARK) : end]
    if re.fullmatch(FINAL, mark, re.I) or _ENDS_WITH_MARK.search(tail):
        end -= len(tail) - len(strip_end_mark(tail).rstrip(_BLANK))
    while start < end and text[start] in _BLANK:
        start += 1
    if block := _CODE_BLOCK.fullmatch(text, start, end):
        start, end = block.span("inner")
    while start < end and text[start] in _BLANK:
        start += 1
    return start, end


def is_thinking(text: str) -> bool:
    """Return whether a text is a model's thinking with nothing after it."""
    if THINKING_END.search(text) is None:
        return THINKING_START.match(text) is not None
    start, end = object_span(text)
    return start == end


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    # It is JSON, with a number or a depth that Python refuses.
    except (ValueError, RecursionError):
        return True
    return True


def _rationale(value: Any, rubric: Rubric) -> str:
    if not isinstance(value, str):
        raise Refusal("schema", "rationale is not text")
    if len(value) > rubric.rationale_length:
        limit = rubric.rationale_length
        raise Refusal("schema", f"rationale of {len(value)} characters, {limit} allowed")
    try:
        value.encode()  # SQLite and Parquet store text as UTF-8
    except UnicodeEncodeError:
        raise Refusal("schema", "rationale holds half of a surrogate pair") from None
    return value


def _category(value: Any, rubric: Rubric) -> str:
    # The type first: looking up a list or object, which have no hash, would be a TypeError.
    if not isinstance(value, str) or value not in rubric.categories:
        raise Refusal("schema", f"category {value!r} is not in the rubric")
    return value


def _better(value: Any) -> str:
    if not isinstance(value, str) or value not in BETTER:
        raise Refusal("schema", f"better {value!r} is not one of {', '.join(BETTER)}")
    return value


def _score(name: str, value: Any, scale: Scale) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # JSON knows no integers: 7.0 is the integer 7
    if not isinstance(value, int) or isinstance(value, bool):  # in Python, True is an integer
        raise Refusal("schema", f"{name} {value!r} is not an integer")
    if not scale.min <= value <= scale.max:
        raise Refusal("schema", f"{name} {value} is outside {scale.min}-{scale.max}")
    return value
