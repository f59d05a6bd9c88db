"""The manifest of a data set: what it is made from, and the SHA-256 of every file in it.

Of the card, which people write on too, it holds the SHA-256 of the part that is ours.
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
"""Config -> the folder of its files."""


def fingerprint(path: Path) -> dict[str, Any]:
    """The SHA-256 of a file and its size in bytes."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "bytes": path.stat().st_size}


def write_manifest(facts: Mapping[str, Any]) -> str:
    """The text of a manifest."""
    return json.dumps(facts, indent=2, ensure_ascii=False) + "\n"


def read_manifest(text: str | bytes, *, where: str) -> dict[str, Any]:
    """What a manifest says.

    Args:
        text: of the file.
        where: for messages.

    Raises:
        ValueError: it is none of ours, or of another format.
    """
    try:
        facts = json.loads(text)
        named = facts["toolkit"]["name"] == "sp2dpo"
        if facts["format"] != FORMAT and named:
            raise ValueError(
                f"{where}: a manifest of format {facts['format']}, and this is sp2dpo for format "
                f"{FORMAT}: use the release of sp2dpo that made it ({facts['toolkit']['version']})"
            )
        _check(facts["files"])
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{where}: not the manifest of a data set of ours") from error
    if not named:
        raise ValueError(f"{where}: not the manifest of a data set of ours")
    return facts


def _check(files: Mapping[str, Any]) -> None:
    """Refuses names that lead out of the folder."""
    for name, facts in files.items():
        path = Path(name)
        if path.is_absolute() or ".." in path.parts or not isinstance(facts["sha256"], str):
            raise KeyError(name)


def listed_files(facts: Mapping[str, Any], config: str) -> list[str]:
    """The names of a config's files, in the order of their rows."""
    return sorted(name for name in facts["files"] if name.startswith(f"{CONFIGS[config]}/"))
