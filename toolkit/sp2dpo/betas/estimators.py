"""How the replies about a pair are combined: JMAMP and its alternatives.

SP2DPO's joint multi-annotator multi-prompt estimator takes the median over the prompt variants of a
teacher, then the mean over the teachers (arXiv 2601.22385, section 4.3.3). All other combinations
serve to compare it with; they, and how one reply is read, are our choice.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import polars as pl

from sp2dpo.betas.choices import check_number
from sp2dpo.settings import did_you_mean
from sp2dpo.store.annotations import AnnotationTable


@dataclass(frozen=True)
class Product:
    """g = sign m c."""

    tells_labels: ClassVar[bool] = False

    def gap(self, m: Any, c: Any, sign: Any) -> Any:
        """The gap of a reply, in [-1, 1]."""
        return m * c if sign is None else sign * (m * c)

    def words(self, *, blind: bool) -> str:
        """The formula, for people."""
        return f"{_sign(blind)}magnitude x confidence"


@dataclass(frozen=True)
class Magnitude:
    """g = sign m: what a teacher's confidence adds is left out."""

    tells_labels: ClassVar[bool] = False

    def gap(self, m: Any, c: Any, sign: Any) -> Any:
        """The gap of a reply, in [-1, 1]."""
        return m if sign is None else sign * m

    def words(self, *, blind: bool) -> str:
        """The formula, for people."""
        return f"{_sign(blind)}magnitude"


@dataclass(frozen=True)
class Shrink:
    """g = c (sign m) + (1 - c) m0: the less sure a reply, the nearer it is to what one assumes.

    Attributes:
        m0: the gap of a reply without confidence, in [0, 1].
    """

    m0: float
    tells_labels: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_number("m0", self.m0, least=0, most=1)
        object.__setattr__(self, "m0", float(self.m0))

    def gap(self, m: Any, c: Any, sign: Any) -> Any:
        """The gap of a reply, in [-1, 1]."""
        return c * (m if sign is None else sign * m) + (1 - c) * self.m0

    def words(self, *, blind: bool) -> str:
        """The formula, for people."""
        return f"confidence x ({_sign(blind)}magnitude) + (1 - confidence) x {self.m0:g}"


@dataclass(frozen=True)
class Signed:
    """g = m (2 c - 1): a confidence below the middle of its scale counts against the label.

    Read as the chance that the label is right, a confidence c makes m (2 c - 1) the gap to expect.
    Under the blind protocol, where the reply itself names the better response, it is `product`.
    """

    tells_labels: ClassVar[bool] = True

    def gap(self, m: Any, c: Any, sign: Any) -> Any:
        """The gap of a reply, in [-1, 1]."""
        return m * (2 * c - 1) if sign is None else sign * (m * c)

    def words(self, *, blind: bool) -> str:
        """The formula, for people."""
        return "sign x magnitude x confidence" if blind else "magnitude x (2 x confidence - 1)"


GapForm = Product | Magnitude | Shrink | Signed
GAP_FORMS: dict[str, type] = {
    "product": Product,
    "shrink": Shrink,
    "magnitude": Magnitude,
    "signed": Signed,
}


def _sign(blind: bool) -> str:
    return "sign x " if blind else ""


ESTIMATES = ("sampled", "expected")
"""How a reply's magnitude and confidence are read: as it says them, or as their expectations over
the tokens that it could have said. Both are our choice."""
WAYS = ("median", "mean", "trimmed")
"""How an axis is combined; any other word names the only variant, or teacher, that counts."""
FEWEST_TO_TRIM = 5
"""Variants, or teachers, that `trimmed` takes."""


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """From replies to the gap of a pair.

    Attributes:
        estimate: one of `ESTIMATES`.
        gap: of one reply.
        over_variants: of a teacher: `median` (SP2DPO), `mean`, `trimmed` (the mean without the
            lowest and the highest fifth, rounded down), or the name of the only one that counts.
        over_teachers: likewise; `mean` is SP2DPO's.
    """

    estimate: str
    gap: GapForm
    over_variants: str
    over_teachers: str

    def select_replies(self, annotations: AnnotationTable) -> pl.DataFrame:
        """The replies that count: those of the teacher and the variant that are named, if any.

        Raises:
            ValueError: no kept reply is of that teacher or under that variant, or `trimmed` is
                asked of fewer than five.
        """
        replies = annotations.replies
        for axis, way in (("variant", self.over_variants), ("teacher", self.over_teachers)):
            if way in ("median", "mean"):
                continue
            names = sorted(replies[axis].unique())
            if way == "trimmed" and len(names) < FEWEST_TO_TRIM:
                raise ValueError(
                    f"over_{axis}s: trimmed takes {FEWEST_TO_TRIM} {axis}s or more, and the kept "
                    f"replies are of {len(names)}: write median"
                )
            if way != "trimmed" and way not in names:
                choices = (*WAYS, *names)
                raise ValueError(
                    f"over_{axis}s {way!r}: no kept reply is of a {axis} of that name"
                    f"{did_you_mean(way, choices)} (known: {', '.join(choices)})"
                )
            if way != "trimmed":
                replies = replies.filter(pl.col(axis) == way)
        return replies


JMAMP = Estimator(estimate="sampled", gap=Product(), over_variants="median", over_teachers="mean")
"""SP2DPO's, with our gap of one reply."""


def combine_expr(column: str, way: str) -> pl.Expr:
    """The values of a group made one; where an only one was named, no other is left."""
    values = pl.col(column)
    if way == "median":
        return values.median()
    if way == "trimmed":
        cut = pl.len() // FEWEST_TO_TRIM
        return values.sort().slice(cut, pl.len() - 2 * cut).mean()
    return values.mean()


def combine(values: list[float], way: str) -> float:
    """The same as `combined`, for the values of one group, by hand."""
    ordered = sorted(values)
    count = len(ordered)
    if way == "median":
        return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    cut = count // FEWEST_TO_TRIM if way == "trimmed" else 0
    middle: Any = ordered[cut : count - cut]
    return sum(middle) / len(middle)
