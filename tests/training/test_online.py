"""Online variants: what depends on the policy, by hand, resumed, and between processes."""

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import expit, xlogy

from sp2dpo.training.config import PairDPOConfig
from sp2dpo.training.online import (
    GAMMA_PO_QUEUE,
    AlphaDpoState,
    BetaDpoState,
    GammaPoState,
    RePoState,
    RunningMoments,
    alpha_dpo_margin,
    beta_dpo,
    gamma_po_margins,
    project_margins,
    re_po_posterior,
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


def mirror_descent(rewards, gamma, tau):
    """gamma-PO's margins as its released code computes them, on shares instead of logarithms."""
    count = len(rewards)
    shares = np.full(count, 1 / count)
    for _ in range(20):
        divergence = tau * (1 + np.log(count * (shares + 1e-10)))
        descent = gamma * count / (1 + np.exp(rewards - gamma * count * shares)) / count
        shares = shares * np.exp(-min(0.5 / tau, 1) * (divergence + descent))
        shares = shares / shares.sum()
    return gamma * count * shares - gamma


@pytest.mark.parametrize(("gamma", "tau"), [(0.4, 10.0), (4.0, 10.0), (5.0, 20.0), (0.5, 0.3)])
def test_the_margins_of_gamma_po_are_those_of_the_released_code(gamma, tau):
    rewards = np.random.default_rng(2).normal(0.5, 3, 40)
    margins = project_margins(torch.tensor(rewards), gamma=gamma, tau=tau).numpy()
    assert margins == pytest.approx(mirror_descent(rewards, gamma, tau), abs=1e-6)
    assert margins.mean() == pytest.approx(0, abs=1e-12)
    # A larger margin of the policy gets a larger target.
    assert (np.diff(margins[np.argsort(rewards)]) > 0).all()


def test_the_margins_of_gamma_po_solve_their_problem():
    rewards, gamma, tau = np.array([0.0, 2.0]), 1.0, 2.0

    def objective(share):
        shares = np.array([1 - share, share])
        loss = -np.log(expit(rewards - gamma * 2 * shares)).mean()
        return loss + tau * xlogy(shares, 2 * shares).sum()

    best: Any = minimize_scalar(
        objective, bounds=(0, 1), method="bounded", options={"xatol": 1e-10}
    )
    margins = project_margins(torch.tensor(rewards), gamma=gamma, tau=tau)
    assert margins.tolist() == pytest.approx(
        [gamma * (1 - 2 * best.x), gamma * (2 * best.x - 1)], abs=1e-5
    )


def test_equal_rewards_and_one_pair_alone_have_no_margin_of_gamma_po():
    assert project_margins(torch.full((5,), 7.0), gamma=4, tau=10).tolist() == pytest.approx(
        [0] * 5
    )
    assert project_margins(torch.tensor([-3.0]), gamma=4, tau=10).tolist() == [0]
    extreme = project_margins(torch.tensor([-1e5, 0.0, 1e5]), gamma=1e3, tau=1e-3)
    assert torch.isfinite(extreme).all()


def test_gamma_po_compares_a_batch_with_earlier_margins():
    state, batch = GammaPoState(), torch.tensor([1.0, 2.0])
    alone = gamma_po_margins(state, batch, gamma=4, tau=10, seed=0)
    assert alone.tolist() == pytest.approx(mirror_descent(np.array([1.0, 2.0]), 4, 10), abs=1e-6)
    assert state.rewards == [1, 2]
    both = gamma_po_margins(state, torch.tensor([5.0]), gamma=4, tau=10, seed=0)
    expected = mirror_descent(np.array([1.0, 2.0, 5.0]), 4, 10)[2]
    assert both.tolist() == pytest.approx([expected], abs=1e-6)
    for _ in range(9):
        margins = gamma_po_margins(state, torch.arange(300.0), gamma=4, tau=10, seed=0)
        assert len(margins) == 300  # more than 256: the queue is not asked
    assert len(state.rewards) == GAMMA_PO_QUEUE
    assert state.rewards[-1] == 299


def test_the_loss_of_gamma_po_is_the_one_by_hand(model_dir, tmp_path):
    trainer = make(model_dir, tmp_path, pairs(beta=BETAS), gamma_po=1.5, gamma_po_tau=2.0)
    shake(trainer)
    rewards = np.array([b * margin_by_hand(trainer, row) for row, b in enumerate(BETAS)])
    margins = mirror_descent(rewards, 1.5, 2.0)
    assert np.ptp(margins) > 1e-3
    loss, gradient = loss_and_gradient(trainer, range(8))
    assert loss.item() == pytest.approx(np.log1p(np.exp(margins - rewards)).mean(), abs=1e-5)
    assert trainer._state(GammaPoState).rewards == pytest.approx(rewards.tolist(), abs=1e-4)
    assert trainer._metrics["train"]["gamma_po/std"] == [pytest.approx(margins.std(), rel=1e-3)]
    assert gradient.abs().max() > 0


def test_the_posterior_of_re_po_is_bayes_rule():
    for z, eta in [(0.0, 0.9), (1.0, 0.9), (-3.0, 0.7), (2.5, 0.5)]:
        right, wrong = eta * expit(z), (1 - eta) * expit(-z)
        posterior = re_po_posterior(torch.tensor(z, dtype=torch.float64), eta).item()
        assert posterior == pytest.approx(right / (right + wrong), rel=1e-9)
    # An untrained policy says nothing: the label is as reliable as all labels.
    assert re_po_posterior(torch.zeros(1), 0.9).item() == pytest.approx(0.9)
    # By hand: s(1) = .7310586; .9 * .7310586 / (.9 * .7310586 + .1 * .2689414) = .960730.
    assert re_po_posterior(torch.ones(1), 0.9).item() == pytest.approx(0.960730, abs=1e-6)


def test_the_loss_of_re_po_is_the_one_of_its_paper(model_dir, tmp_path):
    trainer = make(model_dir, tmp_path, pairs(beta=BETAS), re_po=0.8)
    shake(trainer)
    p = expit(np.array([b * margin_by_hand(trainer, row) for row, b in enumerate(BETAS)]))
    w = 0.8 * p / (0.8 * p + 0.2 * (1 - p))
    loss, gradient = loss_and_gradient(trainer, range(8))
    expected = -(w * np.log(p) + (1 - w) * np.log(1 - p)).mean()
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    # The reliability is updated after the loss: the batch is judged by the earlier one.
    assert trainer._metrics["train"]["re_po/reliability"] == [0.8]
    assert trainer._state(RePoState).reliability == pytest.approx(
        0.9 * 0.8 + 0.1 * w.mean(), abs=1e-6
    )
    assert gradient.abs().max() > 0


def test_each_micro_batch_of_an_update_moves_the_reliability(model_dir, tmp_path):
    trainer = make(
        model_dir, tmp_path, pairs(beta=BETAS), re_po=0.8, max_steps=1, learning_rate=0.0,
        per_device_train_batch_size=2, gradient_accumulation_steps=4,
        train_sampling_strategy="sequential",
    )  # fmt: skip
    shake(trainer)
    z = np.array([b * margin_by_hand(trainer, row) for row, b in enumerate(BETAS)])
    trainer.train()
    assert trainer.state.global_step == 1
    eta = 0.8
    for part in z.reshape(4, 2):
        w = eta * expit(part) / (eta * expit(part) + (1 - eta) * expit(-part))
        eta = 0.9 * eta + 0.1 * w.mean()
    assert trainer._state(RePoState).reliability == pytest.approx(eta, abs=1e-6)


def test_labels_that_a_calibrated_policy_contradicts_lower_the_reliability():
    # Theorem 4.1 of the paper: with calibrated probabilities, eta converges to the truth.
    dice, state = np.random.default_rng(3), RePoState(0.95)
    truth = 0.7
    for _ in range(400):
        margins = np.abs(dice.normal(0, 4, 64))
        better = dice.random(64) < expit(margins)  # which of the two the model's side wins
        right = dice.random(64) < truth
        z = torch.tensor(np.where(better == right, margins, -margins))
        state.reliability += 0.1 * (
            re_po_posterior(z, state.reliability).mean().item() - state.reliability
        )
    assert state.reliability == pytest.approx(truth, abs=0.06)


@pytest.mark.parametrize("run", [{"gamma_po": 1.5}, {"re_po": 0.8}])
def test_a_resumed_run_keeps_the_queue_and_the_reliability(run, model_dir, tmp_path):
    run = run | {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 0.05}
    uninterrupted = make(model_dir, tmp_path, pairs(beta=BETAS), **run)
    expected, _ = train(uninterrupted)
    resumed = make(model_dir, tmp_path, pairs(beta=BETAS), **run)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    parameters = {name: p.detach().clone() for name, p in resumed.model.named_parameters()}
    assert_same(parameters, expected)
    kind = GammaPoState if "gamma_po" in run else RePoState
    assert resumed._state(kind).state() == uninterrupted._state(kind).state()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma_po": 1.0, "loss_type": ["ipo"]}, "gamma_po is defined for -log sigmoid(z), not"),
        ({"re_po": 0.9, "loss_type": ["robust"]}, "re_po is defined for -log sigmoid(z), not for"),
        ({"re_po": 1.0}, "re_po must be in [0.5, 1), or 0 for off, not 1.0"),
        ({"re_po": 0.3}, "re_po must be in [0.5, 1), or 0 for off, not 0.3"),
        ({"re_po": 0.9, "re_po_momentum": 0.0}, "re_po_momentum must be in (0, 1], not 0.0"),
        ({"re_po": 0.9, "label_smoothing": 0.1}, "re_po computes the label smoothing"),
        ({"re_po": 0.9, "pair_columns": ["label_smoothing"]}, "re_po computes the label smoothing"),
        ({"gamma_po_tau": 0.0}, "gamma_po_tau must be in (0, 1e+06], not 0.0"),
        ({"gamma_po": -1.0}, "gamma_po must be in [0, 1e+06], not -1.0"),
        (
            {"re_po": 0.9, "f_divergence_type": "js_divergence"},
            "re_po is not defined for f_divergence_type js_divergence",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        PairDPOConfig(str(tmp_path), bf16=False, use_cpu=True, **settings)
