"""beta-DPO and AlphaDPO: what depends on the policy, by hand, resumed, and between processes."""

import math

import numpy as np
import pytest
import torch

from sp2dpo.training.online import (
    AlphaDpoState,
    BetaDpoState,
    RunningMoments,
    alpha_dpo_margin,
    beta_dpo,
    scale,
)
from support.training import (
    BETAS,
    assert_same,
    loss_and_gradient,
    make,
    margin_by_hand,
    pairs,
    shake,
    train,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
]

ALPHA = {"loss_type": ["sigmoid_norm"], "alpha_dpo": 0.2, "alpha_dpo_gamma": 0.6}


def test_the_running_statistics_are_those_of_the_released_code():
    dice = np.random.default_rng(0)
    state, mean, std = RunningMoments(), 0.0, 0.0
    for _ in range(20):
        batch = dice.normal(1, 3, 16)
        state.update(torch.tensor(batch))
        mean = 0.9 * mean + 0.1 * batch.mean()
        std = 0.9 * std + 0.1 * batch.std(ddof=1)
        assert state.mean == pytest.approx(mean)
        assert state.std == pytest.approx(std)
    values = torch.tensor([2.0, -1.0], dtype=torch.float64)
    assert state.zscore(values).tolist() == pytest.approx(((values - mean) / std).tolist())
    assert RunningMoments().zscore(values).tolist() == [0, 0]


def test_a_batch_is_filtered_to_its_size_and_the_factor_is_by_hand():
    dice = np.random.default_rng(1)
    state = BetaDpoState()
    for _ in range(30):
        batch = torch.tensor(dice.normal(1, 3, 11))
        scaled = beta_dpo(state, batch, alpha=0.6, mode_weight=0.2, seed=0)
        assert scaled.mask.sum() == math.floor(11 * 0.8)
        mean = batch[scaled.mask].mean().item()
        assert scaled.factor == pytest.approx(1 + 0.6 * (mean - state.mean))
    assert scale(torch.tensor([0.1, 0.3]), 2.0).tolist() == pytest.approx([0.2, 0.6])
    assert scale(torch.tensor([0.1]), -5.0).tolist() == pytest.approx([1e-3])


@pytest.mark.parametrize(
    ("pairs_of_batch", "mode_weight", "selected"),
    [(5, 0.8, 1), (10, 0.9, 1), (10, 0.7, 3), (20, 0.95, 1), (5, 0.2, 4), (11, 0.2, 8)],
)
def test_a_share_selects_its_pairs_whatever_its_binary_digits(
    pairs_of_batch, mode_weight, selected
):
    batch = torch.arange(pairs_of_batch).double()
    scaled = beta_dpo(BetaDpoState(), batch, alpha=0.6, mode_weight=mode_weight, seed=0)
    assert scaled.mask.sum() == selected


def test_pairs_far_from_the_running_mean_are_left_out_most():
    state, left_out = BetaDpoState(), 0
    for number in range(200):
        batch = torch.tensor([0.0, 0.1, -0.1, 0.05, 8.0])
        scaled = beta_dpo(state, batch, alpha=0.6, mode_weight=0.2, seed=number)
        left_out += not scaled.mask[4]
    assert left_out > 100  # of five alike, each would be left out 40 times


def test_one_pair_or_a_mode_weight_of_0_leaves_nothing_out():
    assert beta_dpo(BetaDpoState(), torch.ones(1), alpha=0.6, mode_weight=0.2, seed=0).mask.all()
    assert beta_dpo(BetaDpoState(), torch.ones(9), alpha=0.6, mode_weight=0.0, seed=0).mask.all()


def test_the_loss_of_beta_dpo_is_the_one_by_hand(model_dir, tmp_path):
    trainer = make(model_dir, tmp_path, pairs(beta=BETAS), beta_dpo=0.6)
    shake(trainer)
    margins = [margin_by_hand(trainer, row) for row in range(8)]
    loss, gradient = loss_and_gradient(trainer, range(8))
    state = BetaDpoState()
    scaled = beta_dpo(
        state, torch.tensor(margins), alpha=0.6, mode_weight=0.2, seed=trainer.args.seed
    )
    used_rows = [row for row in range(8) if scaled.mask[row]]
    assert len(used_rows) == 6
    by_hand = [
        math.log1p(math.exp(-max(BETAS[row] * scaled.factor, 1e-3) * margins[row]))
        for row in used_rows
    ]
    assert loss.item() == pytest.approx(sum(by_hand) / 6, abs=1e-5)
    assert trainer._metrics["train"]["beta_dpo/factor"] == [pytest.approx(scaled.factor, abs=1e-4)]
    assert gradient.abs().max() > 0


