"""Read the manifest and the rubric of a data set, which nobody has checked.

Both files are small and have a fixed form. They are read up to a size, and each value that the
inspector uses is checked; other keys are ignored.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from errors import UnusableDataset

MANIFEST, RUBRIC = "manifest.json", "rubric.yaml"
FORMAT = 1
MAX_MANIFEST, MAX_RUBRIC = 8_000_000, 1_000_000
"""Largest sizes in bytes, as `sp2dpo verify` has them."""
MAX_FILES = 2000
"""Largest number of files that are read: 1 TB in files of the size that `sp2dpo build` writes."""
MAX_DEPTH, MAX_NODES = 20, 30_000
"""Limits of a YAML document, which is the slowest to read."""
MAX_NAME, MAX_WORDS = 300, 20_000
"""Largest number of characters of a name, and of a text for people."""
# A category is one signed byte in the data for the page.
MAX_CATEGORIES, MAX_STEPS = 127, 256
CONFIGS = ("data", "annotations", "schedules")
_FILE = re.compile(rf"(?:{'|'.join(CONFIGS)})/\w[\w.-]*\.parquet", re.ASCII)
_SHA256 = re.compile("[0-9a-f]{64}")
_CHOICE = r"(?:\(\s*(?:[a-z0-9_]+\s*=\s*)?[-+.0-9e]{1,30}\s*\))?"
"""The parameter of a form or a map, such as `(m0=0.5)`."""

Rule = Callable[[Any, str], Any]
"""Returns a value if it is valid, and otherwise raises `UnusableDataset` with the given name."""


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """The SHA-256 and the size in bytes of a file."""

    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The part of a manifest that the inspector uses.

    Attributes:
        sha256: Hash of the file, which identifies the data set.
        facts: What the page shows of it.
        files: The rubric and the files of all configs, by name.
    """

    sha256: str
    facts: Mapping[str, Any]
    files: Mapping[str, Fingerprint]

    def config_files(self, config: str) -> list[str]:
        """Return the names of the files of a config, in the order of their rows."""
        return sorted(name for name in self.files if name.startswith(f"{config}/"))


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a data set.

    Raises:
        UnusableDataset: It is missing, too large, or not valid.
    """
    return parse_manifest(_read_file(folder / MANIFEST, MAX_MANIFEST))


def parse_manifest(content: bytes) -> Manifest:
    """Parse a manifest.

    Raises:
        UnusableDataset: It is not valid.
    """
    try:
        values = json.loads(
            content, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise UnusableDataset(f"{MANIFEST} is nested too deeply") from None
    except ValueError as error:
        raise UnusableDataset(f"{MANIFEST} is not valid JSON: {str(error)[:80]}") from None
    _check_origin(values)
    facts = _FACTS(values, MANIFEST)
    files = {}
    for name, fingerprint in facts.pop("files").items():
        if name == RUBRIC or _FILE.fullmatch(name):
            files[name] = Fingerprint(
                **_FINGERPRINT(fingerprint, f"{MANIFEST}, files, {name[:MAX_NAME]}")
            )
        elif name.startswith(tuple(f"{config}/" for config in CONFIGS)):
            _fail(
                "files", f"{name[:MAX_NAME]!r} is not a name of a file that `sp2dpo build` writes"
            )
    if len(files) > MAX_FILES:
        _fail(f"{MANIFEST}, files", f"has {len(files):,} files, and at most {MAX_FILES:,} are read")
    if RUBRIC not in files:
        _fail(f"{MANIFEST}, files", f"{RUBRIC} is missing")
    return Manifest(sha256=hashlib.sha256(content).hexdigest(), facts=facts, files=files)


def read_rubric(folder: Path) -> dict[str, Any]:
    """Return name, categories and scales of the rubric of a data set.

    Raises:
        UnusableDataset: It is missing, too large, or not valid.
    """
    content = _read_file(folder / RUBRIC, MAX_RUBRIC)
    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    try:
        _check_events(yaml.parse(content, Loader=loader))
        # All scalars stay texts: no date, number or tag of YAML can be out of its range.
        values = yaml.load(content, Loader=loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        first = " ".join(str(error).split())[:MAX_NAME]
        raise UnusableDataset(f"{RUBRIC} is not valid YAML: {first}") from None
    return _RUBRIC(values, RUBRIC)


def _read_file(path: Path, most: int) -> bytes:
    if not path.is_file():
        raise UnusableDataset(f"not a data set of sp2dpo (it has no {path.name})")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UnusableDataset(f"{path.name} is larger than {most / 1e6:,.0f} MB")
    return content


def _unique_keys(items: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(items)
    if len(values) < len(items):
        raise ValueError("an object has a key twice")
    return values


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number of JSON")


def _check_events(events: Iterator[Any]) -> None:
    """Refuse aliases, which expand to any size, and documents that are large or deep."""
    depth = nodes = 0
    for event in events:
        nodes += isinstance(event, yaml.NodeEvent)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise UnusableDataset(f"{RUBRIC} has an alias, which no rubric needs: write it out")
        if depth > MAX_DEPTH or nodes > MAX_NODES:
            raise UnusableDataset(
                f"{RUBRIC} has more than {MAX_NODES:,} values, or more than {MAX_DEPTH} levels"
            )


def _check_origin(values: Any) -> None:
    """Raise UnusableDataset if this is not a manifest of the format that the inspector reads."""
    toolkit = values.get("toolkit") if isinstance(values, dict) else None
    if not isinstance(toolkit, dict) or toolkit.get("name") != "sp2dpo":
        raise UnusableDataset(f"not a data set of sp2dpo (by its {MANIFEST})")
    number = values.get("format")
    if not isinstance(number, int) or number != FORMAT:
        raise UnusableDataset(
            f"a data set of format {str(number)[:20]}, and this inspector reads format {FORMAT}: "
            "use the release that wrote it"
        )


def _fail(where: str, problem: str) -> NoReturn:
    raise UnusableDataset(f"{where}: {problem}")


def _text(most: int = MAX_NAME, pattern: str = "(?s:.*)", what: str = "text") -> Rule:
    expression = re.compile(pattern)

    def check(value: Any, where: str) -> str:
        if not isinstance(value, str) or len(value) > most or not expression.fullmatch(value):
            _fail(where, f"must be a {what} of at most {most:,} characters")
        # JSON and YAML can spell half a character, which no answer to the page can contain.
        if any("\ud800" <= character <= "\udfff" for character in value):
            _fail(where, "is not valid Unicode")
        return value

    return check


def _number(least: float = -math.inf, most: float = math.inf, *, whole: bool = False) -> Rule:
    kinds = (int,) if whole else (int, float)

    def check(value: Any, where: str) -> Any:
        # True is an integer in Python.
        if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
            _fail(where, f"must be a {'whole ' if whole else ''}number, {least:g} to {most:g}")
        return value

    return check


def _digits(value: Any, where: str) -> int:
    """Return the integer that a text of YAML is."""
    return int(_text(6, "[+-]?[0-9]+", "whole number")(value, where))


def _optional(rule: Rule) -> Rule:
    return lambda value, where: None if value is None else rule(value, where)


def _items(rule: Rule, most: int) -> Rule:
    def check(value: Any, where: str) -> list[Any]:
        if not isinstance(value, list) or len(value) > most:
            _fail(where, f"must be a list of at most {most:,}")
        return [rule(item, f"{where}, {number}") for number, item in enumerate(value, 1)]

    return check


def _named(rule: Rule, most: int, *, longest: int = MAX_NAME) -> Rule:
    name = _text(longest, what="name")

    def check(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict) or len(value) > most:
            _fail(where, f"must be an object of at most {most:,} keys")
        return {name(key, where): rule(item, f"{where}, {key}") for key, item in value.items()}

    return check


def _record(needed: Mapping[str, Rule], other: Mapping[str, Rule] | None = None) -> Rule:
    """Return a rule for an object, which keeps only these keys; the others may be missing."""

    def check(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            _fail(where, "must be an object")
        for key in needed:
            if key not in value:
                _fail(f"{where}, {key}", "is missing")
        rules = {**needed, **{key: rule for key, rule in (other or {}).items() if key in value}}
        return {key: rule(value[key], f"{where}, {key}") for key, rule in rules.items()}

    return check


def _anything(value: Any, where: str) -> Any:
    return value


_WORDS = _optional(_text(MAX_WORDS))
_COUNT = _number(0, 2**53, whole=True)
_BETA = _number(0, 1e6)
_ENVELOPE: dict[str, Rule] = {"beta_min": _BETA, "beta_max": _BETA}
_SCHEDULE = _record(
    _ENVELOPE
    | {
        "quorum": _number(1, 2**53, whole=True),
        "estimate": _text(pattern="sampled|expected", what="way to read scores"),
        "gap": _text(pattern=f"(?:product|magnitude|shrink|signed){_CHOICE}", what="gap form"),
        "over_variants": _text(),
        "over_teachers": _text(),
        "map": _text(pattern=f"(?:linear|log-linear|power|quantile){_CHOICE}", what="map"),
    },
    {"envelopes": _named(_record(_ENVELOPE), MAX_CATEGORIES)},
)
_TEACHER = _record(
    {"name": _text()},
    {"model": _WORDS, "kept": _COUNT, "refused": _named(_COUNT, 1000, longest=MAX_WORDS)},
)
_ALPHA = _optional(_record({}, {"value": _optional(_number(-1e6, 1e6))}))
_CHECK = _record({"verdict": _WORDS, "title": _WORDS})


def _key_of_arm(value: Any, where: str) -> str:
    """Return the value of a key of an arm as the page shows it."""
    text = value if isinstance(value, str) else json.dumps(value)
    return str(_text(MAX_WORDS)(text, where))


_FACTS = _record(
    {
        "rubric": _record(
            {
                "sha256": _text(pattern=_SHA256.pattern, what="SHA-256"),
                "protocol": _text(pattern="labelled|blind", what="protocol"),
            }
        ),
        "schedule": _SCHEDULE,
        "teachers": _items(_TEACHER, 1000),
        "files": _named(_anything, 100_000, longest=MAX_WORDS),
    },
    {
        "toolkit": _record({}, {"version": _WORDS}),
        "source": _record({}, {"name": _WORDS, "revision": _WORDS}),
        "license": _WORDS,
        "arm": _named(_key_of_arm, 100, longest=MAX_WORDS),
        "agreement": _optional(_record({}, {"teachers": _optional(_named(_ALPHA, 100))})),
        "audit": _optional(_record({}, {"checks": _items(_CHECK, 100)})),
    },
)
_FINGERPRINT = _record({"sha256": _text(pattern=_SHA256.pattern, what="SHA-256"), "bytes": _COUNT})
_SCALE = _record({"min": _digits, "max": _digits})


def _scale(value: Any, where: str) -> dict[str, int]:
    scale = _SCALE(value, where)
    if not 0 < scale["max"] - scale["min"] < MAX_STEPS:
        _fail(where, f"must be a scale of 2 to {MAX_STEPS} steps")
    return scale


_RUBRIC = _record(
    {
        "name": _text(),
        "categories": _named(_text(MAX_WORDS), MAX_CATEGORIES),
        "magnitude": _scale,
        "confidence": _scale,
    }
)
