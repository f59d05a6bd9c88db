"""Read which files a data set of sp2dpo consists of, from its manifest, and check their hashes.

Everything that reads a data set reads exactly these files: others in the same folder or repo may
have been added by anybody.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sp2dpo.files import check_regular, parse_json_object, read_capped
from sp2dpo.text import escape_controls, shorten

MANIFEST = "manifest.json"
FORMAT = 1
CARD, RUBRIC, SET_ASIDE = "README.md", "rubric.yaml", "set_aside.jsonl"
LABEL_NOISE, PICTURE = "label_noise.jsonl", "assets/betas.png"
CONFIGS = {"default": "data", "annotations": "annotations", "schedules": "schedules"}
"""Name of each config -> folder that contains its files."""
LARGEST_MANIFEST = 8_000_000
"""Maximum number of bytes of a manifest: enough for 30,000 files of 100 to 300 MB each."""
LARGEST_CARD = 8_000_000
"""Maximum number of bytes of a card, which contains the rubric and the schedules."""
_MOST_COMMAS = 200_000  # which bounds the number of values, and of problems to report
_SINGLE = (RUBRIC, SET_ASIDE, LABEL_NOISE, PICTURE)
_PART = re.compile(
    rf"(?P<folder>{'|'.join(CONFIGS.values())})/train-(?P<number>[0-9]{{5}})-of-(?P<count>[0-9]{{5}})"
    r"\.parquet"
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_ENTRIES = 20_000
"""Maximum number of files in the folder of a data set."""
_SHOWN = 5
"""Maximum number of files in a message."""
_PEOPLES = (".md", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".pdf")
"""Endings of files that people may add: texts and pictures that the card shows or links."""
_PEOPLES_NAMES = ("license", "license.txt", "notice", "notice.txt", "citation.cff")
_LOADERS = (".huggingface.yaml",)
"""Hidden files that `datasets.load_dataset` reads."""


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """The SHA-256 and the size in bytes of a file."""

    sha256: str
    bytes: int


class ForeignManifest(ValueError):
    """A file with the name of a manifest that is not the manifest of an sp2dpo data set."""


class DamagedManifest(ValueError):
    """A manifest of sp2dpo in which keys are missing or have values of the wrong type."""


def compute_fingerprint(path: Path) -> Fingerprint:
    """Return the SHA-256 and the size of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Fingerprint(sha256=digest, bytes=path.stat().st_size)


def read_manifest_bytes(path: Path) -> bytes:
    """Return the content of a manifest.

    Raises:
        DamagedManifest: The file is larger than `LARGEST_MANIFEST`.
        OSError: The file cannot be read.
    """
    try:
        check_regular(path)
        return read_capped(path, LARGEST_MANIFEST)
    except ValueError as error:
        raise DamagedManifest(str(error)) from error


def parse_keys(text: bytes, *, where: str) -> dict[str, Any]:
    """Return the keys of a manifest; only its toolkit, format and list of files are checked.

    Args:
        text: Content of the file.
        where: Name of the file, for messages.

    Raises:
        DamagedManifest: It is a manifest of sp2dpo that cannot be read, or lists files that are
            not those of a data set.
        ForeignManifest: It is not a manifest of sp2dpo.
        ValueError: It has another format.
    """
    foreign = f"{where}: not the manifest of an sp2dpo data set"
    try:
        values = parse_json_object(text)
    except ValueError as error:
        # Cut off or overwritten in part, it still names the toolkit.
        if b'"sp2dpo"' in text:
            raise DamagedManifest(f"{where} is damaged: it {error}") from error
        raise ForeignManifest(foreign) from error
    if text.count(b",") > _MOST_COMMAS:
        raise DamagedManifest(f"{where} is damaged: it has more than {_MOST_COMMAS:,} values")
    toolkit, number = values.get("toolkit"), values.get("format")
    if not isinstance(toolkit, dict) or toolkit.get("name") != "sp2dpo":
        raise ForeignManifest(foreign)
    # Before the other keys are read: another format may have others.
    if type(number) is int and number != FORMAT:
        raise ValueError(
            f"{where}: a manifest of format {number}, but this sp2dpo reads format {FORMAT}: use "
            f"the release that wrote it, {shorten(str(toolkit.get('version')), 40)}"
        )
    if type(number) is not int:
        raise DamagedManifest(f"{where} is damaged: format: not a number")
    files = values.get("files")
    if not isinstance(files, dict):
        raise DamagedManifest(f"{where} is damaged: files: not an object of names and hashes")
    # A foreign manifest must not lead anything to files outside the folder.
    if any(PurePosixPath(name).is_absolute() or ".." in name.split("/") for name in files):
        raise ForeignManifest(foreign)
    if problem := _find_problem(files):
        raise DamagedManifest(f"{where} is damaged: files: {problem}")
    return values


