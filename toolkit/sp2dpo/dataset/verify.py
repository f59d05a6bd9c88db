"""Verify a data set: every hash, and every beta recomputed from the replies.

Consistency shows that nothing changed after `build` and that the betas follow from the replies in
the data set. It does not show that a teacher gave these replies; for that see `resample`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from datasets import Features

from sp2dpo.betas.arms import Arm, compute_arm, compute_betas, parse_arm
from sp2dpo.betas.columns import BETA_COLUMNS
from sp2dpo.betas.schedule import parse_schedule
from sp2dpo.betas.scores import Scores
from sp2dpo.dataset.card import check_configs, digest, read_card
from sp2dpo.dataset.columns import (
    annotation_features,
    check_columns,
    check_equal,
    decode_pairs,
    pair_columns,
    schedule_features,
)
from sp2dpo.dataset.manifest import Manifest, read_manifest
from sp2dpo.dataset.parquet import Progress, no_progress, read_rows
from sp2dpo.dataset.repo import LocalData, fetch_dataset
from sp2dpo.listing import (
    CARD,
    CONFIGS,
    MANIFEST,
    RUBRIC,
    DamagedManifest,
    describe_unlisted,
    find_difference,
    find_unlisted,
)
from sp2dpo.panel.annotation import Refusal, parse_annotation
from sp2dpo.panel.logprobs import expected_scores, parse_tokens
from sp2dpo.panel.rubric import Rubric, read_rubric
from sp2dpo.store.annotations import COLUMNS as ANNOTATION_COLUMNS
from sp2dpo.store.annotations import AnnotationTable, build_annotation_table
from sp2dpo.tables import count_rows, read_features
from sp2dpo.text import count_noun, one_line

TOLERANCE = 1e-9
"""Maximum difference of a recomputed number: machines may sum floats in different orders."""
_PARSED = ("category", "magnitude", "confidence", "better", "rationale")
_FILLED = ("pair_id", "teacher", "variant", "order", "attempt", "status", "raw")
"""Columns of the replies in which every row has a value."""
_FREE_ROWS = 20_000
"""Rows that files of any size may have; more only up to their bytes."""
_POLARS_TYPES: dict[str, Any] = {
    "string": pl.String,
    "bool": pl.Boolean,
    "int32": pl.Int32,
    "float64": pl.Float64,
    "category": pl.Int64,  # the number of a class label
}


@dataclass(frozen=True, kw_only=True)
class VerifyCheck:
    """The result of one check.

    Attributes:
        name: files, card, rubric, pairs, replies, betas or schedules.
        holds: Whether the check passed.
        message: What was compared, or the first difference.
    """

    name: str
    holds: bool
    message: str


@dataclass(frozen=True, kw_only=True)
class VerifyResult:
    """The results of all checks of a data set.

    Attributes:
        data: The data set that was verified.
        checks: Results in the order of the checks; `schedules` only if there are any. If
            the manifest is damaged, `manifest` alone.
    """

    data: LocalData
    checks: list[VerifyCheck]

    @property
    def consistent(self) -> bool:
        """Whether all checks passed."""
        return all(check.holds for check in self.checks)


def verify_dataset(source: str | Path, *, progress: Progress = no_progress) -> VerifyResult:
    """Recompute every hash and every beta of a data set; unreadable parts count as differences.

    Args:
        source: Folder, `org/name`, or `org/name@revision` (a branch, a tag or a commit).
        progress: Called with lists of the rows that are read; see `parquet.Progress`.

    Raises:
        ValueError: sp2dpo did not write the data set.
        OSError: There is no such data set, or the Hub cannot be reached.
    """
    data = fetch_dataset(str(source))
    try:
        manifest = read_manifest(data.folder)
    except DamagedManifest as error:
        # All other checks compare with the manifest.
        check = VerifyCheck(name="manifest", holds=False, message=one_line(str(error)))
        return VerifyResult(data=data, checks=[check])
    verification = _Verification(data, manifest, progress)
    checks = list(verification.run())
    if all(check.holds for check in checks):
        # A changed file makes its digest on the card wrong, too: that is no difference of its own.
        again = verification.run_check("card", digests=True)
        checks = [again if check.name == "card" and again else check for check in checks]
    return VerifyResult(data=data, checks=checks)


class _Verification:
    """One verification of a folder. Later checks use data that earlier checks have read."""

    def __init__(self, data: LocalData, manifest: Manifest, progress: Progress) -> None:
        self.data, self.manifest, self.progress = data, manifest, progress
        self.folder = data.folder
        self._columns: dict[str, Features] = {}
        self.rubric: Rubric | None = None
        self.rows: pl.DataFrame | None = None
        self.annotations: AnnotationTable | None = None

    def run(self) -> Iterator[VerifyCheck]:
        for name in ("files", "card", "rubric", "pairs", "replies", "betas", "schedules"):
            check = self.run_check(name)
            if check is not None:
                yield check

    def run_check(self, name: str, **options: bool) -> VerifyCheck | None:
        try:
            message = getattr(self, f"check_{name}")(**options)
            return None if message is None else VerifyCheck(name=name, holds=True, message=message)
        except (_Mismatch, ValueError, OSError, pl.exceptions.PolarsError) as error:
            return VerifyCheck(name=name, holds=False, message=one_line(error))
        # Types are checked before values are read; this is for libraries that fail on a value.
        except (TypeError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
            message = f"a value cannot be read: {type(error).__name__}: {one_line(error)}"
            return VerifyCheck(name=name, holds=False, message=message)

    def check_files(self) -> str:
        """Compare the size and SHA-256 of every file with the manifest, and refuse other files."""
        files = self.manifest.files
        differences = [
            difference
            for name, recorded in files.items()
            if (difference := find_difference(self.folder / name, recorded, name=name))
        ]
        if unlisted := find_unlisted(self.data.file_names(), files):
            differences.append(describe_unlisted(unlisted))
        if differences:
            raise _Mismatch("; ".join(differences))
        size = sum(recorded.bytes for recorded in files.values())
        return f"{count_noun(len(files), 'file')}, {size / 1e6:.1f} MB: unchanged, and no others"

    def check_card(self, *, digests: bool = False) -> str:
        """Compare the card with its hash, and its configs with the files; the rest is free."""
        text = read_card(self.folder / CARD)
        if digest(text, where=CARD) != self.manifest.card_sha256:
            raise _Mismatch(f"{CARD}: its configs, or the text between the markers, were changed")
        # The hash is no proof: whoever changes the configs can write another one.
        features = {name: self._features(name) for name in CONFIGS if self._names(name)}
        check_configs(text, self.manifest, features, where=CARD, digests=digests)
        return "configs and the text between the markers: unchanged"

    def check_rubric(self) -> str:
        """Compare the rubric with its hash, and its categories with the class labels."""
        self.rubric = rubric = read_rubric(self.folder / RUBRIC, aliases=False)
        if rubric.hash != self.manifest.rubric["sha256"]:
            raise _Mismatch(f"{RUBRIC} has the hash {rubric.hash[:12]}, not that in the manifest")
        for config in ("default", "annotations"):
            column = self._features(config).get("category")
            if getattr(column, "names", None) != list(rubric.categories):
                raise _Mismatch(f"the categories of {config} are not the rubric's")
        return f"{rubric.name}, {rubric.hash[:12]}: unchanged"

    def check_pairs(self) -> str:
        """Compare every id with the hash of its pair; rows of one pair must have the same beta."""
        features = self._features("default")
        check_columns(features, self.rubric)
        columns = [column for column in BETA_COLUMNS if column.name in features]
        names = [column.name for column in columns]
        # With types, because a column may have no values, such as `label_disputed`.
        schema = {column.name: _POLARS_TYPES[column.type] for column in columns}
        tables, count = [pl.DataFrame(schema=schema)], 0
        pair_ids: set[str] = set()
        self._check_rows("default", self.manifest.counts.rows)
        for part in self._parts("default", [*pair_columns(features), *names]):
            _check_filled(part, ("pair_id", "has_beta", "keep"))
            for row, pair in zip(part, decode_pairs(part, features), strict=True):
                pair_id = row["pair_id"]
                if pair.id != pair_id:
                    raise _Mismatch(f"pair {pair_id[:12]}: its id is not the hash of its texts")
                pair_ids.add(pair_id)
                _check_category(row, len(features["category"].names))
            count += len(part)
            tables.append(
                _unique_rows([{name: row[name] for name in names} for row in part], schema)
            )
        table = pl.concat(tables)
        label: Any = features["category"]
        category = pl.col("category").replace_strict(
            dict(enumerate(label.names)), return_dtype=pl.String
        )
        # If rows of one pair differ, more than one of them remains here.
        unique = table.unique().with_columns(category=category)
        if len(unique) != len(pair_ids):
            raise _Mismatch("rows of one pair have different betas")
        # Set before the counts are compared, so that later checks can run even if these differ.
        self.rows = unique.sort("pair_id")
        self._check_counts(rows=count, pairs=len(pair_ids))
        return (
            f"{count_noun(count, 'row')}, {count_noun(len(pair_ids), 'pair')}: every id is "
            "the hash of its texts"
        )

    def check_replies(self) -> str:
        """Parse every kept reply again from its raw text, and compare the hash over all."""
        if self.rubric is None or self.rows is None:
            raise _NotChecked
        rubric, pair_ids = self.rubric, set(self.rows["pair_id"])
        categories = list(rubric.categories)
        kept, count = [], 0
        check_equal(self._features("annotations"), annotation_features(rubric))
        columns = [*ANNOTATION_COLUMNS, "status", "raw", "rationale", "logprobs"]
        self._check_rows("annotations", self.manifest.counts.annotations)
        for part in self._parts("annotations", columns):
            _check_filled(part, _FILLED)
            for row in part:
                count += 1
                if row["status"] != "kept":
                    continue
                number = _check_category(row, len(categories))
                row["category"] = None if number is None else categories[number]
                if row["pair_id"] not in pair_ids:
                    raise _Mismatch(
                        f"a reply is about {row['pair_id'][:12]}, which is not a pair here"
                    )
                _check_reply(row, rubric)
                kept.append(tuple(row[name] for name in ANNOTATION_COLUMNS))
        self._check_counts(annotations=count, kept=len(kept))
        # Set before the hash is compared, so that the betas are checked even if it differs.
        self.annotations = build_annotation_table(kept, pair_ids=list(pair_ids), rubric=rubric)
        if self.annotations.hash != self.manifest.annotations_sha256:
            raise _Mismatch("the hash over all kept replies is not that in the manifest")
        return f"{count} replies, {len(kept)} kept: parsed again from their raw texts"

    def check_betas(self) -> str:
        """Compute the table of betas from the replies and compare every column."""
        if self.annotations is None or self.rows is None:
            raise _NotChecked
        arm = _parse_arm(self.manifest.schedule, self.manifest.arm)
        result = compute_arm(self.annotations, arm, self._scores(arm))
        table, labels = result.table, self.manifest.labels
        _compare(self.rows, table)
        # Manifests of earlier releases do not say what was found.
        if labels and not (result.labels and labels.matches(result.labels)):
            raise _Mismatch("`labels` in the manifest does not follow from the replies")
        return f"{len(table)} pairs: beta and all other columns follow from the replies"

    def check_schedules(self) -> str | None:
        """Compute the betas of the other schedules; arms that need scores are never among them."""
        if not self.manifest.schedules:
            if self._names("schedules"):
                raise _Mismatch("the manifest lists files of schedules, and no schedule")
            return None
        if self.annotations is None or self.rows is None:
            raise _NotChecked
        names = list(self.manifest.schedules)
        check_equal(self._features("schedules"), schedule_features(names))
        self._check_rows("schedules", self.manifest.counts.rows)
        schema: Any = {"pair_id": pl.String} | dict.fromkeys(("default", *names), pl.Float64)
        parts = self._parts("schedules", list(schema))
        # Without the rows that repeat a pair, so that memory grows with the pairs alone.
        stored = pl.concat(
            [pl.DataFrame(schema=schema), *(_unique_rows(part, schema) for part in parts)]
        )
        stored = stored.unique().sort("pair_id")
        # As in `build`: null if the pair is not trained on.
        trained = pl.when("keep").then("beta").alias("beta")
        computed = {"default": self.rows.select("pair_id", trained)}
        for name, config in self.manifest.schedules.items():
            table = compute_betas(self.annotations, _parse_arm(config.schedule, config.arm))
            computed[name] = table.select("pair_id", trained)
        for name, table in computed.items():
            try:
                _compare(stored.select("pair_id", beta=name), table)
            except _Mismatch as error:
                raise _Mismatch(f"{name}: {error}") from None
        return f"{', '.join(names)}: the betas follow from the replies"

    def _scores(self, arm: Arm) -> Scores | None:
        """Return the reward margins in the data set, without the sign changes for `flip`."""
        if not arm.uses_scores or self.rows is None:
            return None
        h = pl.col("reward_margin")
        if "flip" in self.rows.columns:
            h = pl.when("flip").then(-h).otherwise(h)
        table = self.rows.drop_nulls("reward_margin").select("pair_id", reward_margin=h)
        return Scores(table=table, name="the column reward_margin")

    def _check_rows(self, config: str, recorded: int) -> None:
        """Check the number of rows before they are read: a row takes some bytes of its file."""
        paths = self._files(config)
        count = sum(map(count_rows, paths))
        if count > max(_FREE_ROWS, sum(path.stat().st_size for path in paths)):
            raise _Mismatch(f"{config}: {count} rows are more than the bytes of its files")
        if count > recorded + _FREE_ROWS:
            raise _Mismatch(f"{config}: {count} rows, the manifest states {recorded}")

    def _check_counts(self, **counts: int) -> None:
        for name, count in counts.items():
            recorded = getattr(self.manifest.counts, name)
            if count != recorded:
                raise _Mismatch(f"{count} {name}, the manifest states {recorded}")

    def _names(self, config: str) -> list[str]:
        return self.manifest.config_files(config)

    def _features(self, config: str) -> Features:
        """Return the columns of a config, which all of its files have."""
        if config not in self._columns:
            first, *others = (read_features(path) for path in self._files(config))
            for name, features in zip(self._names(config)[1:], others, strict=True):
                if list(features.items()) != list(first.items()):
                    raise _Mismatch(f"{name} has other columns than the first file of {config}")
            self._columns[config] = first
        return self._columns[config]

    def _files(self, config: str) -> list[Path]:
        names = self._names(config)
        if not names:
            raise _Mismatch(f"the manifest lists no file of {config}")
        return [self.folder / name for name in names]

    def _parts(self, config: str, columns: list[str]) -> Iterator[list[dict[str, Any]]]:
        parts = read_rows(self._files(config), columns)
        counts = self.manifest.counts
        count = counts.annotations if config == "annotations" else counts.rows
        yield from self.progress(parts, f"{CONFIGS[config]}: rows", count)


class _Mismatch(Exception):
    """A check failed, with the first difference as its message."""


class _NotChecked(_Mismatch):
    """A check needs data that an earlier check could not read."""

    def __init__(self) -> None:
        super().__init__("not checked because of the differences above")


def _unique_rows(rows: list[dict[str, Any]], schema: Any) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=schema, orient="row").unique()


def _check_filled(rows: list[dict[str, Any]], names: Sequence[str]) -> None:
    """Raise _Mismatch if a row has no value in a column in which `build` writes one."""
    for name in names:
        if any(row[name] is None for row in rows):
            raise _Mismatch(f"a row has no {name}")


def _check_category(row: Mapping[str, Any], count: int) -> int | None:
    """Return the number of a row's category; raise _Mismatch if no category has it."""
    number = row["category"]
    if number is not None and not 0 <= number < count:
        raise _Mismatch(
            f"pair {row['pair_id'][:12]}: its category is number {number}, and there are only the "
            f"numbers 0 to {count - 1}"
        )
    return number


