"""Write a gold file from scores that a data set has beside its labels.

The scores must be others than those that the labels were made from, such as those of people beside
the labels of a model; otherwise every label is right by definition. A strength of preference cannot
be read, because its sign stands for a response by its place in the source, not for the chosen one.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sp2dpo.files import write_text
from sp2dpo.pairs.reading import PairsFrom
from sp2dpo.pairs.source_scores import NoScore, read_two_scores
from sp2dpo.pairs.sources import SetAside, Source, choose_source, read_rows


@dataclass(frozen=True, kw_only=True)
class GoldExport:
    """What became of the pairs of a source: pairs = chosen + rejected + ties + sum of left_out.

    Attributes:
        pairs: Distinct pairs of the source.
        chosen: Pairs whose chosen response has the higher score.
        rejected: Pairs whose rejected response has the higher score: wrong labels.
        ties: Pairs with equal scores; left out, because a tie shows no wrong label.
        left_out: Pairs without a truth, by reason.
    """

    pairs: int
    chosen: int
    rejected: int
    ties: int
    left_out: Counter[str]


def export_gold(
    pairs: Source | str | Path,
    out: Path | str,
    *,
    chosen: str,
    rejected: str,
    columns: Mapping[str, str] | None = None,
    pairs_from: PairsFrom | None = None,
) -> GoldExport:
    """Write the better response of each pair, by two columns of scores, to a gold file.

    Args:
        pairs: The source, as for `annotate_pairs`.
        out: The file, which `--gold` reads; replaced if it exists.
        chosen: Column with the score of the chosen response; see `source_scores.ScoreColumns`.
        rejected: Column with the score of the rejected response.
        columns: Columns of the pairs by role.
        pairs_from: Which pairs a row with several responses gives.

    Raises:
        ValueError: No pair has different scores, or the source cannot be read.
        OSError: A file cannot be read or written.
    """
    signs: dict[str, int | None] = {}
    missing: dict[str, str] = {}
    source = choose_source(pairs, columns=columns, pairs_from=pairs_from)
    for row in read_rows(source):
        if isinstance(row, SetAside):
            continue
        pair_id = row.pair.id
        try:
            higher, lower = read_two_scores(row.columns, chosen, rejected)
        except NoScore as error:
            missing.setdefault(pair_id, str(error))
            continue
        sign = (higher > lower) - (higher < lower)
        if signs.setdefault(pair_id, sign) != sign:
            signs[pair_id] = None
    left_out = Counter(reason for pair_id, reason in missing.items() if pair_id not in signs)
    labels = {1: "chosen", -1: "rejected"}
    lines = [
        json.dumps({"pair_id": pair_id, "label": labels[sign]})
        for pair_id, sign in signs.items()
        if sign
    ]
    if not lines:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in left_out.items())
        raise ValueError(f"{source}: no pair has different scores{reasons and f': {reasons}'}")
    counts = Counter(signs.values())
    left_out["several rows that contradict each other"] += counts[None]
    write_text(Path(out), "\n".join(lines) + "\n")
    return GoldExport(
        pairs=len(signs.keys() | missing.keys()),
        chosen=counts[1],
        rejected=counts[-1],
        ties=counts[0],
        left_out=+left_out,
    )
