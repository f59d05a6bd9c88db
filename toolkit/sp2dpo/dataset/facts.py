"""Collect the facts that the manifest of a data set records and its card shows."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from sp2dpo import __version__
from sp2dpo.betas.columns import BETA_COLUMNS
from sp2dpo.betas.file import BetaTable
from sp2dpo.betas.formulas import describe_formulas
from sp2dpo.betas.gaps import disputes_labels
from sp2dpo.dataset.manifest import BetaConfig, Manifest, RowCounts, Suspect, TeacherFacts
from sp2dpo.diagnostics.audit import audit_betas
from sp2dpo.diagnostics.gold import NEAR, RULES
from sp2dpo.diagnostics.panel_agreement import measure_agreement
from sp2dpo.listing import FORMAT
from sp2dpo.panel.rubric import Rubric
from sp2dpo.report.report import describe_teachers
from sp2dpo.store.annotations import AnnotationTable
from sp2dpo.store.store import Store
from sp2dpo.text import json_values

_CHECK = ("name", "title", "unit", "value", "low", "high", "look", "bad", "verdict")


def collect_facts(
    store: Store,
    betas: BetaTable,
    others: Mapping[str, BetaTable],
    annotations: AnnotationTable,
    suspects: Sequence[Suspect],
    *,
    rows: int,
    replies: int,
    license: str | None,
    draws: int,
) -> Manifest:
    """Return a manifest without the hashes of files and card.

    Args:
        store: Annotation store.
        betas: Betas of the config `default`.
        others: Betas of the other schedules by name.
        annotations: Annotations that all betas were computed from.
        suspects: Pairs of `find_suspects`.
        rows: Number of rows of the config `default`.
        replies: Number of rows of the config `annotations`.
        license: Licence of the data set; None for the licence of the source.
        draws: Number of bootstrap samples for the intervals.

    Raises:
        ValueError: The store contains no pairs.
    """
    source, rubric, table = store.corpus.source(), annotations.rubric, betas.table
    if source is None:
        raise ValueError(f"{store.path} holds no pairs")
    beta, disputes = table["beta"].drop_nulls(), disputes_labels(rubric, betas.schedule.estimator)
    kept = len(annotations.replies)
    licenses = {teacher.name: teacher.license for teacher in store.panel().teachers}
    return Manifest(
        format=FORMAT,
        toolkit={"name": "sp2dpo", "version": __version__},
        # `publish` sets the repo, and `build` the hashes after writing the files.
        repo=None,
        license=license or source.license,
        source=source,
        rubric={"name": rubric.name, "sha256": rubric.hash, "protocol": rubric.protocol},
        teachers=[
            TeacherFacts(**vars(teacher), license=licenses.get(teacher.name))
            for teacher in describe_teachers(store, rubric)
        ],
        variants=store.variants(),
        schedule=betas.schedule.as_mapping(),
        arm=betas.arm.departures(),
        formulas=describe_formulas(betas.arm, rubric),
        annotations_sha256=betas.annotations_hash,
        scores_sha256=betas.scores_hash,
        labels=betas.labels,
        schedules={
            name: BetaConfig(schedule=other.schedule.as_mapping(), arm=other.arm.departures())
            for name, other in others.items()
        },
        counts=RowCounts(
            rows=rows,
            pairs=len(table),
            pairs_with_beta=len(beta),
            pairs_kept=int(table["keep"].sum()),
            labels_disputed=int(table["label_disputed"].sum()) if disputes else None,
            annotations=replies,
            kept=kept,
            votes=int(table["votes"].sum()),
            refused=replies - kept,
        ),
        beta={"mean": beta.mean(), "min": beta.min(), "max": beta.max()},
        ranges={
            column.name: [table[column.name].min(), table[column.name].max()]
            for column in BETA_COLUMNS
            if column.ranged and column.name in table.columns
        },
        label_noise={
            "rule": "a signed gap below 0" if disputes else RULES["weak"],
            "pairs": len(suspects),
        },
        agreement=_agreement(annotations, betas, draws=draws),
        audit=_audit(store, betas, annotations, draws=draws),
        files={},
        card_sha256="",
    )


def find_suspects(store: Store, betas: BetaTable, rubric: Rubric) -> list[Suspect]:
    """Return the pairs whose label may be wrong, the most doubtful first.

    If the replies cannot dispute a label, these are the pairs with a gap close to 0, which include
    wrong labels and ties.
    """
    disputes = disputes_labels(rubric, betas.schedule.estimator)
    signed = pl.col("signed_gap")
    # Rounded as in `gold`, so that a rounding error does not put a gap of `NEAR` below it.
    rows = betas.table.filter(pl.col("label_disputed") if disputes else signed.round(9) < NEAR)
    # By id where gaps are equal, so that equal inputs give equal bytes.
    rows = rows.sort(["signed_gap", "pair_id"]).select(
        "pair_id", "signed_gap", "category", "agreement", "votes"
    )
    source_ids: dict[str, str | None] = {}
    # Of several rows with one pair, the first gives the id.
    for pair_id, source_id in store.corpus.names():
        source_ids.setdefault(pair_id, source_id)
    return [
        Suspect(**row, source_id=source_ids[row["pair_id"]]) for row in rows.iter_rows(named=True)
    ]


def _agreement(annotations: AnnotationTable, betas: BetaTable, *, draws: int) -> dict[str, Any]:
    """Return Krippendorff's alpha of teachers and of variants, and the shares of split pairs."""
    agreement = measure_agreement(annotations, betas.schedule.estimator, draws=draws)
    return {
        "draws": draws,
        "teachers": json_values(agreement.teachers.alpha),
        "variants": json_values(agreement.variants.alpha),
        "apart": agreement.splits.apart,
        "no_majority": agreement.splits.no_majority,
    }


def _audit(
    store: Store, betas: BetaTable, annotations: AnnotationTable, *, draws: int
) -> dict[str, Any]:
    # A store has no known labels, so the betas are not compared with any.
    audit = audit_betas(
        betas, annotations, store.corpus.lengths(), truths=None, gold_count=0, draws=draws
    )
    checks = [{key: getattr(check, key) for key in _CHECK} for check in audit.checks]
    return {"draws": draws, "verdict": audit.verdict, "checks": checks}
