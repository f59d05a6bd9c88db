"""Changes of the bytes of a file, and of what stands in its place."""

import gzip
import os

WORDS = (
    "", " ", "\0", "\x1b[2J\x1b]0;x\x07", "\u202eabc", "\ufeff", "\u2028", "\ud800", "\udfff!", "é",
    "e\u0301", "../../etc/passwd", "/etc/passwd", "~", "$HOME", "*", "file:x", "%00", "a\nb", "\r",
    "null", "NaN", "true", "0x10", "1e5", "-", "'", '"', "'; DROP TABLE replies; --", "{{7*7}}",
    "{0.__class__}", "<script>alert(1)</script>", "x" * 300, "x" * 1_000_000, "\t", "\U0001f600",
    "ﬁ", "Ⅷ", "٣", "_", "__proto__", "constructor", "pair_id", "<|im_start|>", "```", "---", "&a",
)  # fmt: skip


def flip(rng, data, other):
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        if out:
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _set_bytes(rng, data, other):
    out = bytearray(data)
    for _ in range(rng.choice((1, 4, 16))):
        if out:
            out[rng.randrange(len(out))] = rng.choice((0, 255, 127, 128, 10, 34, 123))
    return bytes(out)


def _truncate(rng, data, other):
    return data[: rng.randrange(len(data) + 1)]


def _extend(rng, data, other):
    return data + rng.choice((b"\0" * 100, b"\n", b"}", b"PAR1", rng.randbytes(50), data, b"\xff"))


def _delete_chunk(rng, data, other):
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start + rng.choice((1, 2, 8, 100, 4096)) :]


def _duplicate_chunk(rng, data, other):
    start = rng.randrange(len(data) + 1)
    end = start + rng.choice((1, 8, 100, 4096))
    return data[:end] + data[start:end] * rng.choice((1, 2, 50)) + data[end:]


def _splice(rng, data, other):
    at, start = rng.randrange(len(data) + 1), rng.randrange(len(other) + 1)
    return data[:at] + other[start : start + rng.choice((4, 50, 1000, 10**6))] + data[at:]


def _swap_chunks(rng, data, other):
    size = rng.choice((1, 4, 64, 512))
    if len(data) < 3 * size:
        return data[::-1]
    first = rng.randrange(len(data) - 2 * size)
    second = rng.randrange(first + size, len(data) - size + 1)
    return (
        data[:first] + data[second : second + size] + data[first + size : second]
        + data[first : first + size] + data[second + size :]
    )  # fmt: skip


def _zero(rng, data, other):
    start, size = rng.randrange(len(data) + 1), rng.choice((1, 8, 100, 4096))
    return data[:start] + b"\0" * len(data[start : start + size]) + data[start + size :]


def _insert(rng, data, other):
    at = rng.randrange(len(data) + 1)
    piece = rng.choice(
        (b"\0", b"\x1b[31m", b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\xaf", b"\r", b"\x7f", b"\x85",
         "\u202e".encode(), "\u2028".encode(), b"\n\n", b"\t", b"-", b"9" * 5000, b'"', b"#")
    )  # fmt: skip
    return data[:at] + piece + data[at:]


def _encode(rng, data, other):
    text = data.decode("utf-8", "replace")
    name = rng.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1", "cp500", "utf-7"))
    return text.encode(name, "replace")


def _line_ends(rng, data, other):
    return data.replace(b"\n", rng.choice((b"\r\n", b"\r", b"\x0b", b"", b"\n\n", b"\xe2\x80\xa8")))


def _compress(rng, data, other):
    return gzip.compress(data, mtime=0)


def _lines(rng, data, other):
    lines = data.splitlines(keepends=True) or [b""]
    place, to = rng.randrange(len(lines)), rng.randrange(len(lines))
    action = rng.choice(("repeat", "drop", "swap", "join", "shuffle", "many"))
    if action == "repeat":
        lines.insert(to, lines[place])
    elif action == "drop":
        del lines[place]
    elif action == "swap":
        lines[place], lines[to] = lines[to], lines[place]
    elif action == "join":
        lines[place] = lines[place].rstrip(b"\n")
    elif action == "shuffle":
        rng.shuffle(lines)
    else:
        lines[place:place] = [lines[place]] * 500
    return b"".join(lines)


_BYTES = (flip, flip, _set_bytes, _truncate, _extend, _delete_chunk, _duplicate_chunk, _splice,
          _swap_chunks, _zero, _insert, _insert, _encode, _line_ends, _compress, _lines,
          _lines)  # fmt: skip


def change_bytes(rng, path, other=b""):
    """Change the bytes of a file, whatever it holds."""
    data = path.read_bytes()
    change = rng.choice(_BYTES)
    path.write_bytes(change(rng, data, other))
    return f"bytes: {change.__name__.strip('_')}"


def change_file(rng, path, other=b""):
    """Put something other than a file of its kind in the place of a file."""
    actions = ["missing", "empty", "folder", "null", "link to nothing", "link to itself", "junk",
               "endless", "link to another", "blank"]  # fmt: skip
    if "dataset" in path.parts:  # elsewhere, a pipe is how a shell hands over a file
        actions.append("pipe")
    action = rng.choice(actions)
    path.unlink()
    if action == "empty":
        path.write_bytes(b"")
    elif action == "blank":
        path.write_bytes(rng.choice((b" ", b"\n" * 50, b"null", b"[]", b"{}", b"0", b'""', b"~")))
    elif action == "folder":
        path.mkdir()
    elif action == "null":
        path.symlink_to(os.devnull)
    elif action == "endless":
        path.symlink_to("/dev/zero")
    elif action == "link to nothing":
        path.symlink_to("nowhere")
    elif action == "pipe":
        os.mkfifo(path)
    elif action == "link to itself":
        path.symlink_to(path.name)
    elif action == "junk":
        path.write_bytes(rng.randbytes(rng.choice((1, 100, 100_000))))
    elif action == "link to another":
        path.symlink_to("/etc/hostname")
    return f"file: {action}"
