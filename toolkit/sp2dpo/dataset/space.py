"""Run the inspector on this machine, or deploy it to the Hub as a Space.

The inspector (spaces/inspector) is a separate program that does not import the toolkit; the
wheel contains its files. The variable SP2DPO_DATA names the data set that it shows.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from huggingface_hub import HfApi

from sp2dpo.dataset.repo import Head, HubRepo, check_token, retry_commit
from sp2dpo.hub import hub_errors
from sp2dpo.listing import MANIFEST

VARIABLE, HOSTS, PARENT = "SP2DPO_DATA", "SP2DPO_HOSTS", "SP2DPO_PARENT"
_CARD, _CARD_TITLE = "README.md", "title: SP2DPO inspector"
_INITIAL_FILES = {_CARD, ".gitattributes"}
"""Files that the Hub puts into a new Space."""
_DATASET_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?")
_HOST_NAME = re.compile(r"[\w.-]+|\[?[\da-fA-F:.]+\]?")


@dataclass(frozen=True, kw_only=True)
class DeployResult:
    """A finished deployment.

    Attributes:
        commit: Head of the Space.
        changed: Paths that were uploaded or removed.
        unchanged: Number of files that were up to date.
    """

    commit: str
    changed: list[str]
    unchanged: int


def run_inspector(
    data: str = "",
    *,
    port: int | None = None,
    host: str = "127.0.0.1",
    hosts: Sequence[str] = (),
) -> int:
    """Run the inspector until it is stopped; return its exit status.

    It also stops when this process ends, even if this process is killed.

    Args:
        data: Folder of a data set, `org/name` or `org/name@revision`; empty for the demo.
        port: Port of the server; None for the first free port from 7860.
        host: Address to bind; "0.0.0.0" accepts connections from other machines.
        hosts: Further host names that the server answers to, such as that of a proxy.

    Raises:
        ValueError: There is no such data set, or no such host name.
        OSError: Gradio is not installed.
    """
    command, env = _inspector_command(data, port, host, hosts)
    env[PARENT] = str(os.getpid())
    # The end of this process closes the pipe, and the inspector ends with it.
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:  # a terminal interrupts the inspector as well, Jupyter does not
            if process.stdin is not None:
                process.stdin.close()
            # 130 and -2 are the statuses of a program that SIGINT ended.
            return 0 if process.wait() in (0, 130, -2) else 1


def become_inspector(data: str, *, port: int | None, host: str, hosts: Sequence[str]) -> NoReturn:
    """Run the inspector in place of this program, so that signals reach it; never return.

    Arguments and errors are those of `run_inspector`.
    """
    command, env = _inspector_command(data, port, host, hosts)
    env.pop(PARENT, None)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], command, env)


def _inspector_command(
    data: str, port: int | None, host: str, hosts: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    """Return the command and the environment of the inspector, after a check of the arguments."""
    shown = _check_data(data)
    for name in hosts:
        if not _HOST_NAME.fullmatch(name):
            raise ValueError(f"{name}: not a host name (without https:// and without a port)")
    # Not imported: only the other program needs it.
    if find_spec("gradio") is None:
        raise FileNotFoundError("the inspector needs Gradio: pip install 'sp2dpo[space]'")
    env = {**os.environ, VARIABLE: shown, "GRADIO_SERVER_NAME": host}
    if hosts:
        env[HOSTS] = ",".join([*filter(None, [env.get(HOSTS)]), *hosts])
    if port is not None:
        env["GRADIO_SERVER_PORT"] = str(port)
    return [sys.executable, str(_inspector_folder() / "app.py")], env


def deploy_space(
    name: str,
    data: str = "",
    *,
    private: bool = False,
    overwrite: bool = False,
    notify: Callable[[str], None] = lambda line: None,
) -> DeployResult:
    """Deploy the inspector as a Space: set its variable and make one commit with all files.

    Args:
        name: `org/name` of the Space.
        data: `org/name` or `org/name@revision` of a data set; empty for the demo.
        private: Whether only the owners can see a new Space.
        overwrite: Replace the Space even if it contains another program.
        notify: Receives a line before each retry.

    Raises:
        ValueError: The Space contains another program, or the data set is a local folder.
        OSError: The Hub cannot be reached or rejects the change.
    """
    if data and Path(data).is_dir():
        raise ValueError(f"{data} is a folder, which a Space cannot see: `sp2dpo publish` it first")
    _check_data(data)
    with hub_errors(name, kind="Space"):
        check_token()
        files, repo = _space_files(data), HubRepo(name, kind="space")
        return retry_commit(
            lambda: _commit(repo, files, data, private=private, overwrite=overwrite), notify
        )


def _check_data(data: str) -> str:
    """Return the value of the inspector's variable.

    Raises:
        ValueError: `data` does not name a data set of sp2dpo.
    """
    if not data:
        return data
    if Path(data).is_dir():
        if not (Path(data) / MANIFEST).is_file():
            raise ValueError(f"{data} has no {MANIFEST}: `sp2dpo build` creates one")
        return str(Path(data).resolve())
    if not _DATASET_NAME.fullmatch(data):
        raise ValueError(f"{data}: neither a folder nor a data set on the Hub (org/name@revision)")
    if Path(data).exists():
        raise ValueError(f"{data} is a file: name the folder of a data set")
    return data


def _inspector_folder() -> Path:
    """Return the folder of the inspector, in the installed package or in the checkout."""
    here = Path(__file__).resolve()
    for folder in (here.parents[1] / "inspector", here.parents[3] / "spaces" / "inspector"):
        if (folder / "app.py").is_file():
            return folder
    raise FileNotFoundError("the files of the inspector are missing: install sp2dpo again")


def _space_files(data: str) -> dict[str, bytes]:
    """Return the files of the Space by path; the card names the data set."""
    root = _inspector_folder()
    # A checkout in which the inspector has run also contains its bytecode.
    files = {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    if data:
        name = data.partition("@")[0]
        card = files[_CARD].decode("utf-8")
        files[_CARD] = card.replace("\ntags:\n", f"\ndatasets:\n- {name}\ntags:\n", 1).encode()
    return files


def _commit(
    repo: HubRepo, files: Mapping[str, bytes], data: str, *, private: bool, overwrite: bool
) -> DeployResult:
    head = repo.ensure(private=private)
    stored = repo.files(head.commit)
    if not overwrite:
        _check_space(repo, head, set(stored))
    added = {
        path: content
        for path, content in files.items()
        if path not in stored or not stored[path].holds(content)
    }
    # The Hub itself puts .gitattributes into every Space.
    removed = sorted(stored.keys() - files.keys() - {".gitattributes"})
    _set_variable(repo.name, data)  # before the commit, which starts the Space
    commit = head.commit
    if added or removed:
        title = f"Inspector of {data or 'the demo corpus'}"
        commit, _ = repo.commit(added, removed, title=title, parent=head.commit, create_pr=False)
    return DeployResult(
        commit=commit, changed=sorted([*added, *removed]), unchanged=len(files) - len(added)
    )


def _set_variable(name: str, data: str) -> None:
    variable = HfApi().get_space_variables(name).get(VARIABLE)
    if data and (variable is None or variable.value != data):
        HfApi().add_space_variable(name, VARIABLE, data)
    if not data and variable is not None:
        HfApi().delete_space_variable(name, VARIABLE)


def _check_space(repo: HubRepo, head: Head, stored: set[str]) -> None:
    """Raise ValueError if the Space contains another program."""
    card = repo.read(_CARD, head.commit) if _CARD in stored else None
    if stored <= _INITIAL_FILES or (card is not None and _CARD_TITLE.encode() in card):
        return
    raise ValueError(
        f"it is another program ({min(stored - _INITIAL_FILES)}): name another --repo, or say "
        "--overwrite"
    )
