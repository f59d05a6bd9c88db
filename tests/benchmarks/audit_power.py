"""Prints what the audit and the pilot's rules say about the panels of the study.

python tests/benchmarks/audit_power.py
python tests/benchmarks/audit_power.py --looks

Six panels of simulated teachers annotate the same pairs of the study's world, of which the study
tells whether SP2DPO helps with them. The two responses of a pair are two demonstrations of the
world, in place of samples of the model that is trained on them, so that no model is needed.

With --looks it prints how often the rule `gold` passes teachers who guess, if every request for
more known labels is followed. One and two looks are sums over the binomial distributions; the third
is sampled.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl

STUDY = Path(__file__).parents[2] / "recipes" / "study"
sys.path.insert(0, str(STUDY))

from scipy.stats import binom  # noqa: E402

from config import load_config  # noqa: E402
from language_model import response_ids  # noqa: E402
from pairs import LabelledPair, label_pairs  # noqa: E402
from sp2dpo import compute_betas, load_arm, load_rubric  # noqa: E402
from sp2dpo.betas.file import BetaTable  # noqa: E402
from sp2dpo.diagnostics.agreement import wilson_interval  # noqa: E402
from sp2dpo.diagnostics.audit import audit_betas  # noqa: E402
from sp2dpo.diagnostics.gold import GoldComparison, Truth, compare_with_gold  # noqa: E402
from sp2dpo.diagnostics.intervals import mean_share  # noqa: E402
from sp2dpo.report.verdict import decide  # noqa: E402
from sp2dpo.text import format_interval, format_table  # noqa: E402
from teachers import SimulatedTeacher, annotate_pairs  # noqa: E402
from world import PROMPTS, World  # noqa: E402

SAMPLES = 6
PAIRS = 300
GOLD = 50
"""Number of pairs whose truth is known."""
DRAWS = 200
SCHEDULE = STUDY.parent / "schedules" / "sp2dpo.yaml"
PANELS = {
    "published": ("cpu.yaml", "panel"),
    "noise 0": ("ablation-noise.yaml", "panel"),
    "noise 2": ("ablation-noise.yaml", "noise-2"),
    "noise 4": ("ablation-noise.yaml", "noise-4"),
    "noise 8": ("ablation-noise.yaml", "noise-8"),
    "guessing": ("ablation-noise.yaml", "guessing"),
}
"""Configuration of the study, and panel in it, by name."""


def teachers_of(name: str) -> tuple[SimulatedTeacher, ...]:
    """The teachers of a panel of the study."""
    file, panel = PANELS[name]
    return tuple(load_config(STUDY / file).panels[panel])


def world_pairs(seed: int, count: int = PAIRS) -> list[LabelledPair]:
    """Pairs of two demonstrations with different rewards, with the study's noisy labels."""
    world, draw = World(seed), np.random.default_rng([seed, 77])
    pairs: list[LabelledPair] = []
    while len(pairs) < count:
        index = int(draw.integers(len(PROMPTS)))
        texts = [world.write(PROMPTS[index], draw) for _ in range(2)]
        rewards = [world.rewards(PROMPTS[index], text, ended=True) for text in texts]
        if abs((rewards[0] - rewards[1]).sum()) < 1e-9:
            continue
        if (rewards[0] - rewards[1]).sum() < 0:
            texts, rewards = texts[::-1], rewards[::-1]
        chosen, rejected = (response_ids(text) for text in texts)
        pairs.append(
            LabelledPair(
                pair_id=f"pair-{len(pairs):05}", prompt=index, chosen=chosen, rejected=rejected,
                parts=(rewards[0] - rewards[1]).tolist(), flipped=False,
            )
        )  # fmt: skip
    return label_pairs(pairs, sharpness=1.0, flips=0.1, seed=seed)


def audit_panel(name: str, seed: int) -> tuple[dict[str, object], str]:
    """The checks of the audit of one sample, by name, and the pilot's decision with truths."""
    pairs, rubric, arm = world_pairs(seed), load_rubric("semantic-gap-blind"), load_arm(SCHEDULE)
    annotations = annotate_pairs(pairs, teachers_of(name), rubric, seed=seed)
    betas = BetaTable(
        table=compute_betas(annotations, arm), arm=arm, annotations_hash=annotations.hash
    )
    lengths = pl.DataFrame(
        {
            "pair_id": [pair.pair_id for pair in pairs],
            "chosen": [float(len(pair.chosen)) for pair in pairs],
            "rejected": [float(len(pair.rejected)) for pair in pairs],
        }
    )
    audit = audit_betas(betas, annotations, lengths, truths=None, gold_count=0, draws=DRAWS)
    truths = {
        pair.pair_id: Truth(
            name=pair.pair_id, label="chosen" if pair.difference > 0 else "rejected"
        )
        for pair in pairs[:GOLD]
    }
    gold = compare_with_gold(betas.table, truths, rubric, gold_count=GOLD)
    checks = [check for check in audit.checks if check.name in PILOT]
    verdict = decide([], checks, pairs=PAIRS, with_beta=PAIRS, position=None, gold=gold)
    return {check.name: check for check in audit.checks} | {"audit": audit}, verdict.decision


PILOT = ("clumped-low", "clumped-high", "no-spread", "guessing", "wavering", "validity")


