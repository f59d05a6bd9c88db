"""Read and change a repo on the Hub, a data set or a Space, through the Hub's own client."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tenacity
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    get_token,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HTTPError,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from sp2dpo.dataset.manifest import parse_manifest_head
from sp2dpo.hub import NO_TOKEN, HubError, hub_errors
from sp2dpo.listing import (
    CARD,
    LARGEST_CARD,
    LARGEST_MANIFEST,
    MANIFEST,
    DamagedManifest,
    compute_fingerprint,
    list_folder,
)
from sp2dpo.text import RedactFilter, one_line

# Time-outs, rate limits and failures of the server; other errors would repeat.
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_REQUEST_TRIES = 5
_COMMIT_TRIES = 6
_PAUSE = 0.5
"""Seconds before the second attempt at a commit; doubled before each further one."""
_T = TypeVar("_T")


class BranchMoved(Exception):
    """Somebody else changed the repo after it was read."""


class UnknownOutcome(OSError):
    """A request failed with a transient error; the Hub may have made the change nevertheless."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """State of a repo.

    Attributes:
        commit: Head of the main branch.
        private: Whether only its owners can see the repo.
        gated: How access is granted: False (open), "auto" or "manual".
    """

    commit: str
    private: bool
    gated: bool | str


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file of a commit.

    Attributes:
        size: Size in bytes.
        sha256: SHA-256 of the content; None for small files, which are stored in git itself.
        git: Git's SHA-1 of the blob.
    """

    size: int
    sha256: str | None
    git: str

    def holds(self, content: Path | bytes) -> bool:
        """Return whether the file has this content."""
        if self.sha256 is None:
            data = content if isinstance(content, bytes) else content.read_bytes()
            # Git hashes this header together with the content. Restricted builds of Python refuse
            # SHA-1 unless it is declared as not used for security.
            prefix = b"blob %d\0" % len(data)
            return hashlib.sha1(prefix + data, usedforsecurity=False).hexdigest() == self.git
        if isinstance(content, bytes):
            return hashlib.sha256(content).hexdigest() == self.sha256
        return compute_fingerprint(content).sha256 == self.sha256


def check_token() -> None:
    """Raise HubError unless there is a login or HF_TOKEN."""
    if get_token() is None:
        raise HubError(NO_TOKEN)


def retry_commit(attempt: Callable[[], _T], notify: Callable[[str], None]) -> _T:
    """Call `attempt` again when the repo changed meanwhile or a commit has an unknown outcome.

    Args:
        attempt: Reads the repo, compares it with the desired content and commits the difference, so
            that a repeated call makes no change twice.
        notify: Receives a line before each retry.

    Raises:
        HubError: Every attempt failed in this way.
    """
    error: Exception | None = None
    for number in range(_COMMIT_TRIES):
        if number:
            time.sleep(_PAUSE * 2 ** (number - 1))
        try:
            return attempt()
        except BranchMoved as moved:
            notify(f"{moved}: trying again")
            error = moved
        except UnknownOutcome as unknown:
            notify(f"the Hub failed ({unknown}): checking whether the commit was made")
            error = unknown
    raise HubError(f"given up after {_COMMIT_TRIES} attempts: {error}") from error


def _is_transient(error: BaseException) -> bool:
    """Return whether the same request may succeed later."""
    if isinstance(error, HfHubHTTPError):
        # Without a response, the request or its answer was lost.
        return error.response is None or error.response.status_code in _TRANSIENT
    return isinstance(error, HTTPError | json.JSONDecodeError)


# Only for idempotent requests: a commit may have been made although its response was lost.
_retry = tenacity.Retrying(
    retry=tenacity.retry_if_exception(_is_transient),
    stop=tenacity.stop_after_attempt(_REQUEST_TRIES),
    wait=tenacity.wait_random_exponential(multiplier=0.5, max=8),
    reraise=True,
)


