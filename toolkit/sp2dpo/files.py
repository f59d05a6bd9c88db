"""Files that appear whole or not at all."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; it takes the place of `path` at the end.

    Raises:
        FileNotFoundError: the folder is not there.
        OSError: nothing can be written there; it names `path`, not the temporary name.
    """
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        unfinished.touch()
        yield unfinished
        unfinished.replace(path)
    except OSError as error:
        if unfinished.name not in str(error):
            raise
        why = f"{error.strerror or error} (in the folder {path.absolute().parent})"
        raise OSError(error.errno, why.replace(unfinished.name, path.name), str(path)) from error
    finally:
        with suppress(OSError):
            unfinished.unlink()


def check_overwrite(path: Path, is_ours: Callable[[Path], bool], kind: str) -> None:
    """Refuse to overwrite a file of another kind.

    Args:
        path: Output path.
        is_ours: Tells whether an existing file has the output's format.
        kind: Name of that format, for the message.

    Raises:
        ValueError: If `path` exists and is something else.
    """
    if path.exists() and not (path.is_file() and is_ours(path)):
        raise ValueError(
            f"{path} exists and is not {kind} of ours: name another file, or remove it"
        )


class Journal:
    """The lines of one run, by their key; the first line says what defines the run.

    A line that broke off, as the process was killed, is cut off. Of two lines with one key the
    later counts.

    Args:
        path: the file; it is made where it is not.
        head: what defines the run.

    Attributes:
        lines: key -> what came.

    Raises:
        ValueError: the file was begun with another head, or is no journal.
        OSError: it cannot be read or written.
    """

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        self.path = path
        self.lines: dict[str, dict[str, Any]] = {}
        content = path.read_bytes() if path.exists() else b""
        recorded = self._read(content)
        if recorded is not None and recorded != json.loads(json.dumps(head)):
            differs = sorted(
                key for key in {*recorded, *head} if recorded.get(key) != head.get(key)
            )
            raise ValueError(
                f"{path} was begun with another {', '.join(differs)}: go on with what it was, or "
                "name another folder"
            )
        if not content.endswith(b"\n"):  # only now that the file is known to be this run's
            with path.open("ab") as file:
                file.truncate(content.rfind(b"\n") + 1)
        self._file = path.open("a", encoding="utf-8")
        if recorded is None:
            self._write(dict(head))

    def _read(self, content: bytes) -> dict[str, Any] | None:
        try:
            records = [json.loads(line) for line in content.split(b"\n")[:-1]]
            for line in records[1:]:
                self.lines[line["key"]] = line
            if content and not content.startswith(b"{"):
                raise ValueError
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} is no journal of ours; move it away") from error
        return records[0] if records else None

    def add(self, key: str, **fields: Any) -> None:
        """Takes a line in; it is on its way to the disk when this returns."""
        line = {"key": key, **fields}
        self._write(line)
        self.lines[key] = line

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