def _check_reply(row: Mapping[str, Any], rubric: Rubric) -> None:
    """Raise _Mismatch if the columns of a kept reply do not follow from its raw text."""
    who = f"pair {row['pair_id'][:12]}, {row['teacher']}, {row['variant']}"
    try:
        annotation = parse_annotation(row["raw"], rubric)
    except Refusal as error:
        raise _Mismatch(f"{who}: kept, but its raw text cannot be parsed: {error}") from None
    for name in _PARSED:
        if getattr(annotation, name) != row[name]:
            raise _Mismatch(
                f"{who}: {name} is {row[name]!r}, but its raw text says "
                f"{getattr(annotation, name)!r}"
            )
    tokens = parse_tokens(row["logprobs"]) if row["logprobs"] else None
    for name, scale in (("magnitude", rubric.magnitude), ("confidence", rubric.confidence)):
        stored = row[f"expected_{name}"]
        computed = expected_scores(tokens, name, scale) if tokens else None
        if (stored is None) != (computed is None) or (
            stored is not None and computed is not None and abs(stored - computed) > TOLERANCE
        ):
            raise _Mismatch(
                f"{who}: expected_{name} is {stored}, but its log-probabilities give {computed}"
            )


def _parse_arm(config: dict[str, Any], departures: Mapping[str, Any]) -> Arm:
    schedule = parse_schedule(config, where=f"{MANIFEST}: schedule")
    if not departures:
        return Arm(of=schedule)
    return parse_arm(departures, schedule, where=f"{MANIFEST}: arm")


def _compare(stored: pl.DataFrame, computed: pl.DataFrame) -> None:
    """Compare two tables, both sorted by pair_id.

    Raises:
        _Mismatch: Names the column and the first pair that differs.
    """
    if stored["pair_id"].to_list() != computed["pair_id"].to_list():
        raise _Mismatch("the replies are about other pairs")
    for name in stored.columns[1:]:
        if name not in computed.columns:
            raise _Mismatch(f"this schedule does not produce the column {name}")
        left, right = stored[name], computed[name]
        same = left.eq_missing(right)  # a null equals a null
        if left.dtype == pl.Float64:
            same |= ((left - right).abs() <= TOLERANCE).fill_null(False)
        if not same.all():
            rows = (~same).arg_true()
            first = int(rows[0])
            raise _Mismatch(
                f"{name} of {count_noun(len(rows), 'pair')} differs from what the replies give, "
                f"first {stored['pair_id'][first][:12]}: {left[first]}, recomputed {right[first]}"
            )
