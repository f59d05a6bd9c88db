"""Replace a file or a folder atomically: what has the name is complete, before and after a kill.

What is written lies beside its target until it is complete, under a name that no other process has
(`.NAME.TOKEN.unfinished`), with a locked file beside or in it. The leftover of a killed process is
no longer locked, and the next write into the same folder removes it.
"""

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

_LEFTOVER = re.compile(r"\.(.+)\.[0-9a-f]{16}\.unfinished", re.DOTALL)
_LOCK_FILE = re.compile(rf"{_LEFTOVER.pattern}\.lock", re.DOTALL)
_FOREIGN_AGE = 7 * 24 * 3600
"""Seconds after which what another machine has left is removed."""
_LONGEST_NAME = 200
"""Bytes of the target's name in a temporary name; file systems allow 255 for the whole."""
_SQLITE_FILES = ("-wal", "-shm", "-journal")
"""Endings of the files that SQLite writes beside a database."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
"""Errors of a write that Python or a library may report without the name of the file."""
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTTY)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_RENAME_EXCHANGE, _AT_FDCWD = 2, -100
_LOCK, _NEW, _OLD = "lock", "new", "old"


def check_parent(path: Path) -> None:
    """Raise FileNotFoundError if the folder does not exist, or the file is a dead link."""
    # `exists` is also false for links that form a loop.
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(
            f"{path}: a symbolic link to {path.readlink()}, which does not exist: remove the link, "
            "or name the file itself"
        )
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")


def lock_exclusively(file: IO[Any] | int) -> None:
    """Lock an open file against other processes that lock it, under whatever name they open it.

    The system releases the lock when the file is closed or the process ends.

    Raises:
        BlockingIOError: If another process holds the lock.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise OSError(
            error.errno,
            "this file system cannot lock files (flock), so two processes could write at once: "
            "use a folder on a local disk",
            getattr(file, "name", None),
        ) from error


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename the file to `path` if the block succeeds.

    The content is on the disk before the rename. A symbolic link stays, and its target is replaced;
    permissions stay, too. Other names (hard links) of an existing file keep its old content.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If `path` exists and is not a file, but a device or a folder.
        OSError: If the file cannot be written; the message names `path`, not the temporary path.
    """
    # Absolute, because some writers take a relative `file:x` for an address.
    with _clear_errors(path, path.absolute()):
        check_parent(path)
    target = path.resolve() if path.is_symlink() else path.absolute()
    with _clear_errors(path, target):
        before = _status(target)
        if before is not None and not stat.S_ISREG(before.st_mode):
            raise ValueError(f"{path} is not a file that can be replaced: name another file")
        # A rename asks for no permission of the file that it replaces.
        if before is not None and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        sweep_leftovers(target.parent)
        # A folder that cannot be written to fails here, before the block does its work.
        unfinished, lock, descriptor = _create_file(target)
        try:
            yield unfinished
            if before is not None:
                _keep_permissions(unfinished, before)
            _sync(unfinished)
            unfinished.replace(target)
            _sync(target.parent)
        finally:
            _remove_file(lock)
            os.close(descriptor)


@contextmanager
def atomic_folder(path: Path, check: Callable[[Path], None]) -> Iterator[Path]:
    """Yield an empty folder to write to, and exchange it with `path` if the block succeeds.

    The exchange is one step, so a folder of this name exists at any moment. A file system that
    cannot exchange two folders (NFS, some of FUSE) takes two renames: after a kill between them
    there is no folder of this name, and the next write beside it puts the old one back.

    Args:
        path: Folder to create or to replace; links to it are followed. Its permissions stay.
        check: Called with the folder that is about to be deleted, and raises ValueError if it
            must stay: another process may have written into it.

    Raises:
        ValueError: If `path` is a mount point, or `check` refuses.
        OSError: If a file or folder cannot be written; the old folder stays in place.
    """
    target = path.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_mount():
        raise ValueError(f"{path} is a mount point, which cannot be replaced: name a folder in it")
    sweep_leftovers(target.parent)
    with _clear_errors(path, target):
        work, descriptor = _create_folder(target)
        try:
            new = work / _NEW
            new.mkdir()
            yield new
            before = _status(target)
            if before is not None:
                new.chmod(stat.S_IMODE(before.st_mode))
            _sync_all(new)
            _put_in_place(new, target, check)
            _sync(target.parent)
        finally:
            _remove_folder(work, target)
            os.close(descriptor)


def sweep_leftovers(folder: Path) -> None:
    """Remove what killed processes of this user have left unfinished in a folder.

    Files of running processes are locked and stay, as do all files where locks are not supported,
    and for a week those of other machines, whose locks may not be seen here. A data set that a kill
    has left without its name is put back.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.stat(follow_symlinks=False).st_uid != os.geteuid():
                continue
            # Another process may be sweeping the same folder.
            with suppress(OSError):
                if _LOCK_FILE.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    _sweep_file(Path(entry.path))
                elif _LEFTOVER.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                    _sweep_folder(Path(entry.path))


