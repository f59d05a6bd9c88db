"""The page that says what becomes of TRL's DPO features: complete, and every row run."""

import inspect
import re
from dataclasses import fields

import pytest
import torch
import trl
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    MixtralConfig,
    MixtralForCausalLM,
    TrainerCallback,
    TrainingArguments,
)
from trl import DPOConfig, DPOTrainer
from trl.trainer.base_config import _BaseConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference

from accelerate import Accelerator
from sp2dpo.training.columns import PAIR_COLUMNS
from sp2dpo.training.losses import LOSSES, SFT, SORTING
from sp2dpo.training.trainer import PairDPOConfig, PairDPOTrainer
from support.harness import ROOT
from support.training import build_model, pairs, settings

pytestmark = [
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*keep_end.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`pad_token` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`return_outputs=True`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*use_liger_kernel=True.*:FutureWarning"),
]

PAGE = (ROOT / "docs" / "trl.md").read_text()
STATES = ("works", "more", "no effect", "refused")


def rows(heading):
    """The rows of a table: name, state, text."""
    table = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \| ([a-z ]+) \| ?(.*?) ?\|$", table, re.M)


SETTINGS, ARGUMENTS, LOSS_TYPES = map(rows, ("Settings", "Arguments of the trainer", "Loss types"))


def test_the_page_lists_every_feature_of_the_trl_it_names():
    (version,) = set(re.findall(r"TRL (1\.\d+) has a setting", PAGE))
    if not trl.__version__.startswith(f"{version}."):
        return  # the page says nothing about other versions
    inherited = {field.name for field in fields(TrainingArguments)}
    redefined = DPOConfig.__annotations__.keys() | _BaseConfig.__annotations__.keys()
    ours = {field.name for field in fields(DPOConfig)}
    types = re.findall(r'loss_type == "(\w+)"', inspect.getsource(DPOTrainer._compute_loss))
    arguments = {*inspect.signature(DPOTrainer).parameters}
    for listed, expected in (
        (SETTINGS, {name for name in ours if name not in inherited or name in redefined}),
        (ARGUMENTS, arguments),
        (LOSS_TYPES, {*types}),
    ):
        names = {name for name, *_ in listed}
        assert names == expected, f"docs/trl.md lacks {expected - names}, has {names - expected}"
        assert {state for _, state, _ in listed} <= {*STATES}
    assert {*types} == {*LOSSES, SFT, *SORTING} - {"aot_pair"}


class Count(TrainerCallback):
    steps = 0

    def on_step_end(self, *args, **kwargs):
        Count.steps += 1


def count_rows(prediction):
    return {"rows": len(prediction.predictions)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    build_model(folder / "dense")
    build_model(folder / "moe")  # its tokenizer
    torch.manual_seed(0)
    MixtralForCausalLM(
        MixtralConfig(
            vocab_size=258, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, num_local_experts=4,
            max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=1,
            router_aux_loss_coef=0.02,
        )
    ).save_pretrained(folder / "moe")  # fmt: skip
    return folder


# What is set to show each setting, where another value than its default is needed.
RUNS = {
    "model_init_kwargs": {"model_init_kwargs": {"dtype": "float32"}},
    "router_aux_loss_coef": {"router_aux_loss_coef": 0.5},
    "max_length": {"max_length": 28},
    "truncation_mode": {"truncation_mode": "keep_end", "max_length": 28},
    "precompute_ref_batch_size": {
        "precompute_ref_log_probs": True, "precompute_ref_batch_size": 3,
    },
    "loss_type": {"loss_type": ["sigmoid", "ipo"]},
    "loss_weights": {"loss_type": ["sigmoid", "sft"], "loss_weights": [0.5, 2.0]},
    "f_alpha_divergence_coef": {
        "f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3,
    },
    "label_smoothing": {"label_smoothing": 0.1, "loss_type": ["robust"]},
    "discopop_tau": {"discopop_tau": 0.1, "loss_type": ["discopop"]},
    "sync_ref_model": {"sync_ref_model": True, "ref_model_sync_steps": 1},
    "ref_model_mixup_alpha": {
        "sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.3,
    },
    "ref_model_sync_steps": {"sync_ref_model": True, "ref_model_sync_steps": 2},
    "lr_scheduler_kwargs": {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {}},
}  # fmt: skip
VALUES = {
    "trust_remote_code": True, "disable_dropout": False, "dataset_num_proc": 1,
    "padding_free": True, "pad_to_multiple_of": 8, "precompute_ref_log_probs": True,
    "ld_alpha": 0.5, "f_divergence_type": "forward_kl", "beta": 0.3, "use_weighting": True,
    "pad_token": "<eos>", "learning_rate": 1e-3, "logging_steps": 2,
    "gradient_checkpointing": True, "bf16": True, "torch_empty_cache_steps": 1,
}  # fmt: skip
OPTIONS = {
    "model": lambda folder: {
        "model": AutoModelForCausalLM.from_pretrained(folder / "dense", dtype="float32")
    },
    "ref_model": lambda folder: {
        "ref_model": AutoModelForCausalLM.from_pretrained(folder / "dense", dtype="float32")
    },
    "data_collator": lambda folder: {
        "data_collator": DataCollatorForPreference(pad_token_id=0, pad_to_multiple_of=16)
    },
    "eval_dataset": lambda folder: {"eval_dataset": {"a": data(), "b": data()}},
    "processing_class": lambda folder: {
        "processing_class": AutoTokenizer.from_pretrained(folder / "dense")
    },
    "compute_metrics": lambda folder: {"compute_metrics": count_rows, "eval_dataset": data()},
    "callbacks": lambda folder: {"callbacks": [Count()]},
    "optimizers": lambda folder: optimizers(folder),
    "peft_config": lambda folder: {"peft_config": LoraConfig(r=2, target_modules=["q_proj"])},
}


def optimizers(folder):
    model = AutoModelForCausalLM.from_pretrained(folder / "dense", dtype="float32")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return {"model": model, "optimizers": (optimizer, None)}


def data(beta=0.3):
    return pairs(beta=[beta] * 8, weight=[1.0] * 8)


def build(folder, tmp_path, *, model="dense", options=None, **changes):
    """A trainer after one step, with columns that say what the settings say."""
    run = settings(tmp_path, **{"max_steps": 1, "beta": 0.3, **changes})
    given = {"model": str(folder / model), "train_dataset": data()} | (options or {})
    args = PairDPOConfig(**run, pair_columns=["beta", "weight"])
    trainer = PairDPOTrainer(args=args, **given)
    trainer.train()
    return trainer


def check_against_stock(trainer):
    """Compare the loss of the trainer with the one that TRL's own method computes."""
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(4)])
    inputs = trainer._prepare_inputs(batch)
    trainer.model.train()
    with trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(trainer.model, inputs)
        plain = {name: value for name, value in inputs.items() if name not in PAIR_COLUMNS}
        theirs = DPOTrainer.compute_loss(trainer, trainer.model, plain)
    tolerance = 2e-3 if trainer.args.bf16 else 1e-5
    assert loss.item() == pytest.approx(theirs.item(), rel=tolerance, abs=tolerance)
    assert loss.item() > 0


