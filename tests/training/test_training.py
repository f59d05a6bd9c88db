"""The trainer, on a model of two tiny layers: numbers by hand or from stock TRL, no mocks."""

import inspect
import logging
import math
import re
import subprocess
import sys
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import yaml
from datasets import Dataset, DatasetDict, load_dataset
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer

from sp2dpo.training.columns import MarkCounts, apply_marks, exchange_responses
from sp2dpo.training.config import FUSES_LIGER_LOSS
from sp2dpo.training.provenance import hash_columns, trace_loaded
from sp2dpo.training.trainer import PairColumnsMixin, PairDPOConfig, PairDPOTrainer
from support.training import (
    BETAS,
    PAIRS,
    PairDoubled,
    assert_same,
    conversations,
    loss_and_gradient,
    make,
    margin_by_hand,
    pairs,
    run_in,
    settings,
    shake,
    train,
    train_in_two_processes,
    without_ours,
)

pytestmark = [
    # TRL still uses the names that transformers 5.2x deprecates.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
]

LOSS_TYPES = [
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard"),
    *("apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
]
LOSS_TYPES = [name for name in LOSS_TYPES if f'"{name}"' in str(DPOConfig.__doc__)]  # of this TRL


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_uniform_betas_train_exactly_like_stock_trl(model_dir, tmp_path, loss_type):
    smoothing = 0.1 if loss_type in ("exo_pair", "robust") else 0.0
    loss = {"loss_type": [loss_type], "label_smoothing": smoothing}
    stock = make(model_dir, tmp_path, pairs(), trainer=DPOTrainer, beta=0.3, **loss)
    ours = make(model_dir, tmp_path, pairs(beta=[0.3] * 8), beta=0.9, shared_prompt=False, **loss)
    stock_parameters, stock_logs = train(stock)
    our_parameters, our_logs = train(ours)
    assert_same(our_parameters, stock_parameters)
    assert without_ours(our_logs) == stock_logs


@pytest.mark.parametrize(
    "setting",
    [
        {"precompute_ref_log_probs": True},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
        {"gradient_checkpointing": True},
        {"bf16": True},
        {"use_weighting": True},
        {"ld_alpha": 0.5},
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [0.7, 0.3]},
        {"sync_ref_model": True, "ref_model_sync_steps": 1},
        {"max_length": 24},
    ],
    ids=lambda setting: "-".join(setting),
)
def test_uniform_betas_train_and_evaluate_like_stock_trl_under(model_dir, tmp_path, setting):
    run = {"eval_strategy": "steps", "eval_steps": 2, "beta": 0.1, **setting}
    data, eval_data = pairs(), pairs().select(range(5))
    stock = make(model_dir, tmp_path, data, trainer=DPOTrainer, eval_dataset=eval_data, **run)
    data, eval_data = pairs(beta=[0.1] * 8), pairs(beta=[0.1] * 8).select(range(5))
    ours = make(model_dir, tmp_path, data, eval_dataset=eval_data, shared_prompt=False, **run)
    stock_parameters, stock_logs = train(stock)
    our_parameters, our_logs = train(ours)
    assert_same(our_parameters, stock_parameters)
    assert without_ours(our_logs) == stock_logs


def test_uniform_betas_train_an_adapter_like_stock_trl(model_dir, tmp_path):
    trained = []
    for trainer, data in ((DPOTrainer, pairs()), (PairDPOTrainer, pairs(beta=[0.1] * 8))):
        stock = trainer is DPOTrainer
        config, ours = (DPOConfig, {}) if stock else (PairDPOConfig, {"shared_prompt": False})
        torch.manual_seed(0)  # TRL 1.0 draws the adapter before it sets the seed
        trained.append(
            train(
                trainer(
                    model_dir,
                    args=config(**settings(tmp_path, beta=0.1), **ours),
                    train_dataset=data,
                    peft_config=LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
                )
            )
        )
    assert_same(trained[1][0], trained[0][0])
    assert without_ours(trained[1][1]) == trained[0][1]


