"""What has a name is complete: files and folders are replaced in one step, and nothing is left."""

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sp2dpo import replacement
from sp2dpo.replacement import atomic_folder, atomic_write

WAITING = """
import sys, time
from pathlib import Path
from sp2dpo.replacement import atomic_folder, atomic_write
kind, path = sys.argv[1], Path(sys.argv[2])
with (atomic_write(path) if kind == "file" else atomic_folder(path, print)) as unfinished:
    (unfinished if kind == "file" else unfinished / "part").write_text("half of it")
    print("writing", flush=True)
    time.sleep(100)
"""


def put(path, text="new"):
    with atomic_write(path) as unfinished:
        unfinished.write_text(text)


def put_folder(path, text="new", check=lambda folder: None):
    with atomic_folder(path, check) as unfinished:
        (unfinished / "file").write_text(text)


@pytest.fixture
def begin():
    """Starts processes that are in the middle of a write; each is killed with the test."""
    running = []

    def start(kind, path):
        process = subprocess.Popen(
            [sys.executable, "-c", WAITING, kind, path], stdout=subprocess.PIPE, text=True
        )
        running.append(process)
        assert process.stdout.readline() == "writing\n"
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("kind", "write"), [("file", put), ("folder", put_folder)])
def test_the_next_write_removes_what_a_kill_left_and_nothing_that_is_in_use(
    tmp_path, begin, kind, write
):
    killed, living = begin(kind, tmp_path / "a"), begin(kind, tmp_path / "a")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    each = 2 if kind == "file" else 1  # with its lock
    assert len(names(tmp_path)) == 2 * each
    write(tmp_path / "b")
    left = names(tmp_path)
    assert len(left) == each + 1
    assert left[-1] == "b"
    living.send_signal(signal.SIGKILL)
    living.wait()
    write(tmp_path / "a")
    assert names(tmp_path) == ["a", "b"]


@pytest.mark.parametrize(
    "name",
    ["a.0123456789abcdef.unfinished", ".a.1234.unfinished", ".a.0123456789abcdeX.unfinished",
     ".a.0123456789abcdef.unfinished.txt", "a.unfinished", ".a.swp"],
)  # fmt: skip
def test_files_under_other_names_stay(tmp_path, name):
    (tmp_path / name).write_text("mine")
    put(tmp_path / "a")
    assert names(tmp_path) == sorted(["a", name])


def test_a_link_a_folder_with_other_files_and_a_stranger_s_file_stay(tmp_path, monkeypatch):
    token = "0123456789abcdef"
    (tmp_path / "kept").write_text("kept")
    (tmp_path / f".link.{token}.unfinished").symlink_to(tmp_path / "kept")
    (tmp_path / f".folder.{token}.unfinished").mkdir()
    (tmp_path / f".folder.{token}.unfinished" / "notes").write_text("mine")
    before = names(tmp_path)
    put(tmp_path / "a")
    assert names(tmp_path) == sorted([*before, "a"])
    lock = tmp_path / f".file.{token}.unfinished.lock"
    lock.write_bytes(replacement._machine())
    monkeypatch.setattr(os, "geteuid", lambda: 12345)  # the file is of another user
    put(tmp_path / "a")
    assert lock.name in names(tmp_path)


def test_what_another_machine_has_left_stays_for_a_week(tmp_path):
    lock = tmp_path / ".a.0123456789abcdef.unfinished.lock"
    work = tmp_path / ".b.0123456789abcdef.unfinished"
    work.mkdir()
    for path in (lock, work / "lock"):
        path.write_text("another kernel")
    before = names(tmp_path)
    put(tmp_path / "c")
    assert names(tmp_path) == [*before, "c"]
    for path in (lock, work / "lock"):
        os.utime(path, (0, 0))
    put(tmp_path / "c")
    assert names(tmp_path) == ["c"]


def test_any_write_into_the_folder_puts_a_lost_data_set_back(tmp_path):
    work = tmp_path / ".data.0123456789abcdef.unfinished"
    for name in ("old", "new"):
        (work / name).mkdir(parents=True)
        (work / name / "file").write_text(name)
    (work / "lock").write_bytes(replacement._machine())
    put(tmp_path / "betas.parquet")
    assert (tmp_path / "data" / "file").read_text() == "old"
    assert names(tmp_path) == ["betas.parquet", "data"]


def test_the_files_of_sqlite_beside_a_leftover_go_with_it(tmp_path):
    leftover = tmp_path / ".run.sqlite.0123456789abcdef.unfinished"
    for ending in ("", "-wal", "-shm", "-journal"):
        leftover.with_name(leftover.name + ending).touch()
    leftover.with_name(f"{leftover.name}.lock").write_bytes(replacement._machine())
    put(tmp_path / "a")
    assert names(tmp_path) == ["a"]


def test_processes_with_one_id_write_beside_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 7)  # as in two containers that share a folder
    with atomic_write(tmp_path / "a") as first:
        put(tmp_path / "a", "second")
        first.write_text("first")
    assert (tmp_path / "a").read_text() == "first"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("write", [put, put_folder])