def _sweep_file(lock: Path) -> None:
    descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if _may_sweep(descriptor, lock):
            _remove_file(lock)
    finally:
        os.close(descriptor)


def _sweep_folder(work: Path) -> None:
    lock = work / _LOCK
    if not lock.exists():
        # Its process may be about to create the lock; if it does, this fails, or it starts again.
        work.rmdir()
        return
    descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        named = _LEFTOVER.fullmatch(work.name)
        if named is not None and _may_sweep(descriptor, lock):
            _remove_folder(work, work.with_name(named[1]))
    finally:
        os.close(descriptor)


def _may_sweep(descriptor: int, lock: Path) -> bool:
    """Lock a leftover; return whether it belongs to nobody. Raises OSError if it is locked."""
    lock_exclusively(descriptor)
    # Its writer may have finished, and removed it, since the folder was read.
    if not _is_same(descriptor, lock):
        return False
    age = time.time() - os.fstat(descriptor).st_mtime
    return os.pread(descriptor, 100, 0) == _machine() or age > _FOREIGN_AGE


def _machine() -> bytes:
    """Return the name of the running kernel, which is one for all containers that share locks."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    except OSError:
        return os.uname().nodename.encode()


def _create_file(target: Path) -> tuple[Path, Path, int]:
    """Create an empty file beside the target, and a locked one; return them and the descriptor."""
    while True:
        path = _temporary_path(target)
        # Another file than the one that is written: on some network file systems, a locked file
        # can be read and written only through the descriptor that has locked it.
        lock = path.with_name(f"{path.name}.lock")
        descriptor = _create_lock(lock)
        if descriptor is None:
            continue
        try:
            # With these permissions, the umask and the folder's default rules apply.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        except BaseException:
            _remove_file(lock)
            os.close(descriptor)
            raise
        return path, lock, descriptor


def _create_folder(target: Path) -> tuple[Path, int]:
    """Create a folder beside the target with a locked file in it; return it and the descriptor."""
    while True:
        work = _temporary_path(target)
        work.mkdir()
        try:
            descriptor = _create_lock(work / _LOCK)
        except FileNotFoundError:  # swept while it was empty
            continue
        if descriptor is not None:
            return work, descriptor


def _create_lock(lock: Path) -> int | None:
    """Create and lock a file; return None if another process has swept it before it was locked."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    # Before the lock: a file of no machine is foreign, and stays.
    os.write(descriptor, _machine())
    _lock_if_supported(descriptor)
    if _is_same(descriptor, lock):
        return descriptor
    os.close(descriptor)
    return None


def _lock_if_supported(descriptor: int) -> None:
    # Waits for a process that is sweeping. Without locks nothing is swept either.
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _temporary_path(target: Path) -> Path:
    # In the same folder, because a rename is atomic only within one file system. Random, because
    # containers that share a folder have the same process ids.
    return target.with_name(f".{_short_name(target)}.{secrets.token_hex(8)}.unfinished")


