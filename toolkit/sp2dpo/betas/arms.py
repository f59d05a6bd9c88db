"""An arm of a comparison: a schedule, and what else is done with the same annotations.

The file of an arm names the schedule that it departs from (`of`) and says how. Rows are marked
(`keep`, `flip`) and never deleted, so that all arms name the pairs that they train on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import polars as pl

from sp2dpo.betas.baselines import (
    ArithmeticMean,
    BetaWeight,
    Constant,
    DropLowest,
    GapMargin,
    GapWeight,
    HarmonicMean,
    Madpo,
    Odpo,
    Permuted,
    Uniform,
)
from sp2dpo.betas.choices import format_choice, read_choice
from sp2dpo.betas.gaps import disputes_labels
from sp2dpo.betas.schedule import COLUMNS, Schedule, parse_schedule, schedule_betas
from sp2dpo.betas.scores import Scores
from sp2dpo.panel.rubric import Rubric
from sp2dpo.settings import check_keys, check_type, did_you_mean, read_yaml
from sp2dpo.store.annotations import AnnotationTable

Beta = Constant | ArithmeticMean | HarmonicMean | Uniform | Permuted
Weight = GapWeight | BetaWeight | Madpo
Margin = GapMargin | Odpo
_KNOWN: dict[str, dict[str, type]] = {
    "beta": {
        "constant": Constant,
        "arithmetic-mean": ArithmeticMean,
        "harmonic-mean": HarmonicMean,
        "uniform": Uniform,
        "permuted": Permuted,
    },
    "keep": {"drop-lowest": DropLowest},
    "weight": {"gap": GapWeight, "beta": BetaWeight, "madpo": Madpo},
    "margin": {"gap": GapMargin, "odpo": Odpo},
}
DISPUTED = ("drop", "flip")
OPTIONAL = ("flip", "weight", "margin", "reward_margin")
"""Columns that a table of betas has where its arm makes them."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """How a table of betas is made; with `of` alone it is the schedule itself.

    Attributes:
        of: the schedule.
        beta: what takes the place of its betas; see `baselines`.
        keep: which pairs are left out by their gap.
        disputed: what is done with pairs whose label the teachers think wrong: `drop` leaves them
            out, `flip` exchanges their responses. Our choice, both.
        weight: of a pair's loss: see `baselines` (ours) and `rewards` (MADPO).
        margin: gamma of a pair's loss, in nats: see `baselines` (ours) and `rewards` (ODPO).
    """

    of: Schedule
    beta: Beta | None = None
    keep: DropLowest | None = None
    disputed: str | None = None
    weight: Weight | None = None
    margin: Margin | None = None

    @property
    def uses_scores(self) -> bool:
        """Whether it takes a reward model's scores."""
        return isinstance(self.weight, Madpo) or isinstance(self.margin, Odpo)

    def departures(self) -> dict[str, str]:
        """What its file says beside `of`; empty for a schedule itself."""
        said = {}
        for key in ("beta", "keep", "disputed", "weight", "margin"):
            value = getattr(self, key)
            if value is not None:
                said[key] = format_choice(value, _KNOWN[key]) if key in _KNOWN else value
        return said


def load_arm(path: Path) -> Arm:
    """The arm in a YAML file, or the schedule in one, as an arm of its own.

    Raises:
        ValueError: naming the file, the key and the value.
        OSError: a file cannot be read.
    """
    said = read_yaml(path)
    if "of" not in said:
        if any(key in said for key in ("keep", "disputed", "weight", "margin", "beta")):
            raise ValueError(f"{path}: an arm says what schedule it is an arm of: add `of: FILE`")
        return Arm(of=parse_schedule(said, where=str(path)))
    check_type(str(path), "of", said["of"], str)
    base = path.parent / said["of"]
    schedule = read_yaml(base)
    if "of" in schedule:
        raise ValueError(f"{path}: of: {said['of']} is an arm itself; name its schedule")
    return parse_arm(said, parse_schedule(schedule, where=str(base)), where=str(path))