@pytest.mark.parametrize("precompute", [False, True])
def test_varying_betas_equal_single_pairs_of_stock_trl(model_dir, tmp_path, precompute):
    run = {"precompute_ref_log_probs": precompute}
    ours = make(model_dir, tmp_path, pairs(beta=BETAS), beta=0.9, **run)
    stock = make(model_dir, tmp_path, pairs(), trainer=DPOTrainer, **run)
    shake(ours)
    shake(stock)
    loss, gradient = loss_and_gradient(ours, range(8))
    singles = []
    for row, beta in enumerate(BETAS):
        stock.beta = beta
        singles.append(loss_and_gradient(stock, [row]))
    expected_loss = sum(single[0] for single in singles) / 8
    expected_gradient = sum(single[1] for single in singles) / 8
    assert loss.item() == pytest.approx(expected_loss.item(), abs=1e-6)
    assert (gradient - expected_gradient).abs().max() < 1e-6
    assert gradient.abs().max() > 1e-3


def test_loss_and_margin_equal_the_formula_computed_by_hand(model_dir, tmp_path):
    trainer = make(model_dir, tmp_path, pairs(beta=BETAS))
    shake(trainer)
    margins = [margin_by_hand(trainer, row) for row in range(8)]
    loss, _ = loss_and_gradient(trainer, range(8))
    by_hand = [math.log1p(math.exp(-b * d)) for b, d in zip(BETAS, margins, strict=True)]
    assert loss.item() == pytest.approx(sum(by_hand) / 8, abs=1e-5)
    assert trainer._metrics["train"]["margins/unscaled"] == [
        pytest.approx(sum(margins) / 8, abs=1e-4)
    ]
    assert max(margins) - min(margins) > 0.1


def test_without_pair_columns_the_unscaled_margin_is_logged_all_the_same(model_dir, tmp_path):
    trainer = make(model_dir, tmp_path, pairs(), pair_columns=[], beta=0.2)
    shake(trainer)
    margins = [margin_by_hand(trainer, row) for row in range(8)]
    loss_and_gradient(trainer, range(8))
    assert trainer._metrics["train"]["margins/unscaled"] == [
        pytest.approx(sum(margins) / 8, abs=1e-4)
    ]


def test_without_pair_columns_a_beta_column_is_ignored_and_said_to_be(model_dir, tmp_path, caplog):
    stock = make(model_dir, tmp_path, pairs(), trainer=DPOTrainer)
    with caplog.at_level(logging.INFO, logger="sp2dpo.training.preparation"):
        data = pairs(beta=[None, *BETAS[1:]])
        ours = make(model_dir, tmp_path, data, pair_columns=[], shared_prompt=False)
    stock_parameters, stock_logs = train(stock)
    our_parameters, our_logs = train(ours)
    assert_same(our_parameters, stock_parameters)
    assert without_ours(our_logs) == stock_logs
    assert not any(key.startswith("beta/") for entry in our_logs for key in entry)
    assert [r.getMessage() for r in caplog.records if r.name == "sp2dpo.training.preparation"] == [
        "[RANK 0] pair_columns is empty: the column beta of the train data set is ignored"
    ]


def test_eight_times_one_pair_accumulates_to_one_batch_of_eight(model_dir, tmp_path):
    steps = {"max_steps": 3, "optim": "sgd"}
    one_batch = make(model_dir, tmp_path, pairs(beta=BETAS), per_device_train_batch_size=8, **steps)
    eight_steps = make(
        model_dir,
        tmp_path,
        pairs(beta=BETAS),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=8,
        **steps,
    )
    shake(one_batch)
    shake(eight_steps)
    before = {name: p.detach().clone() for name, p in one_batch.model.named_parameters()}
    left, left_logs = train(one_batch)
    right, right_logs = train(eight_steps)
    assert any(not torch.equal(left[name], before[name]) for name in left)
    for name in left:
        assert torch.allclose(left[name], right[name], atol=1e-6), name
    for key in ("loss", "beta/mean", "margins/unscaled"):
        assert left_logs[0][key] == pytest.approx(right_logs[0][key], abs=1e-4), key


