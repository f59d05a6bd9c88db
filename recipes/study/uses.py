"""Answer the questions of RULES-2.md from the published runs: tables and the figure.

    python recipes/study/uses.py recipes/study/results/uses --out study-uses/

The folder holds `runs-*.csv`, the `runs.csv` that `run.py` writes for `uses.yaml`, `uses-kl.yaml`,
`uses-panels.yaml` and `uses-arms.yaml`, and `panels.csv`, which `panels.py` writes.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import t as student_t

from figures import INK, QUIET, STYLE, set_kl_axis
from panels import format_panels
from sp2dpo.files import write_text
from uses_runs import POOLED, Difference, Neighbours, Runs

MATCHED_KL = 1.0
"""KL, in nats per response, at which methods are compared besides their tuned trials."""
KLS = (0.7, 1.0, 1.5)
"""KLs of the table of curves."""
MARGIN = 0.1
"""A method is as safe as DPO if it is not worse by this much, in true reward."""
TEMPERATURE = ("sp2dpo", "beta-as-weight")
"""Methods that differ by the temperature alone."""
BAD_PANELS = ("guessing", "biased", "shared", "opinion")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to a primary question.

    Attributes:
        question: The question.
        differences: The differences that all must be on the claimed side, with their names.
        p_value: The largest of their p-values, as all of them must hold.
    """

    question: str
    differences: Mapping[str, Difference]
    p_value: float


def answer_questions(runs: Runs) -> list[Answer]:
    """Return the answers to the primary questions, in the order of RULES-2.md."""

    def less(name: str, other: str) -> Difference:
        return Difference(values=runs.tuned(name) - runs.tuned(other))

    temperature = _at_equal_kl(runs, *TEMPERATURE, MATCHED_KL)
    soft = {
        f"soft-calibrated less {other}": less("soft-calibrated", other)
        for other in ("sp2dpo", "gap-as-weight")
    }
    answers = [
        Answer(
            question=f"1. Does the temperature per pair help? (KL {MATCHED_KL:g})",
            differences={" less ".join(TEMPERATURE): temperature},
            p_value=temperature.p_value(),
        ),
        Answer(
            question="2. Do soft labels beat SP2DPO and the gap as a weight? (tuned)",
            differences=soft,
            p_value=max(difference.p_value(above=0) for difference in soft.values()) * 2,
        ),
    ]
    for number, method in ((3, "soft-latent"), (4, "soft-anchored")):
        safe = {
            f"{method}@{panel} less dpo": less(f"{method}@{panel}", "dpo") for panel in BAD_PANELS
        }
        answers.append(
            Answer(
                question=f"{number}. Is {method} safe with bad teachers? (tuned)",
                differences=safe,
                p_value=max(difference.p_value(above=-MARGIN) for difference in safe.values()),
            )
        )
    return answers


OTHERS = ("sp2dpo", "gap-as-weight", "dpo")
"""Methods with which the tables compare all others."""
COMPARED = (
    ("sp2dpo", "beta-as-weight"),
    ("soft-calibrated", "sp2dpo"), ("soft-calibrated", "gap-as-weight"),
    ("soft-latent@opinion", "dpo"), ("soft-anchored@opinion", "dpo"),
)  # fmt: skip
"""Differences whose spread the pilot estimates."""


def format_power(runs: Runs, seeds: int) -> list[str]:
    """Return the smallest differences that a study could detect, as lines of a Markdown table.

    Args:
        runs: Runs of the pilot.
        seeds: Number of seeds of the study.
    """
    lines = [
        f"| difference, tuned | standard deviation, {len(runs.seeds)} seeds "
        f"| detectable with {seeds} seeds, level 0.05 | level {0.05 / 4:g} |",
        "|---|---|---|---|",
    ]
    for name, other in COMPARED:
        sd = float((runs.tuned(name) - runs.tuned(other)).std(ddof=1))
        found = [detectable(sd, seeds, alpha=alpha) for alpha in (0.05, 0.05 / 4)]
        lines.append(f"| {name} less {other} | {sd:.2f} | {found[0]:.2f} | {found[1]:.2f} |")
    return lines


