"""Read JSON Lines, write text files, and keep a journal of a run that can be interrupted."""

import codecs
import gzip
import hashlib
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sp2dpo.replacement import atomic_write, check_parent, lock_exclusively
from sp2dpo.text import format_json, shorten

# All types that json.loads returns, except dict.
_JSON_TYPES = {
    list: "a list",
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}
LONGEST_LINE = 1 << 26
"""Maximum number of bytes of a line (64 MiB), also of one that is compressed to a few bytes. A row
with several large images fits."""
LARGEST_JSON = 1 << 29
"""Maximum number of bytes of a JSON file that is not read line by line (512 MiB)."""
_FREE_BYTES = 1 << 26
_MOST_PER_BYTE = 200
"""A compressed file may decompress to `_FREE_BYTES`, and to more only up to this many times its
size: text is compressed 3 to 20 times."""
_SHORTEST_LINE = 64
"""Bytes that a line counts for at least, because millions of empty lines take time."""
_FREE_NESTED = 1 << 22
"""Lists and objects that a JSON text may have; more only up to one per `_BYTES_PER_NESTED`. Each
takes 60 bytes or more of memory, and text has a bracket every 20 bytes at most, also code."""
_BYTES_PER_NESTED = 8
_OVERFULL = (
    "consists of lists and objects, with one bracket every 8 bytes: read nested numbers from "
    "Parquet, or leave that column out"
)
_LONGEST_NAME = 80
"""Maximum number of characters of a key in a message."""
_JSON_SPACE = frozenset(" \t\n\r")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8; raises like `atomic_write`."""
    with atomic_write(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any, *, indent: int | None = 1) -> None:
    """Write a JSON file atomically, with null for NaN; raises like `atomic_write`."""
    write_text(path, format_json(content, indent=indent, ensure_ascii=False) + "\n")


def check_regular(path: Path) -> None:
    """Raise ValueError if a path is a pipe, a device or a folder: reading it may never end."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: not a regular file")


def read_capped(path: Path, limit: int) -> bytes:
    """Return the content of a file of at most `limit` bytes.

    Raises:
        ValueError: If the file is larger.
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        # One byte more than allowed shows that the file is larger, without reading all of it.
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{path}: larger than {limit / 1e6:g} MB, the most that is read of it")
    return content


def read_text(path: Path, *, limit: int = LARGEST_JSON) -> str:
    """Return the text of a file in UTF-8, without a byte order mark.

    Raises:
        ValueError: If the file is larger than `limit` bytes, or as for `decode_text`.
        OSError: If the file cannot be read.
    """
    return decode_text(read_capped(path, limit), where=str(path))


def decode_text(content: bytes, *, where: str) -> str:
    """Decode the content of a file in UTF-8, and remove a byte order mark.

    Args:
        content: Content of the file.
        where: Name of the file, with which the message begins.

    Raises:
        ValueError: If it is not UTF-8; the message names the line and the column.
    """
    _check_encoding(content, where)
    try:
        return content.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        # Before the first wrong byte, everything is UTF-8.
        before = error.object[: error.start].decode()
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        raise ValueError(f"{where}: not UTF-8 (line {line}, column {column})") from error


def _check_encoding(start: bytes, where: str) -> None:
    # The encodings of a text always begin so: with a byte order mark, or with an ASCII character.
    encoding = next((name for name, begins in _WIDE if begins.match(start)), None)
    if encoding is not None:
        raise ValueError(
            f"{where}: in UTF-16 or UTF-32, not UTF-8: convert it, for example with `iconv -f "
            f"{encoding} -t UTF-8`"
        )


_WIDE = (
    ("UTF-32", re.compile(rb"\xff\xfe\0\0|\0\0\xfe\xff")),
    ("UTF-16", re.compile(rb"\xff\xfe|\xfe\xff")),
    ("UTF-32BE", re.compile(rb"\0\0")),
    ("UTF-32LE", re.compile(rb"[^\0]\0\0\0")),
    ("UTF-16BE", re.compile(rb"\0")),
    ("UTF-16LE", re.compile(rb"[^\0]\0")),
)
"""Encodings of more than one byte per character, by the first bytes of a text in them."""


def is_gzip(path: Path, start: bytes) -> bool:
    """Return whether a file is compressed, by its name or the first bytes of its content."""
    return path.suffix == ".gz" or start.startswith(b"\x1f\x8b")


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the number (from 1) and the content of each line of a file that is not empty.

    Only line feeds end a line; others such as U+2028 may stand inside a JSON text. A file that
    is compressed with gzip is decompressed, and a byte order mark is removed.

    Raises:
        ValueError: If the file is damaged or in UTF-16; the message names the file.
        OSError: If the file cannot be read.
    """
    number, total = 0, 0
    with path.open("rb") as file:
        compressed = is_gzip(path, file.peek(2))
        most = max(_FREE_BYTES, _MOST_PER_BYTE * path.stat().st_size)
        lines: Any = _unzip(file) if compressed else file
        try:
            # One byte more than allowed shows that a line is longer, without reading all of it.
            while line := lines.readline(LONGEST_LINE + 1):
                # Empty lines count, so that the numbers are those of an editor.
                number, total = number + 1, total + max(len(line), _SHORTEST_LINE)
                if len(line) > LONGEST_LINE:
                    raise ValueError(
                        f"{path}: line {number} has more than {LONGEST_LINE >> 20} MiB: write one "
                        "row per line, and large media to files of their own"
                    )
                if compressed and total > most:
                    raise ValueError(
                        f"{path}: decompresses to more than {_MOST_PER_BYTE} times its size at "
                        f"line {number}: decompress it yourself if you trust it"
                    )
                if number == 1:
                    _check_encoding(line, str(path))
                    line = line.removeprefix(codecs.BOM_UTF8)
                if line.strip():
                    yield number, line
        # gzip raises these for a bad header or checksum, a truncated file, and damaged content.
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: damaged after line {number}: {error}") from error


