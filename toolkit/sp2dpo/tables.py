"""Read Parquet files as a data set of the `datasets` library, opened under their literal names.

`datasets.load_dataset` takes names for patterns: `[`, `*` and `?` match other files, `::` separates
archives, and `$` begins a variable. It then reads other files, or none.
"""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.builder import Key
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import Hasher
from datasets.table import table_cast

from sp2dpo.batches import open_parquet, read_batches
from sp2dpo.listing import (
    MANIFEST,
    ForeignManifest,
    config_files,
    find_difference,
    fingerprints,
    parse_keys,
    read_manifest_bytes,
)
from sp2dpo.text import one_line, shorten

_BATCH = 1000
"""Rows that are converted at a time."""


def read_parquet(paths: Sequence[Path], *, hashes: Sequence[str] | None = None) -> datasets.Dataset:
    """Return the rows of Parquet files with the same columns, in their order.

    The rows are converted to Arrow files in the cache of `datasets` once, and then mapped into
    memory.

    Args:
        paths: The files.
        hashes: SHA-256 of each file, if they are known: rows in the cache then belong to this
            content, whatever the names and times of the files are.

    Raises:
        ValueError: If a file is not a Parquet file, or its columns differ from the first one's.
        OSError: If a file cannot be read.
    """
    files = [str(path.absolute()) for path in paths]
    if not sum(map(count_rows, paths)):  # `datasets` has no builder for data without rows
        features = read_features(paths[0])
        table = features.arrow_schema.empty_table()
        return datasets.Dataset(table, datasets.DatasetInfo(features=features))
    # A changed file has another time, and is converted again.
    state: Any = [(each.st_mtime_ns, each.st_size) for each in map(Path.stat, paths)]
    key = [files, state] if hashes is None else list(hashes)
    builder = _ParquetFiles(
        dataset_name="sp2dpo",
        config_id=f"files-{Hasher.hash(key)}",
        hash="1",
        files=files,
    )
    try:
        builder.download_and_prepare()
    except DatasetGenerationError as error:
        problem = one_line(error.__cause__ or error)
        raise ValueError(f"{paths[0].parent}: its files cannot be read: {problem}") from error
    rows = builder.as_dataset(split="train")
    if not isinstance(rows, datasets.Dataset):
        raise TypeError("a split is a data set")
    return rows


def count_rows(path: Path) -> int:
    """Return the number of rows that a Parquet file states; raises like `read_features`."""
    try:
        return pq.read_metadata(path.absolute()).num_rows
    except pa.ArrowException as error:
        raise ValueError(f"{path}: not a readable Parquet file: {one_line(error)}") from error


def read_features(path: Path | str) -> datasets.Features:
    """Return the columns of a Parquet file.

    Raises:
        ValueError: It is not a Parquet file, its columns have no types of `datasets`, or two have
            one name.
        OSError: It cannot be read.
    """
    try:
        with open_parquet(path) as file:
            schema = file.metadata.schema.to_arrow_schema()
    except pa.ArrowException as error:
        raise ValueError(f"{path}: not a readable Parquet file: {one_line(error)}") from error
    return _features(schema, path)


def _features(schema: pa.Schema, path: Path | str) -> datasets.Features:
    try:
        return datasets.Features.from_arrow_schema(schema)
    # `datasets` checks nothing of the types that the metadata of a file name.
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path}: its metadata name no types of `datasets`: {shorten(str(error), 200)}"
        ) from error


def read_listed(folder: Path, config: str = "default") -> datasets.Dataset | None:
    """Return the rows of a config of a data set of sp2dpo: those of the files in its manifest.

    None if the folder has no manifest of sp2dpo.

    Raises:
        ValueError: If the manifest is damaged or lists no such config, or a file is not the one
            that the manifest lists.
        OSError: If a file cannot be read.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        files = fingerprints(parse_keys(read_manifest_bytes(path), where=str(path)))
    except ForeignManifest:
        return None
    names = config_files(files, config)
    if not names:
        raise ValueError(f"{path} lists no file of the config {config}")
    # The betas of other files than those that were verified would be trained on silently.
    for name in names:
        if difference := find_difference(folder / name, files[name], name=name):
            raise ValueError(f"{difference}: `sp2dpo verify` shows all differences")
    return read_parquet(
        [folder / name for name in names], hashes=[files[name].sha256 for name in names]
    )


def is_pattern(folder: Path) -> bool:
    """Return whether `datasets.load_dataset` would read other files than those in a folder."""
    text = str(folder.resolve())
    return glob.has_magic(text) or "::" in text or os.path.expandvars(text) != text


class _FilesConfig(datasets.BuilderConfig):
    """Settings of `_ParquetFiles`: the absolute paths of the files, as text."""

    def __init__(self, files: Sequence[str] = (), **more: Any) -> None:
        super().__init__(**more)
        self.files = list(files)


class _ParquetFiles(datasets.ArrowBasedBuilder):
    """Converts Parquet files to Arrow files as the builder of `datasets` does, by literal names."""

    BUILDER_CONFIG_CLASS = _FilesConfig
    config: Any  # a _FilesConfig; type checkers know the base class only

    # Names as text: `datasets` replaces `Path` in this module by a class that reads `::` as a mark.
    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=read_features(self.config.files[0]))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator("train", gen_kwargs={"files": self.config.files})]

    def _generate_tables(self, **kwargs: Any) -> Iterator[tuple[Any, pa.Table]]:
        features = self.info.features or datasets.Features()
        for number, path in enumerate(kwargs["files"]):
            for part, batch in enumerate(read_batches(path, rows=_BATCH)):
                table = table_cast(pa.Table.from_batches([batch]), features.arrow_schema)
                yield Key(number, part), table