def test_betas_stay_with_their_pairs_and_are_logged(model_dir, tmp_path):
    trainer = make(model_dir, tmp_path, pairs(beta=BETAS), eval_dataset=pairs(beta=BETAS[::-1]))
    batch = trainer.data_collator([trainer.train_dataset[row] for row in (5, 0)])
    assert batch["beta"].dtype == torch.float64
    assert batch["beta"].tolist() == pytest.approx([0.07, 0.03])
    assert batch["input_ids"].shape[0] == 4
    metrics = trainer.evaluate()
    logged = trainer.state.log_history[-1]
    assert logged["eval_beta/mean"] == pytest.approx(sum(BETAS) / 8)
    # The mean over two batches, (.25 .15 .07 .2) and (.05 .1 .3 .03), of their least and greatest.
    assert logged["eval_beta/min"] == pytest.approx((0.07 + 0.03) / 2)
    assert logged["eval_beta/max"] == pytest.approx((0.25 + 0.3) / 2)
    assert metrics["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)  # policy = reference: D = 0
    assert trainer.beta == 0.1


def test_the_mixin_serves_a_trainer_of_the_users_own(model_dir, tmp_path):
    ours = make(model_dir, tmp_path, pairs(beta=BETAS))
    theirs = make(model_dir, tmp_path, pairs(beta=BETAS), trainer=PairDoubled)
    shake(ours)
    shake(theirs)
    loss, _ = loss_and_gradient(ours, range(8))
    doubled, _ = loss_and_gradient(theirs, range(8))
    assert doubled.item() == pytest.approx(2 * loss.item())


MARKS = {
    "keep": [True, False, True, False, True, True, None, True],
    "flip": [False, False, True, True, None, False, True, False],
}
MARKED_ROWS = (0, 2, 3, 4, 5, 6, 7)  # row 3 has no beta, which `missing_values` decides about


def marked_by_hand():
    """The rows of PAIRS as MARKS says, worked out without the code under test."""
    rows = {name: [values[row] for row in MARKED_ROWS] for name, values in PAIRS.items()}
    for place in (1, 2, 5):
        for column in ("chosen", "rejected"):
            opposite = {"chosen": "rejected", "rejected": "chosen"}[column]
            rows[column][place] = PAIRS[opposite][MARKED_ROWS[place]]
    return rows


def in_format(rows, style):
    """The rows with an implicit prompt, or as conversations, or both."""
    if style == "plain":
        return rows
    turns = [
        [[{"role": role, "content": text}] for text in rows[name]]
        for name, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant"))
    ]
    if style == "conversational":
        return rows | dict(zip(("prompt", "chosen", "rejected"), turns, strict=True))
    if style == "implicit":
        joined = {
            side: [p + " - " + t for p, t in zip(rows["prompt"], rows[side], strict=True)]
            for side in ("chosen", "rejected")
        }
    else:
        joined = {
            side: [p + t for p, t in zip(turns[0], turns[place], strict=True)]
            for place, side in ((1, "chosen"), (2, "rejected"))
        }
    return joined | {name: v for name, v in rows.items() if name not in PAIRS}


@pytest.mark.parametrize("style", ["plain", "implicit", "conversational", "implicit turns"])
@pytest.mark.parametrize("stream", [False, True])
def test_keep_and_flip_are_obeyed_in_every_format(model_dir, tmp_path, caplog, style, stream):
    betas = [*BETAS[:3], None, *BETAS[4:]]
    data = Dataset.from_dict(in_format(PAIRS, style) | MARKS | {"beta": betas})
    by_hand = Dataset.from_dict(in_format(marked_by_hand(), style))
    betas = [betas[row] for row in MARKED_ROWS]
    run = {"pair_columns": []}
    expected = make(model_dir, tmp_path, by_hand, eval_dataset=by_hand, **run)
    dataset = data.to_iterable_dataset() if stream else data
    trainer = make(model_dir, tmp_path, dataset, eval_dataset={"arm": dataset}, **run)
    for rows in (trainer.train_dataset, trainer.eval_dataset["arm"]):
        rows = list(rows)
        assert [row["beta"] for row in rows] == betas
        for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
            assert [row[name] for row in rows] == expected.train_dataset[name][:]
        assert not {"keep", "flip"} & set(rows[0])
    counts = {name: asdict(value) for name, value in trainer.mark_counts.items()}
    expected_counts = {"left_out": 1, "flipped": 3}
    assert counts == ({} if stream else {"train": expected_counts, "arm": expected_counts})
    lines = [r.getMessage() for r in caplog.records if "the train data" in r.getMessage()]
    assert [line for line in lines if "keep" in line] == [
        "[RANK 0] the train data set: rows with keep false are left out, those with flip true"
        " flipped"
        if stream
        else "[RANK 0] the train data set: 1 of 8 rows are left out (keep is false) and 3 have"
        " their responses exchanged (flip is true)"
    ]


def test_what_belongs_to_a_response_is_exchanged_with_it(model_dir, tmp_path):
    chosen, rejected = [-float(n) for n in range(1, 9)], [-float(n) for n in range(11, 19)]
    data = pairs(beta=BETAS, flip=[True, *[False] * 7], ref_chosen_logps=chosen)
    data = data.add_column("ref_rejected_logps", rejected)
    trainer = make(model_dir, tmp_path, data, precompute_ref_log_probs=True)
    assert trainer.train_dataset["ref_chosen_logps"][:] == [-11.0, *chosen[1:]]
    assert trainer.train_dataset["ref_rejected_logps"][:] == [-1.0, *rejected[1:]]
    assert trainer.mark_counts["train"].flipped == 1
    scores = {"score_chosen": 0.9, "score_rejected": 0.1, "chosen_ids": [1], "flip": True}
    assert exchange_responses(scores) == {"score_chosen": 0.1, "score_rejected": 0.9}


def test_rows_without_marks_are_the_same_object():
    data = pairs(beta=BETAS)
    assert apply_marks(data, name="train") == (data, MarkCounts(left_out=0, flipped=0))


def test_a_mark_that_is_not_a_boolean_is_refused(tmp_path):
    with pytest.raises(ValueError, match="column keep must be boolean, not 2 as in row 1 of the"):
        make("no-such-model", tmp_path, pairs(beta=BETAS, keep=[None, 2, *[1] * 6]))
    with pytest.raises(ValueError, match="keep leaves none of the 8 rows to train on"):
        make("no-such-model", tmp_path, pairs(beta=BETAS, keep=[False] * 8))


@pytest.mark.parametrize("fused", [False, True])
def test_liger_is_refused_only_where_trl_computes_the_loss_in_it(tmp_path, monkeypatch, fused):
    monkeypatch.setattr("sp2dpo.training.config.FUSES_LIGER_LOSS", fused)
    with pytest.raises(ValueError, match="use_liger_kernel needs the package liger-kernel"):
        PairDPOConfig(**settings(tmp_path, use_liger_kernel=True, pair_columns=[]))
    monkeypatch.setattr("sp2dpo.training.config.is_liger_kernel_available", lambda: True)
    assert PairDPOConfig(**settings(tmp_path, use_liger_kernel=True, pair_columns=[]))
    if fused:
        with pytest.raises(ValueError, match="use_liger_kernel gives wrong losses with a beta per"):
            PairDPOConfig(**settings(tmp_path, use_liger_kernel=True))
    else:
        assert PairDPOConfig(**settings(tmp_path, use_liger_kernel=True)).use_liger_kernel


def test_this_trl_is_known_to_fuse_the_liger_loss_or_not():
    source = inspect.getsource(sys.modules[DPOTrainer.__module__])
    assert ("LigerFusedLinearDPOLoss" in source or "liger_loss" in source) == FUSES_LIGER_LOSS


def test_the_package_exports_the_trainer_without_loading_torch():
    code = (
        "import sys, sp2dpo.training as t; assert 'torch' not in sys.modules; print(dir(t));"
        "from sp2dpo.training import PairDPOConfig as DPOConfig, PairDPOTrainer as DPOTrainer;"
        "import pickle; assert pickle.loads(pickle.dumps(DPOTrainer)) is DPOTrainer;"
        "assert t.PairColumnsMixin in DPOTrainer.__mro__ and not hasattr(t, 'Nothing');"
        "print(DPOConfig.__module__, DPOTrainer.__module__)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "'PairColumnsMixin', 'PairDPOConfig', 'PairDPOTrainer'" in result.stdout
    assert result.stdout.split()[-2:] == ["sp2dpo.training.config", "sp2dpo.training.trainer"]


def test_rows_without_beta_are_an_error_by_default(model_dir, tmp_path):
    with pytest.raises(ValueError, match=r"2 of 8 rows in the train data set have no beta.* row 1"):
        make(model_dir, tmp_path, pairs(beta=[0.1, None, None, *BETAS[3:]]))


def test_rows_without_beta_can_be_dropped(model_dir, tmp_path, caplog):
    holes = [0.1, None, *BETAS[2:7], None]
    trainer = make(
        model_dir,
        tmp_path,
        pairs(beta=holes),
        eval_dataset=pairs(beta=BETAS),
        missing_values="drop",
    )
    assert trainer.train_dataset["prompt"][:] == [PAIRS["prompt"][row] for row in (0, *range(2, 7))]
    assert trainer.train_dataset["beta"][:] == [0.1, *BETAS[2:7]]
    assert trainer.rows_without_beta == {"train": 2, "eval": 0}
    assert "the train data set: 2 of 8 rows have no beta and are dropped" in caplog.text


def test_rows_without_beta_can_get_the_global_one(model_dir, tmp_path, caplog):
    trainer = make(
        model_dir, tmp_path, pairs(beta=[None, *BETAS[1:]]), missing_values="constant", beta=0.17
    )
    assert trainer.train_dataset["beta"][:] == [0.17, *BETAS[1:]]
    assert trainer.rows_without_beta == {"train": 1}
    assert "the train data set: 1 of 8 rows have no beta and get 0.17" in caplog.text


def test_a_data_set_in_which_no_row_has_a_beta_cannot_be_dropped_to_nothing(model_dir, tmp_path):
    with pytest.raises(ValueError, match="no beta in any of its 8 rows"):
        make(model_dir, tmp_path, pairs(beta=[None] * 8), missing_values="drop")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (math.nan, "nan"),
        (0.0, "0.0"),
        (-0.1, "-0.1"),
        (math.inf, "inf"),
        (1.0e-50, "1e-50"),  # 0 in float32
        ("0.1", "'0.1'"),
        (True, "True"),
    ],
)
@pytest.mark.parametrize("missing_values", ["error", "drop", "constant"])
def test_a_beta_that_is_no_number_above_0_is_refused(tmp_path, value, shown, missing_values):
    betas = [value] * 8 if isinstance(value, (str, bool)) else [0.1, 0.2, *[value] * 6]
    first = betas.index(value)
    message = (
        f"{8 - first} of 8 betas in the train data set are not finite float32 numbers above 0,"
        f" the first is {shown} in row {first}"
    )
    with pytest.raises(ValueError, match=re.escape(message)):  # before the model is looked for
        make("no-such-model", tmp_path, pairs(beta=betas), missing_values=missing_values)


