"""Two processes train as one does: logs, states of online methods, reference log-probs.

All cases of one engine share a launch: starting processes takes longer than what they do.
"""

import json

import pytest
from datasets import Dataset

from support.harness import ROOT
from support.training import (
    BETAS,
    make,
    pairs,
    run_in,
    settings,
    train,
)

pytestmark = [
    pytest.mark.slow,
    # TRL still uses the names that transformers 5.2x deprecates.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
]

RUNS = """
import contextlib, json, sys
import deepspeed
from datasets import Dataset
from peft import LoraConfig
from sp2dpo.training.trainer import PairDPOConfig, PairDPOTrainer

ADAPTER = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # two minutes of compiling
job = json.load(open(sys.argv[1]))
sys.path.insert(0, job["tests"])
from support.attention import attention, dense_flex
for number, run in enumerate(job["runs"]):
    trainer = PairDPOTrainer(
        job["model"],
        args=PairDPOConfig(**run["settings"]),
        train_dataset=Dataset.from_dict(run["pairs"]),  # in memory
        peft_config=ADAPTER if run.get("adapter") else None,
    )
    sides = {"ref_chosen_logps", "ref_rejected_logps"} & set(trainer.train_dataset.column_names)
    result = {"reference": [trainer.train_dataset[side][:] for side in sorted(sides)]}
    if run["train"]:
        packed = attention("flex_attention", dense_flex) if run.get("packed") else None
        with packed or contextlib.nullcontext():
            trainer.train()
        result["log"] = trainer.state.log_history[:-1]
        result["not shared"] = trainer._shared_prompt.reason
    with open(f"{number}-{trainer.accelerator.process_index}.json", "w") as file:
        json.dump(result, file)
    trainer.accelerator.wait_for_everyone()
trainer.accelerator.end_training()
"""
ZERO_3 = {
    "zero_optimization": {"stage": 3},
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "bf16": {"enabled": "auto"},
}
UNEVEN = {"gradient_checkpointing": True, "gradient_accumulation_steps": 2}
UNEVEN |= {"per_device_train_batch_size": 2, "max_steps": 2}
VARIANTS = {"full": {}, "adapter": {"bf16": True}}
"""Settings in which the shared prompt is compared with TRL's own forward pass."""
PACKED = {"model_init_kwargs": {"attn_implementation": "flex_attention"}}
"""Settings in which all rows of a batch are one."""
FOLDERS = ("shared", "shared", "cache")  # computed, read, and that of one process


def shared_prompt_runs(folder, engine):
    """Return PACKED, and each of VARIANTS with the shared prompt and without it, as runs.

    The last batch is not full, one response is longer than all others, and one is empty.
    """
    data = pairs(beta=BETAS)[:7]
    data["chosen"] = ["one two " * 20, "", *data["chosen"][2:]]
    packed = settings(folder, deepspeed=engine, **UNEVEN, **PACKED)
    return [
        {"settings": packed, "pairs": data, "train": True, "packed": True},
    ] + [
        {
            "settings": settings(
                folder, deepspeed=engine, shared_prompt=shares, **UNEVEN, **VARIANTS[name]
            ),
            "pairs": data, "train": True, "adapter": name == "adapter",
        }
        for name in VARIANTS
        for shares in (True, False)
    ]  # fmt: skip


def launch(folder, model_dir, engine, *extra_runs):
    """Let one process compute the reference in `cache`, then two in each of FOLDERS.

    Returns:
        The log-probs of the one process, and the results of the two by run and rank.
    """
    data = pairs(beta=BETAS)
    alone = make(model_dir, folder, data, reference_cache=str(folder / "cache")).train_dataset
    runs = [
        {"settings": settings(folder, reference_cache=str(folder / name), deepspeed=engine),
         "pairs": data[:], "train": False}
        for name in FOLDERS
    ]  # fmt: skip
    tests = str(ROOT / "tests")
    run_in(2, RUNS, folder, model=model_dir, tests=tests, runs=[*runs, *extra_runs])
    results = [
        [json.loads((folder / f"{run}-{rank}.json").read_text()) for rank in range(2)]
        for run in range(len(runs) + len(extra_runs))
    ]
    return [alone["ref_chosen_logps"][:], alone["ref_rejected_logps"][:]], results


