"""Whether a data set is consistent: every hash, and every beta recomputed from the replies.

It shows that nothing was changed after `build`, and that the betas follow from the replies in the
data set. It does not show that a teacher said so.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from sp2dpo.betas.arms import Arm, compute_betas, parse_arm
from sp2dpo.betas.columns import BETA_COLUMNS
from sp2dpo.betas.schedule import parse_schedule
from sp2dpo.betas.scores import Scores
from sp2dpo.dataset.card import digest
from sp2dpo.dataset.manifest import (
    CARD,
    CONFIGS,
    MANIFEST,
    RUBRIC,
    fingerprint,
    listed_files,
    read_manifest,
)
from sp2dpo.dataset.parquet import read_features, read_rows
from sp2dpo.pairs.pair import Pair
from sp2dpo.panel.annotation import Refusal, parse_annotation
from sp2dpo.panel.logprobs import expected_scores
from sp2dpo.panel.rubric import Rubric, read_rubric
from sp2dpo.store.annotations import COLUMNS as READ
from sp2dpo.store.annotations import AnnotationTable, build_annotation_table
from sp2dpo.text import count_noun

NEAR = 1e-9
"""By how much a recomputed number may differ: another machine adds in another order."""
_SAID = ("category", "magnitude", "confidence", "better", "rationale")
_KEY = READ[:5]

Watch = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""Passes parts of rows on and shows how many of how many went by."""


@dataclass(frozen=True, kw_only=True)
class VerifyCheck:
    """One thing that was looked at: what it is, whether it holds, and in words what was found."""

    name: str
    holds: bool
    said: str


def verify_dataset(
    folder: Path, *, watch: Watch = lambda parts, what, of: parts
) -> list[VerifyCheck]:
    """Looks at everything in a folder; what cannot be read does not hold.

    Args:
        folder: that `build` made, or what was fetched of a repo.
        watch: shows progress.

    Raises:
        ValueError: it has no manifest of ours.
        OSError: it cannot be read.
    """
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"{folder} has no {MANIFEST}: it is no data set of sp2dpo's")
    facts = read_manifest((folder / MANIFEST).read_bytes(), where=str(folder / MANIFEST))
    return list(_Verification(folder, facts, watch).checks())


