"""Define the columns of a table of betas: name, type and meaning, in their order.

Other modules derive everything from this list: the columns of `betas.parquet` and of the data set,
what `verify` compares, the ranges in the manifest, and the table on the card.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
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
    Column("pair_id", "string", "SHA-256 over the content of the pair; the same in every release"),
    Column("beta", "float64", "beta of the pair in the DPO loss"),
    Column("has_beta", "bool", "whether the pair has a beta"),
    Column("keep", "bool", "whether the pair is trained on"),
    Column(
        "gap",
        "float64",
        "effective semantic gap in [0, 1]: the signed gap, but at least 0",
        ranged=True,
    ),
    Column(
        "signed_gap",
        "float64",
        "semantic gap in [-1, 1], below 0 if the teachers think the label wrong",
        ranged=True,
    ),
    Column("label_disputed", "bool", "whether the signed gap is below 0"),
    Column(
        "category",
        "category",
        "category named by most replies; a tie goes to the earlier in the rubric",
    ),
    Column("magnitude", "float64", "combined over the replies; for display", ranged=True),
    Column("confidence", "float64", "combined over the replies; for display", ranged=True),
    Column("spread", "float64", "standard deviation of the teachers' signed gaps", ranged=True),
    Column("agreement", "float64", "share of the replies that name this category", ranged=True),
    Column("votes", "int32", "number of replies that the gap is computed from", ranged=True),
    Column("teachers", "int32", "number of teachers that gave these replies", ranged=True),
    Column(
        "flip",
        "bool",
        "whether the pair is trained with its responses exchanged; its gap is then that of the "
        "exchanged responses",
        optional=True,
    ),
    Column("weight", "float64", "weight of the pair's loss", optional=True, ranged=True),
    Column(
        "margin",
        "float64",
        "gamma, the offset in the pair's loss in nats",
        optional=True,
        ranged=True,
    ),
    Column(
        "label_smoothing",
        "float64",
        "eps, the estimated probability that the pair as it is trained has the wrong label",
        optional=True,
        ranged=True,
    ),
    Column(
        "reward_margin",
        "float64",
        "a reward model's score of the chosen response minus that of the rejected one",
        optional=True,
        ranged=True,
    ),
)
REQUIRED = tuple(column.name for column in BETA_COLUMNS if not column.optional)
"""Names of the columns that every table of betas has."""
OPTIONAL = tuple(column.name for column in BETA_COLUMNS if column.optional)
"""Names of the columns that a table of betas has if its arm produces them."""
