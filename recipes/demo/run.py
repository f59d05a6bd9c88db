"""Run every step on the demo corpus, one command after the other, and print a table of results.

    python recipes/demo/run.py    # from the root of a checkout; `make demo` calls it

Elsewhere, `sp2dpo recipes copy demo dpo/tiny-demo schedules/sp2dpo` writes what it needs.

The teachers' replies were recorded (replay_teacher.py serves them) and the students are tiny random
models. The demo shows how the parts work together, but not how well the method works.
"""

import argparse
import json
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from sp2dpo import wilson_interval

RECIPES = Path("recipes")
HERE = RECIPES / "demo"
GLOBAL_BETA = 0.1


def main() -> int:
    """Run every step and print the table; return 1 if a step fails, else 0."""
    parser = argparse.ArgumentParser(description="Run every step on the demo corpus.")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="output folder (demo)")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    try:
        with replay_teacher() as url:
            panel = write_panel(out / "panel.yaml", url)
            annotate(out, panel)
        train(out)
    except subprocess.CalledProcessError as error:
        print(f"demo: this step failed: {shlex.join(error.cmd)}", file=sys.stderr)
        return 1
    print_table(out, seconds=time.monotonic() - started)
    return 0


@contextmanager
def replay_teacher() -> Iterator[str]:
    """Start the server of the recorded replies and yield its address."""
    command = [sys.executable, str(HERE / "replay_teacher.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server.stdout.readline().strip() if server.stdout else ""
        finally:
            server.terminate()


def write_panel(path: Path, url: str) -> Path:
    """Write the demo's panel with the address of the server, and return its path."""
    text = (HERE / "panel.yaml").read_text()
    path.write_text(text.replace("http://127.0.0.1:8765/v1", url))
    return path


def step(*command: object) -> None:
    """Print a command and run it."""
    words = [str(word) for word in command]
    print(f"\n$ {shlex.join(words)}", flush=True)
    program = Path(sys.executable).with_name(words[0])  # works without an activated environment
    subprocess.run([str(program), *words[1:]], check=True)


def annotate(out: Path, panel: Path) -> None:
    """Produce annotations, betas, a data set and a report from the pairs."""
    store, betas = out / "run.sqlite", out / "betas.parquet"
    pairs, schedule = HERE / "pairs.jsonl", RECIPES / "schedules" / "sp2dpo.yaml"
    step("sp2dpo", "annotate", "--pairs", pairs, "--panel", panel, "--store", store)
    step("sp2dpo", "schedule", "--store", store, "--schedule", schedule, "--out", betas)
    step("sp2dpo", "build", "--store", store, "--betas", betas, "--out", out / "dataset")
    step("sp2dpo", "report", "--store", store, "--betas", betas, "--out", out / "report.html")


def train(out: Path) -> None:
    """Train two students that differ only in the beta: a global one, and one beta per pair."""
    model = out / "model"
    step("python", HERE / "tiny_model.py", "--text", HERE / "pairs.jsonl", "--out", model)
    for name, columns in (("global", []), ("per-pair", ["beta"])):
        step(
            "sp2dpo", "train", "--engine", "single", "--config", RECIPES / "dpo" / "tiny-demo.yaml",
            "--model_name_or_path", model, "--dataset", out / "dataset",
            "--output_dir", out / "students" / name,
            "--beta", GLOBAL_BETA, "--pair_columns", *columns,
        )  # fmt: skip


def print_table(out: Path, *, seconds: float) -> None:
    """Print the results, compared with the values that were planted in the corpus."""
    betas = pl.read_parquet(out / "betas.parquet", glob=False)
    planted = join_planted(out, betas)
    counts = json.loads((out / "dataset" / "manifest.json").read_text())["counts"]
    right = planted.filter(~pl.col("label_flipped"))
    wrong = planted.filter("label_flipped")
    floor = planted.filter(pl.col("beta") == planted["beta"].min())
    detected = floor["label_flipped"].sum()
    rank = right.select(pl.corr("planted_magnitude", "beta", method="spearman")).item()
    beta = betas["beta"]
    recall, precision = detected / len(wrong), detected / len(floor)
    rows = [
        ("replies", f"{counts['annotations']}: {counts['kept']} kept, {counts['refused']} refused"),
        ("beta", f"mean {beta.mean():.3f}, min {beta.min():.2f}, max {beta.max():.2f}"),
        (f"planted magnitude and beta, {len(right)} right labels", f"Spearman {rank:.2f}"),
        ("wrong labels at beta_min", f"{detected} of {len(wrong)} (recall {recall:.2f})"),
        ("all pairs at beta_min", f"{len(floor)} (precision {precision:.2f})"),
        *(describe_student(out, name) for name in ("global", "per-pair")),
    ]
    width = max(len(label) for label, _ in rows)
    rule = "-" * (width + 2 + max(len(value) for _, value in rows))
    print(f"\n{rule}")
    for label, value in rows:
        print(f"{label:<{width}}  {value}")
    print(rule)
    print("This shows that the parts work together. It is no evidence for or against the method:")
    print("the replies were recorded, the students are tiny random models, one seed, few pairs.")
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6  # KiB on Linux
    print(f"{seconds:.0f} s, {largest:.1f} GB in the largest process.")
    print(f"Look at {out}/report.html, or ask where a beta comes from:")
    print(f"  sp2dpo explain demo-022 --store {out}/run.sqlite --betas {out}/betas.parquet")


def join_planted(out: Path, betas: pl.DataFrame) -> pl.DataFrame:
    """Return the betas with the planted magnitudes and the planted wrong labels."""
    # File by file, because a pattern would include the characters of the folder's path.
    rows = pl.concat(
        pl.read_parquet(path, columns=["pair_id", "source_id"], glob=False)
        for path in sorted((out / "dataset" / "data").glob("*.parquet"))
    )
    planted = pl.read_ndjson(HERE / "planted.jsonl").select(
        "label_flipped", source_id="pair_id", planted_magnitude="magnitude"
    )
    return betas.join(rows, on="pair_id").join(planted, on="source_id")


def describe_student(out: Path, name: str) -> tuple[str, str]:
    """Return the table row of a student: held-out accuracy and the margin D, not scaled by beta."""
    results: dict[str, Any] = json.loads((out / "students" / name / "results.json").read_text())
    held_out, scores = results["rows"]["eval"]["used"], results["eval"]
    accuracy, margin = scores["eval_rewards/accuracies"], scores["eval_margins/unscaled"]
    interval = wilson_interval(round(accuracy * held_out), held_out)
    beta = f"beta {GLOBAL_BETA} for all" if name == "global" else "beta per pair"
    return f"student, {beta}, {held_out} held-out pairs", (
        f"accuracy {accuracy:.2f} ({interval.low:.2f} to {interval.high:.2f}),"
        f" unscaled margin {margin:+.2f} nats"
    )


if __name__ == "__main__":
    sys.exit(main())
