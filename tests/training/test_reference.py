"""Reference log-probs: computed once, kept, read again, and never those of something else."""

import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from sp2dpo.training.reference import LogProbCache, pair_keys, weights_digest
from sp2dpo.training.trainer import PairDPOConfig, PairDPOTrainer
from support.training import BETAS, PAIRS, make, pairs, settings, train

pytestmark = [
    pytest.mark.slow,
    # TRL still uses the names that transformers 5.2x deprecates.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
]
SIDES = ("ref_chosen_logps", "ref_rejected_logps")


@pytest.fixture
def start(tmp_path, model_dir):
    """Makes a trainer on the shared cache; how many pairs it computed, and what it trains on."""

    def start(dataset=None, **changes):
        dataset = pairs(beta=BETAS) if dataset is None else dataset
        model = changes.pop("model", model_dir)
        peft = changes.pop("peft_config", None)
        args = PairDPOConfig(
            **settings(tmp_path, **({"reference_cache": str(tmp_path / "cache")} | changes))
        )
        computed = []

        class Counts(PairDPOTrainer):
            def compute_ref_log_probs(self, *model_and_inputs):
                computed.append(len(model_and_inputs[-1]["input_ids"]) // 2)
                return super().compute_ref_log_probs(*model_and_inputs)

        trainer = Counts(model, args=args, train_dataset=dataset, peft_config=peft)
        return sum(computed), trainer

    return start


def reference(trainer):
    return [trainer.train_dataset[side][:] for side in SIDES]


def test_what_one_schedule_computed_the_next_one_reads(start, tmp_path, model_dir):
    computed, first = start()
    assert computed == 8
    computed, second = start(pairs(beta=BETAS[::-1]), learning_rate=0.1, seed=7, beta=0.3)
    assert computed == 0
    assert reference(second) == reference(first)
    stock = make(model_dir, tmp_path, pairs(beta=BETAS[::-1]), precompute_ref_log_probs=True)
    assert reference(second) == reference(stock)
    same = start(pairs(beta=BETAS[::-1]))[1]
    assert train(same)[1] == train(stock)[1]


def test_an_arm_that_leaves_out_and_flips_computes_only_the_flipped_pairs(start):
    start()
    arm = Dataset.from_dict(
        {
            "prompt": PAIRS["prompt"][2:6],
            "chosen": [*PAIRS["chosen"][2:5], PAIRS["rejected"][5]],
            "rejected": [*PAIRS["rejected"][2:5], PAIRS["chosen"][5]],
            "beta": BETAS[2:6],
        }
    )
    assert start(arm)[0] == 1
    assert start(arm)[0] == 0


def test_what_a_killed_run_had_computed_is_kept(start, tmp_path, monkeypatch):
    monkeypatch.setattr("sp2dpo.training.reference.PAIRS_PER_FILE", 4)  # a batch
    compute = PairDPOTrainer.compute_ref_log_probs
    calls = []

    def dies(self, *model_and_inputs):
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return compute(self, *model_and_inputs)

    with monkeypatch.context() as patch:
        patch.setattr(PairDPOTrainer, "compute_ref_log_probs", dies)
        with pytest.raises(KeyboardInterrupt):
            start()
    assert start()[0] == 4
    assert len(list((tmp_path / "cache").glob("*/*.parquet"))) == 2
    assert not list((tmp_path / "cache").glob("*/.*"))


def test_without_a_folder_nothing_is_kept(start):
    changes = {"reference_cache": None, "precompute_ref_log_probs": True}
    assert start(**changes)[0] == 8
    assert start(**changes)[0] == 8


@pytest.mark.parametrize(
    "changes",
    [
        {"max_length": None},
        {"max_length": 20},
        pytest.param(
            {"max_length": 20, "truncation_mode": "keep_end"},
            marks=pytest.mark.filterwarnings("ignore:The `'keep_end':FutureWarning"),
        ),
        {"ld_alpha": 0.5, "pair_columns": ["beta"]},
        {"bf16": True},
        {"shared_prompt": False},
    ],
    ids=str,
)
def test_what_they_depend_on_is_in_the_key(start, changes):
    start()
    assert start(**changes)[0] == 8
    assert start()[0] == 0


def test_another_model_of_the_same_name_is_another_reference(start, tmp_path, model_dir):
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    assert start(model=model)[0] == start(model=model_dir)[0] + 8
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1e-3
    assert start(model=model)[0] == 8


def test_an_adapter_that_starts_at_random_leaves_the_reference_as_it_is(start):
    def adapter(seed):
        torch.manual_seed(seed)
        return LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")

    assert start(peft_config=adapter(0))[0] == 8
    assert start(peft_config=adapter(1), seed=1)[0] == 0


def test_a_file_that_cannot_be_read_is_computed_again(start, tmp_path):
    _, first = start()
    (path,) = (tmp_path / "cache").glob("*/*.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    computed, second = start()
    assert computed == 8
    assert reference(second) == reference(first)
    assert json.loads((path.parent / "depends.json").read_text())["truncation_mode"]


def test_an_older_trl_is_told_that_it_cannot(tmp_path, monkeypatch):
    monkeypatch.setattr("sp2dpo.training.config.CAPTURES", False)
    with pytest.raises(ValueError, match=r"reference_cache needs TRL 1\.16"):
        PairDPOConfig(**settings(tmp_path, reference_cache=str(tmp_path)))


def test_log_probs_are_kept_as_float32_and_keys_tell_the_sides_apart(tmp_path):
    cache = LogProbCache(tmp_path, {"weights": "a"})
    first_key, second_key = pair_keys([[1, 2]] * 2, [[3], [4]], [[4], [3]])
    assert first_key != second_key
    assert cache.read() == {}
    cache.write({first_key: (-1.5, -0.1)})
    cache.write({second_key: (-2.0, -3.0)})
    assert cache.read() == {first_key: (-1.5, pytest.approx(-0.1)), second_key: (-2.0, -3.0)}
    assert LogProbCache(tmp_path, {"weights": "b"}).read() == {}


@pytest.mark.parametrize(
    ("persistent", "is_same"), [(True, False), (False, True)], ids=["saved", "not saved"]
)
def test_buffers_that_are_saved_are_weights(persistent, is_same):
    models = [torch.nn.Sequential(torch.nn.Linear(2, 2)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for number, model in enumerate(models):
        # As the layers of GPTQ, AWQ and BitNet keep theirs.
        model[0].register_buffer("packed", torch.full((3,), number), persistent=persistent)
    assert (weights_digest(models[0]) == weights_digest(models[1])) is is_same
