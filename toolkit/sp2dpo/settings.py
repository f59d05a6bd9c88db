"""Check what people write in YAML files against pydantic models.

All problems of a file are reported in one error, each with its line and the path of its key.
"""

import difflib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema, ErrorDetails, InitErrorDetails, core_schema

from sp2dpo.text import canonical_json, shorten
from sp2dpo.yaml_files import EXPONENT, KINDS, Keys, YamlFile, type_name

_LONGEST_VALUE = 80
_MOST_PROBLEMS = 50  # problems in one message
_TYPE_ERRORS = {
    "bool_type": bool,
    "int_type": int,
    "float_type": float,
    "string_type": str,
    "list_type": list,
    "dict_type": dict,
    "model_type": dict,
}
"""pydantic's error types for values of the wrong type, with a description of the expected type."""
ABSENT: Any = None
"""Default value of a key that may be left out but must not be null."""


class Settings(BaseModel):
    """A YAML mapping: unknown keys are refused, and no value is converted to another type."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True
    )

    @classmethod
    def conflicts(cls, values: Mapping[str, Any]) -> Iterator[tuple[Keys, str]]:
        """Yield the problems that concern several keys: the path of a key, and the problem.

        Override it in place of an "after" validator, which pydantic runs only once every key is
        valid, so that its problem would not be reported together with the others.

        Args:
            values: The mapping as it is written; its values may be of any type.
        """
        yield from ()

    @model_validator(mode="wrap")
    @classmethod
    def _report_conflicts(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Validate, and report conflicts in the same error as problems of single keys."""
        problems = [
            InitErrorDetails(
                type="value_error", loc=keys, input=values, ctx={"error": ValueError(problem)}
            )
            for keys, problem in (cls.conflicts(values) if isinstance(values, dict) else ())
        ]
        try:
            settings = handler(values)
        except ValidationError as error:
            # pydantic takes only these four entries back; it creates the message and URL anew.
            problems += [
                InitErrorDetails(
                    type=detail["type"],
                    loc=detail["loc"],
                    input=detail["input"],
                    ctx=detail.get("ctx", {}),
                )
                for detail in error.errors(include_url=False)
            ]
        else:
            if not problems:
                return settings
        # Inside another model, pydantic prefixes the paths and adds these errors to its own.
        raise ValidationError.from_exception_data(cls.__name__, problems)


Model = TypeVar("Model", bound=Settings)


def validate(
    model: type[Model],
    values: Any,
    *,
    where: str,
    source: YamlFile | None = None,
    beside: Path | None = None,
) -> Model:
    """Check a mapping and return it as an instance of a model.

    Args:
        model: The model that describes the mapping.
        values: The mapping.
        where: File or place that the values come from, for messages.
        source: The file, if `values` is its complete content; messages then have line numbers.
        beside: Folder that relative paths in the values start from.

    Raises:
        ValueError: With every problem, one per line, as `FILE:LINE: key.path: problem`.
    """
    try:
        return model.model_validate(values, context={"beside": beside})
    except ValidationError as error:
        details = error.errors(include_url=False)
        # If the name of a key is not valid, report only that, not problems of its value.
        wrong_names = {detail["loc"][:-1] for detail in details if _is_name_error(detail)}
        schema = model.model_json_schema()
        shown = [
            detail
            for detail in details
            if _is_name_error(detail)
            or not any(detail["loc"][:end] in wrong_names for end in range(len(detail["loc"])))
        ]
        problems = [_problem(detail, schema) for detail in shown[:_MOST_PROBLEMS]]
        if source is None:
            lines = [f"{where}: {text}" for _, text in problems]
        else:
            numbered = sorted(
                ((source.line(keys), text) for keys, text in problems), key=lambda pair: pair[0]
            )
            lines = [f"{where}:{line}: {text}" for line, text in numbered]
        if len(shown) > _MOST_PROBLEMS:
            lines.append(f"{where}: and {len(shown) - _MOST_PROBLEMS} more problems")
        raise ValueError("\n".join(dict.fromkeys(lines))) from None