def test_betas_of_other_numeric_types_are_the_same_numbers(model_dir, tmp_path):
    for kind in (pa.decimal128(6, 3), pa.float32(), pa.float64()):
        column = pa.array([Decimal(str(beta)) for beta in BETAS]).cast(kind)
        data = Dataset(pa.table(PAIRS | {"beta": column}))
        trainer = make(model_dir, tmp_path, data)
        assert trainer.train_dataset["beta"][:] == pytest.approx(BETAS)
        batch = trainer.data_collator([trainer.train_dataset[0]])
        assert batch["beta"].tolist() == pytest.approx(BETAS[:1])
    whole = make(model_dir, tmp_path, Dataset(pa.table(PAIRS | {"beta": pa.array([1] * 8)})))
    assert whole.data_collator([whole.train_dataset[0]])["beta"].tolist() == [1.0]


def test_a_column_that_is_named_must_be_in_every_data_set(tmp_path):
    with pytest.raises(
        ValueError, match=r"train data set has no column beta \(it has prompt, chosen"
    ):
        make("no-such-model", tmp_path, pairs())
    with pytest.raises(ValueError, match="eval data set has no column beta"):
        make("no-such-model", tmp_path, pairs(beta=BETAS), eval_dataset=pairs())
    hard = DatasetDict(easy=pairs(beta=BETAS), hard=pairs())
    with pytest.raises(ValueError, match="hard data set has no column beta"):
        make("no-such-model", tmp_path, pairs(beta=BETAS), eval_dataset=hard)


