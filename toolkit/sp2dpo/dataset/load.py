"""Data sets of ours from the Hub or a folder: fetched at one commit, checked, loaded."""

from dataclasses import dataclass
from pathlib import Path

import datasets
from huggingface_hub import HfApi, hf_hub_download, snapshot_download

from sp2dpo.dataset.manifest import CARD, MANIFEST, listed_files, read_manifest
from sp2dpo.dataset.verify import Watch, is_consistent, verify_dataset
from sp2dpo.hub import hub_errors


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A data set on this disk.

    Attributes:
        name: the folder, or `org/name`.
        commit: of the repo; None for a folder.
        folder: where its files are.
    """

    name: str
    commit: str | None
    folder: Path

    def __str__(self) -> str:
        return f"{self.name} at {self.commit}" if self.commit else self.name


def fetch(text: str) -> Fetched:
    """The data set that a person names, all its files here.

    Args:
        text: a folder, `org/name`, or `org/name@revision` (a branch, a tag or a commit).

    Raises:
        ValueError: it is no data set of ours.
        OSError: there is none, or the Hub cannot be reached.
    """
    if Path(text).is_dir():
        return Fetched(name=text, commit=None, folder=Path(text))
    name, _, revision = text.partition("@")
    if name.count("/") != 1 or Path(text).exists():
        raise ValueError(f"{text}: neither a folder nor a data set on the Hub (org/name@revision)")
    with hub_errors(text):
        commit = HfApi().dataset_info(name, revision=revision or None).sha
        where = {"revision": commit, "repo_type": "dataset"}
        if MANIFEST not in HfApi().list_repo_files(name, **where):
            raise ValueError(f"it has no {MANIFEST}: sp2dpo did not publish it")
        manifest = Path(hf_hub_download(name, MANIFEST, **where))
        facts = read_manifest(manifest.read_bytes(), where=MANIFEST)
        wanted = [MANIFEST, CARD, *facts["files"]]
        folder = snapshot_download(name, **where, allow_patterns=wanted)
    return Fetched(name=name, commit=commit, folder=Path(folder))


def load_pairs(text: str, *, watch: Watch | None = None) -> datasets.Dataset:
    """The pairs of a data set of ours, after everything in it has been checked: see `verify`.

    Args:
        text: as `fetch`: `org/name@tag`.
        watch: shows progress.

    Returns:
        The rows of the config `default`.

    Raises:
        ValueError: it is not consistent, or no data set of ours.
        OSError: there is none, or the Hub cannot be reached.
    """
    fetched = fetch(text)
    checks = verify_dataset(fetched.folder, **({"watch": watch} if watch else {}))
    if not is_consistent(checks):
        wrong = "; ".join(f"{one.name}: {one.said}" for one in checks if not one.holds)
        raise ValueError(f"{fetched} is not consistent: {wrong}")
    facts = read_manifest((fetched.folder / MANIFEST).read_bytes(), where=MANIFEST)
    files = [str(fetched.folder / name) for name in listed_files(facts, "default")]
    rows = datasets.load_dataset("parquet", data_files={"train": files}, split="train")
    if not isinstance(rows, datasets.Dataset):
        raise TypeError("a split is a data set")
    return rows
