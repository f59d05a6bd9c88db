"""What a formula for one beta does with the betas of a batch: each pair's number, or an error."""

import math
import operator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from trl import DPOTrainer

from sp2dpo.training.beta_proxy import BetaProxy
from sp2dpo.training.trainer import PairColumnsMixin
from support.training import BETAS, loss_and_gradient, make, margin_by_hand, pairs, shake

pytestmark = [
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
]

DOUBLES = [0.03, 0.3, 0.1]
X = torch.tensor([1.5, -2.0, 0.25])
WIDE = torch.arange(15.0).reshape(3, 5)
TWICE = torch.arange(12.0).reshape(6, 2)

FORMULAS = {
    "a square": lambda b: b**2 * X,
    "a sum": lambda b: (1 + b + 0.5) * X,
    "a difference": lambda b: (1 - b) * X - (b - 2) * X,
    "a quotient": lambda b: X / b + b / X + 1 / (2 * b) - b / 3,
    "a power": lambda b: X.abs() ** b + 2**b * X,
    "a tensor first": lambda b: X * b + X - b,
    "itself": lambda b: b * b / (1 + b) * X,
    "signs": lambda b: abs(-b) * X + (+b) * X,
    "a function of torch": lambda b: torch.where(X > 0, b, X) + torch.clamp(X, max=b),
    "a tensor of it": lambda b: torch.tensor(b) * X,
    "a tensor of tokens": lambda b: (b * WIDE).sum(dim=1) + WIDE.mul(b)[:, 1],
    "a scalar tensor": lambda b: (torch.tensor(2.0) * b - b) * X,
    "a comparison with a tensor": lambda b: torch.where(b >= X, 3.0, 1.0) + (b < X).float(),
    "numpy's numbers": lambda b: (np.float64(2) * b + b * np.float32(0.5)) * X,
    "in place": lambda b: X.clone().mul_(b),
    "double precision": lambda b: b * X.double(),
}


@pytest.mark.parametrize("formula", FORMULAS.values(), ids=FORMULAS.keys())
def test_a_formula_for_one_beta_gives_the_number_of_each_pair(formula):
    together = formula(BetaProxy(torch.tensor(DOUBLES, dtype=torch.float64)))
    assert together.shape == (3,)
    for row, beta in enumerate(DOUBLES):
        assert together[row].item() == pytest.approx(formula(beta)[row].item(), rel=1e-6)


def test_a_tensor_of_16_bits_does_not_round_the_betas():
    proxy = BetaProxy(torch.tensor(DOUBLES, dtype=torch.float64))
    assert torch.equal(proxy * X.half(), torch.tensor(DOUBLES) * X)


def test_the_sequences_of_trl_have_the_beta_of_their_pair():
    proxy = BetaProxy(torch.tensor(DOUBLES, dtype=torch.float64))
    by_hand = torch.tensor([*DOUBLES, *DOUBLES])[:, None] * TWICE
    assert torch.equal(proxy * TWICE, by_hand)


NEEDS_ONE = {
    "float": float,
    "int": int,
    "math.log": math.log,
    "math.sqrt": math.sqrt,
    "round": round,
    "a comparison": lambda b: b > 0.1,
    "an equality": lambda b: b == 0.1,
    "max": lambda b: max(b, 0.05),
    "a truth": lambda b: bool(b - 0.1),
    "a percent format": lambda b: operator.mod("%.2f", b),
    "a scalar argument": lambda b: F.softplus(X, beta=b),
    "an alpha": lambda b: torch.add(X, X, alpha=b),
    "a fill value": lambda b: torch.full((5,), b),
}


@pytest.mark.parametrize("formula", NEEDS_ONE.values(), ids=NEEDS_ONE.keys())
def test_what_needs_one_number_is_refused_if_the_pairs_differ(formula):
    with pytest.raises(TypeError, match=r"beta per pair"):
        formula(BetaProxy(torch.tensor(DOUBLES, dtype=torch.float64)))


@pytest.mark.parametrize("values", [[0.25], [0.25] * 3], ids=["one pair", "equal betas"])
def test_what_needs_one_number_gets_it_if_the_pairs_agree(values):
    proxy = BetaProxy(torch.tensor(values, dtype=torch.float64))
    assert (float(proxy), int(proxy), round(proxy, 1)) == (0.25, 0, 0.2)
    assert math.log(proxy) == math.log(0.25)
    assert max(proxy, 0.05) is proxy
    assert proxy
    assert proxy != 0.3
    for compare in (operator.le, operator.ge, operator.eq):
        assert compare(proxy, 0.25)


def test_a_comparison_is_answered_if_all_betas_are_on_one_side():
    proxy = BetaProxy(torch.tensor(DOUBLES, dtype=torch.float64))
    for value in (proxy > 0, proxy < 1, proxy != 2, bool(proxy)):
        assert value is True
    assert (proxy == "auto") is False
    assert hash(proxy) == hash(proxy)


def test_as_text_it_is_a_mean_or_a_range():
    proxy = BetaProxy(torch.tensor(DOUBLES, dtype=torch.float64))
    assert f"{proxy:.4f}" == f"{sum(DOUBLES) / 3:.4f}"
    assert f"{proxy}" == "3 betas from 0.03 to 0.3"


@pytest.mark.parametrize("shape", [(2,), (4, 3), (1, 3), (7,)])
def test_a_tensor_of_another_shape_is_refused(shape):
    proxy = BetaProxy(torch.tensor(DOUBLES, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"its first dimension must be the pairs \(3\)"):
        proxy * torch.ones(shape)
    with pytest.raises(TypeError, match=r"its first dimension must be the pairs \(3\)"):
        torch.ones(shape) - proxy


class Quadratic(DPOTrainer):
    """Somebody's own loss, written for one beta: -(1 + beta^2) log s(beta D)."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        output = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"],
            labels=labels, fused_lm_head=True, use_cache=False,
        )  # fmt: skip
        chosen, rejected = output.log_probs.sum(dim=1).chunk(2)
        d = chosen - rejected - (inputs["ref_chosen_logps"] - inputs["ref_rejected_logps"])
        return ((1 + self.beta**2) * -F.logsigmoid(self.beta * d)).mean()


class PairQuadratic(PairColumnsMixin, Quadratic):
    pass


def test_the_loss_of_a_subclass_is_that_of_every_pair(model_dir, tmp_path):
    trainer = make(model_dir, tmp_path, pairs(beta=BETAS), trainer=PairQuadratic)
    shake(trainer)
    loss, gradient = loss_and_gradient(trainer, range(8))
    by_hand = [
        (1 + b * b) * math.log1p(math.exp(-b * margin_by_hand(trainer, row)))
        for row, b in enumerate(BETAS)
    ]
    assert loss.item() == pytest.approx(sum(by_hand) / 8, abs=1e-5)
    assert gradient.abs().max() > 0


class Mean(DPOTrainer):
    """Somebody's own loss that needs one number."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return loss * float(self.beta)


class PairMean(PairColumnsMixin, Mean):
    pass


def test_a_subclass_that_needs_one_number_reads_what_to_do(model_dir, tmp_path):
    trainer = make(model_dir, tmp_path, pairs(beta=BETAS), trainer=PairMean)
    with pytest.raises(TypeError, match=r"float\(beta\) needs one number.*8 betas from 0.03 to 0"):
        loss_and_gradient(trainer, range(8))
    assert trainer.beta == 0.1
