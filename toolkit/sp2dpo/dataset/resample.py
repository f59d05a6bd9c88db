"""Ask the teachers of a data set again about a sample of its pairs, and compare the replies.

Hashes show that nothing changed, but not that a teacher gave the replies. Asking again tests this,
but only as far as the teacher is deterministic: at a temperature above 0, genuine replies differ
too.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from sp2dpo.annotation.run import annotate_pairs
from sp2dpo.betas.gaps import compute_gaps
from sp2dpo.betas.schedule import parse_schedule
from sp2dpo.dataset.columns import decode_pairs, pair_columns
from sp2dpo.dataset.manifest import Manifest, read_manifest
from sp2dpo.dataset.parquet import read_rows
from sp2dpo.listing import MANIFEST
from sp2dpo.pairs.sources import Source, SourceRow
from sp2dpo.panel.panel import Panel, load_panel
from sp2dpo.store.store import Store, open_store_for_writing
from sp2dpo.tables import read_features
from sp2dpo.text import count_noun, format_fixed, format_percent, format_table

_COMPARED = ("category", "magnitude", "confidence", "better")
# Without `attempt`: a question may need more attempts in one of the two runs.
_KEY = ("pair_id", "teacher", "variant", "order")


@dataclass(frozen=True, kw_only=True)
class TeacherComparison:
    """New replies of one teacher compared with those of the data set.

    Attributes:
        teacher: Name of the teacher.
        replies: Number of questions with both a new and an old reply.
        same_category: Share of the replies with the same category, in [0, 1].
        same: Share of the replies that agree in category, scores and preference, in [0, 1].
        magnitude: Mean absolute difference of the magnitude, on the rubric's scale.
        confidence: Mean absolute difference of the confidence, on the rubric's scale.
    """

    teacher: str
    replies: int
    same_category: float
    same: float
    magnitude: float
    confidence: float


@dataclass(frozen=True, kw_only=True)
class GapDifference:
    """Signed gaps from the new replies compared with those of the data set.

    Attributes:
        mean: Mean absolute difference; None if no pair has both a new and an old gap.
        max: Greatest absolute difference; None if no pair has both.
        rho: Spearman's rank correlation in [-1, 1]; None if it is undefined.
    """

    mean: float | None
    max: float | None
    rho: float | None


@dataclass(frozen=True, kw_only=True)
class ResampleResult:
    """A comparison of new replies with those of the data set.

    Attributes:
        pairs: Number of pairs with both a new and an old gap.
        teachers: One comparison per teacher, sorted by name.
        gap: Difference of the pairs' signed gaps.
    """

    pairs: int
    teachers: list[TeacherComparison]
    gap: GapDifference


def resample_dataset(
    folder: Path | str,
    panel: Panel | Path | str,
    store_file: Path | str,
    *,
    count: int,
    seed: int = 0,
    annotate: Callable[[Panel, Store], object] = lambda panel, store: annotate_pairs(
        None, panel, store
    ),
) -> ResampleResult:
    """Ask the teachers of a data set again about some of its pairs and compare the replies.

    Args:
        folder: Folder of the data set.
        panel: Panel with the rubric and teachers of the data set, or its YAML file.
        store_file: Store of the new replies; a rerun asks only for what is missing.
        count: Number of pairs to draw; all pairs are drawn if there are fewer.
        seed: Random seed of the sample.
        annotate: Asks the panel about every pair of an open store; `annotate_pairs` by default.

    Raises:
        ValueError: The panel differs from that of the data set, or there are no replies to compare.
        OSError: A file cannot be read, or a teacher cannot be reached.
    """
    folder = Path(folder)
    panel = panel if isinstance(panel, Panel) else load_panel(panel)
    manifest = read_manifest(folder)
    _check_panel(panel, manifest)
    rows = _draw_pairs(folder, manifest, count, seed)
    with open_store_for_writing(Path(store_file)) as store:
        store.corpus.add(Source(name=f"{len(rows)} pairs, seed {seed}"), rows)
        annotate(panel, store)
        return _compare_replies(store, folder, manifest)


def _check_panel(panel: Panel, manifest: Manifest) -> None:
    """Raise ValueError if the panel has another rubric, or another definition of a teacher."""
    if panel.rubric.hash != manifest.rubric["sha256"]:
        raise ValueError(
            f"the panel uses the rubric {panel.rubric.hash[:12]}, the data set was annotated "
            f"under {manifest.rubric['sha256'][:12]}: name its rubric.yaml in the panel"
        )
    recorded = {teacher.name: teacher for teacher in manifest.teachers}
    for teacher in panel.teachers:
        if teacher.name not in recorded:
            raise ValueError(
                f"the data set has no teacher {teacher.name} (it has {', '.join(recorded)})"
            )
        described = {
            "model": teacher.model,
            "revision": teacher.revision,
            "sampling": teacher.recorded_sampling,
        }
        for key, value in described.items():
            expected = getattr(recorded[teacher.name], key)
            if value != expected:
                raise ValueError(
                    f"teacher {teacher.name}: the data set says {key} {expected}, the panel {value}"
                )


def _draw_pairs(folder: Path, manifest: Manifest, count: int, seed: int) -> list[SourceRow]:
    """Return distinct pairs, chosen by a hash of the seed and their ids, in the order of rows."""
    paths = [folder / name for name in manifest.config_files("default")]
    features = read_features(paths[0])
    ids = {row["pair_id"] for part in read_rows(paths, ["pair_id"]) for row in part}
    order = sorted(ids, key=lambda pair_id: hashlib.sha256(f"{seed} {pair_id}".encode()).digest())
    drawn, rows = set(order[:count]), []
    for part in read_rows(paths, ["pair_id", *pair_columns(features)]):
        # Reversed, so that the first of several rows of one pair is stored last and wins.
        first = {row["pair_id"]: row for row in reversed(part) if row["pair_id"] in drawn}
        drawn -= first.keys()
        # By identity, because two rows of one pair may be equal.
        chosen = [row for row in part if first.get(row["pair_id"]) is row]
        rows += [
            SourceRow(row=number, pair=pair, source_id=row["pair_id"])
            for number, (row, pair) in enumerate(
                zip(chosen, decode_pairs(chosen, features), strict=True), len(rows) + 1
            )
        ]
    return rows


def _compare_replies(store: Store, folder: Path, manifest: Manifest) -> ResampleResult:
    annotations = store.annotations()
    # The config `annotations` has the numbers of the categories.
    categories = dict(enumerate(annotations.rubric.categories))
    ids = set(annotations.replies["pair_id"])
    schedule = parse_schedule(manifest.schedule, where=MANIFEST)
    new_gaps = compute_gaps(annotations, schedule.estimator).select("pair_id", new="signed_gap")
    # Unique, because several rows may have the same pair.
    old_gaps = _read_table(folder, manifest, "default", ["pair_id", "signed_gap"], ids).unique()
    gaps = old_gaps.join(new_gaps, on="pair_id").drop_nulls()
    old = _read_table(folder, manifest, "annotations", [*_KEY, "status", *_COMPARED], ids)
    old = old.filter(pl.col("status") == "kept").with_columns(
        pl.col("category").replace_strict(categories, return_dtype=pl.String)
    )
    new = annotations.replies.select(*_KEY, *_COMPARED)
    replies = old.join(new, on=_KEY, suffix="_new")
    if replies.is_empty():
        raise ValueError("no question has a reply in both the data set and the new store")
    # Two nulls are equal: `better` is null under the labelled protocol.
    same = {name: pl.col(name).eq_missing(pl.col(f"{name}_new")) for name in _COMPARED}
    by_teacher = replies.group_by("teacher").agg(
        replies=pl.len(),
        same_category=same["category"].mean(),
        same=pl.all_horizontal(same.values()).mean(),
        magnitude=(pl.col("magnitude") - pl.col("magnitude_new")).abs().mean(),
        confidence=(pl.col("confidence") - pl.col("confidence_new")).abs().mean(),
    )
    difference: Any = (gaps["signed_gap"] - gaps["new"]).abs()
    rho = gaps.select(pl.corr("signed_gap", "new", method="spearman")).item()
    return ResampleResult(
        pairs=len(gaps),
        teachers=[TeacherComparison(**row) for row in by_teacher.sort("teacher").to_dicts()],
        gap=GapDifference(
            mean=difference.mean(),
            max=difference.max(),
            rho=rho if rho is not None and rho == rho else None,  # NaN for constant gaps
        ),
    )


def _read_table(
    folder: Path, manifest: Manifest, config: str, columns: list[str], ids: set[str]
) -> pl.DataFrame:
    """Return some columns of a config for the pairs with these ids."""
    paths = [folder / name for name in manifest.config_files(config)]
    rows = [row for part in read_rows(paths, columns) for row in part if row["pair_id"] in ids]
    # From all rows, because a column may be null in the first ones.
    return pl.DataFrame(rows, infer_schema_length=None, orient="row")


def resample_lines(result: ResampleResult) -> Iterator[str]:
    """Yield the lines that `sp2dpo verify --resample` prints."""
    yield f"asked again: {count_noun(result.pairs, 'pair')}"
    yield from format_table(
        ("teacher", "replies", "same in all", "same category", "magnitude", "confidence"),
        [
            (
                teacher.teacher,
                str(teacher.replies),
                format_percent(teacher.same),
                format_percent(teacher.same_category),
                format_fixed(teacher.magnitude),
                format_fixed(teacher.confidence),
            )
            for teacher in result.teachers
        ],
    )
    yield (
        f"signed gap: mean |difference| {format_fixed(result.gap.mean, 3)}, at most "
        f"{format_fixed(result.gap.max, 3)}, rank correlation {format_fixed(result.gap.rho)}"
    )
    yield "magnitude, confidence: mean |difference|, on their scales."
