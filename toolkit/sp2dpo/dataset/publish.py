"""Publish a data set to the Hub: one commit with all its files, or none, and a tag.

The commit names the inspected head as its parent, so it fails if somebody else commits meanwhile;
the repo is then inspected again. Commit and tag are two requests; a rerun completes what is
missing.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

from datasets import Features

from sp2dpo.dataset.card import card_license, digest, merge_card, render_card
from sp2dpo.dataset.manifest import (
    Manifest,
    ManifestHead,
    Suspect,
    parse_manifest_head,
    read_manifest,
)
from sp2dpo.dataset.repo import Head, HubRepo, StoredFile, check_token, retry_commit
from sp2dpo.hub import HubError, hub_errors
from sp2dpo.listing import CARD, CONFIGS, LABEL_NOISE, MANIFEST, RUBRIC, compute_fingerprint
from sp2dpo.panel.rubric import Rubric, read_rubric
from sp2dpo.tables import read_features
from sp2dpo.text import count_noun

_NO_LICENSE = (None, "unknown", "other")
"""Licences that do not state what is permitted."""
_SUSPECTS = 100
"""Number of doubtful labels read for the card."""
_NO_DATA = (".md", ".gitattributes", ".gitignore", "LICENSE", "LICENSE.txt")
"""Endings of files that a repo may contain without containing a data set."""


@dataclass(frozen=True, kw_only=True)
class PublishOptions:
    """Where and how a data set is published.

    Attributes:
        repo: `org/name` on the Hub.
        tag: Tag of the new commit; None for no tag.
        private: Whether only the owners can see a new repo.
        gated: Require an access request, "auto" or "manual"; None leaves the setting unchanged.
        create_pr: Open a pull request instead of changing the main branch; excludes `tag`.
        overwrite: Publish even if the repo contains another data set.
        license: Licence of the data set; None to use the one on the repo's card or in the manifest.
        dry_run: Only compute the changes.
    """

    repo: str
    tag: str | None = None
    private: bool = False
    gated: str | None = None
    create_pr: bool = False
    overwrite: bool = False
    license: str | None = None
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True)
class Change:
    """A file that the commit adds, changes or removes.

    Attributes:
        path: Path in the repo.
        what: Kind of the change.
        bytes: Maximum number of bytes to upload; content that the Hub has is not sent again.
    """

    path: str
    what: Literal["added", "changed", "removed"]
    bytes: int


@dataclass(frozen=True, kw_only=True)
class PublishResult:
    """A finished publication.

    Attributes:
        commit: Commit that contains the data set; None after a dry run, and if an open pull request
            contains it already.
        changes: Changes of the commit; empty if the repo is up to date.
        unchanged: Number of files that are up to date.
        pull_request: URL or number of the pull request; None without one.
        tagged: Whether a new tag was created.
    """

    commit: str | None
    changes: list[Change]
    unchanged: int
    pull_request: str | None = None
    tagged: bool = False


def publish_dataset(
    folder: Path | str,
    options: PublishOptions,
    *,
    notify: Callable[[str], None] = lambda line: None,
) -> PublishResult:
    """Publish the data set in a folder that `build` wrote.

    A failure leaves the repo at its last release, and a rerun completes the rest. Publishing the
    same data set again changes nothing.

    Args:
        folder: Folder of the data set.
        options: Where and how to publish it.
        notify: Receives a line before each retry.

    Raises:
        ValueError: A file differs from the manifest, the repo contains another data set, the tag
            exists with other content, or the licence is unknown.
        OSError: A file cannot be read, or the Hub cannot be reached or rejects the change.
    """
    folder = Path(folder)
    if options.tag is not None and options.create_pr:
        raise ValueError("a pull request has no tag: choose one of the two")
    release = _read_release(folder)
    with hub_errors(options.repo):
        if not options.dry_run:  # a public repo can be compared without a login
            check_token()
        repo = HubRepo(options.repo)
        return retry_commit(lambda: _publish(release, options, repo), notify)


@dataclass(frozen=True, kw_only=True)
class _Release:
    """A folder that `build` wrote, with verified hashes.

    Attributes:
        folder: Folder of the data set.
        manifest: The manifest.
        features: Columns of each config.
        rubric: Rubric of the annotations.
        suspects: The most doubtful labels.
    """

    folder: Path
    manifest: Manifest
    features: Mapping[str, Features]
    rubric: Rubric
    suspects: list[Suspect]

    def with_card(
        self, repo: str, existing: str | None, license: str | None
    ) -> tuple[Manifest, str]:
        """Return the manifest and the card for a repo, whose name the card's snippets load.

        Raises:
            ValueError: The licence is unknown, or the existing card cannot be parsed.
        """
        stated = card_license(existing, where=CARD) if existing is not None else None
        chosen = license or stated or self.manifest.license
        # `--license other` is an answer of the user; in a source, the same word says nothing.
        if license is None and chosen in _NO_LICENSE:
            problem = f"is {chosen!r}" if chosen else "is not known"
            raise ValueError(
                f"the licence of {self.manifest.source.name} {problem}: state with --license what "
                "users may do, as a licence identifier of the Hub (apache-2.0, cc-by-4.0, other)"
            )
        manifest = replace(self.manifest, repo=repo, license=chosen)
        text = render_card(manifest, self.features, self.rubric, self.suspects)
        if existing is not None:
            text = merge_card(existing, text, license=license, where=CARD)
        return replace(manifest, card_sha256=digest(text, where=CARD)), text


def _read_release(folder: Path) -> _Release:
    # Every hash is checked before the Hub is asked, so that a changed file stops everything.
    manifest = read_manifest(folder)
    for name, recorded in manifest.files.items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing: build the data set again")
        if compute_fingerprint(folder / name) != recorded:
            raise ValueError(
                f"{folder / name} is not what `build` wrote: its SHA-256 differs from that in "
                f"{MANIFEST}; build the data set again"
            )
    with (folder / LABEL_NOISE).open(encoding="utf-8") as lines:
        suspects = [Suspect(**json.loads(line)) for line in islice(lines, _SUSPECTS)]
    return _Release(
        folder=folder,
        manifest=manifest,
        features={
            config: read_features(folder / names[0])
            for config in CONFIGS
            if (names := manifest.config_files(config))
        },
        rubric=read_rubric(folder / RUBRIC, aliases=False),
        suspects=suspects,
    )


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """A commit on top of one head: the manifest, all files of the data set, and what changes."""

    manifest: Manifest
    files: dict[str, Path | bytes]
    changes: list[Change]
    title: str


def _publish(release: _Release, options: PublishOptions, repo: HubRepo) -> PublishResult:
    head = repo.head()
    if head is not None and options.private and not head.private:
        raise ValueError("it is public: make it private on the Hub first, or leave --private out")
    plan = _plan(release, options, repo, head)
    # Before anything is changed, so that a tag with other content leaves the repo as it is.
    has_tag = _has_tag(options, plan, repo, head)
    if not options.dry_run:
        if head is None:
            head = repo.ensure(private=options.private)
            # Compared with what is there now: somebody else may have created the repo meanwhile.
            plan = _plan(release, options, repo, head)
        if options.gated is not None:
            repo.gate(options.gated, head)
    removed = [change.path for change in plan.changes if change.what == "removed"]
    paths = [change.path for change in plan.changes if change.what != "removed"]
    unchanged = len(plan.files) - len(paths)
    # Only a dry run can be without a head: otherwise the repo was created above.
    if options.dry_run or head is None:
        return PublishResult(commit=None, changes=plan.changes, unchanged=unchanged)
    commit, pull = head.commit, None
    if plan.changes:
        # A rerun must not open a second pull request for the same content.
        if options.create_pr and (number := _same_pull(plan, repo)) is not None:
            return PublishResult(
                commit=None, changes=[], unchanged=unchanged, pull_request=f"#{number}"
            )
        commit, pull = repo.commit(
            {path: plan.files[path] for path in paths},
            removed,
            title=plan.title,
            parent=head.commit,
            create_pr=options.create_pr,
        )
        _check_commit(repo, commit, plan)
    tagged = options.tag is not None and not has_tag
    if options.tag is not None and tagged:
        repo.tag(options.tag, commit)
    return PublishResult(
        commit=commit, changes=plan.changes, unchanged=unchanged, pull_request=pull, tagged=tagged
    )


def _plan(release: _Release, options: PublishOptions, repo: HubRepo, head: Head | None) -> _Plan:
    # All reads name the head's commit, which becomes the parent: a change in between fails the
    # commit.
    stored = repo.files(head.commit) if head else {}
    card, text = (
        repo.read(name, head.commit) if head and name in stored else None
        for name in (CARD, MANIFEST)
    )
    try:
        previous = None if text is None else parse_manifest_head(text, where=MANIFEST)
    except ValueError:  # the file is not from this toolkit
        previous = None
    # A pull request changes nothing until an owner of the repo merges it.
    if not options.overwrite and not options.create_pr:
        _check_same_data(previous, stored, release)
    manifest, text = release.with_card(
        options.repo, None if card is None else card.decode(), options.license
    )
    files: dict[str, Path | bytes] = {name: release.folder / name for name in manifest.files}
    files |= {CARD: text.encode(), MANIFEST: manifest.format_json().encode()}
    # Only files that the previous manifest lists: others in the repo belong to people.
    stale = (previous.files if previous else set()) & stored.keys() - files.keys()
    changes = [
        *_changes(files, manifest, stored),
        *(Change(path=name, what="removed", bytes=0) for name in sorted(stale)),
    ]
    pairs = count_noun(manifest.counts.pairs_with_beta, "pair")
    tag = f" {options.tag}" if options.tag else ""
    title = f"Release{tag}: {pairs} with a beta (sp2dpo {manifest.toolkit['version']})"
    return _Plan(manifest=manifest, files=files, changes=changes, title=title)


def _changes(
    files: Mapping[str, Path | bytes], manifest: Manifest, stored: Mapping[str, StoredFile]
) -> Iterator[Change]:
    for name, content in files.items():
        file, recorded = stored.get(name), manifest.files.get(name)
        # The manifest has no hash of itself and the card, and the Hub none of small files.
        if file is not None and recorded is not None and file.sha256 is not None:
            same = file.sha256 == recorded.sha256  # avoids hashing the content again
        else:
            same = file is not None and file.holds(content)
        if not same:
            size = len(content) if isinstance(content, bytes) else content.stat().st_size
            yield Change(path=name, what="changed" if file else "added", bytes=size)


def _check_same_data(
    previous: ManifestHead | None, stored: Mapping[str, StoredFile], release: _Release
) -> None:
    """Raise ValueError if the repo contains another data set."""
    remedy = "name another --repo, or say --overwrite or --create-pr"
    if previous is None:
        foreign = sorted(name for name in stored if not name.endswith(_NO_DATA))
        if foreign:
            raise ValueError(
                f"it holds {count_noun(len(foreign), 'file')} that sp2dpo did not publish "
                f"({foreign[0]}): {remedy}"
            )
    elif (old := previous.source) != (new := release.manifest.source.name):
        raise ValueError(f"it holds pairs from {old}, and these are from {new}: {remedy}")


def _has_tag(options: PublishOptions, plan: _Plan, repo: HubRepo, head: Head | None) -> bool:
    """Return whether the tag exists with the same content.

    Raises:
        ValueError: The tag exists with other content.
    """
    if options.tag is None or head is None:
        return False
    commit = repo.tags().get(options.tag)
    if commit is None:
        return False
    # The manifest has the hashes of all files and of the card, so it stands for all content.
    if repo.read(MANIFEST, commit) != plan.files[MANIFEST]:
        raise ValueError(
            f"the tag {options.tag} is there, with other content: tags never move, so name a new "
            "one"
        )
    return True


def _same_pull(plan: _Plan, repo: HubRepo) -> int | None:
    """Return the number of an open pull request with the same content."""
    # The title only limits how many manifests are read.
    for number in repo.open_pulls(plan.title):
        if repo.read(MANIFEST, f"refs/pr/{number}") == plan.files[MANIFEST]:
            return number
    return None


def _check_commit(repo: HubRepo, commit: str, plan: _Plan) -> None:
    """Raise HubError if the commit does not contain what was uploaded."""
    stored = repo.files(commit)
    for name, recorded in plan.manifest.files.items():
        file = stored.get(name)
        # Small files are stored in git itself, without a SHA-256 to compare.
        if file is None or (file.sha256 or recorded.sha256) != recorded.sha256:
            raise HubError(f"the Hub reports {name} as stored, but not with the uploaded content")