def panel_row(name: str, samples: int = SAMPLES) -> dict[str, object]:
    """How often the audit of a panel fails, which checks fail it, and the pilot's decisions."""
    results = [audit_panel(name, seed) for seed in range(samples)]
    bad = Counter(
        check
        for checks, _ in results
        for check, result in checks.items()
        if check != "audit" and result.verdict == "bad"
    )
    return {
        "fails": sum(checks["audit"].has_failed("bad") for checks, _ in results),
        "bad": bad,
        "decisions": Counter(decision for _, decision in results),
        "first": results[0][0],
    }


def gold_rule(hits: tuple[int, int], counts: tuple[int, int]) -> tuple[bool, tuple[int, int]]:
    """Whether the pilot's rule passes, and how many truths of each label it asks for (0, 0)."""
    labels = {
        label: wilson_interval(hit, count)
        for label, hit, count in zip(("chosen", "rejected"), hits, counts, strict=True)
    }
    balanced, total = mean_share(list(labels.values())), sum(counts)
    gold = GoldComparison(
        truths=total, sampled=total, judged=total, threshold=0.05,
        counts=dict(zip(labels, counts, strict=True)), labels=labels,
        accuracy=wilson_interval(sum(hits), total), balanced=balanced.value,
        balanced_low=balanced.low, balanced_high=balanced.high, always_chosen=None,
        category=wilson_interval(0, 0), magnitude=None,
    )  # fmt: skip
    verdict = decide([], [], pairs=PAIRS, with_beta=PAIRS, position=None, gold=gold)
    rule = next(rule for rule in verdict.rules if rule.name == "gold")
    more = rule.more or {"chosen": 0, "rejected": 0}
    return rule.passed is True, (more["chosen"], more["rejected"])


def passing(hits: tuple[int, int], counts: tuple[int, int], more: tuple[int, int]) -> float:
    """The probability that the rule passes after `more` truths, if the teachers guess."""
    chances = [binom.pmf(np.arange(n + 1), n, 0.5) for n in more]
    # The lower end of `mean_share` for all outcomes at once.
    shares, below = [], []
    for hit, n, count in zip(hits, more, counts, strict=True):
        parts = [wilson_interval(hit + k, count + n) for k in range(n + 1)]
        share = np.array([part.share for part in parts])
        shares.append(share)
        below.append(share - np.array([part.low for part in parts]))
    mean = (shares[0][:, None] + shares[1]) / 2
    low = mean - np.hypot(below[0][:, None], below[1]) / 2
    return float(chances[0] @ (low > 0.5) @ chances[1])


def false_go(count: int, third: int = 300) -> list[float]:
    """The probability that guessing teachers have passed after one, two and three looks.

    Args:
        count: Truths of each label at the first look.
        third: Samples for the third look; 0 to leave it out.
    """
    chance = binom.pmf(np.arange(count + 1), count, 0.5)
    counts, passed, asked = (count, count), 0.0, []
    for one in range(count + 1):
        for other in range(count + 1):
            weight = float(chance[one] * chance[other])
            if weight < 1e-9:
                continue
            go, more = gold_rule((one, other), counts)
            passed += weight * go
            if any(more):
                asked.append((weight, (one, other), more))
    looks = [passed, passed + sum(w * passing(hits, counts, more) for w, hits, more in asked)]
    if not third:
        return looks
    weights = np.array([weight for weight, _, _ in asked])
    draw, later = np.random.default_rng(count), []
    for index in draw.choice(len(asked), third, p=weights / weights.sum()):
        _, hits, more = asked[index]
        hits = (hits[0] + int(draw.binomial(more[0], 0.5)),
                hits[1] + int(draw.binomial(more[1], 0.5)))  # fmt: skip
        so_far = (count + more[0], count + more[1])
        _, again = gold_rule(hits, so_far)
        later.append(passing(hits, so_far, again) if any(again) else 0.0)
    return [*looks, looks[-1] + float(weights.sum() * np.mean(later))]


def print_looks() -> None:
    """Print how often guessing teachers have passed the rule `gold`, by the number of looks."""
    rows = [
        (f"{count} + {count}", *(f"{share:.1%}" for share in false_go(count))) for count in (25, 50)
    ]
    head = ("truths at the first look", "one look", "two", "three")
    print("\n".join(format_table(head, rows)))


def main() -> None:
    """Print a row for each panel."""
    parser = argparse.ArgumentParser(description="Power of the audit and of the pilot's rules.")
    parser.add_argument("--looks", action="store_true", help="print the rule `gold` by looks")
    if parser.parse_args().looks:
        print_looks()
        return
    rows = []
    for name in PANELS:
        row = panel_row(name)
        first = row["first"]
        rows.append(
            (
                name,
                f"{row['fails']}/{SAMPLES}",
                ", ".join(f"{check} {count}" for check, count in row["bad"].items()) or "-",
                ", ".join(f"{word} {count}" for word, count in sorted(row["decisions"].items())),
                *(
                    format_interval(first[check].value, first[check].low, first[check].high)
                    for check in ("validity", "guessing", "label-noise", "confidence")
                ),
            )
        )
    head = ("panel", "audit fails", "bad checks", f"pilot, {GOLD} truths", "slope k", "guessing",
            "label noise", "confidence")  # fmt: skip
    print("\n".join(format_table(head, rows)))


if __name__ == "__main__":
    main()
