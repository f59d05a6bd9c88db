"""Read a data set, and record what a model was trained on: its revision, schedule and hashes."""

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import (
    Dataset,
    get_dataset_config_names,
    get_dataset_default_config_name,
    load_dataset,
)
from datasets.exceptions import DatasetsError
from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from sp2dpo.files import read_json_lines
from sp2dpo.hub import HubName, UnknownConfig
from sp2dpo.listing import (
    CONFIGS,
    MANIFEST,
    ForeignManifest,
    config_files,
    parse_keys,
    read_manifest_bytes,
)
from sp2dpo.tables import is_pattern, read_listed, read_parquet

logger = logging.getLogger(__name__)

_COMMIT = re.compile(r"[@/]([0-9a-f]{40})/")


def read_split(source: str, split: str, revision: str | None) -> Dataset:
    """Return one split of a file, of a folder or of a data set on the Hub.

    Raises:
        ValueError: If it cannot be read.
    """
    folder = Path(source)
    local = folder.exists()
    try:
        rows = _read_file(folder) if folder.is_file() else read_listed(folder) if local else None
        if rows is not None:
            _check_split(split)
            return rows
        if local and is_pattern(folder):
            raise ValueError(
                f"it has no {MANIFEST}, and the datasets library takes its path {folder.resolve()} "
                "for a pattern because of its special characters: rename or move the folder"
            )
        if local:
            return load_dataset(source, split=split)
        return _load_from_hub(source, split, revision)
    except StopIteration:  # `datasets` raises it for JSON files without a line
        raise ValueError(f"{source} has no rows: choose another data set or split") from None
    except UnknownConfig as error:
        raise ValueError(f"{source}: {error}") from error
    except (ValueError, OSError, DatasetsError) as error:
        where = (
            "cannot be read" if local else "is neither a file, a folder nor a data set on the Hub"
        )
        raise ValueError(f"{source} {where}: {error}") from error


def _check_split(split: str) -> None:
    if split != "train":
        raise ValueError(f"its only split is train, not {split}")


def _load_from_hub(source: str, split: str, revision: str | None) -> Dataset:
    name = HubName.parse(source)
    if name is None:  # `datasets` knows names without an organisation, too
        return load_dataset(source, split=split, revision=revision)
    for what, ours, others in (
        ("split", name.split, split if split != "train" else None),
        ("revision", name.revision, revision),
    ):
        if ours and others and ours != others:
            raise ValueError(f"it names the {what} {ours}, and the setting for it is {others}")
    split, revision = name.split or split, name.revision or revision
    rows = _read_listed_on_hub(replace(name, revision=revision))
    if rows is not None:
        _check_split(split)
        return rows
    try:
        return load_dataset(name.repo, name.config, split=split, revision=revision)
    except ValueError:
        # Either the config or the split is wrong; `datasets` does not say how to name a config.
        configs = get_dataset_config_names(name.repo, revision=revision)
        default = get_dataset_default_config_name(name.repo, revision=revision)
        if (name.config or default) not in configs:
            raise UnknownConfig(name, configs) from None
        raise


def _read_listed_on_hub(name: HubName) -> Dataset | None:
    """Return the rows of a data set of sp2dpo at one commit; None if it is not such a data set.

    `load_dataset` would read the files that the card names, whatever they are.
    """
    repo: dict[str, Any] = {"repo_id": name.repo, "repo_type": "dataset"}
    try:
        manifest = Path(hf_hub_download(filename=MANIFEST, revision=name.revision, **repo))
        files = parse_keys(read_manifest_bytes(manifest), where=MANIFEST)["files"]
    except LocalEntryNotFoundError:
        # If the Hub cannot be reached, nobody knows whether there is a manifest.
        if not constants.HF_HUB_OFFLINE:
            raise
        logger.warning(
            f"{name.repo}: offline, and its {MANIFEST} is not in the cache: if sp2dpo built it, its"
            " files are not compared with their hashes"
        )
        return None
    except (EntryNotFoundError, ForeignManifest):
        return None
    # The client names the folder after the commit, so that a later release mixes with no file.
    commit = manifest.parent.name
    config = name.config or "default"
    configs = [known for known in CONFIGS if config_files(files, known)]
    if config not in configs:
        raise UnknownConfig(name, configs)
    names = config_files(files, config)
    folder = snapshot_download(revision=commit, allow_patterns=[MANIFEST, *names], **repo)
    rows = read_listed(Path(folder), config)
    if rows is not None:
        # As `load_dataset` records where its files come from, for `trace_rows`.
        rows.info.download_checksums = {
            f"hf://datasets/{name.repo}@{commit}/{file}": {} for file in names
        }
    return rows