@pytest.fixture(scope="module")
def trained(folders, tmp_path_factory):
    return build(folders, tmp_path_factory.mktemp("trained"))


# Settings that the trainer reads at every loss, so that they need no trainer of their own.
READ = {
    "loss_type": "loss_types", "loss_weights": "loss_weights", "ld_alpha": "ld_alpha",
    "f_divergence_type": "f_divergence_type", "f_alpha_divergence_coef": "f_alpha_divergence_coef",
}  # fmt: skip


def check_setting(trained, monkeypatch, tmp_path, **changes):
    """Check settings that are read at every loss: the config takes them, the loss is TRL's."""
    assert PairDPOConfig(**settings(tmp_path, pair_columns=["beta", "weight"], **changes))
    Accelerator(cpu=True)  # a new config has reset the state that all accelerators share
    values = {"loss_weights": [1.0] * len(changes.get("loss_type", [1]))} | changes
    if "label_smoothing" in values:
        monkeypatch.setattr(trained.args, "label_smoothing", values["label_smoothing"])
        monkeypatch.setattr(trained, "label_smoothing", values.pop("label_smoothing"))
    for name, value in values.items():
        monkeypatch.setattr(trained, READ[name], value)
    check_against_stock(trained)


def quoted(text):
    return re.findall(r'"([^"]+)"', text)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "state", "text"), SETTINGS, ids=[row[0] for row in SETTINGS])
def test_a_setting_does_what_the_page_says(
    folders, trained, monkeypatch, tmp_path, name, state, text
):
    assert state in STATES[:3]
    if quoted(text):  # they need a GPU
        with pytest.raises(ValueError, match=re.escape(quoted(text)[0])):
            PairDPOConfig(**settings(tmp_path, **{name: True}))
        return
    changes = RUNS.get(name) or {name: VALUES[name]}
    if changes.keys() <= READ.keys():
        check_setting(trained, monkeypatch, tmp_path, **changes)
    else:
        model = "moe" if name == "router_aux_loss_coef" else "dense"
        check_against_stock(build(folders, tmp_path, model=model, **changes))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "state", "text"), ARGUMENTS, ids=[row[0] for row in ARGUMENTS])
def test_an_argument_does_what_the_page_says(folders, tmp_path, name, state, text):
    assert state in STATES[:2]
    options = OPTIONS.get(name, lambda folder: {})(folders)
    Count.steps = 0
    trainer = build(folders, tmp_path, options=options)
    check_against_stock(trainer)
    assert Count.steps == (name == "callbacks")
    if "eval_dataset" in options:
        metrics = trainer.evaluate()
        (expected,) = {"eval_rows" if name == "compute_metrics" else "eval_b_loss"}
        assert expected in metrics
    refusals = {
        "args": (TypeError, {"args": DPOConfig(**settings(tmp_path))}),
        "quantization_config": (
            ValueError,
            {
                "model": trainer.model,
                "args": trainer.args,
                "quantization_config": BitsAndBytesConfig(),
            },
        ),
    }
    for sentence in quoted(text):
        error, options = refusals[name]
        with pytest.raises(error, match=re.escape(sentence)):
            PairDPOTrainer(**{"model": "no-such-model", "train_dataset": data()} | options)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "state", "text"), LOSS_TYPES, ids=[row[0] for row in LOSS_TYPES])
def test_a_loss_type_does_what_the_page_says(trained, monkeypatch, tmp_path, name, state, text):
    smoothing = 0.1 if name in ("exo_pair", "robust") else 0.0
    changes = {"loss_type": [name], "label_smoothing": smoothing}
    if state == "refused":
        with pytest.raises(ValueError, match=re.escape(quoted(text)[0])):
            PairDPOConfig(**settings(tmp_path, **changes))
        assert PairDPOConfig(**settings(tmp_path, pair_columns=[], **changes))
        return
    check_setting(trained, monkeypatch, tmp_path, **changes)
    for sentence in quoted(text):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            PairDPOConfig(**settings(tmp_path, use_weighting=True, **changes))