class _Verification:
    """What the checks share."""

    def __init__(self, folder: Path, facts: Mapping[str, Any], watch: Watch) -> None:
        self.folder, self.facts, self.watch = folder, facts, watch
        self.rubric: Rubric | None = None
        self.rows: pl.DataFrame | None = None
        self.annotations: AnnotationTable | None = None

    def checks(self) -> Iterator[VerifyCheck]:
        for name, look in (
            ("files", self.files),
            ("card", self.card),
            ("rubric", self.of_rubric),
            ("pairs", self.pairs),
            ("replies", self.replies),
            ("betas", self.betas),
            ("schedules", self.schedules),
        ):
            try:
                said = look()
                if said is not None:
                    yield VerifyCheck(name=name, holds=True, said=said)
            except (_Mismatch, ValueError, KeyError, OSError) as error:
                said = f"no {error}" if isinstance(error, KeyError) else str(error)
                yield VerifyCheck(name=name, holds=False, said=" ".join(said.split()))

    def files(self) -> str:
        """Every file has the bytes that the manifest says."""
        wrong, size = [], 0
        for name, said in self.facts["files"].items():
            path = self.folder / name
            if not path.is_file():
                wrong.append(f"{name} is missing")
                continue
            found = fingerprint(path)
            size += found["bytes"]
            if found["bytes"] != said["bytes"]:
                wrong.append(f"{name} has {found['bytes']} bytes, {said['bytes']} are said")
            elif found["sha256"] != said["sha256"]:
                wrong.append(f"{name} has another SHA-256 than is said ({path.resolve()})")
        if wrong:
            raise _Mismatch("; ".join(wrong))
        return f"{count_noun(len(self.facts['files']), 'file')}, {size / 1e6:.1f} MB: as said"

    def card(self) -> str:
        """What of the card is ours is as it was written; what people add does not matter."""
        text = (self.folder / CARD).read_text(encoding="utf-8")
        if digest(text, where=CARD) != self.facts["card_sha256"]:
            raise _Mismatch(f"{CARD}: its configs, or what stands between the marks, were changed")
        return "its configs and what stands between the marks: as said"

    def of_rubric(self) -> str:
        """The rubric is the one that is named."""
        self.rubric = rubric = read_rubric(self.folder / RUBRIC)
        if rubric.hash != self.facts["rubric"]["sha256"]:
            raise _Mismatch(f"{RUBRIC} has the hash {rubric.hash[:12]}, another one is said")
        for config in ("default", "annotations"):
            column: Any = read_features(self._files(config)[0])["category"]
            if column.names != list(rubric.categories):
                raise _Mismatch(f"the categories of {config} are not the rubric's")
        return f"{rubric.name}, {rubric.hash[:12]}: as said"

    def pairs(self) -> str:
        """Every id is the hash of what its pair says, and the counts are right."""
        paths = self._files("default")
        features = read_features(paths[0])
        texts = [name for name in ("prompt", "chosen", "rejected", "tools") if name in features]
        needs_json = "tools" in texts or len(features["prompt"].feature) > 2
        ours = [column.name for column in BETA_COLUMNS if column.name in features]
        kept: list[dict[str, Any]] = []
        known: set[str] = set()
        rows = self.facts["counts"]["rows"]
        for part in self._parts("default", [*texts, *ours], rows):
            said = part
            if needs_json:
                columns = {name: [row[name] for row in part] for name in texts}
                decoded = features.decode_batch(columns)
                said = [
                    dict(zip(texts, one, strict=True))
                    for one in zip(*decoded.values(), strict=True)
                ]
            for row, its in zip(part, said, strict=True):
                pair_id = row["pair_id"]
                if _pair(its).id != pair_id:
                    raise _Mismatch(f"pair {pair_id[:12]}: its id is not the hash of its texts")
                known.add(pair_id)
                kept.append({name: row[name] for name in ours})
        schema = {
            column.name: _POLARS_TYPES[column.type]
            for column in BETA_COLUMNS
            if column.name in features
        }
        table = pl.DataFrame(kept, schema=schema, orient="row")
        label: Any = features["category"]
        names = pl.col("category").replace_strict(
            dict(enumerate(label.names)), return_dtype=pl.String
        )
        unique = table.unique().with_columns(category=names)
        if len(unique) != len(known):
            raise _Mismatch("rows of one pair have different betas")
        self.rows = unique.sort("pair_id")
        for name, found, of in (("rows", len(table), rows), ("pairs", len(known), None)):
            of = self.facts["counts"][name]
            if found != of:
                raise _Mismatch(f"{found} {name}, {of} are said")
        return (
            f"{count_noun(len(table), 'row')}, {count_noun(len(known), 'pair')}: ids as their texts"
        )

    def replies(self) -> str:
        """What each kept reply is said to say is what it says, and the hash over all is right."""
        if self.rubric is None or self.rows is None:
            raise _Mismatch("not looked at, for want of what is wrong above")
        rubric, known = self.rubric, set(self.rows["pair_id"])
        categories = list(rubric.categories)
        kept, count = [], 0
        columns = [*READ, "status", "raw", "rationale", "logprobs"]
        for part in self._parts("annotations", columns, self.facts["counts"]["annotations"]):
            for row in part:
                count += 1
                if row["status"] != "kept":
                    continue
                number = row["category"]
                row["category"] = None if number is None else categories[number]
                if row["pair_id"] not in known:
                    raise _Mismatch(
                        f"a reply is about {row['pair_id'][:12]}, which is no pair here"
                    )
                _read_again(row, rubric)
                kept.append(tuple(row[name] for name in READ))
        for name, found in (("annotations", count), ("kept", len(kept))):
            if found != self.facts["counts"][name]:
                raise _Mismatch(f"{found} {name}, {self.facts['counts'][name]} are said")
        self.annotations = build_annotation_table(kept, pair_ids=list(known), rubric=rubric)
        if self.annotations.hash != self.facts["annotations_sha256"]:
            raise _Mismatch("the hash over all kept replies is another than is said")
        return f"{count} replies, {len(kept)} kept: read again from their raw texts"

    def betas(self) -> str:
        """The replies give the betas, and all that stands beside them."""
        if self.annotations is None or self.rows is None:
            raise _Mismatch("not looked at, for want of what is wrong above")
        arm = _arm(self.facts["schedule"], self.facts["arm"])
        table = compute_betas(self.annotations, arm, self._scores(arm))
        _compare(self.rows, table)
        return f"{len(table)} pairs: beta and all beside it follow from the replies"

    def schedules(self) -> str | None:
        """The same for the betas of the other schedules; their scores are not here."""
        if not self.facts["schedules"]:
            return None
        if self.annotations is None or self.rows is None:
            raise _Mismatch("not looked at, for want of what is wrong above")
        names = list(self.facts["schedules"])
        parts = self._parts(
            "schedules", ["pair_id", "default", *names], self.facts["counts"]["rows"]
        )
        schema = {"pair_id": pl.String} | dict.fromkeys(("default", *names), pl.Float64)
        rows = [row for part in parts for row in part]
        held = pl.DataFrame(rows, schema=schema, orient="row").unique().sort("pair_id")
        trained = pl.when("keep").then("beta").alias("beta")
        told = {"default": self.rows.select("pair_id", trained)}
        for name, said in self.facts["schedules"].items():
            table = compute_betas(self.annotations, _arm(said["schedule"], said["arm"]))
            told[name] = table.select("pair_id", trained)
        for name, table in told.items():
            try:
                _compare(held.select("pair_id", beta=name), table)
            except _Mismatch as error:
                raise _Mismatch(f"{name}: {error}") from None
        return f"{', '.join(names)}: the betas follow from the replies"

    def _scores(self, arm: Arm) -> Scores | None:
        """A reward model's margins, as they stand in the data set: over the source's labels."""
        if not arm.uses_scores or self.rows is None:
            return None
        h = pl.col("reward_margin")
        if "flip" in self.rows.columns:
            h = pl.when("flip").then(-h).otherwise(h)
        table = self.rows.drop_nulls("reward_margin").select("pair_id", reward_margin=h)
        return Scores(table=table, name="the column reward_margin")

    def _files(self, config: str) -> list[Path]:
        names = listed_files(self.facts, config)
        if not names:
            raise _Mismatch(f"the manifest names no file of {config}")
        return [self.folder / name for name in names]

    def _parts(self, config: str, columns: list[str], of: int) -> Iterator[list[dict[str, Any]]]:
        parts = read_rows(self._files(config), columns)
        yield from self.watch(parts, f"{CONFIGS[config]}: rows", of)


