"""What the adaptive panel saves, and what it costs in betas. Nothing is asserted.

Against the full panel of three teachers and three variants, on the demo's recorded replies and on
simulated panels: the share of the nine requests that are sent, the share of pairs whose beta ends
within 0.02 of the full panel's (0.03 + 0.27 gap), the mean error of beta, and the prompts that are
computed for a pair: a teacher that reads a pair anew costs 1, a further variant right after it S.
Calibration pairs count in all of it but `decided`, the share within among the pairs that the rule
decided about. Baselines of the same number of requests: the best of all fixed subsets of the nine,
chosen with hindsight on the pairs themselves (generous: no panel knows it beforehand), and a subset
at random; between two sizes, the straight line. `gain` is within less the best subset's, seed by
seed.

A simulated pair has a latent gap: 30 % about -0.1 +- 0.1 (no difference, or a wrong label), 40 %
Beta(1.5, 4) (small), 30 % Beta(5, 1.5) (decisive). A teacher adds its bias (half the noise, one
draw for the whole corpus), the noise of this pair and teacher, and that of the variant (0.8 of it);
the noise of a pair is the level times a lognormal of mean 1 and sigma 0.5: some pairs are hard.
Magnitude is what comes of it, confidence 0.55 + 0.45 of it with noise of its own; both rounded to
0-10. Noise 0.03 spreads teachers and variants about as the demo does (standard deviations 0.046 and
0.032 of the gap against 0.044 and 0.039); 0.06 and 0.12 are two and four times that. Unlike
teachers have twice the bias, and 1.5, 1 and 0.5 times the noise: the first one asked is the worst.

Last, `covers: signed_gap` against `covers: beta` under the blind protocol, where gaps may be
below 0 (tests/support/blind_panels.py): of the pairs that were settled early, the share whose
signed gap ended within the tolerance.

    python tests/benchmarks/adaptive.py [--pairs 2000 20000] [--further 0.15] [--plot adaptive.svg]
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from sp2dpo.annotation.adaptive_rule import LEVEL, StoppingRule, is_calibration, jmamp, slots
from support.blind_panels import WORLDS, measure

DEMO = Path(__file__).parents[2] / "recipes" / "demo" / "replies.jsonl"
READERS, VARIANTS = ("reader-a", "reader-b", "reader-c"), ("direct", "critic", "reader")
ORDER = slots(READERS, VARIANTS)
WITHIN, BETA, TOLERANCE = 0.02, 0.27, 0.074
SEEDS, STUDENT = 5, 2.776  # the 97.5 % point of Student's t for as many seeds
LEVELS = (0.6, 0.8, 0.85, 0.9, 0.92, 0.95)
COLUMNS = (
    "requests",
    "within",
    "decided",
    "fixed",
    "gain",
    "random",
    "error",
    "prompts",
    "fixed prompts",
)


def recorded():
    """(96, 9) gaps of the demo's replies in the order of the slots, and the ids of the pairs."""
    gaps_by_pair = {}
    for line in DEMO.read_text().splitlines():
        row = json.loads(line)
        gap = row["reply"]["magnitude"] * row["reply"]["confidence"] / 100
        gaps_by_pair.setdefault(row["pair_id"], {})[row["teacher"], row["variant"]] = gap
    readings = [[of[slot.teacher, slot.variant] for slot in ORDER] for of in gaps_by_pair.values()]
    return np.array(readings), list(gaps_by_pair)


def simulated(pairs, noise, seed, unlike=False):
    """(pairs, 9) gaps in the order of the slots: see the head of this file."""
    draw = np.random.default_rng(seed)
    kind = draw.choice(3, pairs, p=[0.3, 0.4, 0.3])
    kinds = [draw.normal(-0.1, 0.1, pairs), draw.beta(1.5, 4, pairs), draw.beta(5, 1.5, pairs)]
    hard = noise * np.exp(draw.normal(-0.125, 0.5, (pairs, 1, 1)))
    bias = draw.normal(0, 0.5 * noise, (3, 1)) * (2 if unlike else 1)
    if unlike:
        hard = hard * np.array([1.5, 1, 0.5])[:, None]
    by_teacher, by_variant = draw.normal(size=(pairs, 3, 1)), draw.normal(size=(pairs, 3, 3))
    latent = np.choose(kind, kinds)[:, None, None] + bias + hard * (by_teacher + 0.8 * by_variant)
    latent = np.clip(latent, 0, 1)
    by_teacher, by_variant = draw.normal(size=(pairs, 3, 1)), draw.normal(size=(pairs, 3, 3))
    sure = np.clip(0.55 + 0.45 * latent + hard * (by_teacher + 0.5 * by_variant), 0, 1)
    gaps = np.rint(10 * latent) * np.rint(10 * sure) / 100
    at = [(READERS.index(slot.teacher), VARIANTS.index(slot.variant)) for slot in ORDER]
    return np.stack([gaps[:, teacher, variant] for teacher, variant in at], axis=1)


