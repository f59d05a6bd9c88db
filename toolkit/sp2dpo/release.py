"""A built data set on its way to a repo: its files, and its card as it will stand there."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Features

from sp2dpo.card import card, digest, license_of, merged
from sp2dpo.manifest import (
    CARD,
    CONFIGS,
    LABEL_NOISE,
    MANIFEST,
    RUBRIC,
    files_of,
    fingerprint,
    read_manifest,
)
from sp2dpo.parquet_files import read_features
from sp2dpo.rubric import Rubric, read_rubric

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

    def dressed(
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
        there = license_of(theirs, where=CARD) if theirs is not None else None
        named = license or there or self.facts["license"]
        if license is None and named in UNKNOWN:
            said = f"is {named!r}" if named else "is not known"
            raise ValueError(
                f"the licence of {self.facts['source']['name']} {said}: say with --license what "
                "those who load this may do, as the Hub names it (apache-2.0, cc-by-4.0, other)"
            )
        facts = {**self.facts, "repo": repo, "license": named}
        text = card(facts, self.features, self.rubric, self.suspects)
        if theirs is not None:
            text = merged(theirs, text, license=license, where=CARD)
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
            if (names := files_of(facts, config))
        },
        rubric=read_rubric(folder / RUBRIC),
        suspects=suspects,
    )
