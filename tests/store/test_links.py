"""A store and a journal are the same file under every name, and only one process writes to it."""

import errno
import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from sp2dpo.files import Journal, atomic_write
from sp2dpo.report.status import find_annotating_process
from sp2dpo.store.database import connect, only_writer, read_meta, write_meta
from sp2dpo.store.store import Store, open_store_for_writing
from support.harness import fail, write_pairs, write_panel

NAMES = ["run.sqlite", "link.sqlite", "chain.sqlite", "folder/run.sqlite", "data/../run.sqlite"]


@pytest.fixture
def links(tmp_path):
    """A folder in which one store has the names in `NAMES`."""
    (tmp_path / "data").mkdir()
    (tmp_path / "link.sqlite").symlink_to("run.sqlite")
    (tmp_path / "chain.sqlite").symlink_to(tmp_path / "link.sqlite")
    (tmp_path / "folder").symlink_to(tmp_path)
    return tmp_path


def hold(path, code):
    """Start a process that runs `code` with `path`, and wait until it prints a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


STORE_WRITER = (
    "import sys; from pathlib import Path; from sp2dpo.store.database import only_writer\n"
    "with only_writer(Path(sys.argv[1])): print('ready', flush=True); sys.stdin.read()"
)


def test_a_store_has_one_lock_under_all_its_names(links, monkeypatch):
    Store(links / "run.sqlite", write=True).__exit__()
    monkeypatch.chdir(links / "data")
    with hold(links / "chain.sqlite", STORE_WRITER) as holder:
        for name in (*(str(links / name) for name in NAMES), "../run.sqlite", "../link.sqlite"):
            path = Path(name)
            assert find_annotating_process(path) == holder.pid
            with pytest.raises(ValueError, match=rf"process \({holder.pid}\) is annotating"):
                open_store_for_writing(path).__enter__()
        holder.stdin.close()
    assert sorted(path.name for path in links.glob("*lock*")) == []


def test_annotating_through_a_link_is_refused_before_a_request_is_sent(links, scripted):
    teacher = scripted()
    pairs = write_pairs(links / "pairs.jsonl", 5)
    panel = write_panel(links / "panel.yaml", teacher.url)
    Store(links / "run.sqlite", write=True).__exit__()
    with only_writer(links / "run.sqlite"):
        error = fail(
            "annotate", "--pairs", pairs, "--panel", panel, "--store", links / "link.sqlite"
        )
    assert f"another process ({os.getpid()}) is annotating into this store" in error
    assert not teacher.requests


@pytest.mark.parametrize("target", ["nothing.sqlite", "no-folder/run.sqlite", "dead.sqlite"])
def test_a_link_to_nothing_is_named_and_stays(tmp_path, target):
    link = tmp_path / "dead.sqlite"
    link.symlink_to(target)
    for use in (
        lambda: connect(link, write=True),
        lambda: connect(link, write=False),
        lambda: only_writer(link).__enter__(),
        lambda: atomic_write(link).__enter__(),
        lambda: Journal(link, {}),
    ):
        with pytest.raises(FileNotFoundError, match=f"link to {target}, which does not exist"):
            use()
    assert [path.name for path in tmp_path.iterdir()] == ["dead.sqlite"]


def test_a_reader_in_a_read_only_folder_sees_what_is_still_in_the_log(links, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    with closing(connect(links / "run.sqlite", write=True)) as writer:
        write_meta(writer, "key", "value")  # stays in the write-ahead log
        for name in NAMES:
            with closing(connect(links / name, write=False)) as reader:
                assert read_meta(reader, "key") == "value"


def test_a_file_with_two_names_is_read_but_not_written(tmp_path):
    Store(tmp_path / "run.sqlite", write=True).__exit__()
    (tmp_path / "other.sqlite").hardlink_to(tmp_path / "run.sqlite")
    for name in ("run.sqlite", "other.sqlite"):
        Store(tmp_path / name).__exit__()
        with pytest.raises(ValueError, match="has 2 names"):
            Store(tmp_path / name, write=True)


JOURNAL_WRITER = (
    "import sys; from pathlib import Path; from sp2dpo.files import Journal\n"
    "with Journal(Path(sys.argv[1]), {'of': 'a'}) as journal:\n"
    "    journal.add('x'); print('ready', flush=True); sys.stdin.read()"
)


def test_a_journal_has_one_writer_under_all_its_names(links):
    (links / "run.sqlite").touch()
    (links / "hard.sqlite").hardlink_to(links / "run.sqlite")
    with hold(links / "link.sqlite", JOURNAL_WRITER) as holder:
        for name in (*NAMES, "hard.sqlite"):
            with pytest.raises(ValueError, match="another process is writing to this file"):
                Journal(links / name, {"of": "a"})
        holder.stdin.close()
    with Journal(links / "chain.sqlite", {"of": "a"}) as journal:
        assert list(journal.lines) == ["x"]


@pytest.mark.parametrize("command", ["generate", "judge"])
def test_a_second_run_into_a_folder_asks_nothing_while_the_first_is_stopped(
    tmp_path, scripted, command
):
    teacher = scripted()
    prompts = tmp_path / "prompts.json"
    rows = [{"instruction": f"Do {n}.", "output": "x", "generator": "base"} for n in range(3)]
    prompts.write_text(json.dumps(rows))
    model = tmp_path / "model.yaml"
    settings = {"name": "m", "model": "m", "revision": None, "base_url": teacher.url}
    sampling = {} if command == "judge" else {"sampling": {"temperature": 0, "max_tokens": 9}}
    model.write_text(json.dumps(settings | sampling))
    inputs = {
        "generate": ("--student", model, "--prompts", prompts),
        "judge": ("--outputs", prompts, "--judge", model, "--prompts", prompts),
    }
    out = tmp_path / "out"
    out.mkdir()
    journal = out / {"generate": "replies.jsonl", "judge": "verdicts.jsonl"}[command]
    with hold(journal, JOURNAL_WRITER) as holder:
        holder.send_signal(signal.SIGSTOP)
        content = journal.read_bytes()
        error = fail("evaluate", command, *inputs[command], "--out", out)
        holder.send_signal(signal.SIGCONT)
        holder.stdin.close()
    assert "another process is writing to this file" in error
    assert not teacher.requests
    assert journal.read_bytes() == content
    assert [path.name for path in out.iterdir()] == [journal.name]
    # Once the lock is free, results of other settings are not taken over.
    assert "was started with another" in fail("evaluate", command, *inputs[command], "--out", out)
    assert journal.read_bytes() == content


def test_a_file_system_without_locks_is_an_error_with_the_reason(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    for use in (
        lambda: Journal(tmp_path / "journal.jsonl", {}),
        lambda: only_writer(tmp_path / "run.sqlite").__enter__(),
    ):
        with pytest.raises(OSError, match="cannot lock files"):
            use()
