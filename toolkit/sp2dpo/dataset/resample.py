"""The teachers of a data set asked again, about some of its pairs: how near do they come?

A hash shows that nothing was changed, and not that a teacher said so. Asking again does, as far as
the teachers are steady: under sampling a second reply differs from the first one, too.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from sp2dpo.betas.gaps import compute_gaps
from sp2dpo.betas.schedule import parse_schedule
from sp2dpo.dataset.manifest import MANIFEST, listed_files, read_manifest
from sp2dpo.dataset.parquet import read_features, read_rows
from sp2dpo.pairs.pair import Pair
from sp2dpo.pairs.sources import SourceRow
from sp2dpo.panel.panel import Panel
from sp2dpo.store.store import Store
from sp2dpo.text import count_noun, format_fixed, format_percent, format_table

_TEXTS = ("prompt", "chosen", "rejected", "tools")
_READ = ("category", "magnitude", "confidence", "better")
_KEY = ("pair_id", "teacher", "variant", "order")


def check_panel(folder: Path, panel: Panel) -> None:
    """Refuses a panel that asks something else, or somebody else, than the data set says.

    Raises:
        ValueError: another rubric, or a teacher that the data set does not know so.
    """
    facts = _facts(folder)
    if panel.rubric.hash != facts["rubric"]["sha256"]:
        raise ValueError(
            f"the panel asks under the rubric {panel.rubric.hash[:12]}, the data set was made "
            f"under {facts['rubric']['sha256'][:12]}: name its rubric.yaml in the panel"
        )
    known = {one["name"]: one for one in facts["teachers"]}
    for teacher in panel.teachers:
        said = known.get(teacher.name)
        if said is None:
            raise ValueError(
                f"the data set has no teacher {teacher.name} (it has {', '.join(known)})"
            )
        for what in ("model", "revision", "sampling"):
            if getattr(teacher, what) != said[what]:
                raise ValueError(
                    f"teacher {teacher.name}: the data set says {what} {said[what]}, the panel "
                    f"{getattr(teacher, what)}"
                )


def draw_pairs(folder: Path, count: int, seed: int) -> list[SourceRow]:
    """Some pairs of a data set, drawn by a hash of the seed and their ids.

    Args:
        folder: of the data set.
        count: of pairs; all where there are not so many.
        seed: another one draws others.
    """
    facts = _facts(folder)
    paths = [folder / name for name in listed_files(facts, "default")]
    features = read_features(paths[0])
    texts = [name for name in _TEXTS if name in features]
    ids = {row["pair_id"] for part in read_rows(paths, ["pair_id"]) for row in part}
    wanted = sorted(ids, key=lambda one: hashlib.sha256(f"{seed} {one}".encode()).digest())
    left, found = set(wanted[:count]), []
    for part in read_rows(paths, ["pair_id", *texts]):
        rows = [row for row in part if row["pair_id"] in left]
        decoded = features.decode_batch({name: [row[name] for row in rows] for name in texts})
        for number, row in enumerate(rows):
            if row["pair_id"] not in left:  # its first row was taken
                continue
            left.discard(row["pair_id"])
            said = {name: tuple(decoded[name][number] or ()) for name in texts}
            pair = Pair(**said)
            found.append(SourceRow(row=len(found) + 1, pair=pair, source_id=row["pair_id"]))
    return found


def compare_replies(store: Store, folder: Path) -> dict[str, Any]:
    """How the new replies differ from those of the data set.

    Args:
        store: with the drawn pairs and what the teachers say of them now.
        folder: of the data set.

    Returns:
        pairs: with replies on both sides. teachers: by name, replies on both sides, share of the
        same category, share in which all scores are the same, mean |difference| of magnitude and of
        confidence. gap: mean and greatest |difference| of the pairs' signed gaps, and rho.

    Raises:
        ValueError: no reply is there to compare.
    """
    facts = _facts(folder)
    annotations = store.annotations()
    categories = list(annotations.rubric.categories)
    ids = annotations.replies["pair_id"].unique().to_list()
    schedule = parse_schedule(facts["schedule"], where=MANIFEST)
    new = compute_gaps(annotations, schedule.estimator).select("pair_id", new="signed_gap")
    held = _rows(folder, facts, "default", ["pair_id", "signed_gap"], set(ids)).unique()
    both = held.join(new, on="pair_id").drop_nulls()
    before = _rows(folder, facts, "annotations", [*_KEY, "status", *_READ], set(ids)).filter(
        pl.col("status") == "kept"
    )
    before = before.with_columns(
        category=pl.col("category").replace_strict(
            dict(enumerate(categories)), return_dtype=pl.String
        )
    )
    again = annotations.replies.select(*_KEY, *_READ)
    twice = before.join(again, on=_KEY, suffix="_new")
    if twice.is_empty():
        raise ValueError("no reply of the data set was asked for again")
    same = pl.all_horizontal(pl.col(one).eq_missing(pl.col(f"{one}_new")) for one in _READ)
    by_teacher = twice.group_by("teacher").agg(
        replies=pl.len(),
        same_category=(pl.col("category") == pl.col("category_new")).mean(),
        same=same.mean(),
        magnitude=(pl.col("magnitude") - pl.col("magnitude_new")).abs().mean(),
        confidence=(pl.col("confidence") - pl.col("confidence_new")).abs().mean(),
    )
    apart = (both["signed_gap"] - both["new"]).abs()
    rho = both.select(pl.corr("signed_gap", "new", method="spearman")).item()
    return {
        "pairs": len(both),
        "teachers": by_teacher.sort("teacher").to_dicts(),
        "gap": {
            "mean": apart.mean(),
            "max": apart.max(),
            "rho": rho if rho is not None and rho == rho else None,
        },
    }


def resample_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """What a person reads of it."""
    yield f"asked again: {count_noun(found['pairs'], 'pair')}"
    head = ("teacher", "replies", "same in all", "same category", "magnitude", "confidence")
    yield from format_table(
        head,
        [
            (
                one["teacher"],
                str(one["replies"]),
                format_percent(one["same"]),
                format_percent(one["same_category"]),
                format_fixed(one["magnitude"]),
                format_fixed(one["confidence"]),
            )
            for one in found["teachers"]
        ],
    )
    gap = found["gap"]
    yield (
        f"signed gap: mean |difference| {format_fixed(gap['mean'], 3)}, at most "
        f"{format_fixed(gap['max'], 3)}, "
        f"rank correlation {format_fixed(gap['rho'])}"
    )
    yield "magnitude, confidence: mean |difference|, on their scales."


def _facts(folder: Path) -> dict[str, Any]:
    return read_manifest((folder / MANIFEST).read_bytes(), where=str(folder / MANIFEST))


def _rows(
    folder: Path, facts: Mapping[str, Any], config: str, columns: list[str], ids: set[str]
) -> pl.DataFrame:
    """Some columns of the rows about some pairs."""
    paths = [folder / name for name in listed_files(facts, config)]
    rows = [row for part in read_rows(paths, columns) for row in part if row["pair_id"] in ids]
    return pl.DataFrame(rows, infer_schema_length=None, orient="row")