def _at_equal_kl(
    runs: Runs, name: str, other: str, kl: float, neighbours: Neighbours = "scale"
) -> Difference:
    """Return the difference of two methods at a KL, over the seeds in which both reach it.

    Raises:
        ValueError: Fewer than two seeds do.
    """
    ours, theirs = (runs.at_kl(each, kl, neighbours=neighbours) for each in (name, other))
    known = (ours - theirs)[~np.isnan(ours - theirs)]
    if len(known) < 2:
        raise ValueError(f"{name} and {other}: {len(known)} seeds reach a KL of {kl:g}")
    return Difference(values=known)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Holm's method (1979), in the given order."""
    order = np.argsort(p_values)
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.maximum.accumulate(np.array(p_values)[order] * factors).clip(max=1.0)
    result = np.empty(len(p_values))
    result[order] = adjusted
    return result.tolist()


def format_answers(answers: Sequence[Answer]) -> list[str]:
    """Return the primary questions as lines of a Markdown table."""
    lines = [
        "| question | difference of the true reward (95 %) | median | seeds | p, Holm |",
        "|---|---|---|---|---|",
    ]
    adjusted = holm([min(1.0, answer.p_value) for answer in answers])
    for answer, p_value in zip(answers, adjusted, strict=True):
        for position, (name, difference) in enumerate(answer.differences.items()):
            question, p = (answer.question, f"{p_value:.2g}") if position == 0 else ("", "")
            lines.append(
                f"| {question} | {name}: {difference.words()} | {difference.median:+.2f} "
                f"| {len(difference.values)} | {p} |"
            )
    return lines


