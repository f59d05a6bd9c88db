"""Which data sets may be opened, and by whom: the Space's own, and public ones up to a size.

The data set that the Space is for is named by its owner, may be a folder or private, and is read
with the Space's token. One that a visitor names is a public repo of the Hub, read without any
token, and neither larger on the disk nor longer than `Limits` says. No name is ever a path.
"""

import os
import re
import tempfile
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
)
from huggingface_hub.hf_api import RepoFile

from corpus import Corpus, Unusable
from reading import open_folder

NAME = re.compile(r"[\w][\w.-]{0,95}/[\w][\w.-]{0,95}(@[\w][\w./-]{0,119})?")
WANTED = re.compile(r"manifest\.json|rubric\.yaml|(data|annotations|schedules)/[\w.-]+\.parquet")


@dataclass(frozen=True)
class Limits:
    """What a visitor's data set may be.

    Attributes:
        packed: bytes of its files.
        unpacked: bytes of its rows.
        rows: of all its configs.
        open: data sets that stay open at a time, beside the Space's own.
    """

    packed: int = 500_000_000
    unpacked: int = 2_000_000_000
    rows: int = 3_000_000
    open: int = 3


class Library:
    """The data sets that are open."""

    def __init__(self, own: str, demo: Path, limits: Limits | None = None) -> None:
        """A library.

        Args:
            own: the data set that the Space is for: a folder or `org/name@revision`; empty: the
                demo.
            demo: the folder of the demo.
            limits: for what visitors name.
        """
        self._own, self._demo, self._limits = own, demo, limits or Limits()
        self._held: OrderedDict[str, Corpus] = OrderedDict()
        self._changing, self._opening = threading.Lock(), threading.Lock()

    def get(self, name: str) -> Corpus:
        """The data set of that name; the Space's own where it is empty.

        Raises:
            Unusable: it cannot be opened; the message is for people.
        """
        name = name.strip()
        if name and name != self._own and not NAME.fullmatch(name):
            raise Unusable("name a data set of the Hub: org/name, or org/name@revision")
        key = "" if name == self._own else name
        with self._changing:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        with self._opening:  # one at a time: opening is what takes memory
            with self._changing:
                if key in self._held:
                    return self._held[key]
            found = self._open(key)
            with self._changing:
                self._held[key] = found
                others = [one for one in self._held if one]
                for one in others[: max(0, len(others) - self._limits.open)]:
                    del self._held[one]
        return found

    def _open(self, key: str) -> Corpus:
        # What is mapped stays readable when its names are gone; its space is given back with it.
        with tempfile.TemporaryDirectory(prefix="inspector-") as name:
            scratch = Path(name)
            if key:
                return _fetched(key, scratch, self._limits)
            if not self._own:
                return open_folder(self._demo, scratch, name="the demo corpus", commit=None)
            if Path(self._own).is_dir():
                shown = Path(self._own).resolve().name
                return open_folder(Path(self._own), scratch, name=shown, commit=None)
            return _fetched(self._own, scratch, None)


def _fetched(text: str, scratch: Path, limits: Limits | None) -> Corpus:
    """A data set of the Hub at one commit: a visitor's, or, without limits, the Space's own."""
    token = None if limits is None else False
    name, _, revision = text.partition("@")
    if not NAME.fullmatch(text):
        raise Unusable(f"{text}: neither a folder nor a data set of the Hub")
    where = scratch / "files"
    try:
        hub = HfApi(token=token)
        info = hub.dataset_info(name, revision=revision or None)
        tree = hub.list_repo_tree(name, revision=info.sha, recursive=True, repo_type="dataset")
        files = {
            one.path: one.size
            for one in tree
            if isinstance(one, RepoFile) and WANTED.fullmatch(one.path)
        }
        if "manifest.json" not in files:
            raise Unusable(f"{text}: no data set of sp2dpo (it has no manifest.json)")
        if limits is not None and sum(files.values()) > limits.packed:
            raise Unusable(
                f"{text}: {sum(files.values()) / 1e6:,.0f} MB, and {limits.packed / 1e6:,.0f} MB "
                "are what this Space opens for visitors: duplicate it, or run it yourself"
            )
        for file in files:
            hf_hub_download(
                name, file, repo_type="dataset", revision=info.sha, token=token, local_dir=where
            )
    except Unusable:
        raise
    except (HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled, OSError) as error:
        raise Unusable(
            f"{text}: the Hub has no such data set that is public, or cannot be reached"
        ) from error
    if limits is not None:
        _check_rows(text, where, limits)
    return open_folder(where, scratch, name=name, commit=info.sha)


def _check_rows(text: str, folder: Path, limits: Limits) -> None:
    """Refuses what would not fit when it is unpacked, by what the files say of themselves."""
    rows = unpacked = 0
    try:
        for path in folder.rglob("*.parquet"):
            with pq.ParquetFile(path) as file:
                rows += file.metadata.num_rows
                groups = range(file.metadata.num_row_groups)
                unpacked += sum(file.metadata.row_group(one).total_byte_size for one in groups)
    except (pa.ArrowException, OSError) as error:
        raise Unusable(f"{text}: a file of it cannot be read") from error
    if rows > limits.rows or unpacked > limits.unpacked:
        raise Unusable(
            f"{text}: {rows:,} rows, {unpacked / 1e6:,.0f} MB unpacked, and this Space opens "
            f"{limits.rows:,} rows and {limits.unpacked / 1e6:,.0f} MB for visitors"
        )


def own_data_set() -> str:
    """What the Space is for: the variable SP2DPO_DATA."""
    return os.environ.get("SP2DPO_DATA", "").strip()