class HubRepo:
    """A repo on the Hub.

    Methods raise the exceptions of the Hub's client; `hub.hub_errors` turns them into messages.

    Args:
        name: `org/name`.
        kind: "dataset" or "space".
    """

    def __init__(self, name: str, *, kind: str = "dataset") -> None:
        self.name = name
        self._repo: dict[str, Any] = {"repo_id": name, "repo_type": kind}
        # On handlers, because a logger's filters do not see the records of its child loggers.
        for handler in logging.getLogger("huggingface_hub").handlers:
            handler.addFilter(RedactFilter())
        self._api = HfApi()

    def head(self) -> Head | None:
        """Return the state of the repo; None if there is none or it is not visible."""
        try:
            info: Any = _retry(self._api.repo_info, **self._repo)
        except RepositoryNotFoundError:
            return None
        return Head(
            commit=info.sha or "",
            private=bool(info.private),
            gated=getattr(info, "gated", None) or False,
        )

    def ensure(self, *, private: bool) -> Head:
        """Return the state of the repo; create it first if there is none.

        Args:
            private: Whether only the owners can see a new repo.
        """
        head = self.head()
        if head is None:
            _retry(
                self._api.create_repo,
                **self._repo,
                space_sdk="gradio" if self._repo["repo_type"] == "space" else None,
                private=private or None,  # None is the default of the organization
                exist_ok=True,  # somebody may have created it since
            )
            head = self.head()
        if head is None:
            raise HubError("the repo was created, but cannot be read")
        return head

    def gate(self, how: str, head: Head) -> None:
        """Require an access request, "auto" or "manual", unless the repo already requires it."""
        if head.gated != how:
            _retry(self._api.update_repo_settings, **self._repo, gated=how)

    def files(self, commit: str) -> dict[str, StoredFile]:
        """Return all files of a commit by path."""
        # Inside the retry, because the listing is read page by page.
        entries = _retry(
            lambda: list(self._api.list_repo_tree(**self._repo, revision=commit, recursive=True))
        )
        return {
            entry.path: StoredFile(
                size=entry.size, sha256=entry.lfs.sha256 if entry.lfs else None, git=entry.blob_id
            )
            for entry in entries
            if isinstance(entry, RepoFile)
        }

    def read(self, path: str, revision: str) -> bytes | None:
        """Return the content of a small file; None if there is no such file."""
        try:
            local = _retry(hf_hub_download, **self._repo, filename=path, revision=revision)
        except EntryNotFoundError:
            return None
        return Path(local).read_bytes()

    def tags(self) -> dict[str, str]:
        """Return the commit of each tag."""
        refs = _retry(self._api.list_repo_refs, **self._repo)
        return {tag.name: tag.target_commit for tag in refs.tags}

    def open_pulls(self, title: str) -> list[int]:
        """Return the numbers of the open pull requests with a title."""
        discussions = _retry(
            lambda: list(
                self._api.get_repo_discussions(
                    **self._repo, discussion_type="pull_request", discussion_status="open"
                )
            )
        )
        return [
            discussion.num
            for discussion in discussions
            if discussion.is_pull_request
            and discussion.title == title
            and discussion.status == "open"
        ]

    def commit(
        self,
        added: Mapping[str, Path | bytes],
        removed: list[str],
        *,
        title: str,
        parent: str,
        create_pr: bool,
    ) -> tuple[str, str | None]:
        """Make one commit. A failure leaves the repo unchanged.

        Returns:
            The commit, and the URL of the pull request if one was requested.

        Raises:
            BranchMoved: `parent` is no longer the head.
            UnknownOutcome: The commit may or may not have been made.
        """
        # As one commit: the client's `upload_folder` and `push_to_hub` may split a change into
        # several.
        operations: list[Any] = [
            CommitOperationAdd(path_in_repo=path, path_or_fileobj=content)
            for path, content in added.items()
        ]
        operations += [CommitOperationDelete(path_in_repo=path) for path in removed]
        try:
            commit = self._api.create_commit(
                **self._repo,
                operations=operations,
                commit_message=title,
                parent_commit=parent,
                create_pr=create_pr,
            )
        except (HTTPError, RuntimeError, json.JSONDecodeError) as error:
            raise _commit_error(error) from error
        return commit.oid, commit.pr_url

    def tag(self, name: str, commit: str) -> None:
        """Tag a commit.

        Raises:
            BranchMoved: The tag exists.
        """
        try:
            _retry(self._api.create_tag, **self._repo, tag=name, revision=commit)
        except HfHubHTTPError as error:
            if error.response is not None and error.response.status_code == 409:
                # The next attempt compares the content of the tag. It may be our own, whose
                # response was lost.
                raise BranchMoved(f"the tag {name} was created meanwhile") from error
            raise