def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return a model's JSON Schema (draft 2020-12), which editors can use."""
    schema = model.model_json_schema()
    _drop_null_defaults(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _drop_null_defaults(schema: Any) -> None:
    # The default None means an absent key; in the schema, it would suggest that null is valid.
    for part in schema.values() if isinstance(schema, dict) else schema:
        if isinstance(part, dict) and part.get("default", ...) is None:
            del part["default"]
        if isinstance(part, dict | list):
            _drop_null_defaults(part)


def _problem(detail: ErrorDetails, schema: dict[str, Any]) -> tuple[Keys, str]:
    """Return where a problem is and its text, which begins with the path of its key."""
    kind, keys, value = detail["type"], detail["loc"], detail["input"]
    # pydantic calls a key invalid if it is not text, such as the number 1.
    if kind in ("extra_forbidden", "invalid_key"):
        known = list(_schema_at(schema, keys[:-1]).get("properties", {}))
        hint = did_you_mean(keys[-1], known) or f" (known: {', '.join(known)})"
        return keys, _at(keys[:-1], f"unknown key {keys[-1]!r}{hint}")
    if kind == "missing":
        return keys, _at(keys[:-1], f"missing key {keys[-1]!r}")
    if _is_name_error(detail):
        quotes = "" if isinstance(value, str) else ": put it in quotes"
        problem = f"the name {_show(value)} must be text of one line{quotes}"
        return keys[:-1], _at(keys[:-2], problem)
    if kind == "too_short":
        return keys, _at(keys, "is empty")
    if kind in _TYPE_ERRORS:
        nothing = " or nothing" if _takes_null(_schema_at(schema, keys)) else ""
        return keys, _at(keys, f"must be {KINDS[_TYPE_ERRORS[kind]]}{nothing}, not {_show(value)}")
    return keys, _at(keys, _message(detail))


def _is_name_error(detail: ErrorDetails) -> bool:
    # pydantic ends the path of an error in a key, not in its value, with this.
    return detail["loc"][-1:] == ("[key]",)


def _message(detail: ErrorDetails) -> str:
    error = detail.get("ctx", {}).get("error")
    return str(error) if error is not None else f"{detail['msg']}, not {_show(detail['input'])}"


def _at(keys: Keys, text: str) -> str:
    path = format_path(keys)
    return f"{path}: {text}" if path else text


def format_path(keys: Keys) -> str:
    """Return the path of a value as people write it: `teachers[0].sampling.seed`."""
    path = ""
    for key in keys:
        if isinstance(key, int):
            path += f"[{key}]"
        else:
            name = key if isinstance(key, str) and key.isprintable() else repr(key)
            path += f".{name}" if path else name
    return path


def _show(value: Any) -> str:
    return shorten(repr(value), _LONGEST_VALUE)


def _schema_at(schema: dict[str, Any], keys: Keys) -> dict[str, Any]:
    """Return the part of a JSON Schema that describes the value at a path; empty if none does."""
    part = _resolve(schema, schema)
    for key in keys:
        if isinstance(key, int):
            part = part.get("items", {})
        else:
            part = part.get("properties", {}).get(key) or part.get("additionalProperties") or {}
        part = _resolve(part, schema)
    return part


def _resolve(part: Any, schema: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(part, dict):
        return {}
    if "$ref" in part:
        return schema["$defs"][part["$ref"].rpartition("/")[2]]
    # A price has two forms; the keys of both are known.
    if "oneOf" in part:
        properties = [option.get("properties", {}) for option in part["oneOf"]]
        return {
            "properties": {key: value for option in properties for key, value in option.items()}
        }
    if len(part.get("allOf", ())) == 1:  # how older pydantic adds a description to a reference
        return _resolve(part["allOf"][0], schema)
    return part


def _takes_null(schema: dict[str, Any]) -> bool:
    return {"type": "null"} in schema.get("anyOf", ())


@dataclass(frozen=True, eq=False)
class Rule:
    """A check of one value, to annotate a key of a model with: `Annotated[float, number()]`.

    Attributes:
        check: Returns the value, or raises a ValueError with the rule and the value.
        schema: The rule as JSON Schema.
    """

    check: Callable[[Any], Any]
    schema: Mapping[str, Any]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Tell pydantic to validate by `check` alone."""
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Tell pydantic the JSON Schema."""
        return dict(self.schema)


@dataclass(frozen=True, eq=False)
class AsWritten:
    """Check a mapping against a model, but keep its order of keys and leave absent keys absent."""

    model: type[Settings]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Tell pydantic to validate by the model."""
        return core_schema.no_info_wrap_validator_function(
            _keep_input, handler.generate_schema(self.model)
        )


def _keep_input(value: Any, handler: Callable[[Any], Any]) -> Any:
    handler(value)
    return value


def rule(holds: Callable[[Any], bool], words: str, **schema: Any) -> Rule:
    """Return the rule that a value passes a predicate.

    Args:
        holds: The predicate; it must accept any value.
        words: What the value must be, for the message.
        schema: The same rule as JSON Schema.
    """

    def check(value: Any) -> Any:
        if not holds(value):
            hint = ""
            if "number" in words and isinstance(value, str) and EXPONENT.fullmatch(value):
                hint = ", which YAML reads as text: write it like 5.0e-7"
            raise ValueError(f"must be {words}, not {_show(value)}{hint}")
        return value

    return Rule(check, schema)


def number(
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    integer: bool = False,
) -> Rule:
    """Return the rule that a value is a finite number within limits; an int remains an int."""
    limits = {
        "above": (above, "exclusiveMinimum", lambda value: value > above),
        "at least": (least, "minimum", lambda value: value >= least),
        "below": (below, "exclusiveMaximum", lambda value: value < below),
        "at most": (most, "maximum", lambda value: value <= most),
    }
    set_limits = {words: limit for words, limit in limits.items() if limit[0] is not None}
    kind = "a whole number" if integer else "a number" if set_limits else "a finite number"
    words = ", ".join(f"{words} {limit[0]:g}" for words, limit in set_limits.items())
    words = f"of {words}" if words.startswith("at") else words

    def holds(value: Any) -> bool:
        # In Python a bool is an int.
        if isinstance(value, bool) or not isinstance(value, int if integer else int | float):
            return False
        # math.isfinite raises OverflowError for an int beyond the range of a float.
        finite = isinstance(value, int) or math.isfinite(value)
        return finite and all(holds(value) for _, _, holds in set_limits.values())

    return rule(
        holds,
        f"{kind} {words}".strip().replace("e+0", "e"),
        type="integer" if integer else "number",
        **{keyword: limit for limit, keyword, _ in set_limits.values()},
    )


def one_of(options: Sequence[str]) -> Rule:
    """Return the rule that a value is one of a few words."""

    def check(value: Any) -> Any:
        if value not in options:
            hint = did_you_mean(value, options)
            raise ValueError(f"{_show(value)} is not known{hint} (known: {', '.join(options)})")
        return value

    return Rule(check, {"enum": list(options)})


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and value == value.strip() != ""


NAME = rule(_is_name, "text of one line, without spaces around it", type="string", minLength=1)
"""Names appear in tables, file names and logs."""


def is_json(value: Any) -> bool:
    """Return whether a value can be written as JSON; dates, NaN and infinity cannot."""
    try:
        canonical_json(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def check_keys(
    where: str,
    config: Mapping[str, Any],
    *,
    required: Collection[str],
    optional: Collection[str] = (),
) -> None:
    """Refuse unknown and missing keys, all of them in one message.

    Raises:
        ValueError: If there are any, with the nearest known key for each unknown one.
    """
    problems = key_problems(config, required=required, optional=optional)
    if problems:
        raise ValueError(f"{where}: {problems}")


def key_problems(
    config: Mapping[str, Any], *, required: Collection[str], optional: Collection[str] = ()
) -> str:
    """Return all unknown and missing keys as the text of one message; empty if there are none."""
    if not isinstance(config, Mapping):
        return f"expected keys and values, not {type_name(config)}"
    # A key may be required in one case and optional in another, and so be in both.
    known = list(dict.fromkeys([*required, *optional]))
    problems = [
        f"unknown key {_show(key)}{did_you_mean(key, known)}"
        for key in islice((key for key in config if key not in known), _MOST_PROBLEMS)
    ]
    problems += [f"missing key {key!r}" for key in required if key not in config]
    return f"{'; '.join(problems)} (known: {', '.join(known)})" if problems else ""


def did_you_mean(word: object, known: Collection[str]) -> str:
    """Return `, did you mean ...?` with the nearest known word; empty if none is near."""
    near = difflib.get_close_matches(str(word), known, n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def check_type(where: str, key: str, value: Any, kind: type | tuple[type, ...]) -> None:
    """Refuse a value of the wrong type; a bool is not a number.

    Raises:
        ValueError: If the type is wrong, with the file, the key and the value.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        # "a number" includes whole numbers.
        listed = [option for option in kinds if not (option is int and float in kinds)]
        names = " or ".join(KINDS.get(option, option.__name__) for option in listed)
        raise ValueError(f"{where}: {key} must be {names}, not {value!r}")