def _unzip(file: Any) -> Any:
    return gzip.GzipFile(fileobj=file)


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number (from 1) and the object of each line that is not empty; see `read_lines`.

    Raises:
        ValueError: If a line is not a JSON object in UTF-8, or the file is damaged; the message
            names the file, the line and the column.
        OSError: If the file cannot be read.
    """
    for number, line in read_lines(path):
        try:
            value = parse_json_object(line)
        except ValueError as error:
            raise ValueError(f"{path}: line {number} {error}") from error
        yield number, value


def read_json_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return the first line and the content of each object of a list in a JSON file.

    Like `read_lines`, it reads compressed files and removes a byte order mark.

    Raises:
        ValueError: If the file is not a list of objects in UTF-8; the message names the file, the
            line and the column.
        OSError: If the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            lines = _unzip(file) if is_gzip(path, file.peek(2)) else file
            content = lines.read(LARGEST_JSON + 1)
        if len(content) > LARGEST_JSON:
            raise ValueError(
                f"{path}: has more than {LARGEST_JSON >> 20} MiB: write it as JSON Lines (.jsonl)"
            )
        if _is_overfull(content):
            raise ValueError(f"{path}: {_OVERFULL}")
        text = decode_text(content, where=str(path))
        return list(_parse_rows(text))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: damaged: {error}") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"{path}: not JSON: {error.msg} ({where})") from error


def _parse_rows(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line and the content of each object in a list; all errors tell their place."""
    decoder = json.JSONDecoder(object_pairs_hook=refuse_duplicate_keys)
    place, counted, line = _skip_space(text, 0), 0, 1
    if text[place : place + 1] != "[":
        raise json.JSONDecodeError("Expecting a list of objects", text, place)
    place = _skip_space(text, place + 1)
    more = text[place : place + 1] != "]"
    while more:
        line, counted = line + text.count("\n", counted, place), place
        try:
            value, end = decoder.raw_decode(text, place)
        except DuplicateKey as error:
            problem = f"The key {error} stands twice in the object that begins here"
            raise json.JSONDecodeError(problem, text, place) from error
        except RecursionError as error:
            raise json.JSONDecodeError("Nested too deeply", text, place) from error
        except json.JSONDecodeError:
            raise
        except ValueError as error:  # an integer with more digits than Python converts
            problem = "A number of too many digits stands in the object that begins here"
            raise json.JSONDecodeError(problem, text, place) from error
        if not isinstance(value, dict):
            problem = f"Expecting an object, not {_JSON_TYPES[type(value)]}"
            raise json.JSONDecodeError(problem, text, place)
        yield line, value
        place = _skip_space(text, end)
        more = text[place : place + 1] == ","
        if more:
            place = _skip_space(text, place + 1)
        elif text[place : place + 1] != "]":
            raise json.JSONDecodeError("Expecting ',' or ']'", text, place)
    place = _skip_space(text, place + 1)
    if place < len(text):
        raise json.JSONDecodeError("Extra data", text, place)


