"""What a data set says of itself: the facts that its manifest holds and its card shows."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import polars as pl

from sp2dpo import __version__
from sp2dpo.betas.columns import BETA_COLUMNS
from sp2dpo.betas.file import BetaTable
from sp2dpo.betas.formulas import describe_formulas
from sp2dpo.betas.gaps import disputes_labels
from sp2dpo.dataset.manifest import FORMAT
from sp2dpo.diagnostics.audit import audit_betas
from sp2dpo.diagnostics.bootstrap import DRAWS
from sp2dpo.diagnostics.gold import NEAR, RULES
from sp2dpo.diagnostics.panel_agreement import measure_agreement
from sp2dpo.report.report import describe_teachers
from sp2dpo.store.annotations import AnnotationTable
from sp2dpo.store.store import Store

_CHECK = ("name", "title", "unit", "value", "low", "high", "look", "bad", "verdict")


def collect_facts(
    store: Store,
    made: BetaTable,
    others: Mapping[str, BetaTable],
    annotations: AnnotationTable,
    *,
    rows: int,
    replies: int,
    license: str | None,
    draws: int = DRAWS,
) -> dict[str, Any]:
    """All that a manifest says, but for the files.

    Args:
        store: the run.
        made: the betas of the data set.
        others: those that stand beside them, by name.
        annotations: that all were made from.
        rows: of the data set.
        replies: of it, kept or refused.
        license: of the data set; that of the source where it is None.
        draws: bootstrap samples behind the intervals.

    Raises:
        ValueError: the store holds no pairs.
    """
    source, rubric, table = store.corpus.source(), annotations.rubric, made.table
    if source is None:
        raise ValueError(f"{store.path} holds no pairs")
    beta, tells = table["beta"].drop_nulls(), disputes_labels(rubric, made.schedule.estimator)
    kept = len(annotations.replies)
    asked = describe_teachers(store, rubric)
    terms = {one["name"]: one.get("license") for one in store.panel()["teachers"]}
    return {
        "format": FORMAT,
        "toolkit": {"name": "sp2dpo", "version": __version__},
        "repo": None,
        "license": license or source.license,
        "source": asdict(source),
        "rubric": {"name": rubric.name, "sha256": rubric.hash, "protocol": rubric.protocol},
        "teachers": [one | {"license": terms.get(one["name"])} for one in asked],
        "variants": store.variants(),
        "schedule": made.schedule.as_mapping(),
        "arm": made.arm.departures(),
        "formulas": asdict(describe_formulas(made.arm, rubric)),
        "annotations_sha256": made.annotations_hash,
        "scores_sha256": made.scores_hash,
        "schedules": {
            name: {"schedule": one.schedule.as_mapping(), "arm": one.arm.departures()}
            for name, one in others.items()
        },
        "counts": {
            "rows": rows,
            "pairs": len(table),
            "pairs_with_beta": len(beta),
            "pairs_kept": int(table["keep"].sum()),
            "labels_disputed": int(table["label_disputed"].sum()) if tells else None,
            "annotations": replies,
            "kept": kept,
            "votes": int(table["votes"].sum()),
            "refused": replies - kept,
        },
        "beta": {"mean": beta.mean(), "min": beta.min(), "max": beta.max()},
        "ranges": {
            column.name: [table[column.name].min(), table[column.name].max()]
            for column in BETA_COLUMNS
            if column.ranged and column.name in table.columns
        },
        "label_noise": {"rule": _rule(tells), "pairs": len(find_suspects(made, tells=tells))},
        "agreement": _agreement(annotations, made, draws=draws),
        "audit": _audit(store, made, annotations, draws=draws),
    }


def _rule(tells: bool) -> str:
    return "a signed gap below 0" if tells else RULES["weak"]


def find_suspects(made: BetaTable, *, tells: bool) -> pl.DataFrame:
    """Pairs whose label may be wrong, the most suspect first.

    Args:
        made: the betas.
        tells: whether a signed gap can say that a label is wrong; otherwise pairs between whose
            responses the teachers see next to no difference are named: wrong labels are among
            them, and ties.

    Returns:
        pair_id, signed_gap, category, agreement, votes.
    """
    signed = pl.col("signed_gap")
    found = made.table.filter(pl.col("label_disputed") if tells else signed.round(9) < NEAR)
    named = ("pair_id", "signed_gap", "category", "agreement", "votes")
    return found.sort(["signed_gap", "pair_id"]).select(named)


def _agreement(annotations: AnnotationTable, made: BetaTable, *, draws: int) -> dict[str, Any]:
    """Krippendorff's alphas, who stands out, and how many pairs split the panel."""
    found = measure_agreement(annotations, made.schedule.estimator, draws=draws)
    return {
        "draws": draws,
        "teachers": found.teachers["alpha"],
        "variants": found.variants["alpha"],
        "apart": found.splits["apart"],
        "no_majority": found.splits["no_majority"],
    }


def _audit(
    store: Store, made: BetaTable, annotations: AnnotationTable, *, draws: int
) -> dict[str, Any]:
    found = audit_betas(
        made, annotations, store.corpus.lengths(), truths=None, gold_count=0, draws=draws
    )
    checks = [{key: getattr(check, key) for key in _CHECK} for check in found.checks]
    return {"draws": draws, "verdict": found.verdict, "checks": checks}