_POLARS_TYPES: dict[str, Any] = {
    "string": pl.String,
    "bool": pl.Boolean,
    "int32": pl.Int32,
    "float64": pl.Float64,
    "category": pl.Int64,  # the number of a class label
}


class _Mismatch(Exception):
    """A check does not hold, for this reason."""


def _pair(said: Mapping[str, Any]) -> Pair:
    return Pair(
        prompt=tuple(said["prompt"]),
        chosen=tuple(said["chosen"]),
        rejected=tuple(said["rejected"]),
        tools=tuple(said.get("tools") or ()),
    )


def _read_again(row: Mapping[str, Any], rubric: Rubric) -> None:
    """Holds a kept reply to its raw text."""
    who = f"pair {row['pair_id'][:12]}, {row['teacher']}, {row['variant']}"
    try:
        said = parse_annotation(row["raw"], rubric)
    except Refusal as error:
        raise _Mismatch(f"{who}: kept, and its raw text cannot be read: {error}") from None
    for name in _SAID:
        if getattr(said, name) != row[name]:
            raise _Mismatch(
                f"{who}: {name} {row[name]!r} stands there, its raw text says "
                f"{getattr(said, name)!r}"
            )
    tokens = json.loads(row["logprobs"]) if row["logprobs"] else None
    for name, scale in (("magnitude", rubric.magnitude), ("confidence", rubric.confidence)):
        held = row[f"expected_{name}"]
        told = expected_scores(tokens, name, scale) if tokens else None
        if (held is None) != (told is None) or (
            held is not None and told is not None and abs(held - told) > NEAR
        ):
            raise _Mismatch(f"{who}: expected_{name} {held}, its log-probabilities give {told}")


def _arm(schedule: dict[str, Any], departures: Mapping[str, Any]) -> Arm:
    made = parse_schedule(schedule, where=f"{MANIFEST}: schedule")
    return parse_arm(departures, made, where=f"{MANIFEST}: arm") if departures else Arm(of=made)


def _compare(held: pl.DataFrame, told: pl.DataFrame) -> None:
    """Holds a table to what was recomputed; both sorted by pair_id.

    Raises:
        _Differs: naming the column and the first pair.
    """
    if held["pair_id"].to_list() != told["pair_id"].to_list():
        raise _Mismatch("the replies are of other pairs")
    for name in held.columns[1:]:
        if name not in told.columns:
            raise _Mismatch(f"the column {name} is not one that this schedule makes")
        one, other = held[name], told[name]
        same = one.eq_missing(other)
        if one.dtype == pl.Float64:
            same |= ((one - other).abs() <= NEAR).fill_null(False)
        if not same.all():
            wrong = (~same).arg_true()
            at = int(wrong[0])
            raise _Mismatch(
                f"{name} of {count_noun(len(wrong), 'pair')} is another than the replies give, "
                f"first {held['pair_id'][at][:12]}: {one[at]}, recomputed {other[at]}"
            )


def is_consistent(checks: Sequence[VerifyCheck]) -> bool:
    """Whether all of them hold."""
    return all(one.holds for one in checks)
