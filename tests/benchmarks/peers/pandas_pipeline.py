"""The straightforward pipeline in pandas: kept replies of a store to a Parquet file of betas.

python pandas_pipeline.py run.sqlite betas.parquet [--all-columns]
"""

import sqlite3
import sys

import pandas as pd

QUERY = (
    "SELECT pair_id, teacher, variant, magnitude, confidence{} FROM replies WHERE status = 'kept'"
)


def main():
    store, out, *options = sys.argv[1:]
    everything = options == ["--all-columns"]
    with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as database:
        replies = pd.read_sql(QUERY.format(", category" if everything else ""), database)
    replies["gap"] = replies["magnitude"] / 10 * replies["confidence"] / 10
    read = ["gap", "magnitude", "confidence"] if everything else ["gap"]
    by_teacher = replies.groupby(["pair_id", "teacher"])[read].median()
    by_pair = by_teacher.groupby("pair_id")
    table = by_pair[read].mean()
    if everything:
        table["spread"] = by_pair["gap"].std(ddof=0)
        table["teachers"] = by_pair.size()
        counts = replies.groupby(["pair_id", "category"]).size()
        table["votes"] = replies.groupby("pair_id").size()
        table["agreement"] = counts.groupby("pair_id").max() / table["votes"]
        most = counts.reset_index(name="n").sort_values("n", kind="stable")
        table["category"] = most.drop_duplicates("pair_id", keep="last").set_index("pair_id")[
            "category"
        ]
    table["beta"] = 0.03 + 0.27 * table["gap"]
    table.reset_index().to_parquet(out, index=False)


if __name__ == "__main__":
    main()
