"""Read Parquet files as a data set of the `datasets` library, opened under their literal names.

`datasets.load_dataset` takes names for patterns: `[`, `*` and `?` match other files, `::` separates
archives, and `$` begins a variable. It then reads other files, or none.
"""

import glob
import json
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

from sp2dpo.text import one_line

MANIFEST = "manifest.json"


def read_parquet(paths: Sequence[Path]) -> datasets.Dataset:
    """Return the rows of Parquet files with the same columns, in their order.

    The rows are converted to Arrow files in the cache of `datasets` once, and then mapped into
    memory.

    Raises:
        ValueError: If a file is not a Parquet file, or its columns differ from the first one's.
        OSError: If a file cannot be read.
    """
    files = [str(path.absolute()) for path in paths]
    if not sum(map(_count_rows, paths)):  # `datasets` has no builder for data without rows
        schema = pq.read_schema(files[0])
        return datasets.Dataset(
            schema.empty_table(), datasets.DatasetInfo(features=_features(schema))
        )
    # A changed file has another time, and is converted again.
    state = [(each.st_mtime_ns, each.st_size) for each in map(Path.stat, paths)]
    builder = _ParquetFiles(
        dataset_name="sp2dpo",
        config_id=f"files-{Hasher.hash([files, state])}",
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


def _count_rows(path: Path) -> int:
    try:
        return pq.read_metadata(path.absolute()).num_rows
    except pa.ArrowException as error:
        raise ValueError(f"{path}: not a readable Parquet file: {one_line(error)}") from error


def _features(schema: pa.Schema) -> datasets.Features:
    return datasets.Features.from_arrow_schema(schema)


def list_data_files(folder: Path) -> list[Path] | None:
    """Return the files of the config `default` that the manifest of a folder lists, in order.

    None if the folder has no manifest of sp2dpo that can be read.
    """
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
        if content["toolkit"]["name"] != "sp2dpo":
            return None
        names = sorted(name for name in content["files"] if name.startswith("data/"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    # A foreign manifest must not lead to files outside the folder.
    return [folder / name for name in names if ".." not in Path(name).parts] or None


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

    def _info(self) -> datasets.DatasetInfo:
        schema = pq.read_schema(self.config.files[0])
        return datasets.DatasetInfo(features=_features(schema))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator("train", gen_kwargs={"files": self.config.files})]

    def _generate_tables(self, **kwargs: Any) -> Iterator[tuple[Any, pa.Table]]:
        features = self.info.features or datasets.Features()
        for number, path in enumerate(kwargs["files"]):
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    table = table_cast(file.read_row_group(group), features.arrow_schema)
                    yield Key(number, group), table
