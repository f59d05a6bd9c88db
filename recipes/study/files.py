"""Read YAML files with checked keys, and write files atomically."""

import difflib
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        ValueError: If the file is not YAML, or not a mapping.
        OSError: If the file cannot be read.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: must be a mapping, not {type(values).__name__}")
    return values


def check_keys(
    where: str,
    values: Mapping[str, Any],
    *,
    required: Collection[str],
    optional: Collection[str] = (),
) -> None:
    """Refuse unknown and missing keys, all of them in one message.

    Raises:
        ValueError: If there are any, with `where` and the nearest known key for each unknown one.
    """
    keys = [*required, *optional]
    problems = [
        f"unknown key {key!r}{did_you_mean(key, keys)}" for key in values if key not in keys
    ]
    problems += [f"missing key {key!r}" for key in required if key not in values]
    if problems:
        raise ValueError(f"{where}: {'; '.join(problems)} (known: {', '.join(keys)})")


def did_you_mean(word: object, known: Collection[str]) -> str:
    """Return `, did you mean ...?` with the nearest known word; empty if none is near."""
    near = difflib.get_close_matches(str(word), known, n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def write_text(path: Path, text: str) -> None:
    """Write a file atomically, so that an interruption never leaves an incomplete file."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