def _read_file(path: Path) -> Dataset:
    if path.suffix == ".parquet":
        return read_parquet([path])
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise ValueError("rows are read from .jsonl, .jsonl.gz and .parquet files")
    rows = [row for _, row in read_json_lines(path)]
    # Not `Dataset.from_list`, which takes the columns of the first row for those of all.
    columns = dict.fromkeys(key for row in rows for key in row)
    try:
        return Dataset.from_dict({key: [row.get(key) for row in rows] for key in columns})
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(f"the values of a column have no common type: {error}") from error


def display_name(source: str) -> str:
    """Return the name of a data set or a model; for a path, its last part."""
    return Path(source).resolve().name if Path(source).exists() else source


def hub_names(sources: Sequence[str]) -> list[str]:
    """Return the repos of the data sets that are on the Hub, each once, in order."""
    names = [HubName.parse(source) for source in sources if not Path(source).exists()]
    return list(dict.fromkeys(name.repo for name in names if name is not None))


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where the rows of a run come from, with hashes of their content.

    Attributes:
        dataset: Name of the data set; for a path, its last part.
        revision: Commit of a data set on the Hub if the cached files name it, else the revision
            that was requested; None for a path.
        pair_columns: The per-pair columns that are used.
        schedule: Schedule of the betas; None if the data set has no readable manifest.
        arm: Keys in which the arm differs from the schedule; None if there are none.
        manifest_sha256: Hash of the manifest; None if the data set has no readable manifest.
        columns_sha256: Hash of the used columns and the pair ids, in the order of the rows.
    """

    dataset: str
    revision: str | None
    pair_columns: list[str]
    schedule: Any
    arm: Any
    manifest_sha256: str | None
    columns_sha256: str


def trace_rows(
    source: str, revision: str | None, dataset: Dataset, columns: Sequence[str]
) -> Provenance:
    """Return where the rows come from.

    Args:
        source: A file, a folder, or the name of a data set on the Hub.
        revision: The revision that was requested on the Hub.
        dataset: The rows as they are trained on.
        columns: The per-pair columns that are used.
    """
    # `datasets` names the cache folder of a Hub data set after the commit.
    cached = [str(file["filename"]) for file in dataset.cache_files]
    commit = _COMMIT.search(" ".join([*map(str, dataset.info.download_checksums or {}), *cached]))
    if Path(source).exists():
        revision = None
    elif commit:
        revision = commit[1]
    else:
        name = HubName.parse(source)
        revision = (name.revision if name else None) or revision
    manifest = _read_manifest(source, revision)
    facts = _parse_manifest(manifest) if manifest else None
    names = [name for name in ("pair_id", *columns) if name in dataset.column_names]
    # Values and not files, so that equal columns in other Parquet files have the same hash.
    content = json.dumps([dataset[name][:] for name in names])
    return Provenance(
        dataset=display_name(source),
        revision=revision,
        pair_columns=list(columns),
        schedule=facts.get("schedule") if facts else None,
        arm=(facts.get("arm") or None) if facts else None,
        # Of the file's bytes, so that `sha256sum manifest.json` gives the same hash.
        manifest_sha256=hashlib.sha256(manifest).hexdigest() if manifest and facts else None,
        columns_sha256=hashlib.sha256(content.encode()).hexdigest(),
    )


def _parse_manifest(text: bytes) -> dict[str, Any] | None:
    """Return the keys of a manifest; None if it is not readable, since no result depends on it."""
    try:
        values = json.loads(text)
    except ValueError:
        return None
    return values if isinstance(values, dict) else None


def _read_manifest(source: str, revision: str | None) -> bytes | None:
    try:
        if Path(source).exists():
            return Path(source, MANIFEST).read_bytes()  # a file has none: NotADirectoryError
        name = HubName.parse(source)
        if name is None:
            return None
        path = hf_hub_download(name.repo, MANIFEST, revision=revision, repo_type="dataset")
        return Path(path).read_bytes()
    except (OSError, ValueError):  # no manifest, or the Hub cannot be reached
        return None
