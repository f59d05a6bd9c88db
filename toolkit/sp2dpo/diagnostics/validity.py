"""Check validity: whether the gaps say which response is better, not only that teachers agree.

Agreement measures reliability. Teachers who share an error agree, so no check of agreement can show
that they are right; something else must witness it. Under the blind protocol the labels do, as long
as their errors are unrelated to those of the teachers, who have not seen them. If labels and
teachers have the same bias, such as one for length, they confirm each other. Under the labelled
protocol, pairs with known labels are needed. Measures and thresholds are our choice.
"""

import polars as pl

from sp2dpo.betas.label_slope import fit_slope
from sp2dpo.diagnostics.checks import FEWEST, Check
from sp2dpo.diagnostics.gold import LabelDetection
from sp2dpo.panel.rubric import Rubric

USEFUL_SLOPE = 1.0
"""A slope below this adds little: of pairs with the largest gap, fewer than 73 % of the labels
agree."""
USEFUL_AUC = 0.6


def check_validity(table: pl.DataFrame, rubric: Rubric, gold: LabelDetection | None) -> Check:
    """Measure the slope of the labels on the signed gaps, or the AUC of known wrong labels.

    Args:
        table: table of betas, with signed_gap; null for a pair without a gap.
        rubric: rubric of the annotations.
        gold: how well the gaps detect known wrong labels; None without known labels. It is used
            under the labelled protocol only: blind gaps are compared with every pair's label.
    """
    if rubric.blind:
        return _slope(table)
    return _auc(gold)


def _slope(table: pl.DataFrame) -> Check:
    gaps = table["signed_gap"].drop_nulls().to_numpy()
    fit = fit_slope(gaps)
    reason = None
    if fit.slope is None:
        reason = "no pair has a gap" if not len(gaps) else "the gaps are all 0"
    elif fit.pairs < FEWEST:
        reason = (
            f"{fit.pairs} pairs with a gap other than 0 are too few: at least {FEWEST} are needed"
        )
    elif fit.low is not None and fit.high is not None and fit.low <= 0 and fit.high >= USEFUL_SLOPE:
        reason = (
            f"{fit.pairs} pairs with a gap other than 0 are too few: a slope of 0, and one of "
            f"{USEFUL_SLOPE:g}, are both possible"
        )
    return Check(
        name="validity", title="Gaps do not predict the labels",
        measure="slope k of the labels on the blind signed gap s, in P(label right) = sigmoid(k s)",
        unit="coefficient", top=5.0, look=USEFUL_SLOPE, bad=0.0,
        value=fit.slope, low=fit.low, high=fit.high,
        reason=reason,
        advice="The teachers' preferences have little or nothing to do with the labels: use other "
        "teachers or another rubric, and check some pairs by hand (`--gold`).",
        needs_proof=True,
    )  # fmt: skip


def _auc(gold: LabelDetection | None) -> Check:
    auc = None if gold is None else gold.auc
    reason = None
    if gold is None or auc is None:
        reason = (
            "teachers who see the label cannot be checked against it: give pairs with known labels "
            "(`--gold`), or annotate a sample of the pairs with a blind rubric"
        )
    elif auc.value is None:
        reason = "the known labels must include right and wrong ones"
    elif gold.right + gold.wrong < FEWEST:
        reason = (
            f"{gold.wrong} known wrong labels and {gold.right} right ones are too few: together at "
            f"least {FEWEST} are needed"
        )
    elif auc.low is not None and auc.high is not None and auc.low <= 0.5 and auc.high >= USEFUL_AUC:
        reason = (
            f"{gold.wrong} known wrong labels are too few: an AUC of 0.5 (chance), and one of "
            f"{USEFUL_AUC:g}, are both possible"
        )
    return Check(
        name="validity", title="Gaps do not tell wrong labels",
        measure="AUC of known wrong labels: probability that one has a lower gap than a right one",
        unit="coefficient", top=1.0, look=USEFUL_AUC, bad=0.5,
        value=None if auc is None else auc.value,
        low=None if auc is None else auc.low,
        high=None if auc is None else auc.high,
        reason=reason,
        advice="The gaps of wrong labels are hardly lower than those of right ones: use other "
        "teachers or another rubric.",
        needs_proof=True,
    )  # fmt: skip
