"""A repo on the Hub, a data set or a Space, looked at and changed through the Hub's own client."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tenacity
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    hf_hub_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HTTPError,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from sp2dpo.hub import HubError
from sp2dpo.text import RedactFilter

_MAY_PASS = (408, 425, 429, 500, 502, 503, 504)
_TRIES = 5
_T = TypeVar("_T")


class BranchMoved(Exception):
    """Somebody else has committed since the repo was looked at."""


class UnknownOutcome(OSError):
    """A change failed in a way that may pass, and may all the same have been made."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """A repo as it stands.

    Attributes:
        commit: of its main branch.
        private: whether only its owners see it.
        gated: False, `auto` or `manual`.
    """

    commit: str
    private: bool
    gated: bool | str


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file of a commit: its size in bytes, and its SHA-256 or, of a small one, git's hash."""

    size: int
    sha256: str | None
    git: str

    def holds(self, content: Path | bytes) -> bool:
        """Whether it has this content."""
        if self.sha256 is None:
            data = content if isinstance(content, bytes) else content.read_bytes()
            said = b"blob %d\0" % len(data)
            return hashlib.sha1(said + data, usedforsecurity=False).hexdigest() == self.git
        if isinstance(content, bytes):
            return hashlib.sha256(content).hexdigest() == self.sha256
        with content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256


def _asked(action: Callable[[], _T]) -> _T:
    """What a question to the Hub gives; a fault that may pass is tried again."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        stop=tenacity.stop_after_attempt(_TRIES),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=8),
        reraise=True,
    )(action)


def is_transient(error: BaseException) -> bool:
    """Whether the same request may go well later."""
    if isinstance(error, HfHubHTTPError):
        return error.response is None or error.response.status_code in _MAY_PASS
    return isinstance(error, HTTPError | json.JSONDecodeError)


class HubRepo:
    """A repo, by its name and kind (`dataset` or `space`).

    Every method raises what the Hub's client raises; `hub.hub_errors` puts it into words.
    """

    def __init__(self, name: str, *, kind: str = "dataset") -> None:
        self.name = name
        self._kind = kind
        for handler in logging.getLogger("huggingface_hub").handlers:
            handler.addFilter(RedactFilter())
        self._api = HfApi()

    def head(self) -> Head | None:
        """How it stands; None where there is none that we may see."""
        try:
            info: Any = _asked(lambda: self._api.repo_info(self.name, repo_type=self._kind))
        except RepositoryNotFoundError:
            return None
        return Head(
            commit=info.sha or "",
            private=bool(info.private),
            gated=getattr(info, "gated", None) or False,
        )

    def create(self, *, private: bool) -> None:
        """Makes it; one that is there stays."""
        _asked(
            lambda: self._api.create_repo(
                self.name,
                repo_type=self._kind,
                space_sdk="gradio" if self._kind == "space" else None,
                private=private or None,
                exist_ok=True,
            )
        )

    def gate(self, how: str) -> None:
        """Lets only those load it who have asked for access."""
        gated: Any = how
        _asked(lambda: self._api.update_repo_settings(self.name, repo_type=self._kind, gated=gated))

    def files(self, commit: str) -> dict[str, StoredFile]:
        """All files of a commit, by path."""
        entries = _asked(
            lambda: list(
                self._api.list_repo_tree(
                    self.name, revision=commit, recursive=True, repo_type=self._kind
                )
            )
        )
        return {
            one.path: StoredFile(
                size=one.size, sha256=one.lfs.sha256 if one.lfs else None, git=one.blob_id
            )
            for one in entries
            if isinstance(one, RepoFile)
        }

    def read(self, path: str, revision: str) -> bytes | None:
        """The content of a small file; None where there is none."""
        try:
            found = _asked(
                lambda: hf_hub_download(self.name, path, revision=revision, repo_type=self._kind)
            )
        except EntryNotFoundError:
            return None
        return Path(found).read_bytes()

    def tags(self) -> dict[str, str]:
        """Tag -> its commit."""
        refs = _asked(lambda: self._api.list_repo_refs(self.name, repo_type=self._kind))
        return {one.name: one.target_commit for one in refs.tags}

    def open_pulls(self, title: str) -> list[int]:
        """The numbers of the open pull requests of that title."""
        found = _asked(
            lambda: list(
                self._api.get_repo_discussions(
                    self.name,
                    repo_type=self._kind,
                    discussion_type="pull_request",
                    discussion_status="open",
                )
            )
        )
        return [
            one.num
            for one in found
            if one.is_pull_request and one.title == title and one.status == "open"
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
        """Makes one commit, or none: whatever fails before its end leaves the repo as it was.

        Returns:
            The commit, and the address of the pull request where one was asked for.

        Raises:
            Moved: `parent` is no longer the head.
            Unclear: see there.
        """
        operations: list[Any] = [
            CommitOperationAdd(path_in_repo=path, path_or_fileobj=content)
            for path, content in added.items()
        ]
        operations += [CommitOperationDelete(path_in_repo=path) for path in removed]
        try:
            made = self._api.create_commit(
                self.name,
                operations,
                commit_message=title,
                repo_type=self._kind,
                parent_commit=parent,
                create_pr=create_pr,
            )
        except (HTTPError, RuntimeError, json.JSONDecodeError) as error:
            raise self._said(error) from error
        return made.oid, made.pr_url

    def _said(self, error: Exception) -> Exception:
        """What a failed commit means."""
        # An upload that fails is a RuntimeError with the reason behind it; so is one of hf_xet's.
        behind = error.__cause__ if isinstance(error, RuntimeError) else None
        reason = behind if isinstance(behind, Exception) else error
        response = reason.response if isinstance(reason, HfHubHTTPError) else None
        if response is not None and response.status_code in (409, 412):
            return BranchMoved(str(reason))
        said = " ".join(str(reason).split())
        if is_transient(reason):
            return UnknownOutcome(said)
        return HubError(said) if isinstance(reason, RuntimeError) else reason

    def tag(self, name: str, commit: str) -> None:
        """Names a commit.

        Raises:
            Moved: there is such a tag already.
        """
        try:
            _asked(
                lambda: self._api.create_tag(
                    self.name, tag=name, revision=commit, repo_type=self._kind
                )
            )
        except HfHubHTTPError as error:
            if error.response is not None and error.response.status_code == 409:
                raise BranchMoved(str(error)) from error
            raise
