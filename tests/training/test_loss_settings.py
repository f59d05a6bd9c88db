"""The columns beside TRL's other settings of the loss: sft, WPO, LD-DPO and f-divergences."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from trl import DPOTrainer

from sp2dpo.training.batch import make_batch
from sp2dpo.training.losses import LOSSES
from sp2dpo.training.reference import REFERENCE
from support.training import BETAS, build_model, loss_and_gradient, make, pairs, shake

pytestmark = [
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
]

WEIGHTS = [1.0, 0.5, 2.0, 0.0, 1.5, 0.25, 3.0, 0.75]
MARGINS = [0.0, 0.5, -0.5, 1.0, 0.1, 0.2, -0.2, 2.0]
SMOOTHING = [0.01, 0.1, 0.2, 0.3, 0.4, 0.05, 0.15, 0.25]
COLUMNS = {"beta": BETAS, "weight": WEIGHTS, "margin": MARGINS, "label_smoothing": SMOOTHING}
NEUTRAL = {"beta": [0.07] * 8, "weight": [1.0] * 8, "margin": [0.0] * 8}


@pytest.fixture(scope="module")
def trainers(tmp_path_factory):
    """Stock TRL's trainer and ours, with neutral and with telling columns; all weights alike."""
    folder = tmp_path_factory.mktemp("losses")
    build_model(folder / "model")
    run = {"use_weighting": True, "label_smoothing": 0.1, "beta": 0.07}
    data = {
        "stock": (pairs(), {"trainer": DPOTrainer}),
        "neutral": (pairs(**NEUTRAL), {"pair_columns": list(NEUTRAL)}),
        "ours": (pairs(**COLUMNS), {"pair_columns": list(COLUMNS)}),
    }
    made = {
        name: make(str(folder / "model"), folder / name, rows, **run, **options)
        for name, (rows, options) in data.items()
    }
    for trainer in made.values():
        shake(trainer)
    return made


def setting(trainers, monkeypatch, name, **changes):
    """The loss and the gradient of one of the trainers with these settings of TRL's."""
    plain = {"loss_types": ["sigmoid"], "use_weighting": False}
    for attribute, value in (plain | changes).items():
        monkeypatch.setattr(trainers[name], attribute, value)
    if "loss_weights" not in changes:
        shares = [1.0] * len(trainers[name].loss_types)
        monkeypatch.setattr(trainers[name], "loss_weights", shares)
    trainers[name]._guarded = {"train": 0, "eval": 0}  # compare with TRL's loss every time
    return loss_and_gradient(trainers[name], range(8))