def test_threads_that_write_to_one_name_all_end_and_leave_one_whole(tmp_path, write):
    threads = [
        threading.Thread(target=write, args=(tmp_path / "a", str(number) * 1000))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    path = tmp_path / "a" if write is put else tmp_path / "a" / "file"
    assert path.read_text() in {str(number) * 1000 for number in range(8)}
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_permissions_of_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        put(tmp_path / "a")
        put_folder(tmp_path / "folder")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~umask


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o755])
def test_permissions_stay(tmp_path, mode):
    put(tmp_path / "a", "old")
    put_folder(tmp_path / "folder", "old")
    for path in (tmp_path / "a", tmp_path / "folder"):
        path.chmod(mode | 0o700 * path.is_dir())
    put(tmp_path / "a")
    put_folder(tmp_path / "folder")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == mode | 0o700


def test_a_write_protected_file_is_not_replaced(tmp_path, monkeypatch):
    put(tmp_path / "a", "old")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write to any file
    with pytest.raises(PermissionError, match="Permission denied") as refused:
        put(tmp_path / "a")
    assert refused.value.filename == str(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "old"


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a").write_text("old")
    (tmp_path / "link").symlink_to("there/a")
    put(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "a").read_text() == "new"
    assert names(tmp_path / "there") == ["a"]


def test_another_name_of_a_file_keeps_the_old_content(tmp_path):
    put(tmp_path / "a", "old")
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    put(tmp_path / "a")
    assert (tmp_path / "b").read_text() == "old"
    assert (tmp_path / "a").read_text() == "new"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_is_no_file_is_not_replaced(tmp_path, make):
    make(tmp_path / "a")
    before = (tmp_path / "a").stat().st_mode
    with pytest.raises(ValueError, match="a is not a file that can be replaced"):
        put(tmp_path / "a")
    assert (tmp_path / "a").stat().st_mode == before
    with pytest.raises(ValueError, match="null is not a file that can be replaced"):
        put(Path("/dev/null"))


@pytest.mark.parametrize("name", ["é" * 125, "x" * 255, ".", "a\nb", ".a.b."])
def test_any_legal_name_can_be_written(tmp_path, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / ("dot" if name == "." else name)
    put(path)
    assert [each.read_text() for each in folder.iterdir()] == ["new"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path, number):
    put(tmp_path / "a", "old")

    def fill():
        with atomic_write(tmp_path / "a"):
            raise OSError(number, os.strerror(number))  # as a write raises it: without a name

    with pytest.raises(OSError, match=os.strerror(number)) as refused:
        fill()
    assert refused.value.filename == str(tmp_path / "a")
    assert refused.value.errno == number
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_where_locks_are_not_supported_files_are_written_and_nothing_is_swept(
    tmp_path, monkeypatch
):
    leftover = tmp_path / ".a.0123456789abcdef.unfinished.lock"
    leftover.write_bytes(replacement._machine())

    def fails(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fails)
    put(tmp_path / "a")
    put_folder(tmp_path / "folder")
    assert names(tmp_path) == sorted([leftover.name, "a", "folder"])


def no_exchange(first, second):
    raise OSError(errno.EINVAL, "Invalid argument")


@pytest.mark.parametrize("exchange", [replacement._rename_exchange, no_exchange],
                         ids=["one step", "two renames"])  # fmt: skip
@pytest.mark.parametrize("old", ["none", "empty", "full", "link"])
def test_a_folder_is_replaced_whatever_lies_there(tmp_path, monkeypatch, exchange, old):
    monkeypatch.setattr(replacement, "_rename_exchange", exchange)
    out = tmp_path / "out"
    if old == "empty":
        out.mkdir()
    elif old == "full":
        put_folder(out, "old")
    elif old == "link":
        put_folder(tmp_path / "there", "old")
        out.symlink_to("there")
    put_folder(out)
    assert names(out) == ["file"]
    assert (out / "file").read_text() == "new"
    assert names(tmp_path) == (["out", "there"] if old == "link" else ["out"])


@pytest.mark.parametrize("exchange", [replacement._rename_exchange, no_exchange],
                         ids=["one step", "two renames"])  # fmt: skip
def test_a_file_that_somebody_puts_into_the_old_folder_meanwhile_stays(
    tmp_path, monkeypatch, exchange
):
    monkeypatch.setattr(replacement, "_rename_exchange", exchange)

    def check(folder):
        if (folder / "theirs").exists():
            raise ValueError("it holds a file of somebody else")

    def write():
        with atomic_folder(tmp_path / "out", check) as unfinished:
            (unfinished / "file").write_text("new")
            (tmp_path / "out" / "theirs").write_text("theirs")

    put_folder(tmp_path / "out", "old")
    with pytest.raises(ValueError, match="somebody else"):
        write()
    assert names(tmp_path / "out") == ["file", "theirs"]
    assert (tmp_path / "out" / "file").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_a_kill_between_two_renames_is_undone_by_the_next_call(tmp_path, monkeypatch):
    put_folder(tmp_path / "out", "old")
    monkeypatch.setattr(replacement, "_rename_exchange", no_exchange)
    child = os.fork()
    if not child:
        monkeypatch.setattr(Path, "rename", killed_after(1))
        put_folder(tmp_path / "out")
    os.waitpid(child, 0)
    assert not (tmp_path / "out").exists()

    def fail():
        with atomic_folder(tmp_path / "out", print):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (tmp_path / "out" / "file").read_text() == "old"
    assert names(tmp_path) == ["out"]


def killed_after(renames):
    """`Path.rename` that kills the process when it is called once more."""
    rename, count = Path.rename, iter(range(renames))

    def rename_or_die(self, target):
        if next(count, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)

    return rename_or_die


def test_a_mount_point_is_refused(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda self: True)
    with pytest.raises(ValueError, match="mount point"):
        put_folder(tmp_path / "out")