def format_methods(runs: Runs, names: Sequence[str]) -> list[str]:
    """Return all measurements of methods as lines of a Markdown table, the best reward first.

    A method with another panel than `panel` is compared with the methods that have the same panel,
    and with DPO, which has none; a cell is empty where there is no such method.
    """
    columns = [
        "method",
        "reward, tuned", "median", *(f"tuned: less {other}" for other in OTHERS),
        "reward, default", *(f"default: less {other}" for other in OTHERS),
        f"KL {MATCHED_KL:g}: less sp2dpo",
        "reward, greedy", "KL", "accuracy", "scale chosen",
    ]  # fmt: skip
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    in_pools = {name for pool in POOLED.values() for name in pool}
    shown = [name for name in names if name not in in_pools]
    ranked = sorted(shown, key=lambda name: -runs.tuned(name).mean())
    known = set(runs.names())
    for name in ranked:
        others = {other: _with_panel_of(name, other) for other in OTHERS}
        compared = {other: same for other, same in others.items() if same in known and same != name}
        tuned, default = runs.tuned(name), runs.at_scale(name, 1.0)
        cells = [
            f"**{name}**" if name == "sp2dpo" else name,
            _plain(Difference(values=tuned)),
            f"{np.median(tuned):.2f}",
            *_less(tuned, {other: runs.tuned(same) for other, same in compared.items()}),
            _plain(Difference(values=default)),
            *_less(default, {other: runs.at_scale(same, 1.0) for other, same in compared.items()}),
            _at_kl(runs, name, others["sp2dpo"], MATCHED_KL) if "sp2dpo" in compared else "",
            f"{runs.tuned(name, 'reward_0').mean():.2f}",
            f"{runs.tuned(name, 'kl').mean():.2f}",
            f"{runs.tuned(name, 'accuracy').mean():.3f}",
            ", ".join(f"{scale:g}: {count}" for scale, count in runs.scales(name).items()),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _less(values: NDArray[np.float64], theirs: Mapping[str, NDArray[np.float64]]) -> Iterator[str]:
    """Yield the difference from each of `OTHERS` as a cell, empty for those that are missing."""
    for other in OTHERS:
        if other not in theirs:
            yield ""
        elif np.isnan(values).any():
            yield "-"
        else:
            yield Difference(values=values - theirs[other]).words()


def _with_panel_of(name: str, other: str) -> str:
    """Return another method with the panel of a method; DPO has none."""
    panel = name.partition("@")[2]
    return f"{other}@{panel}" if panel and other != "dpo" else other


def format_curves(runs: Runs, names: Sequence[str], against: str = "sp2dpo") -> list[str]:
    """Return comparisons at equal KL and at equal scale as lines of a Markdown table.

    Args:
        runs: All runs.
        names: Methods to list.
        against: Method whose reward is subtracted from those of the others.
    """
    columns = [
        "method", "KL at scale 1",
        *(f"reward, KL {kl:g}: less {against}" for kl in KLS),
        *(f"greedy, scale {scale:g}: less {against}" for scale in (3, 10)),
    ]  # fmt: skip
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for name in names:
        cells = [name, f"{runs.at_scale(name, 1.0, 'kl').mean():.1f}"]
        if name == against:
            cells += [_mean_at_kl(runs, name, kl) for kl in KLS]
            cells += [f"({runs.at_scale(name, scale, 'reward_0').mean():.2f})" for scale in (3, 10)]
        else:
            cells += [_at_kl(runs, name, against, kl) for kl in KLS]
            for scale in (3.0, 10.0):
                ours, theirs = (runs.at_scale(each, scale, "reward_0") for each in (name, against))
                cells.append(Difference(values=ours - theirs).words())
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def format_mechanism(runs: Runs, names: Sequence[str], scale: float = 3.0) -> list[str]:
    """Return D and the slopes at one scale, by epoch, as lines of a Markdown table."""
    lines = [
        f"| method, scale {scale:g} | D right, by epoch | D wrong, by epoch "
        "| slope, lowest over highest decile of beta, start to end |",
        "|---|---|---|---|",
    ]
    epochs = sum(column.startswith("D_right_") for column in runs.table.columns)
    for name in names:
        means = {
            label: " ".join(
                f"{runs.at_scale(name, scale, f'D_{label}_{epoch}').mean():+.1f}"
                for epoch in range(1, epochs)
            )
            for label in ("right", "wrong")
        }
        ratios = [
            (
                runs.at_scale(name, scale, f"slope_{when}_0")
                / runs.at_scale(name, scale, f"slope_{when}_9")
            ).mean()
            for when in ("start", "end")
        ]
        lines.append(
            f"| {name} | {means['right']} | {means['wrong']} | {ratios[0]:.2f} to {ratios[1]:.2f} |"
        )
    return lines


def detectable(sd: float, seeds: int, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Return the smallest mean difference that a two-sided paired t-test detects.

    Args:
        sd: Standard deviation of the paired differences.
        seeds: Number of seeds.
        alpha: Level of the test.
        power: Wanted power.
    """
    quantiles = student_t.ppf([1 - alpha / 2, power], seeds - 1)
    return float(quantiles.sum() * sd / np.sqrt(seeds))


def _plain(values: Difference) -> str:
    if np.isnan(values.mean):
        return "-"
    low, high = values.interval
    return f"{values.mean:.2f} ({low:.2f} to {high:.2f})"


def _at_kl(runs: Runs, name: str, other: str, kl: float) -> str:
    """Return a difference at equal KL, with the number of seeds if not all have one."""
    values = runs.at_kl(name, kl) - runs.at_kl(other, kl)
    known = values[~np.isnan(values)]
    if len(known) < 2:
        return "-"
    return Difference(values=known).words() + _seeds(known, values)


def _mean_at_kl(runs: Runs, name: str, kl: float) -> str:
    """Return a mean reward at a KL, with the number of seeds if not all have one."""
    values = runs.at_kl(name, kl)
    known = values[~np.isnan(values)]
    return f"({known.mean():.2f})" + _seeds(known, values) if len(known) else "-"


def _seeds(known: NDArray[np.float64], values: NDArray[np.float64]) -> str:
    return "" if len(known) == len(values) else f", {len(known)} seeds"


def _without_amendments(runs: Runs) -> list[str]:
    """Return question 1 by the rules before their amendments, as lines of text."""
    rules: dict[str, Neighbours] = {
        "without the further scales": "scale",
        "without them, by the first rule of interpolation": "kl",
    }
    lines = []
    for words, neighbours in rules.items():
        found = _at_equal_kl(runs.trials(), *TEMPERATURE, MATCHED_KL, neighbours)
        lines.append(
            f"Question 1 {words}, over the {len(found.values)} seeds whose trials reach the KL: "
            f"{found.words()}."
        )
    return lines


COLOURS = (
    ("dpo", INK), ("temperature-only", "#a9a294"), ("sp2dpo", "#2b5f94"),
    ("beta-as-weight", "#7aa6d6"), ("temperature-turned", "#8a5aa8"), ("gap-as-weight", "#b4552d"),
    ("soft-calibrated", "#3c8d5a"), ("soft-latent", "#c79a1b"), ("soft-anchored", "#1d8a8a"),
)  # fmt: skip
"""Methods shown in the figure, with their colours."""


def draw(runs: Runs) -> Figure:
    """Draw the reward against KL, and the safety with bad teachers."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
    for name, colour in COLOURS:
        scales = sorted(runs.table.filter(pl.col("name") == name)["scale"].unique())
        kl, reward = (
            [runs.at_scale(name, scale, column).mean() for scale in scales]
            for column in ("kl", "reward_1")
        )
        left.plot(kl, reward, "o-", color=colour, markersize=4, linewidth=1.3, label=name)
    set_kl_axis(left)
    left.set_title("every trial, mean over seeds and orders", fontsize=9, loc="left")
    left.legend(frameon=False, fontsize=8)
    dpo = runs.tuned("dpo")
    names = [name for name in runs.names() if name.partition("@")[2] in BAD_PANELS][::-1]
    for position, name in enumerate(names):
        difference = Difference(values=runs.tuned(name) - dpo)
        colour = dict(COLOURS).get(name.partition("@")[0], QUIET)
        right.plot(difference.interval, [position, position], color=colour, linewidth=2)
        right.plot(difference.mean, position, "o", color=colour, markersize=5)
    right.axvline(0, color=INK, linewidth=0.8)
    right.axvline(-MARGIN, color=QUIET, linewidth=0.8, linestyle="--")
    right.set_yticks(range(len(names)), names)
    right.tick_params(axis="y", length=0)
    right.set_xlabel("true reward: the method less DPO, both tuned")
    right.set_title(f"bad teachers; dashed: the margin of {MARGIN:g}", fontsize=9, loc="left")
    right.grid(axis="x")
    return figure


def write_results(runs: Runs, panels: pl.DataFrame | None, out: Path) -> list[str]:
    """Write the tables and the figure to a folder; return the lines of the tables.

    Args:
        runs: All runs.
        panels: What `panels.measure_panels` returns; None leaves its table out.
        out: The folder.
    """
    main = [name for name in runs.names() if "@" not in name]
    curves = [name for name in main if name not in POOLED]
    bad = [name for name in runs.names() if "@" in name]
    both = [name for name, _ in COLOURS if name in main]
    lines = [
        *format_answers(answer_questions(runs)), "",
        *_without_amendments(runs), "",
        *format_methods(runs, main), "",
        *format_methods(runs, [*bad, "dpo"]), "",
        *format_curves(runs, curves), "",
        *format_mechanism(runs, both),
        *([] if panels is None else ["", *format_panels(panels)]),
    ]  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "table.md", "\n".join(lines) + "\n")
    with mpl.rc_context(STYLE):
        figure = draw(runs)
        FigureCanvasAgg(figure)
        figure.savefig(out / "uses.png", dpi=160, metadata={"Software": None})
    return lines


def main(arguments: list[str]) -> int:
    """Write the tables and the figure, print the tables, and return the exit code."""
    parser = argparse.ArgumentParser(description="Answer the questions of RULES-2.md.")
    parser.add_argument("runs", type=Path, help="folder with runs-*.csv")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, help="output folder")
    where.add_argument("--power", type=int, help="number of seeds: print what they could detect")
    where.add_argument("--curves", action="store_true", help="print the rewards at equal KL only")
    options = parser.parse_args(arguments)
    if options.power is not None and options.power < 2:
        parser.error(f"--power {options.power}: a paired test needs at least 2 seeds")
    try:
        runs = Runs.read(options.runs)
        if options.power is not None:
            lines = format_power(runs, options.power)
        elif options.curves:
            lines = format_curves(runs, [name for name in runs.names() if name not in POOLED])
        else:
            file = options.runs / "panels.csv"
            panels = pl.read_csv(file) if file.exists() else None
            lines = write_results(runs, panels, options.out)
    except (ValueError, OSError) as error:
        print(f"uses.py: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
