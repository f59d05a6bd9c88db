"""beta-DPO and AlphaDPO: what depends on the policy, by hand, resumed, and between processes."""

import math

import numpy as np
import pytest
import torch

from sp2dpo.training.online import (
    AlphaDpoState,
    BetaDpoState,
    RunningMoments,
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


def test_the_margin_of_alpha_dpo_is_the_one_by_hand(model_dir, tmp_path):
    trainer = make(model_dir, tmp_path, pairs(beta=BETAS), alpha_dpo=0.5)
    shake(trainer)
    loss, _ = loss_and_gradient(trainer, range(8))
    averages, margins = [], []
    for row in range(8):
        example = trainer.train_dataset[row]
        sums = {}
        for model in (trainer.model, trainer.ref_model):
            for answer in ("chosen_ids", "rejected_ids"):
                ids = torch.tensor([example["prompt_ids"] + example[answer]])
                with torch.no_grad():
                    logps = model(input_ids=ids).logits[0].log_softmax(-1)
                first = len(example["prompt_ids"])
                total = sum(logps[t - 1, ids[0, t]].item() for t in range(first, ids.shape[1]))
                sums[model is trainer.model, answer] = total
        ratio = {a: sums[True, a] - sums[False, a] for a in ("chosen_ids", "rejected_ids")}
        averages.append(sum(
            sign * ratio[a] / len(example[a])
            for sign, a in ((1, "chosen_ids"), (-1, "rejected_ids"))
        ))  # fmt: skip
        margins.append(ratio["chosen_ids"] - ratio["rejected_ids"])
    state = AlphaDpoState()
    state.update(torch.tensor(averages))
    by_hand = [
        math.log1p(math.exp(-(b * d - 0.5 * b * (a - state.mean) / state.std)))
        for b, d, a in zip(BETAS, margins, averages, strict=True)
    ]
    assert loss.item() == pytest.approx(sum(by_hand) / 8, abs=1e-5)


def test_evaluation_neither_filters_nor_moves_the_state(model_dir, tmp_path):
    run = {"beta_dpo": 0.6, "alpha_dpo": 0.5}
    trainer = make(model_dir, tmp_path, pairs(beta=BETAS), eval_dataset=pairs(beta=BETAS), **run)
    plain = make(model_dir, tmp_path, pairs(beta=BETAS), eval_dataset=pairs(beta=BETAS))
    shake(trainer)
    shake(plain)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], abs=1e-6)
    assert trainer._state(BetaDpoState).batches == 0


def test_a_run_that_is_resumed_goes_on_as_if_nothing_had_been(model_dir, tmp_path):
    run = {
        "beta_dpo": 0.6, "alpha_dpo": 0.5, "max_steps": 4, "save_strategy": "steps",
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
