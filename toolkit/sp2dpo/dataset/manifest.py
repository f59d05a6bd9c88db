"""Read and write the manifest of a data set: its origin, and the SHA-256 of every file in it.

Users may edit the card, so its SHA-256 covers only the generated part.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
FORMAT = 1
CARD, RUBRIC, SET_ASIDE = "README.md", "rubric.yaml", "set_aside.jsonl"
LABEL_NOISE, PICTURE = "label_noise.jsonl", "assets/betas.png"
CONFIGS = {"default": "data", "annotations": "annotations", "schedules": "schedules"}
"""Name of each config -> folder that contains its files."""


def fingerprint(path: Path) -> dict[str, Any]:
    """Return the SHA-256 and the size in bytes of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "bytes": path.stat().st_size}


def format_manifest(facts: Mapping[str, Any]) -> str:
    """Return the text of a manifest."""
    return json.dumps(facts, indent=2, ensure_ascii=False) + "\n"


def read_manifest(text: str | bytes, *, where: str) -> dict[str, Any]:
    """Parse a manifest.

    Args:
        text: Content of the file.
        where: Name of the file, for messages.

    Raises:
        ValueError: the file is not a manifest of sp2dpo, or has another format.
    """
    try:
        facts = json.loads(text)
        named = facts["toolkit"]["name"] == "sp2dpo"
        if facts["format"] != FORMAT and named:
            raise ValueError(
                f"{where}: a manifest of format {facts['format']}, but this sp2dpo reads format "
                f"{FORMAT}: use the release that wrote it, {facts['toolkit']['version']}"
            )
        _check(facts["files"])
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{where}: not the manifest of an sp2dpo data set") from error
    if not named:
        raise ValueError(f"{where}: not the manifest of an sp2dpo data set")
    return facts


def _check(files: Mapping[str, Any]) -> None:
    """Raise KeyError if a name points outside the folder or a hash is missing."""
    for name, facts in files.items():
        path = Path(name)
        if path.is_absolute() or ".." in path.parts or not isinstance(facts["sha256"], str):
            raise KeyError(name)


def listed_files(facts: Mapping[str, Any], config: str) -> list[str]:
    """Return the names of the files of a config, in the order of their rows."""
    return sorted(name for name in facts["files"] if name.startswith(f"{CONFIGS[config]}/"))
