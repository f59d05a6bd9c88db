"""Read YAML files that people write, strictly, and check them against a pydantic model.

All problems of a file are reported in one error, each with its line and the path of its key.
"""

import difflib
import math
import re
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
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

from sp2dpo.files import check_regular, decode_text
from sp2dpo.text import canonical_json, one_line, shorten

_MERGE = "tag:yaml.org,2002:merge"  # `<<: *other`: keys written next to it take precedence
_LONGEST_VALUE = 80
LARGEST_YAML = 1_000_000
"""Maximum number of bytes of YAML; PyYAML takes seconds for each megabyte."""
MOST_NODES = 30_000
"""Maximum number of keys, values and list items of YAML, with each alias counted as the content
that it stands for: a few lines of nested aliases can stand for gigabytes."""
_LONGEST_NUMBER = 100  # characters; the time to read `1:1:1...` grows with the square of its length
_LARGEST_KEY = 1 << 60  # from here on, different integers may have the same hash
_MOST_PROBLEMS = 50  # problems in one message
_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "keys and values",
    type(None): "nothing",
}
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
# PyYAML follows YAML 1.1: a number with an exponent needs a dot and a sign, as in 5.0e-7.
_EXPONENT = re.compile(r"[-+]?[0-9.]+[eE][-+]?[0-9]+")
Keys = tuple[Any, ...]
"""Path of a value in a file: keys of mappings and indices of lists."""
ABSENT: Any = None
"""Default value of a key that may be left out but must not be null."""


