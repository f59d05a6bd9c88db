"""Two real processes on the CPU, launched with the shipped YAMLs: the same losses as one."""

import json
import warnings

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from datasets import Dataset
from transformers import AutoModelForCausalLM

from support.harness import ROOT, recipe
from support.training import BETAS, FSDP_ON_CPUS, PAIRS
from support.training import launch as start

pytestmark = pytest.mark.slow

ACCELERATE = ROOT / "recipes" / "accelerate"
# DeepSpeed would compile a shared-memory library for two minutes; gloo does without.
WITHOUT_COMPILING = """
import runpy, sys
import deepspeed
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
"""
TRAIN = f"sys.argv[0] = {str(ROOT / 'recipes' / 'train.py')!r}\n" + (
    'runpy.run_path(sys.argv[0], run_name="__main__")\n'
)
# One response that is much longer than all others: the processes get batches of other lengths.
LONG = {"chosen": ["one two " * 20, *PAIRS["chosen"][1:]]}
# What the engines compute with shared prompts is compared with.
STOCK = ("--shared_prompt", "false")
COLUMNS = {
    "beta": BETAS,
    "weight": [1.0, 0.5, 2.0, 0.25, 1.5, 0.25, 3.0, 0.75],
    "margin": [0.0, 0.5, -0.5, 1.0, 0.1, 0.2, -0.2, 2.0],
}


@pytest.fixture(scope="module")
def launched(model_dir, tmp_path_factory):
    """Trains four steps of eight pairs, with so many processes; the losses, and results.json."""
    data = tmp_path_factory.mktemp("data")
    Dataset.from_dict(PAIRS | LONG | COLUMNS).to_parquet(data / "train.parquet")
    train = tmp_path_factory.mktemp("script") / "train.py"
    train.write_text(WITHOUT_COMPILING + FSDP_ON_CPUS + TRAIN)

    def words(out, processes, *arguments):
        return [
            "--config", ROOT / "recipes" / "dpo" / "tiny-demo.yaml",
            "--model_name_or_path", model_dir, "--dataset", data, "--output_dir", out / "run",
            "--pair_columns", "beta", "weight", "margin", "--held_out", 0, "--max_steps", 4,
            "--eval_strategy", "no", "--save_strategy", "steps", "--save_steps", 4,
            "--logging_steps", 1, "--learning_rate", 0.01, "--lr_scheduler_type", "constant",
            "--per_device_train_batch_size", 8 // processes, "--use_cpu", "true", *arguments,
        ]  # fmt: skip

    def launch(name, processes, *arguments):
        out = tmp_path_factory.mktemp(name)
        if processes == 1:  # a launch would add nothing but its imports
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                recipe("train").main(list(map(str, words(out, 1, *arguments))))
            return outcome(out)
        engine = yaml.safe_load((ACCELERATE / f"{name}.yaml").read_text())
        engine |= {"num_processes": processes, "use_cpu": True}
        (out / "engine.yaml").write_text(yaml.safe_dump(engine | {"main_process_port": 0}))
        command = ("--config_file", out / "engine.yaml", train, *words(out, processes, *arguments))
        result = start("accelerate.commands.launch", *command)
        assert result.returncode == 0, result.stderr[-14000:]
        return outcome(out)

    def outcome(out):
        state = json.loads(next((out / "run").glob("checkpoint-4/trainer_state.json")).read_text())
        losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
        results = json.loads((out / "run" / "results.json").read_text())
        return losses, results | {"output_dir": out / "run"}

    return launch


@pytest.fixture(scope="module")
def alone(launched):
    losses, results = launched("single", 1, *STOCK)
    assert results["processes"] == 1
    assert len(losses) == 4
    return losses


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ddp", "MULTI_CPU"),
        ("zero1", "DEEPSPEED"),
        ("zero2", "DEEPSPEED"),
        ("zero3", "DEEPSPEED"),
        ("fsdp2", "FSDP"),
    ],
)
def test_two_processes_train_as_one_does(launched, alone, name, kind):
    losses, results = launched(name, 2)
    assert (results["processes"], results["distributed_type"]) == (2, kind)
    assert losses == pytest.approx(alone, abs=1e-5)
    share = results["parameters"]["on_a_process"] / results["parameters"]["all"]
    assert share == (pytest.approx(0.5, abs=0.01) if name in ("zero3", "fsdp2") else 1)
    model = AutoModelForCausalLM.from_pretrained(results["output_dir"])
    assert sum(p.numel() for p in model.parameters()) == results["parameters"]["all"]


@pytest.mark.parametrize("path", sorted(ACCELERATE.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_what_is_shipped(path):
    config = load_config_from_file(str(path))
    assert config.num_processes == yaml.safe_load(path.read_text())["num_processes"]


def test_an_adapter_under_zero_3_trains_as_one_process_does(launched):
    adapter = ("--use_peft", "true", "--lora_r", 2, "--lora_target_modules", "q_proj", "v_proj")
    expected, _ = launched("single", 1, *adapter, *STOCK)
    losses, results = launched("zero3", 2, *adapter)
    assert results["distributed_type"] == "DEEPSPEED"
    assert losses == pytest.approx(expected, abs=1e-5)
    assert losses[-1] != pytest.approx(losses[0], abs=1e-3)


def test_bf16_under_fsdp2_keeps_the_precision_of_log_probs(launched):
    """Log-probs of 16 bits would be refused: see `batch_of`."""
    expected, _ = launched("single", 1, "--bf16", "true")
    losses, results = launched("fsdp2", 2, "--bf16", "true")
    assert results["distributed_type"] == "FSDP"
    assert losses == pytest.approx(expected, abs=2e-2)
    assert losses[0] == pytest.approx(expected[0], abs=1e-5)  # D = 0: log-probs are the reference's


def test_bf16_under_zero_2_gives_the_same_losses_with_and_without_precomputed_references(launched):
    bf16 = ("--bf16", "true")
    plain, _ = launched("zero2", 2, *bf16)
    precomputed, _ = launched("zero2", 2, *bf16, "--precompute_ref_log_probs", "true")
    # Rows are grouped by their lengths, and the references are computed in another order than they
    # are trained on: in bf16 that shows from the fourth digit on. References that are rounded to
    # bf16 would differ by half a nat, and the losses from the second digit on.
    assert precomputed == pytest.approx(plain, rel=1e-3)
    assert plain[-1] != plain[0]