def _short_name(target: Path) -> str:
    name = target.name.encode("utf-8", "surrogateescape")
    return name[:_LONGEST_NAME].decode("utf-8", "ignore")


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _is_same(descriptor: int, path: Path) -> bool:
    """Return whether the path names the open file."""
    there = _status(path)
    return there is not None and os.path.samestat(os.fstat(descriptor), there)


def _keep_permissions(unfinished: Path, before: os.stat_result) -> None:
    mode = stat.S_IMODE(before.st_mode)
    now = unfinished.stat()
    if (now.st_uid, now.st_gid) != (before.st_uid, before.st_gid):
        try:
            os.chown(unfinished, before.st_uid, before.st_gid)
        except PermissionError:
            # The rights of the old group must not become those of another group.
            mode &= ~stat.S_IRWXG
    unfinished.chmod(mode)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot sync a folder.
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(descriptor)


def _sync_all(folder: Path) -> None:
    for inner, _, names in os.walk(folder):
        for name in names:
            _sync(Path(inner, name))
        _sync(Path(inner))


def _put_in_place(new: Path, target: Path, check: Callable[[Path], None]) -> None:
    while not _exchange(new, target):
        try:
            # Succeeds if there is no folder, or an empty one.
            new.rename(target)
        except OSError as error:
            # Another process has put its folder there in between.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return
    try:
        check(_replaced(new))
    except BaseException:
        _move_back(new, target)
        raise


def _exchange(new: Path, target: Path) -> bool:
    """Exchange two folders, or move the old one to `old`; return whether there was an old one."""
    try:
        _rename_exchange(new, target)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in _NO_EXCHANGE:
            raise
        old = new.with_name(_OLD)
        try:
            target.rename(old)
        except FileNotFoundError:
            return False
        try:
            new.rename(target)
        except BaseException:
            old.rename(target)
            raise
    return True


def _replaced(new: Path) -> Path:
    """Return the path at which the old folder lies after `_exchange`."""
    old = new.with_name(_OLD)
    return old if old.exists() else new


def _move_back(new: Path, target: Path) -> None:
    old = _replaced(new)
    if old == new:
        _rename_exchange(new, target)
    else:
        target.rename(new)
        old.rename(target)


def _rename_exchange(first: Path, second: Path) -> None:
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        raise OSError(errno.ENOSYS, "no renameat2", str(second))
    paths = os.fsencode(first), os.fsencode(second)
    if renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(second))


def _remove_file(lock: Path) -> None:
    """Remove an unfinished file, what SQLite has written beside it, and its lock."""
    with suppress(OSError):
        unfinished = lock.with_name(lock.name.removesuffix(".lock"))
        # After a successful rename it no longer exists.
        for ending in ("", *_SQLITE_FILES):
            unfinished.with_name(f"{unfinished.name}{ending}").unlink(missing_ok=True)
        # Last: without its lock, it would never be swept.
        lock.unlink()


def _remove_folder(work: Path, target: Path) -> None:
    """Remove an unfinished folder; first put the old one back if it has lost its name."""
    with suppress(OSError):
        if (work / _OLD).exists() and not target.exists():
            (work / _OLD).rename(target)
        # The lock last: a folder with content but without a lock would never be swept.
        for name in (_NEW, _OLD):
            shutil.rmtree(work / name, ignore_errors=True)
        (work / _LOCK).unlink()
        work.rmdir()


@contextmanager
def _clear_errors(path: Path, target: Path) -> Iterator[None]:
    """Name `path` and its folder in an OSError that names the temporary path, or no file."""
    temporary = re.compile(rf"\.{re.escape(_short_name(target))}\.[0-9a-f]{{16}}\.unfinished")
    try:
        yield
    except OSError as error:
        names_none = error.filename is None and error.errno in _FULL
        names_ours = error.filename == str(target) or temporary.search(str(error))
        # An error about another file names that file already.
        if not (names_none or names_ours):
            raise
        why = f"{error.strerror or error} (in the folder {target.parent})"
        raise OSError(error.errno, temporary.sub(lambda _: path.name, why), str(path)) from error
