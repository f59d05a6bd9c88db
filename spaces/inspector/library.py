"""Open data sets: the one of this Space, and public ones within limits.

The owner of the Space names its own data set, which may be a folder or private, and is read with
the Space's token. A data set that a visitor names must be a public repo on the Hub, is read without
a token, and must be within `Limits`. A visitor's name is never used as a path.
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

from dataset import Dataset, UnusableDataset
from loader import open_folder

# Owner and repo begin with a word character, so neither can be `..` or begin with a slash.
NAME = re.compile(r"[\w][\w.-]{0,95}/[\w][\w.-]{0,95}(@[\w][\w./-]{0,119})?")
NEEDED_FILES = re.compile(
    r"manifest\.json|rubric\.yaml|(data|annotations|schedules)/[\w.-]+\.parquet"
)


@dataclass(frozen=True)
class Limits:
    """Limits for data sets that visitors name.

    Attributes:
        packed: Largest size of all files, in bytes.
        unpacked: Largest size of all rows after decompression, in bytes.
        rows: Largest number of rows in all configs.
        open: Largest number of data sets that stay open, in addition to the Space's own.
    """

    packed: int = 500_000_000
    unpacked: int = 2_000_000_000
    rows: int = 3_000_000
    open: int = 3


class Library:
    """The data sets that are open, and the rules for opening more."""

    def __init__(self, own: str, demo: Path, limits: Limits | None = None) -> None:
        """Create a library without open data sets.

        Args:
            own: The Space's own data set, a folder or `org/name@revision`; empty for the demo.
            demo: Folder of the demo.
            limits: Limits for data sets that visitors name.
        """
        self._own, self._demo, self._limits = own, demo, limits or Limits()
        self._open_datasets: OrderedDict[str, Dataset] = OrderedDict()
        # Two locks, so that open data sets stay available while another one is being opened.
        self._table_lock, self._opening_lock = threading.Lock(), threading.Lock()

    def get(self, name: str) -> Dataset:
        """Return the data set with a name; the Space's own for an empty name.

        Raises:
            UnusableDataset: If the data set cannot be opened; visitors see the message.
        """
        name = name.strip()
        if name and name != self._own and not NAME.fullmatch(name):
            raise UnusableDataset("name a data set on the Hub: org/name, or org/name@revision")
        # The Space's own data set has one key, and is exempt from the limits for visitors.
        key = "" if name == self._own else name
        with self._table_lock:
            if key in self._open_datasets:
                self._open_datasets.move_to_end(key)
                return self._open_datasets[key]
        with self._opening_lock:  # one at a time, because opening takes the most memory
            # Another request may have opened it while this one waited for its turn.
            with self._table_lock:
                if key in self._open_datasets:
                    return self._open_datasets[key]
            dataset = self._open(key)
            with self._table_lock:
                self._open_datasets[key] = dataset
                # The key of the Space's own data set is empty: it is never closed.
                visitors = [name for name in self._open_datasets if name]
                for name in visitors[: max(0, len(visitors) - self._limits.open)]:
                    del self._open_datasets[name]
        return dataset

    def _open(self, key: str) -> Dataset:
        # Memory-mapped files stay readable after their deletion; the disk space is freed as soon as
        # the mapping is closed.
        with tempfile.TemporaryDirectory(prefix="inspector-") as name:
            scratch = Path(name)
            if key:
                return _download(key, scratch, self._limits)
            if not self._own:
                return open_folder(self._demo, scratch, name="the demo corpus", commit=None)
            if Path(self._own).is_dir():
                shown = Path(self._own).resolve().name
                return open_folder(Path(self._own), scratch, name=shown, commit=None)
            return _download(self._own, scratch, None)


def _download(text: str, scratch: Path, limits: Limits | None) -> Dataset:
    """Return a data set on the Hub at one commit; without limits, the Space's own."""
    # In `huggingface_hub`, None stands for the token of this process, and False for none at all.
    token = None if limits is None else False
    name, _, revision = text.partition("@")
    if not NAME.fullmatch(text):
        raise UnusableDataset(f"{text}: neither a folder nor a data set on the Hub")
    folder = scratch / "files"
    try:
        hub = HfApi(token=token)
        info = hub.dataset_info(name, revision=revision or None)
        # List and download at one commit: somebody may push to the repo meanwhile.
        tree = hub.list_repo_tree(name, revision=info.sha, recursive=True, repo_type="dataset")
        files = {
            entry.path: entry.size
            for entry in tree
            if isinstance(entry, RepoFile) and NEEDED_FILES.fullmatch(entry.path)
        }
        if "manifest.json" not in files:
            raise UnusableDataset(f"{text}: not a data set of sp2dpo (it has no manifest.json)")
        if limits is not None and sum(files.values()) > limits.packed:
            raise UnusableDataset(
                f"{text}: {sum(files.values()) / 1e6:,.0f} MB, but this Space opens at most "
                f"{limits.packed / 1e6:,.0f} MB for visitors: duplicate the Space, or run it "
                "yourself"
            )
        for file in files:
            # To the temporary folder, because nobody would empty the cache of the Hub's client.
            hf_hub_download(
                name, file, repo_type="dataset", revision=info.sha, token=token, local_dir=folder
            )
    except UnusableDataset:
        raise
    except (HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled, OSError) as error:
        raise UnusableDataset(
            f"{text}: the Hub has no public data set of that name, or cannot be reached"
        ) from error
    if limits is not None:
        _check_rows(text, folder, limits)
    return open_folder(folder, scratch, name=name, commit=info.sha)


def _check_rows(text: str, folder: Path, limits: Limits) -> None:
    """Refuse a data set that is too large when unpacked, according to the metadata of its files."""
    rows = unpacked = 0
    try:
        for path in folder.rglob("*.parquet"):
            with pq.ParquetFile(path) as file:
                rows += file.metadata.num_rows
                groups = range(file.metadata.num_row_groups)
                unpacked += sum(file.metadata.row_group(group).total_byte_size for group in groups)
    except (pa.ArrowException, OSError) as error:
        raise UnusableDataset(f"{text}: one of its files cannot be read") from error
    if rows > limits.rows or unpacked > limits.unpacked:
        raise UnusableDataset(
            f"{text}: {rows:,} rows, {unpacked / 1e6:,.0f} MB unpacked, but this Space opens "
            f"at most {limits.rows:,} rows and {limits.unpacked / 1e6:,.0f} MB for visitors"
        )


def own_data_set() -> str:
    """Return the name of the Space's own data set, from the variable SP2DPO_DATA."""
    name = os.environ.get("SP2DPO_DATA", "")
    return name if Path(name).is_dir() else name.strip()
