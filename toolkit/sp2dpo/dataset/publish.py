"""A data set goes to the Hub: one commit with all of it, or none, and a tag.

The head is read, everything is prepared against it, and one commit names it as its parent: where
somebody else was quicker, we look again. Commit and tag are two requests, so a second run must come
to the same end: what is there already is not sent again.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Features
from huggingface_hub import get_token

from sp2dpo.dataset.card import card_license, digest, merge_card, render_card
from sp2dpo.dataset.manifest import (
    CARD,
    CONFIGS,
    LABEL_NOISE,
    MANIFEST,
    RUBRIC,
    fingerprint,
    listed_files,
    read_manifest,
    write_manifest,
)
from sp2dpo.dataset.parquet import read_features
from sp2dpo.dataset.repo import BranchMoved, Head, HubRepo, StoredFile, UnknownOutcome
from sp2dpo.hub import NO_TOKEN, HubError, hub_errors
from sp2dpo.panel.rubric import Rubric, read_rubric
from sp2dpo.text import count_noun

UNKNOWN = (None, "unknown", "other")
"""Licences that tell nobody what is allowed."""
_LINES = 100


@dataclass(frozen=True, kw_only=True)
class Release:
    """What a folder of `build` holds, its hashes checked.

    Attributes:
        folder: of the data set.
        facts: of its manifest.
        features: the columns of each config.
        rubric: that the teachers were asked under.
        suspects: the first lines of the list of doubtful labels.
    """

    folder: Path
    facts: Mapping[str, Any]
    features: Mapping[str, Features]
    rubric: Rubric
    suspects: list[dict[str, Any]]

    def with_card(
        self, repo: str, theirs: str | None, license: str | None
    ) -> tuple[dict[str, Any], str]:
        """The manifest and the card for a repo.

        Args:
            repo: its name, which the card's snippets load.
            theirs: the card that stands there; None where there is none.
            license: that was asked for; without one the repo's own card says it, or the manifest.

        Raises:
            ValueError: the licence is not known, or the card there cannot be read.
        """
        there = card_license(theirs, where=CARD) if theirs is not None else None
        named = license or there or self.facts["license"]
        if license is None and named in UNKNOWN:
            said = f"is {named!r}" if named else "is not known"
            raise ValueError(
                f"the licence of {self.facts['source']['name']} {said}: say with --license what "
                "those who load this may do, as the Hub names it (apache-2.0, cc-by-4.0, other)"
            )
        facts = {**self.facts, "repo": repo, "license": named}
        text = render_card(facts, self.features, self.rubric, self.suspects)
        if theirs is not None:
            text = merge_card(theirs, text, license=license, where=CARD)
        facts["card_sha256"] = digest(text, where=CARD)
        return facts, text


def read_release(folder: Path) -> Release:
    """The data set in a folder, as `build` wrote it.

    Raises:
        ValueError: it is none, or one of its files was changed.
        OSError: it cannot be read.
    """
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"{folder} has no {MANIFEST}: `sp2dpo build` makes such a folder")
    facts = read_manifest((folder / MANIFEST).read_bytes(), where=str(folder / MANIFEST))
    for name, said in facts["files"].items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing: build the data set again")
        if fingerprint(folder / name) != said:
            raise ValueError(
                f"{folder / name} is not what `build` wrote there: its SHA-256 is another than "
                f"{MANIFEST} says; build the data set again"
            )
    with (folder / LABEL_NOISE).open(encoding="utf-8") as lines:
        suspects = [json.loads(line) for line in islice(lines, _LINES)]
    return Release(
        folder=folder,
        facts=facts,
        features={
            config: read_features(folder / names[0])
            for config in CONFIGS
            if (names := listed_files(facts, config))
        },
        rubric=read_rubric(folder / RUBRIC),
        suspects=suspects,
    )


_TRIES = 6
_PAUSE = 0.5
"""Seconds before a second look; twice as long before each further one."""
_NO_DATA = (".md", ".gitattributes", ".gitignore", "LICENSE", "LICENSE.txt")
"""How files end that a repo may hold without holding a data set."""


@dataclass(frozen=True, kw_only=True)
class PublishOptions:
    """What is wanted.

    Attributes:
        repo: `org/name`.
        tag: to give the commit; None for none.
        private: a new repo is seen by its owners only.
        gated: `auto` or `manual`: people have to ask for access; None leaves it as it is.
        create_pr: open a pull request in place of changing the main branch.
        overwrite: also where the repo holds data that are not of this data set.
        license: of the data set; None for what the repo's card, or the manifest, says.
        dry_run: only say what would change.
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
    """A file that a commit adds, changes or removes; bytes are those to be sent at most."""

    path: str
    what: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class PublishResult:
    """What became of an order.

    Attributes:
        commit: that holds the release; None where it was not made (a dry run).
        changes: of the commit; empty where the repo holds it all.
        unchanged: files that are there already.
        pull_request: its address or number; None where none was wanted.
        tagged: whether the tag is new.
    """

    commit: str | None
    changes: list[Change]
    unchanged: int
    pull_request: str | None = None
    tagged: bool = False


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What one commit on top of one head would do."""

    facts: Mapping[str, Any]
    files: dict[str, Path | bytes]
    changes: list[Change]
    title: str

    @property
    def added(self) -> dict[str, Path | bytes]:
        return {one.path: self.files[one.path] for one in self.changes if one.what != "removed"}

    @property
    def removed(self) -> list[str]:
        return [one.path for one in self.changes if one.what == "removed"]


def publish_dataset(
    release: Release, order: PublishOptions, *, say: Callable[[str], None]
) -> PublishResult:
    """Brings a release to a repo.

    Args:
        release: the data set.
        order: where to, and how.
        say: tells a person what goes on.

    Raises:
        ValueError: the repo holds other data, the tag other content, or the licence is not known.
        OSError: the Hub cannot be reached, or does not take it. The release before is whole.
    """
    with hub_errors(order.repo):
        if not order.dry_run and get_token() is None:
            raise HubError(NO_TOKEN)
        return _publish(release, order, HubRepo(order.repo), say)


def _publish(
    release: Release, order: PublishOptions, repo: HubRepo, say: Callable[[str], None]
) -> PublishResult:
    trouble: Exception = OSError("nothing was tried")
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE * 2 ** (attempt - 1))
        head = _opened(repo, order)
        plan = _plan(release, order, repo, head)
        unchanged = len(plan.files) - len(plan.added)
        held = _same_tag(order, plan, repo, head)
        if order.dry_run:
            return PublishResult(commit=None, changes=plan.changes, unchanged=unchanged)
        if head is None:
            raise HubError("the repo was made, and cannot be seen")
        commit, pull = head.commit, None
        if plan.changes and order.create_pr:
            number = _same_pull(plan, repo)
            if number is not None:
                return PublishResult(
                    commit=None, changes=[], unchanged=unchanged, pull_request=f"#{number}"
                )
        if plan.changes:
            try:
                commit, pull = repo.commit(
                    plan.added,
                    plan.removed,
                    title=plan.title,
                    parent=head.commit,
                    create_pr=order.create_pr,
                )
                _check_whole(repo, commit, plan)
            except BranchMoved as moved:
                say("somebody else has committed meanwhile: looking again")
                trouble = OSError(f"others commit all the time: {moved}")
                continue
            except UnknownOutcome as unclear:
                say(f"the Hub failed ({unclear}): looking whether the commit was made")
                trouble = unclear
                continue
        tagged = False
        if order.tag is not None and not order.create_pr and not held:
            try:
                repo.tag(order.tag, commit)
                tagged = True
            except BranchMoved as moved:  # made by a request whose answer was lost, or by others
                trouble = moved
                continue
        return PublishResult(
            commit=commit,
            changes=plan.changes,
            unchanged=unchanged,
            pull_request=pull,
            tagged=tagged,
        )
    raise HubError(f"given up after {_TRIES} tries: {trouble}") from trouble


def _opened(repo: HubRepo, order: PublishOptions) -> Head | None:
    """The repo as it stands, made where it is not there, closed as far as it was asked for."""
    head = repo.head()
    if head is None and not order.dry_run:
        repo.create(private=order.private)
        head = repo.head()
    if head is None:
        return None
    if order.private and not head.private:
        raise ValueError("it is public: make it private on the Hub first, or leave --private out")
    if order.gated is not None and head.gated != order.gated and not order.dry_run:
        repo.gate(order.gated)
    return head


def _plan(release: Release, order: PublishOptions, repo: HubRepo, head: Head | None) -> _Plan:
    there = repo.files(head.commit) if head else {}
    texts = {
        name: repo.read(name, head.commit) if head and name in there else None
        for name in (CARD, MANIFEST)
    }
    before = _manifest(texts[MANIFEST])
    if not order.overwrite and not order.create_pr:
        _check_own(before, there, release)
    theirs = texts[CARD]
    facts, text = release.with_card(
        order.repo, None if theirs is None else theirs.decode(), order.license
    )
    files: dict[str, Path | bytes] = {name: release.folder / name for name in facts["files"]}
    files |= {CARD: text.encode(), MANIFEST: write_manifest(facts).encode()}
    changes = list(_changes(files, facts, there))
    stale = {*before.get("files", ())} - files.keys()
    changes += [Change(path=name, what="removed", bytes=0) for name in sorted(stale & there.keys())]
    return _Plan(facts=facts, files=files, changes=changes, title=_title(order, facts))


def _changes(
    files: Mapping[str, Path | bytes], facts: Mapping[str, Any], there: Mapping[str, StoredFile]
) -> Any:
    for name, content in files.items():
        stored, said = there.get(name), facts["files"].get(name)
        if stored is not None and said is not None and stored.sha256 is not None:
            same = stored.sha256 == said["sha256"]
        else:
            same = stored is not None and stored.holds(content)
        if not same:
            size = len(content) if isinstance(content, bytes) else content.stat().st_size
            yield Change(path=name, what="changed" if stored else "added", bytes=size)


def _manifest(text: bytes | None) -> dict[str, Any]:
    """What the manifest there says; nothing where there is none of ours."""
    try:
        return {} if text is None else read_manifest(text, where=MANIFEST)
    except ValueError:
        return {}


def _check_own(
    before: Mapping[str, Any], there: Mapping[str, StoredFile], release: Release
) -> None:
    """Refuses to put a data set over another one."""
    instead = "name another --repo, or say --overwrite or --create-pr"
    if not before:
        foreign = sorted(name for name in there if not name.endswith(_NO_DATA))
        if foreign:
            raise ValueError(
                f"it holds {count_noun(len(foreign), 'file')} that sp2dpo did not publish "
                f"({foreign[0]}): {instead}"
            )
    elif (held := before["source"]["name"]) != (new := release.facts["source"]["name"]):
        raise ValueError(f"it holds pairs from {held}, and these are from {new}: {instead}")


def _title(order: PublishOptions, facts: Mapping[str, Any]) -> str:
    pairs = count_noun(facts["counts"]["pairs_with_beta"], "pair")
    of = f" {order.tag}" if order.tag else ""
    return f"Release{of}: {pairs} with a beta (sp2dpo {facts['toolkit']['version']})"


def _same_tag(order: PublishOptions, plan: _Plan, repo: HubRepo, head: Head | None) -> bool:
    """Whether the tag is there already, with this very content.

    Raises:
        ValueError: it has other content.
    """
    if order.tag is None or head is None:
        return False
    commit = repo.tags().get(order.tag)
    if commit is None:
        return False
    if repo.read(MANIFEST, commit) != plan.files[MANIFEST]:
        raise ValueError(
            f"the tag {order.tag} is there, with other content: tags stay what they are, so name a "
            "new one"
        )
    return True


def _same_pull(plan: _Plan, repo: HubRepo) -> int | None:
    """An open pull request with this very content."""
    for number in repo.open_pulls(plan.title):
        if repo.read(MANIFEST, f"refs/pr/{number}") == plan.files[MANIFEST]:
            return number
    return None


def _check_whole(repo: HubRepo, commit: str, plan: _Plan) -> None:
    """Looks whether the commit holds what was sent."""
    there = repo.files(commit)
    for name, said in plan.facts["files"].items():
        stored = there.get(name)
        if stored is None or (stored.sha256 or said["sha256"]) != said["sha256"]:
            raise HubError(f"the Hub says that {name} was stored, and it is not what was sent")