def test_a_data_set_given_to_evaluate_is_checked_too(model_dir, tmp_path):
    trainer = make(model_dir, tmp_path, pairs(beta=BETAS))
    with pytest.raises(ValueError, match="eval data set has no column beta"):
        trainer.evaluate(pairs())
    with pytest.raises(ValueError, match="8 of 8 betas in the eval data set are not finite"):
        trainer.evaluate(pairs(beta=[0.0] * 8))


if "evaluate" in vars(DPOTrainer):  # TRL 1.0 evaluates no data that it has not prepared

    @pytest.mark.parametrize("precompute", [False, True])
    def test_a_data_set_given_to_evaluate_has_its_own_betas(model_dir, tmp_path, precompute):
        trainer = make(model_dir, tmp_path, pairs(beta=BETAS), precompute_ref_log_probs=precompute)
        metrics = trainer.evaluate({"low": pairs(beta=[0.03] * 8), "high": pairs(beta=[0.3] * 8)})
        assert metrics["eval_low_loss"] == pytest.approx(math.log(2), abs=1e-6)
        means = [e[k] for e in trainer.state.log_history for k in e if k.endswith("beta/mean")]
        assert means == pytest.approx([0.03, 0.3])


def test_the_betas_of_a_stream_are_checked_batch_by_batch(model_dir, tmp_path):
    stream = pairs(beta=BETAS).to_iterable_dataset()
    streamed, _ = train(make(model_dir, tmp_path, stream, max_steps=2))
    order = {"train_sampling_strategy": "sequential"}
    if "train_sampling_strategy" in PairDPOConfig.__dataclass_fields__:
        from_memory, _ = train(make(model_dir, tmp_path, pairs(beta=BETAS), max_steps=2, **order))
        assert_same(streamed, from_memory)
    stream = pairs(beta=[*BETAS[:6], math.nan, 0.1]).to_iterable_dataset()
    with pytest.raises(ValueError, match=r"1 of 4 betas in a batch .* the first is nan in row 2"):
        train(make(model_dir, tmp_path, stream, max_steps=2))


