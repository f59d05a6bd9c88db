"""YAML files that people write, read strictly: unknown keys fail with the nearest known one."""

import difflib
from collections.abc import Collection, Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

_MERGE = "tag:yaml.org,2002:merge"  # `<<: *other`: what is written beside it wins

_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "keys and values",
    type(None): "nothing",
}


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice; YAML would keep the last one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        written = [key for key, _ in node.value if key.tag != _MERGE]
        keys = [self.construct_object(key, deep=deep) for key in written]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key} stands twice", written[index].start_mark
                )
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        ValueError: not YAML (with line and column) or not a mapping.
        OSError: the file cannot be read.
    """
    try:
        # The strict loader derives from SafeLoader.
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ValueError(f"{path}: not valid YAML{where}: {error.problem}") from error
    # ValueError: not UTF-8, or a date like 2026-13-45.
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected keys and values, found {type_name(value)}")
    return value


def type_name(value: Any) -> str:
    """What a value of YAML or JSON is, in words for people."""
    return _KINDS.get(type(value), type(value).__name__)


def check_keys(
    where: str,
    given: Mapping[str, Any],
    *,
    required: Collection[str],
    optional: Collection[str] = (),
) -> None:
    """Refuses unknown and missing keys, all of them in one message.

    Raises:
        ValueError: with the nearest known key for each unknown one.
    """
    known = list(dict.fromkeys([*required, *optional]))
    problems = [
        f"unknown key {key!r}{did_you_mean(key, known)}" for key in given if key not in known
    ]
    problems += [f"missing key {key!r}" for key in required if key not in given]
    if problems:
        raise ValueError(f"{where}: {'; '.join(problems)} (known: {', '.join(known)})")


def did_you_mean(word: object, known: Collection[str]) -> str:
    """A hint to append to an error: the known word nearest to the given one, if any is near."""
    near = difflib.get_close_matches(str(word), known, n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def check_type(where: str, key: str, value: Any, kind: type | tuple[type, ...]) -> None:
    """Refuses a value of the wrong type; a bool is no number.

    Raises:
        ValueError: naming the file, the key and the value.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wider = [one for one in kinds if not (one is int and float in kinds)]
        names = " or ".join(_KINDS.get(one, one.__name__) for one in wider)
        raise ValueError(f"{where}: {key} must be {names}, not {value!r}")


def check_name(where: str, key: str, name: Any) -> None:
    """Refuses what cannot stand for a thing in tables, files and logs.

    Raises:
        ValueError: no text, an empty one, or one with line ends, controls or spaces around it.
    """
    if not isinstance(name, str) or not name.isprintable() or not name or name != name.strip():
        raise ValueError(
            f"{where}: {key} {name!r} must be text of one line, without spaces around it"
        )
