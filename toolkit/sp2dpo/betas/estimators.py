"""Combine the replies about a pair: JMAMP and its alternatives.

SP2DPO's joint multi-annotator multi-prompt estimator takes the median over the prompt variants of a
teacher, then the mean over the teachers (arXiv 2601.22385, section 4.3.3). The other combinations
are there for comparison; they, and the gap of a single reply, are our choice. To add a gap form or
a combination, change only this file.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import polars as pl

from sp2dpo.betas.choices import check_arguments
from sp2dpo.settings import did_you_mean, number
from sp2dpo.store.annotations import AnnotationTable


@dataclass(frozen=True)
class Product:
    """g = sign m c."""

    tells_labels: ClassVar[bool] = False
    """Whether a gap can be below 0, and so dispute the label, under the labelled protocol."""

    def gap(self, m: Any, c: Any, sign: Any) -> Any:
        """Return the gap of a reply, in [-1, 1]; `sign` is None under the labelled protocol."""
        return m * c if sign is None else sign * (m * c)

    def words(self, *, blind: bool) -> str:
        """Return the formula as text."""
        return f"{_sign(blind)}magnitude x confidence"


@dataclass(frozen=True)
class Magnitude:
    """g = sign m: confidence is ignored."""

    tells_labels: ClassVar[bool] = False

    def gap(self, m: Any, c: Any, sign: Any) -> Any:
        """Return the gap of a reply, in [-1, 1]; `sign` is None under the labelled protocol."""
        return m if sign is None else sign * m

    def words(self, *, blind: bool) -> str:
        """Return the formula as text."""
        return f"{_sign(blind)}magnitude"


@dataclass(frozen=True)
class Shrink:
    """g = c (sign m) + (1 - c) m0: a reply of low confidence is pulled towards a prior gap.

    Attributes:
        m0: the prior gap, which a reply of confidence 0 gets, in [0, 1].
    """

    m0: float
    tells_labels: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_arguments(self, m0=number(least=0, most=1))
        # `shrink(1)` and `shrink(1.0)` are the same choice, and must be recorded alike.
        object.__setattr__(self, "m0", float(self.m0))

    def gap(self, m: Any, c: Any, sign: Any) -> Any:
        """Return the gap of a reply, in [-1, 1]; `sign` is None under the labelled protocol."""
        return c * (m if sign is None else sign * m) + (1 - c) * self.m0

    def words(self, *, blind: bool) -> str:
        """Return the formula as text."""
        return f"confidence x ({_sign(blind)}magnitude) + (1 - confidence) x {self.m0:g}"


@dataclass(frozen=True)
class Signed:
    """g = m (2 c - 1): a confidence below the middle of its scale counts against the label.

    If c is the probability that the label is right, m (2 c - 1) is the expected gap. Under the
    blind protocol, where the reply itself names the better response, it equals `product`.
    """

    tells_labels: ClassVar[bool] = True

    def gap(self, m: Any, c: Any, sign: Any) -> Any:
        """Return the gap of a reply, in [-1, 1]; `sign` is None under the labelled protocol."""
        # Written as in `Product`, so that both give the same bits under the blind protocol.
        return m * (2 * c - 1) if sign is None else sign * (m * c)

    def words(self, *, blind: bool) -> str:
        """Return the formula as text."""
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
"""Sources of a reply's magnitude and confidence: the values that it states, or their expectations
over its token probabilities. Both are our choice."""
FEWEST_TO_TRIM = 5
"""Minimum number of variants, or teachers, for `trimmed`."""


@dataclass(frozen=True)
class Combination:
    """A way to combine the values of several variants or teachers.

    Attributes:
        label: name of the combination in formulas.
        phrase: description for use in a sentence; `{axis}` stands for variants or teachers.
        fewest: minimum number of values that it needs.
    """

    label: str
    phrase: str
    fewest: int = 1


WAYS = {
    "median": Combination("median", "the median over {axis}"),
    "mean": Combination("mean", "the mean over {axis}"),
    "trimmed": Combination(
        "trimmed mean",
        "the mean over {axis} without the lowest and the highest fifth",
        fewest=FEWEST_TO_TRIM,
    ),
}
"""Combinations by name; any other name selects a single variant or teacher."""
COMPARED_GAPS = (Product(), Magnitude(), Shrink(0.5), Signed())
"""Gap forms that the ablation compares."""


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """How the replies about a pair become its gap.

    Attributes:
        estimate: source of magnitude and confidence, one of `ESTIMATES`.
        gap: form of the gap of one reply.
        over_variants: how the gaps of a teacher's variants are combined: `median` (SP2DPO), `mean`,
            `trimmed` (the mean without the lowest and the highest fifth, rounded down), or the name
            of the only variant to use.
        over_teachers: how the gaps of the teachers are combined, by the same names; SP2DPO: `mean`.
    """

    estimate: str
    gap: GapForm
    over_variants: str
    over_teachers: str

    def select_replies(self, annotations: AnnotationTable) -> pl.DataFrame:
        """Return the replies that count: all, or only those of a named teacher or variant.

        Raises:
            ValueError: no kept reply is from that teacher or under that variant, or there are too
                few teachers or variants for `trimmed`.
        """
        replies = annotations.replies
        for axis, way in (("variant", self.over_variants), ("teacher", self.over_teachers)):
            # 0 marks the name of a single variant or teacher, which some kept reply must have.
            fewest = WAYS[way].fewest if way in WAYS else 0
            if fewest == 1:
                continue
            names = sorted(replies[axis].unique())
            if len(names) < fewest:
                raise ValueError(
                    f"over_{axis}s: {way} requires at least {fewest} {axis}s, but the kept "
                    f"replies have {len(names)}: use median"
                )
            if way not in WAYS and way not in names:
                choices = (*WAYS, *names)
                raise ValueError(
                    f"over_{axis}s {way!r}: no kept reply has a {axis} of that name"
                    f"{did_you_mean(way, choices)} (known: {', '.join(choices)})"
                )
            if way not in WAYS:
                replies = replies.filter(pl.col(axis) == way)
        return replies


JMAMP = Estimator(estimate="sampled", gap=Product(), over_variants="median", over_teachers="mean")
"""SP2DPO's estimator, with our gap of one reply."""


def combine_expr(column: str, way: str) -> pl.Expr:
    """Return the expression that combines the values of a group; one value is left unchanged."""
    values = pl.col(column)
    if way == "median":
        return values.median()
    if way == "trimmed":
        # Rounded down: a pair with fewer than five values, where replies are missing, loses none.
        cut = pl.len() // FEWEST_TO_TRIM
        return values.sort().slice(cut, pl.len() - 2 * cut).mean()
    return values.mean()


def combine(values: list[float], way: str) -> float:
    """Combine the values of one group, as `combine_expr` does."""
    return pl.DataFrame({"gap": values}).select(combine_expr("gap", way)).item()
