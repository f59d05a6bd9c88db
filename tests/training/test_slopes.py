"""Where the gradient goes: shares by beta and by category, by hand."""

import math

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from trl import DPOTrainer

from sp2dpo.training.gradients import GradientMetrics, inversion
from support.training import (
    BETAS,
    PAIRS,
    assert_same,
    make,
    margin_by_hand,
    shake,
    train,
    without_ours,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
]


def s(z):
    return 1 / (1 + math.exp(-z))


def test_the_order_of_gradients_inverts_where_both_ends_have_the_same():
    d = inversion(0.03, 0.3)
    assert d == pytest.approx(10.4, abs=0.05)
    assert 0.03 * s(-0.03 * d) == pytest.approx(0.3 * s(-0.3 * d), rel=1e-6)
    assert inversion(0.1, 0.1) == math.inf
    assert inversion(torch.tensor(0.03), torch.tensor(0.3)) == pytest.approx(d, rel=1e-6)
    far = inversion(1e-4, 5.0)
    assert 1e-4 * s(-1e-4 * far) == pytest.approx(5 * s(-5 * far), rel=1e-6)


def test_shares_are_of_all_pairs_since_the_last_log():
    slopes = GradientMetrics([n / 10 for n in range(1, 11)], ["safety", "style"])
    slopes.inverts_at = 10.4
    beta = torch.tensor([0.1, 1.0], dtype=torch.float64)
    ones = torch.ones(2).double()
    pairs = {"margin": torch.tensor([1.0, 20.0]).double(), "weight": ones, "factor": ones}
    slopes.add(
        beta=beta, slope=torch.tensor([0.01, 0.03]).double(), category=torch.tensor([0, 1]), **pairs
    )
    slopes.add(
        beta=beta, slope=torch.tensor([0.01, 0.0]).double(), category=torch.tensor([0, -1]), **pairs
    )
    metrics = slopes.metrics()
    assert metrics["gradient_share/beta_decile_01"] == pytest.approx(0.4)
    assert metrics["gradient_share/beta_decile_10"] == pytest.approx(0.6)
    assert metrics["gradient_share/category_safety"] == pytest.approx(0.4)
    assert metrics["accuracy/safety"] == 1
    assert metrics["pairs/inverted"] == 0.5
    assert metrics["pairs/saturated"] == 0.25
    slopes.clear()
    assert slopes.metrics() == {}


@pytest.mark.parametrize(
    ("run", "shown"),
    [
        ({"loss_type": ["sigmoid_norm"]}, True),
        ({"loss_type": ["ipo"]}, False),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}, False),
        ({"label_smoothing": 0.1}, False),
        ({"use_weighting": True}, False),
        ({"f_divergence_type": "js_divergence"}, False),
    ],
)
def test_an_inversion_is_logged_only_where_its_formula_holds(model_dir, tmp_path, run, shown):
    trainer = make(model_dir, tmp_path, Dataset.from_dict(PAIRS | {"beta": BETAS}), **run)
    slopes = trainer._gradients["train"]
    assert slopes.inverts_at == (pytest.approx(inversion(0.03, 0.3)) if shown else None)
    ones = torch.ones(2).double()
    slopes.add(beta=ones, margin=20 * ones, weight=ones, factor=ones, slope=ones, category=-ones)
    assert slopes.metrics().get("pairs/inverted") == (1.0 if shown else None)


def categorized_pairs():
    text, names = Value("string"), ["safety", "style", "none"]
    features = Features(dict.fromkeys(PAIRS, text) | {
        "beta": Value("float64"), "category": ClassLabel(names=names),
    })  # fmt: skip
    return Dataset.from_dict(
        PAIRS | {"beta": BETAS, "category": [0, 1, 0, 1, 0, 1, 0, None]}, features=features
    )


def test_a_run_logs_where_its_gradient_goes(model_dir, tmp_path):
    data = categorized_pairs()
    run = {"per_device_train_batch_size": 8, "max_steps": 1, "learning_rate": 0.0}
    trainer = make(model_dir, tmp_path, data, **run)
    shake(trainer)
    margins = [margin_by_hand(trainer, row) for row in range(8)]
    _, logs = train(trainer)
    slopes = [b * s(-b * d) for b, d in zip(BETAS, margins, strict=True)]
    categorized = slopes[:7]
    logged = logs[0]
    safety = sum(categorized[row] for row in (0, 2, 4, 6)) / sum(categorized)
    assert logged["gradient_share/category_safety"] == pytest.approx(safety, abs=1e-4)
    right = sum(margins[row] > 0 for row in (0, 2, 4, 6)) / 4
    assert logged["accuracy/safety"] == right
    assert "accuracy/none" not in logged
    deciles = [logged[f"gradient_share/beta_decile_{n:02}"] for n in range(1, 11)]
    assert sum(deciles) == pytest.approx(1)
    assert deciles[9] == pytest.approx(slopes[1] / sum(slopes), abs=1e-4)  # beta 0.3
    assert logged["pairs/inverted"] == sum(d > inversion(0.03, 0.3) for d in margins) / 8


@pytest.mark.parametrize("loss_type", ["sigmoid", "aot"])
def test_stock_dpo_on_a_data_set_with_categories_trains_the_same_and_logs_them(
    model_dir, tmp_path, loss_type
):
    data, run = categorized_pairs(), {"loss_type": [loss_type], "beta": 0.3}
    stock, stock_logs = train(make(model_dir, tmp_path, data, trainer=DPOTrainer, **run))
    ours = make(model_dir, tmp_path, data, pair_columns=[], shared_prompt=False, **run)
    parameters, logs = train(ours)
    assert_same(parameters, stock)
    assert without_ours(logs) == stock_logs
    logged = {name for entry in logs for name in entry}
    # A loss that sorts the batch has no value for each pair.
    assert {"accuracy/safety", "accuracy/style"} <= logged or loss_type == "aot"
    assert "gradient_share/beta_decile_01" not in logged
    for entry, theirs in zip(logs[:3], stock_logs[:3], strict=True):
        unscaled = pytest.approx(theirs["rewards/margins"] / 0.3, abs=1e-4)
        assert entry["margins/unscaled"] == unscaled