@pytest.mark.parametrize(
    ("missing", "betas"), [("drop", BETAS[1:]), ("constant", [0.1, *BETAS[1:]])]
)
def test_a_stream_follows_the_advice_of_its_own_message(model_dir, tmp_path, missing, betas):
    rows = pairs(beta=[None, *BETAS[1:]]).to_iterable_dataset()
    with pytest.raises(ValueError, match=r"no beta.*: set missing_values to drop or constant"):
        train(make(model_dir, tmp_path, rows))
    trainer = make(
        model_dir, tmp_path, rows, eval_dataset={"arm": rows}, missing_values=missing, max_steps=2
    )
    train(trainer)
    for stream in (trainer.train_dataset, trainer.eval_dataset["arm"]):
        assert [row["beta"] for row in stream] == betas
    assert "eval_arm_loss" in trainer.evaluate()
    nothing = pairs(beta=[None] * 8).to_iterable_dataset()
    with pytest.raises(ValueError, match="no row with a value of beta"):
        make("no-such-model", tmp_path, nothing, missing_values="drop")


@pytest.mark.parametrize("loss_type", ["aot", "aot_unpaired"])
def test_losses_that_sort_the_batch_are_refused(tmp_path, loss_type):
    with pytest.raises(ValueError, match=f"loss_type {loss_type} sorts the batch"):
        PairDPOConfig(**settings(tmp_path, loss_type=["sigmoid", loss_type]))
    assert PairDPOConfig(**settings(tmp_path, loss_type=[loss_type], pair_columns=[])).beta == 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"pair_columns": ["bets"]},
            "pair_columns: 'bets' is not one of beta, weight, margin, label_smoothing, did you mean"
            " 'beta'?",
        ),
        ({"pair_columns": ["reward_margin"]}, "'reward_margin' is not one of beta, weight, margin"),
        ({"pair_columns": "beta"}, "pair_columns must be a list, [beta] or [], not 'beta'"),
        (
            {"missing_values": "dorp"},
            "'dorp' is not one of error, drop, constant, did you mean 'drop'?",
        ),
        ({"beta": 0.0}, "beta must be a finite number above 0, not 0.0"),
    ],
)
def test_a_wrong_setting_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        PairDPOConfig(**settings(tmp_path, **change))


