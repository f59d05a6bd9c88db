"""805 verdicts and their intervals: what judging costs beside alpaca_eval's own command.

Both ask the same scripted judge, which answers at once, about the same outputs, each a process of
its own from its start to its exit, in turn on the same cores; both must come to the same win rate.
alpaca_eval's own client runs with its default of 5 requests at a time, and with 64. Then what a
bootstrap of the length-controlled rate takes. Nothing is asserted about time.

    python tests/benchmarks/evaluate.py [--rounds 3]
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from annotate import HERE
from support import alpaca
from support.harness import COMMAND, process
from support.hub import TOKEN, Hub

NAME = "weighted_alpaca_eval_vllm_llama3_70b"


def own_config(folder, url):
    """alpaca_eval's judge and client, as its documentation has them."""
    import alpaca_eval

    base = Path(alpaca_eval.__file__).parent / "evaluators_configs"
    config = yaml.safe_load((base / NAME / "configs.yaml").read_text())[NAME]
    config["completions_kwargs"]["model_name"] = "judge"
    config["prompt_template"] = str(base / "alpaca_eval_clf_gpt4_turbo" / "alpaca_eval_clf.txt")
    (folder / "own").mkdir()
    (folder / "own" / "configs.yaml").write_text(yaml.safe_dump({"own": config}))
    clients = {"default": [{"api_key": "none", "base_url": url}]}
    (folder / "clients.yaml").write_text(yaml.safe_dump(clients))


def timed(command, env):
    """Seconds from start to exit."""
    started = time.monotonic()
    result = subprocess.run(
        [*map(str, command)], env=os.environ | env, capture_output=True, text=True, check=False
    )
    if result.returncode:
        sys.exit(result.stdout + result.stderr)
    return time.monotonic() - started


def theirs(files, folder, number, at_once, hub):
    """alpaca_eval's seconds, and the win rate that it found."""
    out = folder / f"own-{at_once}-{number}"
    out.mkdir()
    seconds = timed(
        [Path(sys.executable).with_name("alpaca_eval"), "evaluate",
         "--model_outputs", folder / "outputs.json",
         "--reference_outputs", files / "alpaca_eval_gpt4_baseline.json",
         "--annotators_config", folder / "own", "--output_path", out,
         "--precomputed_leaderboard", "None", "--caching_path", "None"],
        hub.env | {"OPENAI_CLIENT_CONFIG_PATH": str(folder / "clients.yaml"),
                   "OPENAI_MAX_CONCURRENCY": str(at_once), "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    rows = json.loads(next(out.rglob("annotations.json")).read_text())
    return seconds, 100 * (sum(row["preference"] for row in rows) / len(rows) - 1)


def ours(folder, number, draws, hub):
    """The same of `sp2dpo evaluate judge`."""
    out = folder / f"ours-{draws}-{number}"
    seconds = timed(
        [*COMMAND, "evaluate", "judge", "--outputs", folder / "outputs.json",
         "--judge", folder / "judge.yaml", "--out", out, "--draws", draws],
        hub.env,
    )  # fmt: skip
    rows = json.loads((out / "annotations.json").read_text())
    return seconds, 100 * (sum(row["preference"] for row in rows) / len(rows) - 1)


def main():
    parser = argparse.ArgumentParser(description="What judging takes.")
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = folder / "requests.log"
        with (
            process(
                HERE.parent / "servers" / "hub_server.py",
                "--root",
                folder / "hub",
                "--token",
                TOKEN,
            ) as hub,
            process(HERE.parent / "servers" / "openai_server.py", "judge", "--log", log) as url,
        ):
            report(Hub(hub, folder / "home"), url, folder, rounds)


def report(hub, url, folder, rounds):
    files = alpaca.write(folder / "files")
    hub.python(
        "from huggingface_hub import HfApi\n"
        "name, api = 'tatsu-lab/alpaca_eval', HfApi()\n"
        "api.create_repo(name, repo_type='dataset')\n"
        f"api.upload_folder(folder_path={str(files)!r}, repo_id=name, repo_type='dataset')"
    )
    rows = [
        row | {"output": f"another {row['output']}", "generator": "mine"} for row in alpaca.rows()
    ]
    (folder / "outputs.json").write_text(json.dumps(rows))
    judge = {"name": "scripted", "model": "judge", "revision": None, "base_url": url}
    (folder / "judge.yaml").write_text(yaml.safe_dump(judge))
    own_config(folder, url)
    ways = {
        "sp2dpo evaluate judge, 1 draw": lambda n: ours(folder, n, 1, hub),
        "alpaca_eval, 5 at a time": lambda n: theirs(files, folder, n, 5, hub),
        "alpaca_eval, 64 at a time": lambda n: theirs(files, folder, n, 64, hub),
        "sp2dpo evaluate judge, 101 draws": lambda n: ours(folder, n, 101, hub),
    }
    taken = {name: [] for name in ways}
    rates = set()
    for number in range(rounds):
        for name, way in ways.items():
            seconds, rate = way(number)
            taken[name].append(seconds)
            rates.add(round(rate, 6))
    if len(rates) > 1:
        sys.exit(f"they do not agree: {sorted(rates)}")
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"805 verdicts, {rounds} rounds, win rate {rates.pop():.4f} in all of them")
    for name, seconds in taken.items():
        print(f"{name:<34} {median(seconds):6.1f} s ({min(seconds):.1f}-{max(seconds):.1f})")
    one_draw, five, many, many_draws = (taken[name] for name in ways)
    for name, peer in (("5", five), ("64", many)):
        ratios = [a / b for a, b in zip(one_draw, peer, strict=True)]
        print(f"ours / alpaca_eval, {name} at a time: {median(ratios):.2f} "
              f"({min(ratios):.2f}-{max(ratios):.2f})")  # fmt: skip
    each = [(b - a) / 100 for a, b in zip(one_draw, many_draws, strict=True)]
    print(f"a bootstrap sample: {1000 * median(each):.0f} ms")


if __name__ == "__main__":
    main()