def close(gaps, full):
    return np.abs(gaps - full) * BETA <= WITHIN + 1e-12


def subsets(readings, further):
    """For 1 to 9 requests: share within of the best subset, its prompts, mean of all subsets."""
    full = jmamp(readings, ORDER)
    medians = []
    for reader in READERS:
        own = readings[:, [slot.teacher == reader for slot in ORDER]]
        chosen = [c for size in (1, 2, 3) for c in itertools.combinations(range(3), size)]
        medians.append([(0, 0.0), *((len(c), np.median(own[:, c], axis=1)) for c in chosen)])
    results = {size: [] for size in range(1, 10)}
    for parts in itertools.product(*medians):
        counts = [count for count, _ in parts if count]
        if counts:
            gap = sum(median for _, median in parts) / len(counts)
            prompts = sum(1 + (count - 1) * further for count in counts)
            results[sum(counts)].append((close(gap, full).mean(), -prompts))
    best = [max(results[size]) for size in results]
    mean = [np.mean([share for share, _ in results[size]]) for size in results]
    return [share for share, _ in best], [-prompts for _, prompts in best], mean


def prompts_of(order, further):
    """(9,) prompts computed for a pair after each slot; a teacher that comes back reads anew."""
    teachers = [slot.teacher for slot in order]
    new = [here != before for here, before in zip(teachers, [None, *teachers], strict=False)]
    return np.cumsum(np.where(new, 1, further))


def chances_of(rule, readings, highest):
    """After each slot: (m, 9) chances and gaps. One pass, from which every level can be read.

    A pair that is settled at the highest level is settled at all: later chances of it stay 1.
    """
    chances, gaps = np.ones(readings.shape), np.empty(readings.shape)
    alive = np.arange(len(readings))
    for count in range(1, 10):
        mask = np.broadcast_to(np.arange(9) < count, readings.shape)
        partial = np.where(mask, readings, np.nan)
        gaps[:, count - 1] = jmamp(partial, rule.slots)
        for page in (alive[start : start + 200] for start in range(0, len(alive), 200)):
            chances[page, count - 1] = rule.next(partial[page], mask[page])[1]
        alive = alive[chances[alive, count - 1] < highest]
    return chances, gaps


def measured(readings, first, further, *, order=ORDER, levels=LEVELS, baselines=True):
    """(levels, columns) for readings in the order of the slots, `first` the calibration pairs."""
    readings = readings[:, [ORDER.index(slot) for slot in order]]
    rule = StoppingRule.learn(readings[first], order, tolerance=TOLERANCE, covers="beta")
    chances, gaps = chances_of(rule, readings[~first], max(levels))
    share, reread = first.mean(), prompts_of(order, further)
    sizes = np.arange(10) / 9
    best, best_prompts, mean = subsets(readings, further) if baselines else ([np.nan] * 9,) * 3
    table = []
    for level in levels:
        last = (chances >= level).argmax(axis=1)
        moved = np.abs(gaps[np.arange(len(gaps)), last] - gaps[:, -1])
        decided = close(moved, 0).mean()
        requests = share + (1 - share) * (last + 1).mean() / 9
        fixed, at_random, fixed_prompts = (
            np.interp(requests, sizes, [0, *of]) for of in (best, mean, best_prompts)
        )
        error = (1 - share) * BETA * moved.mean()
        prompts = share * 3 * (1 + 2 * further) + (1 - share) * reread[last].mean()
        within = share + (1 - share) * decided
        row = (
            requests, within, decided, fixed, within - fixed, at_random, error, prompts,
            fixed_prompts,
        )  # fmt: skip
        table.append(row)
    return np.array(table)


def drawn(names):
    return np.array([is_calibration(name, pairs=len(names)) for name in names])


def show(title, tables, levels=LEVELS, spread=None):
    """Means over the seeds, and beneath the shares half of their 95 % interval (or `spread`)."""
    print(f"\n{title}\n{'level':>7}" + "".join(f"{name:>19}" for name in COLUMNS))
    for number, level in enumerate(levels):
        line = f"{level:7.3f}"
        for values in np.array(tables)[:, number].T:
            half = STUDENT * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0
            about = f" ±{half:.3f}" if spread is None else spread(values)
            line += f"{f'{values.mean():.4f}{about}':>19}"
        print(line + ("  <- the rule" if level == LEVEL else ""))


def demo(further):
    readings, names = recorded()
    first = drawn(names)
    title = f"demo corpus, one draw: {first.sum()} of 96 pairs for calibration (n = 1, no interval)"
    show(title, [measured(readings, first, further)], spread=lambda _: "")
    draws = [drawn([f"{n} {name}" for name in names]) for n in range(40)]
    tables = [measured(readings, first, further) for first in draws]
    show(
        "demo corpus, 40 draws of the calibration pairs: mean (5 % to 95 % of the draws)",
        tables,
        spread=lambda values: " ({:.2f}-{:.2f})".format(*np.quantile(values, [0.05, 0.95])),
    )
    return np.mean(tables, axis=0)


