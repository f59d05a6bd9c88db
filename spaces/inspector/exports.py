"""Files for visitors to download, few and of limited size, in a folder of this process."""

import re
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import BoundedSemaphore, Lock

import pyarrow as pa
import pyarrow.parquet as pq

from answers import format_json
from errors import BadRequest

MAX_FILES, MAX_BYTES = 8, 4_000_000_000
"""Largest number and size of the files that stay in the folder."""
MAX_FILE = 1_000_000_000
"""Largest size of a file in bytes."""
MAX_WAITING = 8
"""Largest number of visitors whose files are written or wait for it, each in a thread."""
WAIT_SECONDS = 60.0


class Exports:
    """Files that visitors can download; the oldest are removed for new ones."""

    def __init__(self, folder: Path | None = None) -> None:
        """Create an empty collection, in a new folder that only this user can read."""
        self._folder = folder
        self._lock, self._waiting = Lock(), BoundedSemaphore(MAX_WAITING)

    @property
    def folder(self) -> Path:
        """The folder of the files."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="files-"))
        return self._folder

    def write(self, name: str, kind: str, parts: Callable[[], Iterator[pa.Table]]) -> Path:
        """Return the path of a file, which is written unless it exists.

        Args:
            name: Name of the file; equal names stand for equal rows.
            kind: `parquet` or `jsonl`.
            parts: Returns the rows in tables, at least one.

        Raises:
            BadRequest: The file would be too large, or too many visitors wait for files.
        """
        path = self.folder / f"{name}.{kind}"
        if not self._waiting.acquire(blocking=False):
            raise BadRequest("many files are being written: try again in a minute")
        try:
            if not self._lock.acquire(timeout=WAIT_SECONDS):
                raise BadRequest("another file is being written: try again in a minute")
            try:
                if not path.exists():
                    self._make_room()
                    unfinished = path.with_suffix(".unfinished")
                    try:
                        (_write_parquet if kind == "parquet" else _write_lines)(parts(), unfinished)
                        # A file with its final name is complete, and is given without a check.
                        unfinished.rename(path)
                    finally:
                        unfinished.unlink(missing_ok=True)
            finally:
                self._lock.release()
        finally:
            self._waiting.release()
        return path

    def add_part(self, name: str, start: int, content: bytes) -> str:
        """Append bytes to an unfinished file, and return its name.

        Args:
            name: Name of the file; empty for a new one.
            start: Number of bytes that it has.
            content: The next bytes.

        Raises:
            BadRequest: There is no such file, or it has another length.
        """
        with self._lock:
            if start == 0:
                self._make_room()
                name = secrets.token_hex(16)
            elif not re.fullmatch("[0-9a-f]{32}", name):
                raise BadRequest("file: takes the name that the answer before contains")
            path = self.folder / f"{name}.part"
            size = path.stat().st_size if path.exists() else 0
            if size != start:
                raise BadRequest("file: not as far as that, or removed for newer ones: begin again")
            with path.open("ab") as file:
                file.write(content)
        return name

    def finish(self, name: str, parts: Callable[[bytes], Iterator[pa.Table]]) -> Path:
        """Turn a file of `add_part` into a Parquet file, and return its path."""
        part = self.folder / f"{name}.part"
        with self._lock:
            try:
                content = part.read_bytes()
            except FileNotFoundError as error:
                raise BadRequest("file: removed for newer ones: begin again") from error
            part.unlink()
        return self.write(f"betas-{name}", "parquet", lambda: parts(content))

    def _make_room(self) -> None:
        """Remove the oldest files, so that there is a place for a new one."""
        newest = sorted(self.folder.iterdir(), key=lambda file: -file.stat().st_mtime)
        size = MAX_FILE
        for place, file in enumerate(newest, 1):
            size += file.stat().st_size
            if place >= MAX_FILES or size > MAX_BYTES:
                file.unlink()


def _check_file(path: Path) -> None:
    if path.stat().st_size > MAX_FILE:
        raise BadRequest(
            f"these pairs take more than {MAX_FILE / 1e6:,.0f} MB: select fewer, or load the data "
            "set itself"
        )


def _write_parquet(parts: Iterator[pa.Table], path: Path) -> None:
    # There always is a first part: an empty selection becomes a file with columns and no rows.
    first = next(parts)
    with pq.ParquetWriter(path, first.schema) as writer:
        writer.write_table(first)
        for part in parts:
            writer.write_table(part)
            _check_file(path)


def _write_lines(parts: Iterator[pa.Table], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for part in parts:
            for batch in part.to_batches(max_chunksize=64):
                for row in batch.to_pylist():
                    file.write(format_json(row) + "\n")
            file.flush()
            _check_file(path)