def per_token(trainer, model, row):
    """The log-prob per token of a pair's chosen response minus that of its rejected one."""
    example, averages = trainer.train_dataset[row], []
    for answer in ("chosen_ids", "rejected_ids"):
        ids = torch.tensor([example["prompt_ids"] + example[answer]])
        with torch.no_grad():
            logps = model(input_ids=ids).logits[0].log_softmax(-1)
        first = len(example["prompt_ids"])
        total = sum(logps[t - 1, ids[0, t]].item() for t in range(first, ids.shape[1]))
        averages.append(total / len(example[answer]))
    return averages[0] - averages[1]


def test_the_loss_of_alpha_dpo_is_that_of_its_paper_and_acts(model_dir, tmp_path):
    betas = [25 * beta for beta in BETAS]
    trainer = make(model_dir, tmp_path, pairs(beta=betas), **ALPHA)
    shake(trainer)
    loss, gradient = loss_and_gradient(trainer, range(8))
    policy = [per_token(trainer, trainer.model, row) for row in range(8)]
    gaps = [p - per_token(trainer, trainer.ref_model, row) for row, p in enumerate(policy)]
    state = AlphaDpoState()
    state.update(torch.tensor(gaps))
    z = [
        b * (p - 0.6 - 0.2 * (a - state.mean) / state.std)
        for b, p, a in zip(betas, policy, gaps, strict=True)
    ]
    assert loss.item() == pytest.approx(sum(math.log1p(math.exp(-x)) for x in z) / 8, rel=1e-4)
    assert trainer._metrics["train"]["alpha_dpo/std"] == [pytest.approx(state.std, rel=1e-3)]
    # The margin moves z by nats, and with it the gradient: without it, SimPO's is another.
    shifts = [0.2 * b * (a - state.mean) / state.std for b, a in zip(betas, gaps, strict=True)]
    assert max(map(abs, shifts)) > 0.5
    simpo = make(model_dir, tmp_path, pairs(beta=betas), **ALPHA | {"alpha_dpo": 1e-9})
    shake(simpo)
    other = loss_and_gradient(simpo, range(8))[1]
    assert (gradient - other).norm() > 0.1 * other.norm()


def test_a_worked_example_of_alpha_dpo():
    # P = -0.3 - -0.5 = 0.2 and R = -0.45 - -0.5 = 0.05 nats per token, so that A = 0.15; z-score 2.
    margin = alpha_dpo_margin(
        torch.tensor([2.0]), torch.tensor([0.05]), torch.tensor([2.5]), alpha=0.2, gamma=0.6
    )
    assert margin.item() == pytest.approx(2.5 * (0.6 + 0.2 * 2 - 0.05))
    assert 2.5 * 0.15 - margin.item() == pytest.approx(2.5 * (0.2 - 0.6 - 0.2 * 2))


def test_evaluation_neither_filters_nor_moves_the_state(model_dir, tmp_path):
    run = {"beta_dpo": 0.6} | ALPHA
    plain_run = {"loss_type": ["sigmoid_norm"], "eval_dataset": pairs(beta=BETAS)}
    trainer = make(model_dir, tmp_path, pairs(beta=BETAS), eval_dataset=pairs(beta=BETAS), **run)
    plain = make(model_dir, tmp_path, pairs(beta=BETAS), **plain_run)
    shake(trainer)
    shake(plain)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], abs=1e-6)
    assert trainer._state(BetaDpoState).batches == 0


def test_a_run_that_is_resumed_goes_on_as_if_nothing_had_been(model_dir, tmp_path):
    run = {
        "beta_dpo": 0.6, **ALPHA, "max_steps": 4, "save_strategy": "steps",
        "save_steps": 2
    }  # fmt: skip
    uninterrupted = make(model_dir, tmp_path, pairs(beta=BETAS), **run)
    expected, logs = train(uninterrupted)
    resumed = make(model_dir, tmp_path, pairs(beta=BETAS), **run)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    parameters = {name: p.detach().clone() for name, p in resumed.model.named_parameters()}
    assert_same(parameters, expected)
    assert resumed._state(BetaDpoState).state() == uninterrupted._state(BetaDpoState).state()
    assert resumed._state(BetaDpoState).batches == 4
    assert logs[-2]["beta_dpo/factor"] != 1
