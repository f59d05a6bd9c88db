"""Files that appear whole or not at all."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
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


def refuse_foreign(path: Path, ours: Callable[[Path], bool], kind: str) -> None:
    """Keeps an output from taking the place of a file of another kind.

    Args:
        path: where the output is to go.
        ours: whether a file is of the output's kind.
        kind: what that is, for the message.

    Raises:
        ValueError: something else stands there.
    """
    if path.exists() and not (path.is_file() and ours(path)):
        raise ValueError(
            f"{path} exists and is not {kind} of ours: name another file, or remove it"
        )
