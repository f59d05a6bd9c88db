"""Read and write the manifest of a data set: its origin, and the SHA-256 of every file in it.

Users may edit the card, so its SHA-256 covers only the generated part.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sp2dpo.betas.formulas import Formulas
from sp2dpo.betas.label_fit import LabelFit
from sp2dpo.listing import (
    MANIFEST,
    DamagedManifest,
    Fingerprint,
    config_files,
    parse_keys,
    read_manifest_bytes,
)
from sp2dpo.settings import format_path
from sp2dpo.store.corpus import SourceSummary
from sp2dpo.store.store import StoredTeacher
from sp2dpo.text import format_json

_SHOWN = 10
"""Maximum number of problems in a message."""


@dataclass(frozen=True, kw_only=True)
class RowCounts:
    """Counts of the rows, pairs and replies in a data set.

    Attributes:
        rows: Number of rows of the config `default`.
        pairs: Number of distinct pairs.
        pairs_with_beta: Number of pairs with a beta.
        pairs_kept: Number of pairs that are trained on.
        labels_disputed: Number of disputed labels; None if replies cannot dispute a label.
        annotations: Number of replies, kept and refused.
        kept: Number of kept replies.
        votes: Number of replies that count towards a beta.
        refused: Number of refused replies.
    """

    rows: int
    pairs: int
    pairs_with_beta: int
    pairs_kept: int
    labels_disputed: int | None
    annotations: int
    kept: int
    votes: int
    refused: int


@dataclass(frozen=True, kw_only=True)
class TeacherFacts(StoredTeacher):
    """A teacher whose replies are in a data set; the other attributes are those of the store.

    Attributes:
        kept: Number of questions with a kept reply.
        refused: Number of questions whose last reply was refused, by reason.
        license: Licence of the model; None if not stated.
    """

    kept: int
    refused: dict[str, int]
    license: str | None


@dataclass(frozen=True, kw_only=True)
class BetaConfig:
    """Settings that betas were computed with.

    Attributes:
        schedule: Content of the schedule's YAML file.
        arm: Keys in which an arm departs from the schedule; empty without an arm.
    """

    schedule: dict[str, Any]
    arm: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of manifest.json; keys are in the order of the attributes.

    Attributes:
        format: Number of the format.
        toolkit: Name and version of the toolkit that built the data set.
        repo: `org/name` on the Hub; None before it is published.
        license: Licence of the data set; None if unknown.
        source: Counts of the source rows.
        rubric: Name, sha256 and protocol of the rubric.
        teachers: Teachers with replies, by name.
        variants: Variants of the rubric with replies.
        schedule: Content of the schedule's YAML file.
        arm: Keys in which the arm departs from the schedule; empty without an arm.
        formulas: How the betas were computed, in words.
        annotations_sha256: Hash of the kept replies.
        scores_sha256: Hash of the reward scores; None without scores.
        schedules: Settings of the other betas, by their column in the config `schedules`.
        counts: Counts of rows, pairs and replies.
        beta: Mean, min and max of the betas; None without betas.
        ranges: Minimum and maximum of each numeric column; None without values.
        label_noise: rule (when a label is doubtful), and number of such pairs.
        agreement: Krippendorff's alpha of teachers and variants, and shares of split pairs.
        audit: draws, verdict and checks of the audit.
        files: Hash and size of every other file except the card.
        card_sha256: Hash of the generated part of the card.
        json_columns: Columns of the source stored as JSON text, with the reason.
        labels: What the estimate of the labels found; None for an arm without one.
    """

    format: int
    toolkit: dict[str, str]
    repo: str | None
    license: str | None
    source: SourceSummary
    rubric: dict[str, str]
    teachers: list[TeacherFacts]
    variants: list[str]
    schedule: dict[str, Any]
    arm: dict[str, Any]
    formulas: Formulas
    annotations_sha256: str
    scores_sha256: str | None
    schedules: dict[str, BetaConfig]
    counts: RowCounts
    beta: dict[str, Any]
    ranges: dict[str, list[Any]]
    label_noise: dict[str, Any]
    agreement: dict[str, Any]
    audit: dict[str, Any]
    files: dict[str, Fingerprint]
    card_sha256: str
    # Manifests of earlier releases lack it.
    json_columns: dict[str, str] = field(default_factory=dict)
    labels: LabelFit | None = None

    def format_json(self) -> str:
        """Return the text of the file."""
        values = asdict(self)
        # Left out if empty, so that such data sets have the same bytes as in earlier releases.
        if not self.json_columns:
            del values["json_columns"]
        if self.labels is None:
            del values["labels"]
        else:
            values["labels"] = self.labels.as_mapping()
        return format_json(values, ensure_ascii=False) + "\n"

    def config_files(self, config: str) -> list[str]:
        """Return the names of the files of a config, in the order of their rows."""
        return config_files(self.files, config)


@dataclass(frozen=True, kw_only=True)
class ManifestHead:
    """What is read of a manifest whose other keys do not matter.

    Attributes:
        source: Name of the source of the pairs.
        files: Names of the files of the data set.
    """

    source: str
    files: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A pair whose label may be wrong: a line of `LABEL_NOISE`.

    Attributes:
        pair_id: Id of the pair.
        source_id: First id that the source gives the pair; None if it gives none.
        signed_gap: Signed gap of the pair; the lower, the more doubtful.
        category: Category that most replies name.
        agreement: Share of the replies that name it, in [0, 1].
        votes: Number of replies that count.
    """

    pair_id: str
    source_id: str | None
    signed_gap: float
    category: str
    agreement: float
    votes: int


_ADAPTER = TypeAdapter(Manifest)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest in the folder of a data set.

    Raises:
        FileNotFoundError: The folder has no manifest.
        DamagedManifest, ValueError: As for `parse_manifest`.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {MANIFEST}: `sp2dpo build` creates one")
    return parse_manifest(read_manifest_bytes(path), where=str(path))


def parse_manifest(text: bytes, *, where: str) -> Manifest:
    """Parse a manifest.

    Args:
        text: Content of the file.
        where: Name of the file, for messages.

    Raises:
        DamagedManifest: A key is missing, or its value has the wrong type.
        ValueError: The file is not a manifest of sp2dpo, or has another format.
    """
    values = parse_keys(text, where=where)
    try:
        return _ADAPTER.validate_python(values)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        problems = [f"{format_path(detail['loc'])}: {detail['msg']}" for detail in details[:_SHOWN]]
        if len(details) > _SHOWN:
            problems.append(f"and {len(details) - _SHOWN} more problems")
        raise DamagedManifest(f"{where} is damaged: {'; '.join(problems)}") from None


def parse_manifest_head(text: bytes, *, where: str) -> ManifestHead:
    """Parse only the source and the file names of a manifest; other keys may be damaged.

    Raises:
        ValueError: As for `listing.parse_keys`.
    """
    values = parse_keys(text, where=where)
    source = values.get("source")
    name = source.get("name") if isinstance(source, dict) else None
    return ManifestHead(source=str(name or "an unknown source"), files=frozenset(values["files"]))
