"""Define the columns of a table of betas: name, type and meaning, in their order.

Other modules derive everything from this list: the columns of `betas.parquet` and of the data set,
what `verify` compares, the ranges in the manifest, and the table on the card.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table of betas.

    Attributes:
        name: Name of the column in `betas.parquet`, in the data set and in training batches.
        type: Arrow type of the values. "category" is a category of the rubric: a string in
            `betas.parquet`, a class label in the data set.
        meaning: Description of the values, as the card of a data set prints it.
        optional: Whether only the tables of some arms have the column.
        ranged: Whether the manifest and the card state the minimum and the maximum.
    """

    name: str
    type: Literal["string", "bool", "int32", "float64", "category"]
    meaning: str
    optional: bool = False
    ranged: bool = False


BETA_COLUMNS = (
    Column(
        name="pair_id",
        type="string",
        meaning="SHA-256 over the content of the pair; the same in every release",
    ),
    Column(name="beta", type="float64", meaning="of DPO"),
    Column(name="has_beta", type="bool", meaning="whether the pair has a beta"),
    Column(name="keep", type="bool", meaning="whether the pair is trained on"),
    Column(
        name="gap",
        type="float64",
        ranged=True,
        meaning="effective semantic gap in [0, 1]: the signed gap, but at least 0",
    ),
    Column(
        name="signed_gap",
        type="float64",
        ranged=True,
        meaning="semantic gap in [-1, 1], below 0 if the teachers think the label wrong",
    ),
    Column(name="label_disputed", type="bool", meaning="whether the signed gap is below 0"),
    Column(
        name="category",
        type="category",
        meaning="category named by most replies; a tie goes to the earlier in the rubric",
    ),
    Column(
        name="magnitude",
        type="float64",
        ranged=True,
        meaning="combined over the replies; for display",
    ),
    Column(
        name="confidence",
        type="float64",
        ranged=True,
        meaning="combined over the replies; for display",
    ),
    Column(
        name="spread",
        type="float64",
        ranged=True,
        meaning="standard deviation of the teachers' signed gaps",
    ),
    Column(
        name="agreement",
        type="float64",
        ranged=True,
        meaning="share of the replies that name this category",
    ),
    Column(
        name="votes",
        type="int32",
        ranged=True,
        meaning="number of replies that the gap is computed from",
    ),
    Column(
        name="teachers",
        type="int32",
        ranged=True,
        meaning="number of teachers that gave these replies",
    ),
    Column(
        name="flip",
        type="bool",
        optional=True,
        meaning=(
            "whether the pair is trained with its responses exchanged; its gap is then that of the "
            "exchanged responses"
        ),
    ),
    Column(
        name="weight",
        type="float64",
        optional=True,
        ranged=True,
        meaning="weight of the pair's loss",
    ),
    Column(
        name="margin",
        type="float64",
        optional=True,
        ranged=True,
        meaning="gamma, the offset in the pair's loss in nats",
    ),
    Column(
        name="reward_margin",
        type="float64",
        optional=True,
        ranged=True,
        meaning="a reward model's score of the chosen response minus that of the rejected one",
    ),
)
REQUIRED = tuple(column.name for column in BETA_COLUMNS if not column.optional)
"""Names of the columns that every table of betas has."""
OPTIONAL = tuple(column.name for column in BETA_COLUMNS if column.optional)
"""Names of the columns that a table of betas has if its arm produces them."""