def parse_arm(said: Mapping[str, Any], schedule: Schedule, *, where: str) -> Arm:
    """The arm that a mapping says, checked.

    Args:
        said: its keys; `of` does not matter here.
        schedule: that it is an arm of.
        where: for messages.

    Raises:
        ValueError: with `where` and what is wrong.
    """
    keys = [one.name for one in fields(Arm) if one.name != "of"]
    check_keys(where, said, required=(), optional=["of", *keys])
    if not any(key in said for key in keys):
        raise ValueError(f"{where}: an arm departs from its schedule in one of {', '.join(keys)}")
    made = {
        key: read_choice(where, key, said[key], known)
        for key, known in _KNOWN.items()
        if key in said
    }
    if "disputed" in said and said["disputed"] not in DISPUTED:
        hint = did_you_mean(said["disputed"], DISPUTED)
        raise ValueError(
            f"{where}: disputed {said['disputed']!r} is not known{hint} "
            f"(known: {', '.join(DISPUTED)})"
        )
    return Arm(of=schedule, disputed=said.get("disputed"), **made)


def compute_betas(
    annotations: AnnotationTable, arm: Arm, scores: Scores | None = None
) -> pl.DataFrame:
    """The table of betas of an arm: `betas.COLUMNS`, and what the arm adds.

    Args:
        annotations: of one store.
        arm: what to do with them.
        scores: of a reward model, for an arm that uses them.

    Returns:
        The columns of `betas.betas`, sorted by pair_id, and where the arm makes them:
        flip: whether the pair is trained with its responses exchanged.
        weight: of its loss, at least 0; null where there is no beta.
        margin: gamma of its loss, in nats; null where there is no beta, and for a pair without an
            offset, which is not kept.
        reward_margin: h, from the scores, of chosen over rejected as the pair is trained: the sign
            is turned where its responses are exchanged; null where there is no beta.

    Raises:
        ValueError: the arm wants what is not there, scores are given that it does not use, or no
            pair is left.
    """
    _check(arm, annotations.rubric, scores)
    table = schedule_betas(annotations, arm.of, flip=arm.disputed == "flip")
    if arm.disputed == "flip":
        table = table.with_columns(flip=pl.col("label_disputed").fill_null(False))
    elif arm.disputed == "drop":
        undisputed = ~pl.col("label_disputed").fill_null(False)
        table = table.with_columns(keep=pl.col("keep") & undisputed)
    if scores is not None:
        table = _scored(table, scores, flipped=arm.disputed == "flip")
    if isinstance(arm.margin, Odpo):
        table = _with_values(table, "margin", arm.margin.values)
        table = table.with_columns(keep=pl.col("keep") & pl.col("margin").is_not_null())
    if arm.keep is not None:
        table = table.with_columns(keep=arm.keep.keep(table))
    if table["has_beta"].any() and not table["keep"].any():
        raise ValueError("the arm leaves no pair to train on")
    if isinstance(arm.weight, Madpo):
        table = _with_values(table, "weight", arm.weight.values)
    elif arm.weight is not None:
        table = table.with_columns(weight=arm.weight.values(table))
    if isinstance(arm.margin, GapMargin):
        table = table.with_columns(margin=arm.margin.values(table))
    if arm.beta is not None and table["keep"].any():
        table = table.with_columns(beta=arm.beta.betas(table, arm.of))
    return table.select(*COLUMNS, *(name for name in OPTIONAL if name in table.columns))


def _check(arm: Arm, rubric: Rubric, scores: Scores | None) -> None:
    if arm.disputed and not disputes_labels(rubric, arm.of.estimator):
        raise ValueError(
            f"disputed: {arm.disputed}: teachers who are told the label dispute none under this "
            "gap: write `gap: signed` in the schedule, or ask under the blind rubric"
        )
    if arm.uses_scores and scores is None:
        raise ValueError("this arm takes a reward model's scores: give --scores SCORES.parquet")
    if scores is not None and not arm.uses_scores:
        raise ValueError(
            "nothing here uses --scores: give an arm with `weight: madpo(...)` or "
            "`margin: odpo(...)`, or leave them out"
        )


def _scored(table: pl.DataFrame, scores: Scores, *, flipped: bool) -> pl.DataFrame:
    """With the reward margins of the pairs as trained: exchanged responses turn the sign."""
    with_beta = table.filter("has_beta")["pair_id"]
    margins = pl.DataFrame({"pair_id": with_beta, "reward_margin": scores.margins(with_beta)})
    table = table.join(margins, on="pair_id", how="left", maintain_order="left")
    h = pl.col("reward_margin")
    return table.with_columns(pl.when("flip").then(-h).otherwise(h)) if flipped else table


def _with_values(table: pl.DataFrame, name: str, values: Callable[[Any], Any]) -> pl.DataFrame:
    """A column derived from the reward margins; NaN becomes null."""
    h = table["reward_margin"]
    made = pl.Series(name, values(h.fill_null(0.0).to_numpy())).fill_nan(None)
    return table.with_columns(pl.when(h.is_not_null()).then(made).alias(name))