def panels(pairs, noise, unlike=False):
    """Per seed: the readings and which pairs are for calibration."""
    for seed in range(SEEDS):
        yield simulated(pairs, noise, seed, unlike), drawn([f"{seed} {n}" for n in range(pairs)])


def orders(pairs, noise, further):
    """The slot order of the rule against its two plain rivals, at the rule's level."""
    by_variant = sorted(ORDER, key=lambda slot: VARIANTS.index(slot.variant))
    by_teacher = sorted(ORDER, key=lambda slot: READERS.index(slot.teacher))
    for name, order in (("ours", ORDER), ("by variant", by_variant), ("by teacher", by_teacher)):
        seeds = [
            measured(*panel, further, order=order, levels=(LEVEL,), baselines=False)
            for panel in panels(pairs, noise)
        ]
        requests, within, *_, prompts, _ = np.mean(seeds, axis=0)[0]
        changes = sum(a.teacher != b.teacher for a, b in itertools.pairwise(order))
        print(
            f"{name:>12}: requests {requests:.3f}, within {within:.3f}, prompts {prompts:.2f}, "
            f"{changes} changes of teacher"
        )


def blind(pairs):
    """What covering the signed gap costs in requests, and what it keeps."""
    print(f"\n{pairs} simulated pairs under the blind protocol, mean of {SEEDS} seeds")
    titles = ("requests", "betas within", "signed gaps within", "other disputes")
    print(f"{'':>34}{'covers':>12}" + "".join(f"{title:>20}" for title in titles))
    for name, world in WORLDS.items():
        for covers in ("beta", "signed_gap"):
            runs = [measure(pairs, seed, covers, **world) for seed in range(SEEDS)]
            cells = "".join(f"{value:>20.3f}" for value in np.mean(runs, axis=0))
            print(f"{name:>34}{covers:>12}{cells}")


def plot(curves, path):
    """Share within against share of requests; full lines the rule, dotted the best subsets."""
    colours = ("#2a78d6", "#1baf7a", "#eda100", "#e34948")
    parts = []

    def at(requests, within):
        return f"{60 + 560 * min(requests, 1):.1f},{20 + 340 * (1 - within) / 0.3:.1f}"

    for share in (0.7, 0.8, 0.9, 0.95, 1.0):
        left, right, down = at(0, share), at(1, share), 24 + 340 * (1 - share) / 0.3
        parts.append(f'<polyline points="{left} {right}" stroke="#ddd"/>')
        parts.append(f'<text x="52" y="{down:.0f}" text-anchor="end">{share:.0%}</text>')
    for share in (0.2, 0.4, 0.6, 0.8, 1.0):
        parts.append(
            f'<text x="{60 + 560 * share:.0f}" y="378" text-anchor="middle">{share:.0%}</text>'
        )
    for number, (name, table) in enumerate(curves.items()):
        colour = colours[number]
        for column, dashes in ((1, ""), (3, ' stroke-dasharray="2 4"')):
            points = " ".join(at(row[0], row[column]) for row in table if row[column] >= 0.7)
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}"{dashes}/>')
        parts.append(f'<text x="470" y="{280 + 20 * number}" fill="{colour}">{name}</text>')
    parts.append(
        '<text x="340" y="396" text-anchor="middle">share of the full panel\'s requests</text>'
    )
    parts.append(
        '<text x="60" y="14">pairs within 0.02 of the full beta; dotted: best fixed subset</text>'
    )
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 404" font-family="sans-serif"'
    path.write_text(f'{head} font-size="12">\n' + "\n".join(parts) + "\n</svg>\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, nargs="+", default=[2000, 20000])
    parser.add_argument("--further", type=float, default=0.15)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    curves = {"demo (96 pairs)": demo(options.further)}
    for pairs in options.pairs:
        for noise in (0.03, 0.06, 0.12):
            tables = [measured(*panel, options.further) for panel in panels(pairs, noise)]
            show(f"{pairs} simulated pairs, noise {noise}: mean of {SEEDS} seeds, ± 95 %", tables)
            if pairs == options.pairs[-1]:
                curves[f"noise {noise} ({pairs} pairs)"] = np.mean(tables, axis=0)
    tables = [measured(*panel, options.further) for panel in panels(2000, 0.06, unlike=True)]
    show(
        f"2000 simulated pairs, noise 0.06, unlike teachers: mean of {SEEDS} seeds, ± 95 %", tables
    )
    print("\norder of the slots, 2000 simulated pairs, noise 0.06, at the rule's level")
    orders(2000, 0.06, options.further)
    blind(2000)
    if options.plot:
        plot(curves, options.plot)


if __name__ == "__main__":
    main()
