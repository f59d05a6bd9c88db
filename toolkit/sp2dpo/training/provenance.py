"""Read a data set, and record what a model was trained on: its revision, schedule and hashes."""

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import (
    Dataset,
    IterableDataset,
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

_SHARDS = 64
"""Number of parts in which a stream of local rows is read."""
_COMMIT = re.compile(r"[@/]([0-9a-f]{40})/")
_HUB_FILE = re.compile(r"hf://datasets/([^/@]+/[^/@]+)@[0-9a-f]{40}/")
_HUB_CACHE = re.compile(r"/([^/]+)___([^/]+)/[^/]+/[^/]+/[0-9a-f]{40}/")


def read_split(
    source: str,
    split: str,
    revision: str | None,
    *,
    config: str | None = None,
    streaming: bool = False,
    **files: Any,
) -> Any:
    """Return one split of a file, of a folder or of a data set on the Hub.

    Args:
        source: The file, the folder or the name.
        split: The split.
        revision: Commit, tag or branch on the Hub.
        config: Name of the config; None for the default one, or the one in the name.
        streaming: Whether to return an IterableDataset. The files of a data set of sp2dpo are then
            downloaded and compared with their hashes all the same.
        files: `data_dir` and `data_files` of `load_dataset`, for a data set that is not sp2dpo's.

    Raises:
        ValueError: If it cannot be read.
    """
    folder = Path(source)
    local = folder.exists()
    options: dict[str, Any] = {key: value for key, value in files.items() if value is not None}
    if streaming:
        options["streaming"] = True
    try:
        if options.keys() - {"streaming"}:
            return load_dataset(source, config, split=split, revision=revision, **options)
        rows = _read_local(folder, config, streaming=streaming) if local else None
        if rows is not None:
            _check_split(split)
            return rows
        if local and is_pattern(folder):
            raise ValueError(
                f"it has no {MANIFEST}, and the datasets library takes its path {folder.resolve()} "
                "for a pattern because of its special characters: rename or move the folder"
            )
        if local:
            return load_dataset(source, config, split=split, **options)
        return _load_from_hub(source, split, revision, config, options)
    except StopIteration:  # `datasets` raises it for JSON files without a line
        raise ValueError(f"{source} has no rows: choose another data set or split") from None
    except UnknownConfig as error:
        raise ValueError(f"{source}: {error}") from error
    except (ValueError, OSError, DatasetsError) as error:
        where = (
            "cannot be read" if local else "is neither a file, a folder nor a data set on the Hub"
        )
        raise ValueError(f"{source} {where}: {error}") from error


def _read_local(path: Path, config: str | None, *, streaming: bool) -> Any:
    """Return the rows of a file, or of a folder of sp2dpo; None if it is another folder."""
    if path.is_file() and streaming and path.suffix != ".parquet":
        _check_suffix(path)
        return IterableDataset.from_generator(_json_rows, gen_kwargs={"path": str(path)})
    rows = _read_file(path) if path.is_file() else read_listed(path, config or "default")
    return _as_stream(rows) if streaming and rows is not None else rows


def _json_rows(path: str) -> Iterator[dict[str, Any]]:
    for _, row in read_json_lines(Path(path)):
        yield row


def _as_stream(rows: Dataset) -> IterableDataset:
    """Return the rows as a stream, in parts that several workers can read."""
    return rows.to_iterable_dataset(num_shards=max(1, min(_SHARDS, len(rows))))


def _check_split(split: str) -> None:
    if split != "train":
        raise ValueError(f"its only split is train, not {split}")


def _load_from_hub(
    source: str, split: str, revision: str | None, config: str | None, options: dict[str, Any]
) -> Any:
    name = HubName.parse(source)
    if name is None:  # `datasets` knows names without an organisation, too
        return load_dataset(source, config, split=split, revision=revision, **options)
    for what, ours, others in (
        ("config", name.config, config),
        ("split", name.split, split if split != "train" else None),
        ("revision", name.revision, revision),
    ):
        if ours and others and ours != others:
            raise ValueError(f"it names the {what} {ours}, and the setting for it is {others}")
    split, revision = name.split or split, name.revision or revision
    name = replace(name, config=name.config or config)
    rows = _read_listed_on_hub(replace(name, revision=revision))
    if rows is not None:
        _check_split(split)
        return _as_stream(rows) if options else rows
    try:
        return load_dataset(name.repo, name.config, split=split, revision=revision, **options)
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
    _check_suffix(path)
    rows = [row for _, row in read_json_lines(path)]
    # Not `Dataset.from_list`, which takes the columns of the first row for those of all.
    columns = dict.fromkeys(key for row in rows for key in row)
    try:
        return Dataset.from_dict({key: [row.get(key) for row in rows] for key in columns})
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(f"the values of a column have no common type: {error}") from error


def _check_suffix(path: Path) -> None:
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise ValueError("rows are read from .jsonl, .jsonl.gz and .parquet files")


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
        columns_sha256: Hash of the used columns and the pair ids, in the order of the rows; None
            for a stream.
        fingerprint: Fingerprint that the `datasets` library gives to the rows as they were read;
            None for a stream.
    """

    dataset: str
    revision: str | None
    pair_columns: list[str]
    schedule: Any
    arm: Any
    manifest_sha256: str | None
    columns_sha256: str | None
    fingerprint: str | None


def trace_rows(
    source: str,
    revision: str | None,
    dataset: Any,
    columns: Sequence[str],
    *,
    read: Any = None,
) -> Provenance:
    """Return where the rows come from.

    Args:
        source: A file, a folder, or the name of a data set on the Hub.
        revision: The revision that was requested on the Hub.
        dataset: The rows as they are trained on.
        columns: The per-pair columns that are used.
        read: The rows as they were read; None if they are the same.
    """
    read = dataset if read is None else read
    stream = not isinstance(read, Dataset)
    # `datasets` names the cache folder of a Hub data set after the commit.
    cached = [] if stream else [str(file["filename"]) for file in read.cache_files]
    commit = _COMMIT.search(" ".join([*map(str, read.info.download_checksums or {}), *cached]))
    if Path(source).exists():
        revision = None
    elif commit:
        revision = commit[1]
    else:
        name = HubName.parse(source)
        revision = (name.revision if name else None) or revision
    manifest = _read_manifest(source, revision)
    facts = _parse_manifest(manifest) if manifest else None
    return Provenance(
        dataset=display_name(source),
        revision=revision,
        pair_columns=list(columns),
        schedule=facts.get("schedule") if facts else None,
        arm=(facts.get("arm") or None) if facts else None,
        # Of the file's bytes, so that `sha256sum manifest.json` gives the same hash.
        manifest_sha256=hashlib.sha256(manifest).hexdigest() if manifest and facts else None,
        columns_sha256=hash_columns(dataset, columns),
        fingerprint=None if stream else read._fingerprint,
    )


def trace_loaded(read: Any, trained: Any, columns: Sequence[str]) -> dict[str, Any]:
    """Return what is known of rows that a script has loaded itself, as `data` on a card.

    `load_dataset` notes the repo and the commit of a data set on the Hub, and of a local folder the
    name alone.

    Args:
        read: The data set that a trainer was given.
        trained: The rows that it trains on.
        columns: The per-pair columns that are used.
    """
    rows = {
        name: len(each)
        for name, each in (("available", read), ("used", trained))
        if isinstance(each, Dataset)
    }
    name = _loaded_name(read)
    if name is not None and "/" in name:
        return asdict(trace_rows(name, None, trained, columns, read=read)) | {"rows": rows}
    facts: dict[str, Any] = {"dataset": name} if name else {}
    facts |= {"pair_columns": list(columns), "columns_sha256": hash_columns(trained, columns)}
    return facts | {"fingerprint": getattr(read, "_fingerprint", None), "rows": rows}


def _hub_name(file: str) -> str | None:
    """Return the data set on the Hub that a downloaded or cached file is of; None if of none."""
    if downloaded := _HUB_FILE.search(file):
        return downloaded[1]
    cached = _HUB_CACHE.search(file)
    return f"{cached[1]}/{cached[2]}" if cached else None


def _loaded_name(rows: Any) -> str | None:
    """Return the name of a loaded data set, `org/name` of one on the Hub.

    None if it has no name, or if its rows are of several data sets.
    """
    info = getattr(rows, "info", None)
    if info is None:
        return None
    cached = [str(file["filename"]) for file in getattr(rows, "cache_files", [])]
    files = [*map(str, info.download_checksums or {}), *cached]
    names = {_hub_name(file) for file in files}
    if names - {None}:
        return names.pop() if len(names) == 1 else None
    # Rows of a file have the name of the format, and those of a generator that of the class.
    name = info.dataset_name
    return None if name in (info.builder_name, "generator") else name


def hash_columns(dataset: Any, columns: Sequence[str]) -> str | None:
    """Return the SHA-256 of these columns and the pair ids, in the order of the rows.

    None for a stream, whose rows are not known.
    """
    if not isinstance(dataset, Dataset):
        return None
    names = [name for name in ("pair_id", *columns) if name in dataset.column_names]
    # Values and not files, so that equal columns in other Parquet files have the same hash.
    content = json.dumps([dataset[name][:] for name in names])
    return hashlib.sha256(content.encode()).hexdigest()


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
