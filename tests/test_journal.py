"""A journal that was damaged is refused by name and line, and one of an earlier release is read."""

import json
import random

import pytest

from sp2dpo.files import Journal

HEAD = {"of": "a", "sampling": {"temperature": 0.5}}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path, HEAD) as journal:
        journal.add("x", output='Paris, \u2028 \U0001f600 and ", "crc32": 5}', tokens=7)
        journal.add("y", output="Rome", tokens=8)
        journal.add("x", output="Oslo", tokens=9)
    return path


def lines_of(path):
    with Journal(path, HEAD) as journal:
        return journal.lines


def test_lines_come_back_without_their_digests(path):
    before = path.read_bytes()
    assert lines_of(path) == {
        "x": {"key": "x", "output": "Oslo", "tokens": 9},
        "y": {"key": "y", "output": "Rome", "tokens": 8},
    }
    assert path.read_bytes() == before
    assert [json.loads(line)["crc32"] > 0 for line in before.splitlines()] == [True] * 4


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Rome", b"Rame"),
        (b"8, ", b"9, "),
        (b'"y"', b'"z"'),
        (b"Rome", b""),
        (b', "crc', b', "xrc'),
    ],
    ids=["text", "number", "key", "shorter", "digest"],
)
def test_a_line_that_was_changed_is_named(path, old, new):
    path.write_bytes(path.read_bytes().replace(old, new, 2 if b"xrc" in new else 1))
    with pytest.raises(ValueError, match=r"line 3 is damaged|another xrc32"):
        lines_of(path)


def test_no_flipped_bit_gives_other_lines_without_a_word(path):
    content, expected, refused = path.read_bytes(), lines_of(path), 0
    for seed in range(200):
        chance, damaged = random.Random(seed), bytearray(content)
        # Not the last line end: what follows the one before it would be an incomplete line.
        damaged[chance.randrange(len(content) - 1)] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            assert lines_of(path) == expected
        except ValueError:
            refused += 1
    assert refused > 190


def test_a_journal_of_an_earlier_release_is_read_and_continued(path):
    lines = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    for line in lines:
        del line["crc32"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with Journal(path, HEAD) as journal:
        assert set(journal.lines) == {"x", "y"}
        journal.add("z", output="Bern")
    assert set(lines_of(path)) == {"x", "y", "z"}
    path.write_bytes(path.read_bytes() + b'{"key": "w", "output": "no digest"}\n')
    with pytest.raises(ValueError, match="line 6 is damaged"):
        lines_of(path)


@pytest.mark.parametrize("line", [b"[1]", b'{"key": 3}', b'{"no": "key"}', b"7", b"[" * 100_000])
def test_what_is_no_line_of_a_journal_is_refused(tmp_path, line):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(json.dumps(HEAD).encode() + b"\n" + line + b"\n")
    with pytest.raises(ValueError, match=r"not a journal of this toolkit|line 2 is damaged"):
        lines_of(path)


def test_a_journal_that_is_replaced_while_it_is_opened_is_not_written_to(path, monkeypatch):
    def lock(file):
        path.unlink()  # what a process does that has just ended
        path.touch()

    monkeypatch.setattr("sp2dpo.files.lock_exclusively", lock)
    with pytest.raises(ValueError, match="another process has just ended here"):
        lines_of(path)
