"""A pair's gap and beta and nothing else, by the functions of the package: store to Parquet.

python tests/benchmarks/same_columns.py run.sqlite betas.parquet
"""

import sys
from pathlib import Path

import polars as pl

from sp2dpo.betas.estimators import JMAMP
from sp2dpo.betas.gaps import average_orders, combine_teachers, combine_variants, compute_reply_gaps
from sp2dpo.betas.maps import Linear
from sp2dpo.store.store import Store


def main():
    store_file, out = map(Path, sys.argv[1:])
    with Store(store_file) as store:
        annotations = store.annotations()
    replies = compute_reply_gaps(annotations, JMAMP).drop("magnitude", "confidence")
    by_teacher = combine_variants(average_orders(replies), JMAMP.over_variants)
    table = combine_teachers(by_teacher, JMAMP.over_teachers).select("pair_id", "gap")
    beta = Linear().beta(pl.col("gap"), 0.03, 0.3)
    table.with_columns(beta=beta).write_parquet(out)


if __name__ == "__main__":
    main()