def _find_problem(files: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the list of files; None if it could be that of a data set."""
    numbers: dict[str, list[tuple[int, int]]] = {folder: [] for folder in CONFIGS.values()}
    for name, facts in files.items():
        shown = escape_controls(shorten(name, 80))
        part = _PART.fullmatch(name)
        if part:
            numbers[part["folder"]].append((int(part["number"]), int(part["count"])))
        elif name not in _SINGLE:
            return f"`{shown}` is not a file of a data set"
        sha256 = facts.get("sha256") if isinstance(facts, dict) else None
        size = facts.get("bytes") if isinstance(facts, dict) else None
        if not isinstance(sha256, str):
            return f"{shown}: sha256: Input should be a valid string"
        if not _SHA256.fullmatch(sha256):
            return f"{shown}: sha256: not 64 hexadecimal digits"
        if type(size) is not int or size < 0:
            return f"{shown}: bytes: not a number of bytes"
    for config, folder in CONFIGS.items():
        count = len(numbers[folder])
        if sorted(numbers[folder]) != [(number, count) for number in range(count)]:
            return f"the numbers of the files in {folder}/ do not run from 0 to their count"
        if not count and config != "schedules":
            return f"no file of the config {config}"
    return None if RUBRIC in files else f"no {RUBRIC}"


def fingerprints(values: Mapping[str, Any]) -> dict[str, Fingerprint]:
    """Return the files of a manifest by their names; the argument is what `parse_keys` returns."""
    return {
        name: Fingerprint(sha256=facts["sha256"], bytes=facts["bytes"])
        for name, facts in values["files"].items()
    }


def config_files(names: Iterable[str], config: str) -> list[str]:
    """Return the names of the files of a config, in the order of their rows."""
    # The numbers in the names have leading zeros, so this is the order of the rows.
    return sorted(name for name in names if name.startswith(f"{CONFIGS[config]}/"))


def find_difference(path: Path, recorded: Fingerprint, *, name: str) -> str | None:
    """Return how a file differs from what the manifest states; None if it does not."""
    if not path.is_file():
        return f"{name} is missing"
    # The size first: hashing a file of any size takes any time.
    size = path.stat().st_size
    if size != recorded.bytes:
        return f"{name} has {size} bytes, the manifest states {recorded.bytes}"
    if compute_fingerprint(path).sha256 != recorded.sha256:
        return f"{name} has another SHA-256 than the manifest states ({path.resolve()})"
    return None


def list_folder(folder: Path) -> list[str]:
    """Return the names of all files below a folder, except those in hidden folders.

    Raises:
        ValueError: There are too many for a data set.
    """
    names: list[str] = []
    # With links, because `datasets` follows them too; loops end at the number of folders.
    for number, (place, folders, files) in enumerate(os.walk(folder, followlinks=True)):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [(Path(place) / name).relative_to(folder).as_posix() for name in files]
        if number + len(names) > _MOST_ENTRIES:
            raise ValueError(f"{folder}: more than {_MOST_ENTRIES:,} files: not a data set")
    return names


def find_unlisted(names: Iterable[str], listed: Iterable[str]) -> list[str]:
    """Return the files that the manifest does not list and that may hold data or settings.

    People may add texts and pictures, and files for git. Everything else could be read in place of
    the data set's own files: by `load_dataset`, or by somebody who opens all files of a folder.

    Args:
        names: All files of the folder or repo.
        listed: Files that the manifest lists.
    """
    own = {*listed, MANIFEST, CARD}
    return sorted(name for name in names if name not in own and _may_hold_data(name))


def _may_hold_data(name: str) -> bool:
    path = PurePosixPath(name)
    base = path.name.casefold()
    if base in _LOADERS:
        return True
    if any(part.startswith(".") for part in path.parts):
        return False  # `load_dataset` reads no other hidden file, and none in hidden folders
    if base == CARD.casefold():
        return True  # a second card in a folder, or in another case
    return not base.endswith(_PEOPLES) and base not in _PEOPLES_NAMES


def describe_unlisted(names: list[str]) -> str:
    """Return the message about files that the manifest does not list."""
    shown = ", ".join(escape_controls(shorten(name, 80)) for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"the manifest does not list {shown}{more}: move what is not part of the data set away"