DIVERGENCES = [
    {"f_divergence_type": "forward_kl"},
    {"f_divergence_type": "js_divergence"},
    {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3},
    {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.0},
]
SETTINGS = [
    {"loss_types": ["sigmoid", "sft"]},
    {"loss_types": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
    {"loss_types": ["sft"]},
    {"ld_alpha": 0.3, "loss_types": ["sigmoid_norm", "sft"]},
    *({"loss_types": [name], "ld_alpha": 0.3} for name in ("ipo", "apo_zero")),
    *({"use_weighting": True, "loss_types": [name]} for name in LOSSES if name != "hinge"),
    *(
        {"loss_types": [name, "sft"], **DIVERGENCES[number % 4]}
        for number, name in enumerate(
            ("sigmoid", "hinge", "ipo", "exo_pair", "robust", "discopop", "sigmoid_norm")
        )
    ),
    {"f_divergence_type": "js_divergence", "ld_alpha": 0.5, "use_weighting": True},
]


def named(values):
    return "-".join(str(value) for value in values.values()).replace(" ", "")


@pytest.mark.parametrize("changes", SETTINGS, ids=named)
def test_neutral_columns_give_the_loss_and_the_gradient_of_stock_trl(
    trainers, monkeypatch, changes
):
    loss, gradient = setting(trainers, monkeypatch, "stock", **changes)
    # The smoothing that is set for all pairs makes cDPO of `sigmoid`, which TRL does not do.
    for name in ("sigmoid", "sigmoid_norm"):
        if name in changes.get("loss_types", ["sigmoid"]):
            monkeypatch.setattr(trainers["neutral"].args, "label_smoothing", 0.0)
    ours, our_gradient = setting(trainers, monkeypatch, "neutral", **changes)
    assert ours.item() == pytest.approx(loss.item(), rel=1e-5, abs=1e-6)
    assert (our_gradient - gradient).abs().max() <= 1e-4 * gradient.abs().max()


def log_probs(trainer, row):
    """Log-probs of the tokens of both responses of a pair, for policy and reference."""
    example = trainer.train_dataset[row]
    parts = []
    for model in (trainer.model, trainer.ref_model):
        for answer in ("chosen_ids", "rejected_ids"):
            ids = torch.tensor([example["prompt_ids"] + example[answer]])
            with torch.no_grad():
                distribution = model(input_ids=ids).logits[0].log_softmax(-1)[:-1]
            scored = distribution[len(example["prompt_ids"]) - 1 :]
            target = ids[0, len(example["prompt_ids"]) :, None]
            parts.append((scored.gather(1, target)[:, 0], (2 * scored).logsumexp(dim=1)))
    return parts


def smoothed(z, eps):
    return -(1 - eps) * F.logsigmoid(z) - eps * F.logsigmoid(-z)


def by_hand(trainer, row, score=lambda u: u):
    """Loss of a pair without its weight, its parts, and the log-probs."""
    parts = log_probs(trainer, row)
    u, v = (parts[n][0].sum() - parts[n + 2][0].sum() for n in (0, 1))
    z = BETAS[row] * (score(u) - score(v)) - MARGINS[row]
    return smoothed(z, SMOOTHING[row]).item(), parts


def test_ld_alpha_sums_long_responses_to_the_bits_of_trl(trainers, monkeypatch):
    trainer = trainers["ours"]
    monkeypatch.setattr(trainer, "ld_alpha", 0.5)
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(4, 2001, dtype=torch.long)
    mask[2:, 900:] = 0
    inputs = {"input_ids": mask, "attention_mask": mask, "completion_mask": mask}
    output = SimpleNamespace(log_probs=-4 * torch.rand(4, 2000, generator=generator) * mask[:, 1:])
    theirs = DPOTrainer.compute_ref_log_probs(trainer, lambda **_: output, inputs)
    reference = dict(zip(REFERENCE, theirs, strict=True))
    batch = make_batch(output, inputs | reference, {}, beta=0.1, label_smoothing=0, ld_alpha=0.5)
    assert batch.ratios.difference.tolist() == [0.0, 0.0]


def test_a_weight_multiplies_the_preference_and_the_tokens_of_sft(trainers, monkeypatch):
    loss, _ = setting(
        trainers, monkeypatch, "ours", loss_types=["sigmoid", "sft"], loss_weights=[0.5, 2.0]
    )
    expected, nll, tokens = 0.0, 0.0, 0
    for row in range(8):
        value, parts = by_hand(trainers["ours"], row)
        expected += 0.5 * WEIGHTS[row] * value / 8
        nll -= WEIGHTS[row] * parts[0][0].sum().item()
        tokens += len(parts[0][0])
    assert loss.item() == pytest.approx(expected + 2.0 * nll / tokens, rel=1e-5)


def test_a_pair_of_weight_0_has_no_gradient_beside_sft(trainers, monkeypatch):
    setting(trainers, monkeypatch, "ours", loss_types=["sigmoid", "sft"])
    _, gradient = loss_and_gradient(trainers["ours"], [WEIGHTS.index(0)])
    assert gradient.abs().max() == 0


def test_a_weight_multiplies_wpos_factor(trainers, monkeypatch):
    loss, _ = setting(trainers, monkeypatch, "ours", use_weighting=True)
    expected = 0.0
    for row in range(8):
        value, parts = by_hand(trainers["ours"], row)
        factor = math.prod(math.exp((parts[n][0] - parts[n][1]).mean()) for n in (0, 1))
        expected += WEIGHTS[row] * factor * value / 8
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_a_margin_is_subtracted_from_beta_times_the_difference_of_scores(trainers, monkeypatch):
    loss, _ = setting(trainers, monkeypatch, "ours", f_divergence_type="forward_kl")
    expected = sum(
        WEIGHTS[row] * by_hand(trainers["ours"], row, lambda u: 1 - torch.exp(-u))[0] / 8
        for row in range(8)
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_hinge_with_wpo_trains_where_trl_cannot(trainers, monkeypatch):
    changes = {"use_weighting": True, "loss_types": ["hinge"]}
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        setting(trainers, monkeypatch, "stock", **changes)
    _, gradient = setting(trainers, monkeypatch, "neutral", **changes)
    assert gradient.abs().max() > 0


def test_slopes_go_through_the_scores_and_leave_sft_out(trainers, monkeypatch):
    slopes = {}
    for name, changes in (
        ("plain", {}),
        ("sft", {"loss_types": ["sigmoid", "sft"]}),
        ("kl", {"f_divergence_type": "forward_kl"}),
    ):
        gradients = trainers["ours"]._gradients["train"]
        gradients.clear()
        setting(trainers, monkeypatch, "ours", **{"f_divergence_type": "reverse_kl"} | changes)
        slopes[name] = gradients.metrics()
    assert slopes["sft"] == slopes["plain"]
    decile = "gradient_share/beta_decile_10"
    assert abs(slopes["kl"][decile] - slopes["plain"][decile]) > 1e-3
    gradients.clear()
    setting(trainers, monkeypatch, "ours", loss_types=["sft"])
    assert gradients.metrics() == {}  # no loss that compares the responses