def _commit_error(error: Exception) -> Exception:
    """Translate the exception of a failed commit to `BranchMoved`, `UnknownOutcome` or others."""
    # A failed upload is a RuntimeError whose cause is the reason; hf_xet raises the same.
    cause = error.__cause__ if isinstance(error, RuntimeError) else None
    reason = cause if isinstance(cause, Exception) else error
    response = reason.response if isinstance(reason, HfHubHTTPError) else None
    # 412 means that the parent is not the head.
    if response is not None and response.status_code in (409, 412):
        return BranchMoved("somebody else has committed meanwhile")
    message = one_line(reason)
    if _is_transient(reason):
        return UnknownOutcome(message)
    return HubError(message) if isinstance(reason, RuntimeError) else reason


@dataclass(frozen=True, kw_only=True)
class LocalData:
    """A data set whose files are on this machine.

    Attributes:
        name: Name that the user gave: a folder, or `org/name`.
        commit: Commit of the repo; None for a folder.
        folder: Folder of the files.
        repo_files: Names of all files of that commit; None for a folder.
    """

    name: str
    commit: str | None
    folder: Path
    repo_files: frozenset[str] | None = None

    def file_names(self) -> Collection[str]:
        """Return the names of all files in the repo or folder, except those in hidden folders."""
        return list_folder(self.folder) if self.repo_files is None else self.repo_files

    def __str__(self) -> str:
        return f"{self.name} at {self.commit}" if self.commit else self.name


def fetch_dataset(source: str) -> LocalData:
    """Download a data set from the Hub unless it is a folder.

    Args:
        source: Folder, `org/name`, or `org/name@revision` (a branch, a tag or a commit).

    Raises:
        ValueError: sp2dpo did not write the data set.
        OSError: There is no such data set, or the Hub cannot be reached.
    """
    if Path(source).is_dir():
        return LocalData(name=source, commit=None, folder=Path(source))
    name, _, revision = source.partition("@")
    # No repo has a name that begins as a path does.
    is_path = source.startswith((".", "~")) or Path(source).exists()
    if is_path or name.count("/") != 1:
        raise ValueError(
            f"{source}: neither a folder nor a data set on the Hub (org/name@revision)"
        )
    with hub_errors(source):
        # All downloads name this commit, so a concurrent release cannot mix two versions.
        commit = HfApi().dataset_info(name, revision=revision or None).sha
        where = {"revision": commit, "repo_type": "dataset"}
        tree = HfApi().list_repo_tree(name, recursive=True, **where)
        sizes = {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}
        if MANIFEST not in sizes:
            raise ValueError(f"it has no {MANIFEST}: sp2dpo did not publish it")
        for file, limit in ((MANIFEST, LARGEST_MANIFEST), (CARD, LARGEST_CARD)):
            if sizes.get(file, 0) > limit:
                raise ValueError(f"its {file} is larger than {limit / 1e6:g} MB")
        path = Path(hf_hub_download(name, MANIFEST, **where))
        try:
            # Only the head: `verify` reports other damage. Files that it does not list may belong
            # to people.
            files = parse_manifest_head(path.read_bytes(), where=MANIFEST).files
        except DamagedManifest:  # `verify` reports that as well
            files = frozenset()
        folder = snapshot_download(name, **where, allow_patterns=[MANIFEST, CARD, *files])
    return LocalData(name=name, commit=commit, folder=Path(folder), repo_files=frozenset(sizes))