def test_the_model_card_names_the_method_that_was_used(model_dir, tmp_path):
    cards = []
    for columns in (["beta"], []):
        trainer = make(model_dir, tmp_path, pairs(beta=BETAS), pair_columns=columns)
        trainer.create_model_card(model_name="student")
        cards.append(Path(trainer.args.output_dir, "README.md").read_text())
    assert "2601.22385" in cards[0]
    assert "sp2dpo" in cards[0]
    assert "2601.22385" not in cards[1]
    assert "sp2dpo" not in cards[1]
    assert "2305.18290" in cards[1]


def test_the_card_of_a_script_has_what_is_known_of_its_data_and_settings(model_dir, tmp_path):
    rows = conversations(beta=BETAS)
    folder = tmp_path / "hh-betas"
    folder.mkdir()
    Dataset.from_dict(rows).to_parquet(folder / "train.parquet")
    loaded = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    secret = {"model_init_kwargs": {"token": "hf_planted"}, "learning_rate": 3.0e-5}
    trainer = make(model_dir, tmp_path, loaded, **secret)
    trainer.create_model_card(model_name="student")
    card = Path(trainer.args.output_dir, "README.md").read_text()
    section = yaml.safe_load(card.split("````yaml\n")[1].split("````")[0])
    assert section["data"]["dataset"] == "hh-betas"
    assert section["data"]["rows"] == {"available": 8, "used": 8}
    assert section["data"]["columns_sha256"] == hash_columns(loaded, ["beta"])
    assert section["data"]["fingerprint"] == loaded._fingerprint
    assert section["settings"]["learning_rate"] == 3e-5
    assert "hf_planted" not in card
    assert str(tmp_path) not in card
    # What `load_dataset` notes of a data set on the Hub.
    commit = "abcdef0123" * 4
    hub = Dataset.from_dict(rows)
    hub.info.download_checksums = {f"hf://datasets/org/hh-betas@{commit}/train.parquet": {}}
    known = trace_loaded(hub, hub, ["beta"])
    assert (known["dataset"], known["revision"]) == ("org/hh-betas", commit)
    hub.info.download_checksums |= {f"hf://datasets/org/other@{commit}/train.parquet": {}}
    assert trace_loaded(hub, hub, ["beta"]).get("dataset") is None
    trainer._known_rows = known
    trainer.create_model_card(model_name="student")
    card = Path(trainer.args.output_dir, "README.md").read_text()
    assert f"revision: {commit}" in card
    assert "datasets: org/hh-betas" in card
    assert trace_loaded(hub.to_iterable_dataset(), None, [])["rows"] == {}
    assert "dataset" not in trace_loaded(Dataset.from_dict(rows), hub, ["beta"])


