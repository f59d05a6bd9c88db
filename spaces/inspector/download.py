"""Download the files of a data set on the Hub: those that its manifest lists, and no others."""

import shutil
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
)
from huggingface_hub.hf_api import RepoFile

from documents import MANIFEST, MAX_MANIFEST, read_manifest
from errors import UnusableDataset

_PATHS_AT_ONCE = 100
"""Number of files whose sizes one request asks for."""
_FREE_DISK = 1_000_000_000
"""Bytes of the disk that a download leaves free, for the uncompressed copies of other data sets."""


def download(
    text: str,
    folder: Path,
    *,
    most: int | None,
    token: bool | None,
    notify: Callable[[], None],
) -> str:
    """Download a data set at one commit; return the commit.

    Args:
        text: `org/name` or `org/name@revision`.
        folder: Where the files go.
        most: Largest size of all files, in bytes; None for any size.
        token: False to read without a token; None for the token of this process.
        notify: Called when the Hub has answered what the data set consists of.

    Raises:
        UnusableDataset: There is no such data set, it is too large, or the Hub does not answer.
    """
    name, _, revision = text.partition("@")
    with _hub_errors(text):
        hub = HfApi(token=token)
        info = hub.dataset_info(name, revision=revision or None)
        # At one commit: somebody may push to the repo meanwhile.
        commit = info.sha or ""
        where: dict[str, Any] = {"repo_type": "dataset", "revision": commit}

        def fetch(path: str) -> None:
            # To the temporary folder, because nobody would empty the cache of the Hub's client.
            hf_hub_download(name, path, token=token, local_dir=folder, **where)

        def sizes(paths: list[str]) -> dict[str, int]:
            entries = [
                entry
                for start in range(0, len(paths), _PATHS_AT_ONCE)
                for entry in hub.get_paths_info(
                    name, paths[start : start + _PATHS_AT_ONCE], **where
                )
            ]
            return {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}

        size = sizes([MANIFEST]).get(MANIFEST)
        if size is None:
            raise UnusableDataset(f"{text}: not a data set of sp2dpo (it has no {MANIFEST})")
        if size > MAX_MANIFEST:
            raise UnusableDataset(
                f"{text}: its {MANIFEST} is larger than {MAX_MANIFEST / 1e6:,.0f} MB"
            )
        fetch(MANIFEST)
        files = _listed_sizes(text, folder)
        _check_sizes(text, files, sizes(list(files)), most)
        free = shutil.disk_usage(folder).free - sum(files.values())
        if free < _FREE_DISK:
            raise UnusableDataset(f"{text}: the disk of this Space has no room for it")
        notify()
        for path in files:
            fetch(path)
    return commit


def _listed_sizes(text: str, folder: Path) -> dict[str, int]:
    try:
        manifest = read_manifest(folder)
    except UnusableDataset as error:
        raise UnusableDataset(f"{text}: {error}") from None
    return {path: fingerprint.bytes for path, fingerprint in manifest.files.items()}


def _check_sizes(
    text: str, listed: Mapping[str, int], stored: Mapping[str, int], most: int | None
) -> None:
    """Refuse a repo whose files are not those of its manifest, or are too large."""
    for path, size in listed.items():
        if stored.get(path) != size:
            raise UnusableDataset(
                f"{text}: {path} is missing, or has another size than {MANIFEST} says"
            )
    total = sum(listed.values())
    if most is not None and total > most:
        raise UnusableDataset(
            f"{text}: {total / 1e6:,.0f} MB, but this Space opens at most {most / 1e6:,.0f} MB for "
            "visitors: duplicate the Space, or run it yourself"
        )


@contextmanager
def _hub_errors(text: str) -> Any:
    try:
        yield
    except (HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled, OSError) as error:
        raise UnusableDataset(
            f"{text}: the Hub has no public data set of that name, or cannot be reached"
        ) from error
