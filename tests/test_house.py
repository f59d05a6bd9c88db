"""The house: which module may import which, and that the parts of the project agree."""

import ast
from pathlib import Path

import pytest

from harness import ROOT

PACKAGE = ROOT / "toolkit" / "sp2dpo"
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem[0] != "_")

# Data flows one way, and the imports with it: a module may import those of earlier rows and those
# of its own row. `cli` may import all, lazily.
FLOW = [
    ["settings", "files", "folds", "pairs", "shards", "limits", "terminal", "amounts", "journal"],
    ["redaction"],
    ["interrupts"],
    ["choices", "gap_forms", "maps", "rewards", "intervals", "reliability"],
    [
        *("formats", "hub", "sources", "prompt_sets"),
        *("fence", "rubric", "replicas", "adaptive", "sample"),
    ],
    ["price", "vllm_flags", "serve_block", "vllm_command", "keeper", "server", "serving"],
    ["panel", "annotations", "expectation", "faults", "replies"],
    ["teachers", "calling", "annotation_table", "estimators", "gaps"],
    ["database", "corpus", "entries", "backlog", "ledger", "store", "tally"],
    ["pages", "writer", "asking", "sparing", "annotate", "ray_worker", "ray_crew", "ray_engine"],
    ["batch", "inbox", "merge", "forecast", "status", "status_lines", "progress", "summary"],
    ["schedule", "betas", "scores", "baselines", "arms", "betas_file", "formulas"],
    ["agreement", "gold", "detection", "concord", "signature", "signatures", "biases", "audit"],
    ["ablation", "comparison", "explain", "examples", "report"],
    ["charts", "page", "plots", "audit_lines", "comparison_lines", "concord_lines"],
    ["manifest", "parquet_files", "columns", "facts", "card", "dataset"],
    ["student", "judge", "chats", "generations", "judging"],
    ["winrates", "winrate_lines", "temperatures", "evaluation_plots"],
    ["release", "hub_repo", "publish", "verify", "resample", "loading"],
    ["performance", "projection", "verdict", "pilot", "briefing"],
    ["cli_store", "cli_teachers", "cli_files", "cli_betas", "cli_audit", "cli_pilot", "cli_score"],
    ["space", "cli_evaluation"],
    ["cli_publish", "cli_space", "cli_evaluate"],
    ["cli"],
]
TRAINING = [  # knows only column names
    *("online", "pair_batch", "pair_columns", "pair_config", "pair_losses", "slopes", "training"),
    *("provenance", "reference", "run_files"),
    "local_generation",
    "reward_scores",  # and how a file is written
]
HEAVY = {"torch", "trl", "transformers", "peft", "accelerate", "deepspeed", "gradio", "vllm"}


def imported(path: Path) -> set[str]:
    """All modules that a file imports, wherever it does."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return names


def ours(module: str) -> set[str]:
    found = imported(PACKAGE / f"{module}.py")
    return {name.removeprefix("sp2dpo.") for name in found if name.startswith("sp2dpo.")}


def test_every_module_has_its_place():
    assert sorted([name for row in FLOW for name in row] + TRAINING) == MODULES


@pytest.mark.parametrize("module", [name for row in FLOW for name in row])
def test_imports_follow_the_flow(module):
    row = next(number for number, names in enumerate(FLOW) if module in names)
    allowed = {name for names in FLOW[: row + 1] for name in names}
    if module.startswith("cli"):  # lazily
        allowed |= set(TRAINING)
    assert ours(module) <= allowed


@pytest.mark.parametrize("module", TRAINING)
def test_training_knows_only_column_names(module):
    assert ours(module) <= {*TRAINING, "files", "folds"}


@pytest.mark.parametrize("module", [name for name in MODULES if name not in TRAINING])
def test_only_training_imports_what_training_needs(module):
    roots = {name.split(".")[0] for name in imported(PACKAGE / f"{module}.py")}
    assert roots.isdisjoint(HEAVY)


def test_nothing_imports_vllm():
    for folder in ("toolkit", "recipes", "spaces"):
        for path in (ROOT / folder).rglob("*.py"):
            assert "vllm" not in {name.split(".")[0] for name in imported(path)}, path