class WithoutCard(DPOTrainer):
    """Somebody's own trainer, which writes no card."""

    def create_model_card(self, *arguments, **options):
        """Write nothing."""


def test_a_trainer_that_writes_no_card_gets_none(model_dir, tmp_path):
    kind = type("Mine", (PairColumnsMixin, WithoutCard), {})
    trainer = make(model_dir, tmp_path, pairs(beta=BETAS), trainer=kind)
    trainer.create_model_card(model_name="student")
    assert not Path(trainer.args.output_dir, "README.md").exists()


DEEPSPEED_RUN = """
import json, sys
import deepspeed
from datasets import Dataset
from sp2dpo.training.trainer import PairDPOConfig, PairDPOTrainer

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # two minutes of compiling
PER_PAIR = ("beta", "ref_chosen_logps", "ref_rejected_logps")

class Recorder(PairDPOTrainer):
    def compute_loss(self, model, inputs, *args, **kwargs):
        seen = {key: [str(inputs[key].dtype), *inputs[key].tolist()] for key in PER_PAIR}
        print(json.dumps(seen))
        return super().compute_loss(model, inputs, *args, **kwargs)

run = json.load(open(sys.argv[1]))
trainer = Recorder(
    run["model"],
    args=PairDPOConfig(
        **run["settings"],
        deepspeed={
            "zero_optimization": {"stage": 1},
            "bf16": {"enabled": True},
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
        },
    ),
    train_dataset=Dataset.from_dict(run["pairs"]),
)
ours = trainer.train_dataset
print(json.dumps({key: ours[key][:] for key in PER_PAIR}))
trainer.train()
trainer.accelerator.end_training()
"""


@pytest.mark.slow
def test_deepspeed_does_not_round_the_per_pair_numbers(model_dir, tmp_path):
    """bf16 keeps 8 bits: it makes 0.3008 of 0.3001 and -66.0 of -66.2."""
    stored, seen = run_in(
        1,
        DEEPSPEED_RUN,
        tmp_path,
        model=model_dir,
        pairs={name: values[:2] for name, values in PAIRS.items()} | {"beta": [0.3001, 0.2999]},
        settings=settings(
            tmp_path,
            bf16=True,
            max_steps=1,
            per_device_train_batch_size=2,
            precompute_ref_log_probs=True,
        ),
    )
    rounding_would_be_seen = set()
    for name, values in stored.items():
        dtype, *batch = seen[name]
        expected = torch.tensor(values, dtype=torch.float64 if name == "beta" else torch.float32)
        assert dtype == ("torch.float64" if name == "beta" else "torch.float32")
        assert sorted(batch) == sorted(expected.tolist())
        if not torch.equal(expected, expected.bfloat16().to(expected.dtype)):
            rounding_would_be_seen.add(name)
    assert "beta" in rounding_would_be_seen  # TRL 1.0 computes the others in bf16 to begin with


@pytest.mark.slow
def test_two_processes_log_what_one_logs_on_the_same_pairs(model_dir, tmp_path):
    run = settings(tmp_path, learning_rate=0.05)
    single_process = make(
        model_dir, tmp_path, pairs(beta=BETAS), **run | {"per_device_train_batch_size": 8}
    )
    _, logs = train(single_process)
    (entries,) = train_in_two_processes(tmp_path, model_dir, run)
    assert len(entries) == 3
    for entry, expected in zip(entries, logs, strict=False):
        assert entry["beta/min"] == pytest.approx(0.03)
        assert entry["beta/max"] == pytest.approx(0.3)
        for key in ("beta/mean", "margins/unscaled", "rewards/margins", "loss"):
            assert entry[key] == pytest.approx(expected[key], abs=1e-3), key
    assert abs(entries[-1]["margins/unscaled"]) > 0.1