def _skip_space(text: str, place: int) -> int:
    while text[place : place + 1] in _JSON_SPACE:
        place += 1
    return place


def _is_overfull(text: bytes) -> bool:
    """Return whether a JSON text consists of more lists and objects than are read."""
    most = max(_FREE_NESTED, len(text) // _BYTES_PER_NESTED)
    return len(text) > most and text.count(b"[") + text.count(b"{") > most


def parse_json_object(text: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        ValueError: If it is not a JSON object in UTF-8, or a key occurs twice. The message is a
            phrase such as `is not JSON: Expecting value at column 7`; it counts columns from 1.
    """
    if _is_overfull(text):
        raise ValueError(_OVERFULL)
    try:
        value = json.loads(text.decode(), object_pairs_hook=refuse_duplicate_keys)
    except json.JSONDecodeError as error:
        # Python's message advises on a call.
        is_mark = error.msg.startswith("Unexpected UTF-8 BOM")
        problem = "A byte order mark stands" if is_mark else error.msg
        raise ValueError(f"is not JSON: {problem} at column {error.pos + 1}") from error
    except UnicodeDecodeError as error:
        column = len(text[: error.start].decode()) + 1
        raise ValueError(f"is not UTF-8 at column {column}") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    except DuplicateKey as error:
        raise ValueError(f"has the key {error} twice") from error
    except ValueError as error:  # an integer with more digits than Python converts
        raise ValueError("has a number of too many digits: write it as text") from error
    if not isinstance(value, dict):
        raise ValueError(f"is not an object but {_JSON_TYPES[type(value)]}")
    return value


class DuplicateKey(ValueError):
    """A JSON object has the key in the message twice."""


def refuse_duplicate_keys(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; to be passed to `json.loads` as `object_pairs_hook`.

    Raises:
        DuplicateKey: A key occurs twice. `json` alone would keep the last of its values.
    """
    values = dict(items)
    if len(values) < len(items):
        # A counter, because counting each name in a list takes the square of their number.
        counts = Counter(name for name, _ in items)
        name = next(name for name, count in counts.items() if count > 1)
        raise DuplicateKey(shorten(repr(name), _LONGEST_NAME))
    return values


def check_overwrite(path: Path, is_ours: Callable[[Path], bool], kind: str) -> None:
    """Refuse to overwrite a file of another kind.

    Args:
        path: Output path.
        is_ours: Returns whether an existing file has the format of the output.
        kind: Name of that format, for the message.

    Raises:
        ValueError: If `path` exists and has another format.
    """
    if path.exists() and not (path.is_file() and is_ours(path)):
        raise ValueError(
            f"{path} exists and is not {kind} of sp2dpo: name another file, or remove it"
        )


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal.

    Raises:
        ValueError: If it is a pipe, a device or a folder.
        OSError: If it cannot be read.
    """
    check_regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_DIGEST = b', "crc32": '


class Journal:
    """A JSON Lines file that stores the results of one run by key, so that the run can be resumed.

    The first line, the head, has the settings that define the run. If the last line is incomplete
    because the process was killed, it is removed. If two lines have the same key, the later one
    counts. The file is locked while the journal is open, because two runs would do the same work.
    Every line ends with a CRC-32 of itself, by which a damaged line is found; journals of earlier
    releases lack it.

    Args:
        path: File to read and append to; created if it does not exist.
        head: Settings of the run, as JSON values.

    Attributes:
        lines: The latest line with each key, by key.

    Raises:
        ValueError: If the file has results under another head, is not a journal, or another
            process has it open.
        OSError: If the file cannot be read or written.
    """

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        self.path = path
        self.lines: dict[str, dict[str, Any]] = {}
        check_parent(path)
        self._file = path.open("a", encoding="utf-8")
        try:
            self._open(head)
        except BaseException:
            self._file.close()
            raise

    def _open(self, head: Mapping[str, Any]) -> None:
        """Lock the file, read its lines, and write the head if it has none."""
        try:
            lock_exclusively(self._file)
        except BlockingIOError:
            raise ValueError(
                f"{self.path}: another process is writing to this file; wait for it, stop it, or "
                "name another folder"
            ) from None
        # The previous holder may have deleted the file between our open and our lock.
        if not self.path.exists() or not os.path.samestat(
            self.path.stat(), os.fstat(self._file.fileno())
        ):
            raise ValueError(f"{self.path}: another process has just ended here; try again")
        content = self.path.read_bytes()
        recorded = self._read(content)
        # The head as JSON returns it: tuples become lists, and keys become text.
        if recorded is not None and recorded != json.loads(json.dumps(head)):
            differs = sorted(
                key for key in {*recorded, *head} if recorded.get(key) != head.get(key)
            )
            if self.lines:
                raise ValueError(
                    f"{self.path} was started with another {', '.join(differs)}: run with the same "
                    "settings as before, or name another folder"
                )
            # An earlier run without results is discarded, so that settings may change.
            recorded, content = None, b""
        # Remove an incomplete line only after checking that the file belongs to this run.
        self._file.truncate(content.rfind(b"\n") + 1)
        if recorded is None:
            self._write(dict(head))

    def _read(self, content: bytes) -> dict[str, Any] | None:
        # Without any line end there is no record to check, but even part of a head begins so.
        if content and not content.startswith(b"{"):
            raise ValueError(f"{self.path} is not a journal of this toolkit; move it away")
        head, has_digests = None, False
        # What follows the last line end is empty or an incomplete line.
        for number, line in enumerate(content.split(b"\n")[:-1], 1):
            record, has_digest = self._parse(line, number)
            # An earlier release may have written the first lines, but not later ones.
            if has_digests and not has_digest:
                raise self._damaged(number)
            has_digests = has_digest
            if head is None:
                head = record
            else:
                self.lines[record["key"]] = record
        return head

    def _parse(self, line: bytes, number: int) -> tuple[dict[str, Any], bool]:
        """Return the content of a line without its digest, and whether it has one."""
        text, mark, digest = line.rpartition(_DIGEST)
        try:
            if mark and int(digest.removesuffix(b"}")) != zlib.crc32(text):
                raise self._damaged(number)
            record = json.loads(text + b"}" if mark else line)
        except (ValueError, RecursionError) as error:
            raise self._damaged(number) from error
        if not isinstance(record, dict) or (number > 1 and not isinstance(record.get("key"), str)):
            raise ValueError(f"{self.path} is not a journal of this toolkit; move it away")
        return record, bool(mark)

    def _damaged(self, number: int) -> ValueError:
        if number == 1:
            return ValueError(
                f"{self.path} is not a journal of this toolkit, or its first line is damaged: "
                "restore a copy of the file, or move it away"
            )
        return ValueError(
            f"{self.path}: line {number} is damaged: restore a copy of the file, or delete the "
            "line and run the same command again, which asks for it again"
        )

    def add(self, key: str, **fields: Any) -> None:
        """Append a line, and flush it to the operating system before returning."""
        line = {"key": key, **fields}
        self._write(line)
        self.lines[key] = line

    def _write(self, line: dict[str, Any]) -> None:
        # The digest is of the bytes before it, so reading it needs no second form of the line.
        text = json.dumps(line, ensure_ascii=False).removesuffix("}")
        digest = zlib.crc32(text.encode())
        self._file.write(f"{text}{_DIGEST.decode()}{digest}}}\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
