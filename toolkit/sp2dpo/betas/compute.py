"""Compute the betas of a store: read it, apply a schedule or an arm, and check the result."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sp2dpo.betas.arms import Arm, ArmResult, compute_arm, load_arm
from sp2dpo.betas.estimators import JMAMP
from sp2dpo.betas.file import BetaTable
from sp2dpo.betas.label_slope import fit_slope
from sp2dpo.betas.published_arms import ESTIMATES, GammaPo
from sp2dpo.betas.schedule import schedule_gaps
from sp2dpo.betas.scores import Scores, read_scores
from sp2dpo.betas.soft_labels import DECIMALS, Calibrated, Latent
from sp2dpo.panel.panel import Panel
from sp2dpo.store.annotations import AnnotationTable
from sp2dpo.store.counts import count_replies, load_recorded_panel
from sp2dpo.store.questions import Shard
from sp2dpo.store.store import NotAnnotated, Store


@dataclass(frozen=True, kw_only=True)
class ScheduleResult:
    """The betas of a store, and how complete the store is.

    Attributes:
        betas: the table of betas, its arm, and the hashes of its inputs.
        shard: the shard of pairs that the store is limited to; None for all pairs.
        shard_pairs: number of pairs in that shard.
        pending: number of replies that the run has not received yet; 0 without a recorded panel.
        requested: number of replies that the recorded panel asks for; 0 without a recorded panel.
        uncovered: what the arm uses that the stopping rule of an adaptive panel does not cover, in
            words; None if there is nothing, or the panel is not adaptive.
    """

    betas: BetaTable
    shard: Shard | None
    shard_pairs: int
    pending: int
    requested: int
    uncovered: str | None = None


def schedule_store(
    store_file: Path | str,
    schedule_file: Path | str,
    scores_file: Path | str | None = None,
    *,
    truths: Mapping[str, bool] | None = None,
) -> ScheduleResult:
    """Compute one beta for every pair of a store.

    Args:
        store_file: annotation store.
        schedule_file: YAML file of a schedule or of an arm.
        scores_file: Parquet file of reward margins, for arms that use them.
        truths: whether the label of each pair is right, by pair_id, for an arm with
            `label_smoothing: calibrated`: its slope is fitted to them and not to the labels. The
            arm of the betas is then `calibrated` with this slope.

    Raises:
        ValueError: a file is invalid, or no pair has the quorum of replies.
        OSError: a file cannot be read.
    """
    arm = load_arm(schedule_file)
    scores = read_scores(scores_file) if scores_file else None
    with ThreadPoolExecutor(max_workers=1) as executor:
        with Store(store_file) as store, store.snapshot():
            annotations = store.annotations()
            # Hash in a second thread while the betas are computed.
            # This gains time because hashlib and polars release the interpreter's lock.
            annotations_hash = executor.submit(getattr, annotations, "hash")
            shard, shard_pairs = store.questions.shard(), store.questions.pair_count()
            panel = _recorded_panel(store)
            pending, requested = _count_pending(store, panel, annotations)
        # Everything needed is in memory now, so the snapshot does not have to stay open.
        arm, result = _compute(annotations, arm, scores, truths)
        table = result.table
        betas = BetaTable(
            table=table,
            arm=arm,
            labels=result.labels,
            annotations_hash=annotations_hash.result(),
            scores_hash=scores.hash if scores else None,
        )
    if not table["has_beta"].any():
        raise ValueError(
            f"no pair has the quorum of {arm.of.quorum} replies, the most is "
            f"{table['votes'].max()}: lower `quorum` in the schedule, or request more replies"
        )
    return ScheduleResult(
        betas=betas,
        shard=shard,
        shard_pairs=shard_pairs,
        pending=pending,
        requested=requested,
        uncovered=None if panel is None else explain_uncovered(panel, arm),
    )


def _compute(
    annotations: AnnotationTable,
    arm: Arm,
    scores: Scores | None,
    truths: Mapping[str, bool] | None,
) -> tuple[Arm, ArmResult]:
    """Return the arm, with its slope if there are truths to fit it to, and its table."""
    if truths is None:
        return arm, compute_arm(annotations, arm, scores)
    if arm.label_smoothing != Calibrated():
        raise ValueError(
            "--gold is not used: give an arm with `label_smoothing: calibrated`, without a slope, "
            "or omit --gold"
        )
    gaps = schedule_gaps(annotations, arm.of).drop_nulls("signed_gap")
    known = gaps.filter(gaps["pair_id"].is_in(list(truths)))
    right = np.array([truths[pair_id] for pair_id in known["pair_id"]], dtype=bool)
    fit = fit_slope(known["signed_gap"].to_numpy(), right)
    slope = fit.interval
    if slope is not None and slope.high <= 0:
        raise ValueError(
            f"the slope of the truth on the signed gaps, {slope}, is not above 0 on {fit.pairs} "
            "known truths: the teachers prefer the worse responses, so use the gaps of other "
            "teachers or of another rubric"
        )
    if slope is None or slope.low <= 0:
        found = "" if slope is None else f", whose slope on the signed gap is {slope}"
        raise ValueError(
            f"{fit.pairs} of the {len(truths)} known truths are about pairs with a signed gap "
            f"other than 0{found}: these are too few, or too little related to the gaps, to fit a "
            "slope to: add known truths, or omit --gold to fit it to the labels"
        )
    arm = replace(arm, label_smoothing=Calibrated(round(slope.estimate, DECIMALS)))
    result = compute_arm(annotations, arm, scores)
    labels = result.labels and replace(result.labels, slope=slope, truths=fit.pairs)
    labels = labels and labels.rounded(DECIMALS)
    return arm, replace(result, labels=labels)


def _recorded_panel(store: Store) -> Panel | None:
    try:
        return load_recorded_panel(store)
    except NotAnnotated:  # replies that were stored by other means
        return None


def _count_pending(
    store: Store, panel: Panel | None, annotations: AnnotationTable
) -> tuple[int, int]:
    """Return the pending and the requested replies; zeros if no panel is recorded."""
    if panel is None:
        return 0, 0
    counts = count_replies(store, panel, annotations)
    return sum(count.pending for count in counts), sum(count.all for count in counts)


def explain_uncovered(panel: Panel, arm: Arm) -> str | None:
    """Return what an arm uses that the stopping rule of an adaptive panel does not cover.

    The rule covers the gap of SP2DPO (`estimators.JMAMP`) for each pair. Two pairs with the same
    such gap may differ in another: magnitude 0.6 with confidence 0.5 and magnitude 0.3 with
    confidence 1 have the gap 0.3, but under `gap: signed` 0 and 0.3. Or in the readings of single
    teachers, which `latent` uses: one sure teacher is not three.

    Returns:
        It in words; None if there is nothing, or the panel is not adaptive.
    """
    if panel.budget != "adaptive":
        return None
    if isinstance(arm.label_smoothing, Latent) or arm.probability_source == "latent":
        return "the gaps of single teachers, which `latent` uses"
    if arm.of.estimator != JMAMP:
        return (
            "the gaps of this schedule, whose `estimate`, `gap`, `over_variants` or "
            "`over_teachers` is not SP2DPO's"
        )
    soft = arm.label_smoothing is not None or arm.probability_source in ESTIMATES
    uses_sign = soft or arm.disputed is not None or isinstance(arm.margin, GammaPo)
    # Under the labelled protocol no gap of JMAMP is below 0.
    if panel.rubric.blind and panel.covers == "beta" and uses_sign:
        return "signed gaps below 0, because the panel has `covers: beta`"
    return None
