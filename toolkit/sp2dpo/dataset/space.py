"""The inspector, opened on this machine or put on the Hub as a Space.

Its files are a program of their own (spaces/inspector), which imports nothing of ours; the wheel
carries them. What it shows is named by the variable SP2DPO_DATA.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import HfApi, get_token

from sp2dpo.dataset.repo import BranchMoved, Head, HubRepo, UnknownOutcome
from sp2dpo.hub import NO_TOKEN, HubError, hub_errors

VARIABLE = "SP2DPO_DATA"
_CARD, _OURS = "README.md", "title: SP2DPO inspector"
_BLANK = {_CARD, ".gitattributes"}
"""What the Hub itself puts into a new Space."""
_TRIES, _PAUSE = 5, 0.5
_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """What became of a Space.

    Attributes:
        commit: that it stands at.
        changed: paths that were sent or removed.
        unchanged: files that were there already.
    """

    commit: str
    changed: list[str]
    unchanged: int


def inspector_folder() -> Path:
    """Where the inspector's files are: in the package, or in the checkout that it runs from.

    Raises:
        OSError: neither has them.
    """
    here = Path(__file__).resolve()
    for found in (here.parents[1] / "inspector", here.parents[3] / "spaces" / "inspector"):
        if (found / "app.py").is_file():
            return found
    raise FileNotFoundError(
        "the inspector's files are neither in the package nor beside it: install sp2dpo again"
    )


def check_data(data: str) -> str:
    """The data set that the inspector is to show, as it takes it.

    Args:
        data: a folder that `build` made, `org/name`, or `org/name@revision`; empty for the demo.

    Raises:
        ValueError: it is neither.
    """
    if not data:
        return data
    if Path(data).is_dir():
        if not (Path(data) / "manifest.json").is_file():
            raise ValueError(f"{data} has no manifest.json: `sp2dpo build` makes such a folder")
        return str(Path(data).resolve())
    if not _NAME.fullmatch(data):
        raise ValueError(f"{data}: neither a folder nor a data set on the Hub (org/name@revision)")
    return data


def load_space_data(data: str, *, port: int | None, host: str) -> int:
    """Runs the inspector until it is stopped, and gives its exit status.

    Raises:
        ValueError: there is no such data set.
        OSError: Gradio is not installed.
    """
    shown = check_data(data)
    if find_spec("gradio") is None:
        raise FileNotFoundError("the inspector needs Gradio: pip install 'sp2dpo[space]'")
    env = {**os.environ, VARIABLE: shown, "GRADIO_SERVER_NAME": host}
    if port is not None:
        env["GRADIO_SERVER_PORT"] = str(port)
    with subprocess.Popen([sys.executable, "app.py"], cwd=inspector_folder(), env=env) as running:
        try:
            return running.wait()
        except KeyboardInterrupt:  # it has heard it, too
            return 0 if running.wait() in (0, 130, -2) else 1


def inspector_files(data: str) -> dict[str, bytes]:
    """The files of a Space, by path: the inspector's, its card naming the data set."""
    root = inspector_folder()
    found = {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    if data:
        name = data.partition("@")[0]
        card = found[_CARD].decode("utf-8")
        found[_CARD] = card.replace("\ntags:\n", f"\ndatasets:\n- {name}\ntags:\n", 1).encode()
    return found


def deploy_space(
    name: str, data: str, *, private: bool, overwrite: bool, say: Callable[[str], None]
) -> Deployed:
    """Makes a Space show a data set: its variable, and one commit with all files.

    Args:
        name: `org/name` of the Space.
        data: `org/name` or `org/name@revision` of a data set; empty for the demo.
        private: a new Space is seen by its owners only.
        overwrite: also where the Space is another program.
        say: tells a person what goes on.

    Raises:
        ValueError: the Space is another program, or the data set is a folder.
        OSError: the Hub cannot be reached, or does not take it.
    """
    if data and Path(data).is_dir():
        raise ValueError(f"{data} is a folder, which a Space cannot see: `sp2dpo publish` it first")
    check_data(data)
    with hub_errors(name, kind="Space"):
        if get_token() is None:
            raise HubError(NO_TOKEN)
        wanted = inspector_files(data)
        repo = HubRepo(name, kind="space")
        trouble: Exception = OSError("nothing was tried")
        for attempt in range(_TRIES):
            time.sleep(_PAUSE * 2 ** (attempt - 1) if attempt else 0)
            try:
                return _committed(repo, wanted, data, private=private, overwrite=overwrite)
            except (BranchMoved, UnknownOutcome) as error:
                say(f"looking again: {error}")
                trouble = error
        raise HubError(f"given up after {_TRIES} tries: {trouble}") from trouble


def _committed(
    repo: HubRepo, wanted: Mapping[str, bytes], data: str, *, private: bool, overwrite: bool
) -> Deployed:
    head = repo.head()
    if head is None:
        repo.create(private=private)
        head = repo.head()
    if head is None:
        raise HubError("the Space was made, and cannot be seen")
    there = repo.files(head.commit)
    _check_ours(repo, head, set(there), overwrite=overwrite)
    added = {
        path: content
        for path, content in wanted.items()
        if path not in there or not there[path].holds(content)
    }
    removed = sorted(there.keys() - wanted.keys() - {".gitattributes"})
    # The variable first: the commit is what starts the Space.
    _set_variable(repo.name, data)
    commit = head.commit
    if added or removed:
        title = f"Inspector of {data or 'the demo corpus'}"
        commit, _ = repo.commit(added, removed, title=title, parent=head.commit, create_pr=False)
    return Deployed(
        commit=commit, changed=sorted([*added, *removed]), unchanged=len(wanted) - len(added)
    )


def _set_variable(name: str, data: str) -> None:
    held = HfApi().get_space_variables(name).get(VARIABLE)
    if data and (held is None or held.value != data):
        HfApi().add_space_variable(name, VARIABLE, data)
    if not data and held is not None:
        HfApi().delete_space_variable(name, VARIABLE)


def _check_ours(repo: HubRepo, head: Head, there: set[str], *, overwrite: bool) -> None:
    """Refuses to put the inspector over another program."""
    card = repo.read(_CARD, head.commit) if _CARD in there else None
    if overwrite or there <= _BLANK or (card is not None and _OURS.encode() in card):
        return
    raise ValueError(
        f"it is another program ({min(there - _BLANK)}): name another --repo, or say --overwrite"
    )