_TAG = "tag:yaml.org,2002:"
_COLLECTIONS = (f"{_TAG}map", f"{_TAG}seq")
_NUMBERS = (f"{_TAG}int", f"{_TAG}float")


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys, values that a tag makes invalid, and huge documents.

    Args:
        text: The document.
        aliases: Whether aliases (`*name`) are read.
    """

    def __init__(self, text: str, *, aliases: bool) -> None:
        super().__init__(text)
        self._aliases = aliases
        self._read = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()
        if isinstance(event, yaml.AliasEvent) and not self._aliases:
            raise _refusal(
                event, f"the alias *{event.anchor}: files that come with data hold no aliases"
            )
        self._read += 1
        # While the document is read, so that no more of it is held.
        self._check_size(self._read, event)
        node: Any = super().compose_node(parent, index)
        # An alias inside its own anchor has no size yet: it would stand for endless content.
        if id(node) not in self._sizes and isinstance(event, yaml.AliasEvent):
            raise _refusal(event, f"the alias *{event.anchor} stands for content that contains it")
        if not isinstance(event, yaml.AliasEvent):
            self._sizes[id(node)] = self._size(node)
            self._check_size(self._sizes[id(node)], node)
            self._check_tag(node, event)
        return node

    def _size(self, node: Any) -> int:
        """Return the number of nodes that a node stands for."""
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        if isinstance(node, yaml.MappingNode):
            return 1 + sum(self._sizes[id(part)] for pair in parts for part in pair)
        return 1 + sum(self._sizes[id(part)] for part in parts)

    def _check_size(self, size: int, place: Any) -> None:
        if size > MOST_NODES:
            raise _refusal(
                place, f"more than {MOST_NODES:,} keys, values and items, with those of aliases"
            )

    def _check_tag(self, node: yaml.Node, event: Any) -> None:
        """Refuse a scalar that a tag does not fit: PyYAML fails with any exception."""
        if isinstance(node, yaml.CollectionNode):
            if node.tag not in _COLLECTIONS and node.tag.startswith(_TAG):
                raise _refusal(event, f"the tag !!{node.tag.removeprefix(_TAG)} is not read")
            return
        if node.tag in _NUMBERS and len(node.value) > _LONGEST_NUMBER:
            raise _refusal(event, f"a number of more than {_LONGEST_NUMBER} characters")
        implicit = self.resolve(yaml.ScalarNode, node.value, (True, False))
        fits = node.tag == f"{_TAG}str" or node.tag == implicit
        fits |= node.tag == f"{_TAG}float" and bool(_EXPONENT.fullmatch(node.value))
        if node.tag.startswith(_TAG) and not fits:
            kind = node.tag.removeprefix(_TAG)
            raise _refusal(event, f"{shorten(repr(node.value), 80)} is not read as !!{kind}")

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        # Read before the base class replaces each merge key by the entries that it stands for.
        written = [key for key, _ in node.value if key.tag != _MERGE]
        keys: set[Hashable] = set()
        for key_node in written:
            key: Any = self.construct_object(key_node, deep=deep)
            if not isinstance(key, Hashable):
                continue  # the base class reports it
            if isinstance(key, int) and abs(key) >= _LARGEST_KEY:
                raise _refusal(key_node, f"the key {key} is too large a number: put it in quotes")
            if key in keys:
                raise _refusal(key_node, f"key {shorten(str(key), 80)} is written twice")
            keys.add(key)
        return super().construct_mapping(node, deep=deep)


def _refusal(place: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, place.start_mark)


@dataclass(frozen=True, eq=False)
class YamlFile:
    """A YAML file that holds a mapping.

    Attributes:
        path: The file.
        values: Keys and values of the mapping.
        root: The file as PyYAML's node graph, which records where each key is written.
    """

    path: Path
    values: dict[str, Any]
    root: yaml.Node

    def line(self, keys: Keys) -> int:
        """Return the line, from 1, of a key or list item, or of the nearest parent in the file."""
        node, line = self.root, self.root.start_mark.line + 1
        for key in keys:
            child = _child(node, key)
            if child is None:
                break
            key_node, node = child
            line = key_node.start_mark.line + 1
        return line


def _child(node: yaml.Node, key: Any) -> tuple[yaml.Node, yaml.Node] | None:
    """Return the node that shows where an entry is written, and the node of its value."""
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int):
        item = node.value[key]
        return item, item
    if isinstance(node, yaml.MappingNode):
        # The loader puts merged entries first, so the last match is the one that counts.
        loader = yaml.SafeLoader("")  # one for all keys: there may be thousands
        for key_node, value_node in reversed(node.value):
            if _scalar(key_node, loader) == key:
                return key_node, value_node
    return None


def _scalar(node: yaml.Node, loader: yaml.SafeLoader) -> Any:
    if node.tag == f"{_TAG}str":
        return node.value
    # Keys are compared as values: YAML reads the key 1 as a number and the key on as a bool.
    return loader.construct_object(node, deep=True)


def read_yaml_file(path: Path, *, aliases: bool = True) -> YamlFile:
    """Read a YAML file, with the line of each key.

    Args:
        path: The file.
        aliases: Whether aliases (`*name`) are read; files that come with data need none.

    Raises:
        ValueError: If the file is not valid YAML (with line and column), not a mapping, or too
            large.
        OSError: If the file cannot be read.
    """
    if not aliases:  # a person may pass a pipe
        check_regular(path)
    with path.open("rb") as file:
        # One byte more than allowed shows that the file is larger, without reading all of it.
        content = file.read(LARGEST_YAML + 1)
    if len(content) > LARGEST_YAML:
        raise ValueError(f"{path}: larger than {LARGEST_YAML // 1_000_000} MB: not a settings file")
    text = decode_text(content, where=f"{path}: not valid YAML")
    values, root = parse_yaml(text, where=str(path), aliases=aliases)
    if root is None or not isinstance(values, dict):
        raise ValueError(f"{path}: expected keys and values, not {type_name(values)}")
    return YamlFile(path=path, values=values, root=root)


def parse_yaml(text: str, *, where: str, aliases: bool) -> tuple[Any, yaml.Node | None]:
    """Return the value of a YAML document, and its node graph; None and None if it is empty.

    Args:
        text: The document.
        where: Name of the file, with which messages begin.
        aliases: Whether aliases (`*name`) are read; documents that come with data need none.

    Raises:
        ValueError: If it is not valid YAML (with line and column), has a key twice, is larger than
            `LARGEST_YAML`, or has more than `MOST_NODES` nodes.
    """
    if len(text) > LARGEST_YAML:
        raise ValueError(f"{where}: larger than {LARGEST_YAML // 1_000_000} MB: not read as YAML")
    try:
        # In two steps, because yaml.load does not return the nodes, which know their lines.
        loader = _StrictLoader(text, aliases=aliases)
        root = loader.get_single_node()
        return None if root is None else loader.construct_document(root), root
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        # PyYAML splits some messages: "expected a single document", "but found another document".
        split = error.context and (error.problem or "").startswith("but ")
        problem = f"{error.context}, {error.problem}" if split else error.problem
        raise ValueError(f"{where}: not valid YAML{place}: {problem}") from error
    # PyYAML raises a plain ValueError for an impossible date such as 2026-13-45.
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{where}: not valid YAML: {one_line(error)}") from error
    except RecursionError as error:
        raise ValueError(f"{where}: nested too deeply") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; raises like `read_yaml_file`."""
    return read_yaml_file(path).values


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
        return keys, _at(keys, f"must be {_KINDS[_TYPE_ERRORS[kind]]}{nothing}, not {_show(value)}")
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
            if "number" in words and isinstance(value, str) and _EXPONENT.fullmatch(value):
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


def type_name(value: Any) -> str:
    """Return the type of a YAML or JSON value in words, for messages."""
    return _KINDS.get(type(value), type(value).__name__)


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
        names = " or ".join(_KINDS.get(option, option.__name__) for option in listed)
        raise ValueError(f"{where}: {key} must be {names}, not {value!r}")