@pytest.fixture(scope="module")
def online(tmp_path_factory):
    """The settings of a run of all online variants."""
    folder = tmp_path_factory.mktemp("online")
    return settings(
        folder, learning_rate=0.05, beta_dpo=0.6, alpha_dpo=0.2, gamma_po=4.0, re_po=0.7,
        loss_type=["sigmoid_norm"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def ddp(model_dir, online, tmp_path_factory):
    """All runs without an engine, in one launch: folder, log-probs of one process, results."""
    folder = tmp_path_factory.mktemp("ddp")
    single = settings(folder, per_device_train_batch_size=1)
    single["reference_cache"] = str(folder / "single")
    single_pair = {"settings": single, "pairs": pairs(beta=BETAS)[:1], "train": True}
    state = {"settings": online, "pairs": pairs(beta=BETAS)[:], "train": True}
    runs = [single_pair, state, *shared_prompt_runs(folder, None)]
    return folder, *launch(folder, model_dir, None, *runs)


@pytest.fixture(scope="module")
def zero3(model_dir, tmp_path_factory):
    """As `ddp`, with the parameters sharded."""
    folder = tmp_path_factory.mktemp("zero3")
    return folder, *launch(folder, model_dir, ZERO_3, *shared_prompt_runs(folder, ZERO_3))


@pytest.mark.parametrize("engine", ["ddp", "zero3"])
def test_two_processes_compute_and_keep_what_one_does(request, engine):
    folder, alone, results = request.getfixturevalue(engine)
    for run in range(len(FOLDERS)):
        for rank in range(2):
            for side, expected in zip(results[run][rank]["reference"], alone, strict=True):
                assert side == pytest.approx(expected, abs=1e-4)
    # The weights that ZeRO-3 has shared out have the key of the whole ones.
    assert len(list((folder / "cache").iterdir())) == 1
    assert len(list((folder / "cache").glob("*/*.parquet"))) == 1


def test_a_process_without_a_pair_of_its_own_does_as_the_other(ddp, model_dir, tmp_path):
    single_pair = Dataset.from_dict(pairs(beta=BETAS)[:1])
    alone = make(
        model_dir, tmp_path, single_pair, reference_cache=str(tmp_path / "cache")
    ).train_dataset
    for result in ddp[2][3]:
        assert result["reference"] == [
            pytest.approx(alone[side][:], abs=1e-4)
            for side in ("ref_chosen_logps", "ref_rejected_logps")
        ]


def test_two_processes_keep_one_state(ddp, online, model_dir, tmp_path):
    run = online | {"per_device_train_batch_size": 8}
    _, logs = train(make(model_dir, tmp_path, pairs(beta=BETAS), **run))
    entries = ddp[2][4][0]["log"]
    assert len(entries) == 3
    for entry, expected in zip(entries, logs, strict=False):
        for key in ("beta_dpo/factor", "margins/unscaled", "pairs/saturated", "weight/mean"):
            assert entry[key] == pytest.approx(expected[key], abs=2e-2), key
        for key in ("gamma_po/std", "re_po/reliability"):
            assert entry[key] == pytest.approx(expected[key], abs=2e-3), key


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("engine", ["ddp", "zero3"])
def test_shared_prompts_log_what_stock_forward_passes_do(request, engine, variant):
    results = request.getfixturevalue(engine)[2]
    first = len(results) - 2 * len(VARIANTS) + 2 * list(VARIANTS).index(variant)
    shared, stock = (results[run][0]["log"] for run in (first, first + 1))
    reasons = [results[run][0]["not shared"] for run in (first, first + 1)]
    assert reasons == [None, "shared_prompt is false"]
    tolerance = {"rel": 1e-4, "abs": 1e-4} if variant == "full" else {"rel": 2e-2, "abs": 5e-2}
    assert_same_log(shared, stock, **tolerance)


@pytest.mark.parametrize("engine", ["ddp", "zero3"])
def test_packed_rows_log_what_stock_forward_passes_do(request, engine):
    results = request.getfixturevalue(engine)[2]
    packed, _, stock = results[-2 * len(VARIANTS) - 1 :][:3]
    assert (packed[0]["not shared"], stock[0]["not shared"]) == (None, "shared_prompt is false")
    assert_same_log(packed[0]["log"], stock[0]["log"], rel=1e-4, abs=1e-4)


def assert_same_log(ours, stock, **tolerance):
    assert len(stock) == 2
    for entry, expected in zip(ours, stock, strict=True):
        assert entry.keys() == expected.keys()
        for key in ("loss", "grad_norm", "logps/chosen", "margins/unscaled", "entropy"):
            assert entry[key] == pytest.approx(expected[key], **tolerance), key
