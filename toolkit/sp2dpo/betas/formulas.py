"""Describe in sentences how betas were computed, for the data set card and the report."""

from dataclasses import dataclass

from sp2dpo.betas.arms import Arm
from sp2dpo.betas.estimators import WAYS
from sp2dpo.betas.gaps import disputes_labels
from sp2dpo.betas.maps import Linear, Quantile
from sp2dpo.betas.schedule import Schedule
from sp2dpo.panel.rubric import Rubric

# SP2DPO's envelope (arXiv 2601.22385), the same for all categories.
_PAPERS_ENDS = (0.03, 0.3)


@dataclass(frozen=True, kw_only=True)
class Formulas:
    """Descriptions without a final full stop; callers must escape them: they contain user input.

    Attributes:
        reply: how one reply becomes a gap.
        pair: how the replies about a pair become its gap.
        beta: how the gap becomes beta.
        arm: how the arm differs from its schedule, one item per difference; empty without an arm.
        papers: which parts are from the paper; may be empty.
        ours: which parts are choices of this toolkit.
    """

    reply: str
    pair: str
    beta: str
    arm: list[str]
    papers: str
    ours: str


def describe_formulas(arm: Arm, rubric: Rubric) -> Formulas:
    """Describe an arm under a rubric."""
    schedule = arm.of
    read = "expected scores" if schedule.estimate == "expected" else "scores"
    scales = (
        f"the {read} as shares of their scales (magnitude {rubric.magnitude.min} to "
        f"{rubric.magnitude.max}, confidence {rubric.confidence.min} to {rubric.confidence.max})"
    )
    signs = (
        "; the sign is +1 where it names the chosen response, -1 where it names the rejected one, "
        "0 for a tie"
    )
    return Formulas(
        reply=f"{schedule.gap.words(blind=rubric.blind)}, {scales}{signs if rubric.blind else ''}",
        pair=_pair(schedule, rubric),
        beta=_beta(schedule),
        arm=[f"{key}: {value}" for key, value in arm.departures().items()],
        papers=_listed(_papers(schedule)),
        ours=_listed(_ours(schedule, rubric)),
    )


def _pair(schedule: Schedule, rubric: Rubric) -> str:
    orders = "the mean over the two orders, then " if rubric.blind else ""
    variants = _way(schedule.over_variants, "a teacher's variants", "the variant")
    teachers = _way(schedule.over_teachers, "the teachers", "the teacher")
    clip = "; below 0 it counts as 0" if disputes_labels(rubric, schedule.estimator) else ""
    return f"{orders}{variants}, then {teachers}{clip}"


def _way(way: str, axis: str, name: str) -> str:
    return WAYS[way].phrase.format(axis=axis) if way in WAYS else f"{name} {way} alone"


def _beta(schedule: Schedule) -> str:
    gap = "place" if isinstance(schedule.map, Quantile) else "gap"
    words = schedule.map.words(gap, f"{schedule.beta_min:g}", f"{schedule.beta_max:g}")
    other = ", ".join(
        f"{category}: {envelope.beta_min:g} to {envelope.beta_max:g}"
        for category, envelope in schedule.envelopes.items()
    )
    other = f" (other ends for {other})" if other else ""
    votes = f"{schedule.quorum} kept {'reply' if schedule.quorum == 1 else 'replies'}"
    condition = " with expected scores" if schedule.estimate == "expected" else ""
    return f"{words}{other}, for pairs with at least {votes}{condition}"


def _papers(schedule: Schedule) -> list[str]:
    ends = (schedule.beta_min, schedule.beta_max) == _PAPERS_ENDS and not schedule.envelopes
    parts = {
        "the median over variants": schedule.over_variants == "median",
        "the mean over teachers": schedule.over_teachers == "mean",
        "the linear map": isinstance(schedule.map, Linear),
        "the ends of the envelope": ends,
    }
    return [part for part, is_papers in parts.items() if is_papers]


def _ours(schedule: Schedule, rubric: Rubric) -> list[str]:
    papers = _papers(schedule)
    ends = "other envelopes by category" if schedule.envelopes else "the ends of the envelope"
    parts = {
        "the blind protocol": rubric.blind,
        # Always ours: the paper's gap formula, scales and texts are in no source that we have.
        "the gap of one reply": True,
        "the expected scores": schedule.estimate == "expected",
        "how variants are combined": "the median over variants" not in papers,
        "how teachers are combined": "the mean over teachers" not in papers,
        "the map": "the linear map" not in papers,
        ends: "the ends of the envelope" not in papers,
        "the scales, the categories' wording": True,
        "the quorum": True,
    }
    return [part for part, is_ours in parts.items() if is_ours]


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else " and ".join([", ".join(parts[:-1]), *parts[-1:]])
