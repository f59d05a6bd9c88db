"""Weight, margin and label smoothing for every pair: by hand, and held to TRL."""

import math
import re

import pytest
import torch
from datasets import Dataset
from trl import DPOTrainer

from sp2dpo.training.columns import PAIR_COLUMNS, PairCollator
from sp2dpo.training.losses import LOSSES, OF_Z, SORTING, LogRatios, Pairwise, accepted_columns
from sp2dpo.training.trainer import PairDPOConfig
from support.harness import ROOT
from support.training import (
    BETAS,
    PAIRS,
    PairDoubled,
    loss_and_gradient,
    make,
    margin_by_hand,
    pairs,
    settings,
    shake,
    train,
    without_ours,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
]

WEIGHTS = [1.0, 0.5, 2.0, 0.0, 1.5, 0.25, 3.0, 0.75]
MARGINS = [0.0, 0.5, -0.5, 1.0, 0.1, 0.2, -0.2, 2.0]
SMOOTHING = [0.0, 0.1, 0.2, 0.3, 0.4, 0.05, 0.15, 0.25]
ALL = ["beta", "weight", "margin", "label_smoothing"]


def full():
    return pairs(beta=BETAS, weight=WEIGHTS, margin=MARGINS, label_smoothing=SMOOTHING)


def log_sigmoid(z):
    return -math.log1p(math.exp(-z))


def test_the_loss_of_the_family_is_the_one_by_hand(model_dir, tmp_path):
    trainer = make(model_dir, tmp_path, full(), pair_columns=ALL)
    shake(trainer)
    loss, gradient = loss_and_gradient(trainer, range(8))
    by_hand = []
    for row in range(8):
        z = BETAS[row] * margin_by_hand(trainer, row) - MARGINS[row]
        eps = SMOOTHING[row]
        pair_loss = -(1 - eps) * log_sigmoid(z) - eps * log_sigmoid(-z)
        by_hand.append(WEIGHTS[row] * pair_loss)
    assert loss.item() == pytest.approx(sum(by_hand) / 8, abs=1e-5)
    singles = [loss_and_gradient(trainer, [row]) for row in range(8)]
    assert loss.item() == pytest.approx(sum(single[0].item() for single in singles) / 8, abs=1e-6)
    assert (gradient - sum(single[1] for single in singles) / 8).abs().max() < 1e-6
    assert singles[3][1].abs().max() == 0  # its weight is 0


@pytest.mark.parametrize("loss_type", sorted(LOSSES))
def test_weights_of_1_train_like_stock_trl(model_dir, tmp_path, loss_type):
    smoothing = 0.1 if loss_type in ("exo_pair", "robust") else 0.0
    loss = {"loss_type": [loss_type], "label_smoothing": smoothing}
    # AdamW's first steps have the size of the learning rate, however small a gradient is: they
    # would show the last bits in which a shared prompt differs.
    loss |= {"optim": "sgd", "learning_rate": 0.1}
    stock = make(model_dir, tmp_path, pairs(), trainer=DPOTrainer, beta=0.07, **loss)
    uniform = pairs(beta=[0.07] * 8, weight=[1.0] * 8)
    ours = make(model_dir, tmp_path, uniform, pair_columns=["beta", "weight"], beta=0.9, **loss)
    stock_parameters, stock_logs = train(stock)
    our_parameters, our_logs = train(ours)
    for name, expected in stock_parameters.items():
        assert torch.allclose(our_parameters[name], expected, atol=1e-6), name
    for own, theirs in zip(without_ours(our_logs), stock_logs, strict=True):
        assert own == pytest.approx(theirs, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("loss_type", ["ipo", "sppo_hard", "sigmoid"])
@pytest.mark.parametrize("beta", [0.07, 0.013, 0.3])
def test_a_beta_column_gives_stock_trls_bits_at_any_beta(
    model_dir,
    tmp_path,
    loss_type,
    beta,
):
    loss = {"loss_type": [loss_type]}
    stock = make(model_dir, tmp_path, pairs(), trainer=DPOTrainer, beta=beta, **loss)
    uniform = pairs(beta=[beta] * 8)
    ours = make(model_dir, tmp_path, uniform, beta=0.9, shared_prompt=False, **loss)
    stock_parameters, stock_logs = train(stock)
    our_parameters, our_logs = train(ours)
    assert all(torch.equal(our_parameters[n], p) for n, p in stock_parameters.items())
    assert without_ours(our_logs) == stock_logs


@pytest.mark.parametrize("loss_type", sorted(LOSSES))
@pytest.mark.parametrize("column", PAIR_COLUMNS)
def test_each_column_is_taken_or_refused_by_each_loss(tmp_path, loss_type, column):
    config = settings(tmp_path, loss_type=[loss_type], pair_columns=[column])
    if column in accepted_columns(loss_type):
        assert PairDPOConfig(**config).pair_columns == [column]
    else:
        with pytest.raises(ValueError, match=rf"loss_type {loss_type} .* a {column} per pair"):
            PairDPOConfig(**config)


@pytest.mark.parametrize("loss_type", ["aot", "aot_unpaired"])
def test_losses_that_are_no_sum_over_pairs_take_no_weight(tmp_path, loss_type):
    with pytest.raises(ValueError, match=f"loss_type {loss_type} .* a weight per pair"):
        PairDPOConfig(**settings(tmp_path, loss_type=[loss_type], pair_columns=["weight"]))


@pytest.mark.parametrize("loss_type", [["sigmoid", "sft"], ["sigmoid", "bco_pair", "sft"]])
@pytest.mark.parametrize(
    "setting", [{}, {"ld_alpha": 0.5}, {"beta_dpo": 0.6}, {"label_smoothing": 0.1}]
)
def test_rpo_and_mpo_take_every_column(tmp_path, loss_type, setting):
    config = settings(tmp_path, loss_type=loss_type, pair_columns=ALL, **setting)
    assert PairDPOConfig(**config).needs_pair_losses


def test_the_table_of_the_recipes_is_what_is_taken():
    text = (ROOT / "docs" / "train.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|(.+)\|$", text.split("## Columns and losses")[1], re.M)
    documented = {
        name: [column for column, cell in zip(PAIR_COLUMNS, cells.split("|"), strict=True)
               if cell.strip() == "yes"]
        for name, cells in rows
        if name in (*LOSSES, *SORTING, "sft")
    }  # fmt: skip
    assert set(documented) == {*LOSSES, "sft", "aot", "aot_unpaired"}
    assert all(list(accepted_columns(name)) == columns for name, columns in documented.items())


@pytest.mark.parametrize("loss_type", OF_Z)
def test_a_margin_shifts_z(loss_type):
    """A margin of beta d is what a D that is smaller by d does."""
    ratios = LogRatios(
        chosen=torch.tensor([3.0, -1.0]),
        rejected=torch.tensor([1.0, 0.5]),
        chosen_length=torch.ones(2),
        rejected_length=torch.ones(2),
    )
    shifted_ratios = LogRatios(
        chosen=ratios.chosen - 0.7,
        rejected=ratios.rejected,
        chosen_length=torch.ones(2),
        rejected_length=torch.ones(2),
    )
    beta, eps = torch.tensor([0.1, 0.3]), torch.full((2,), 0.1)
    with_margin = Pairwise(beta=beta, margin=0.7 * beta, label_smoothing=eps, tau=0.05)
    without = Pairwise(beta=beta, margin=torch.zeros(2), label_smoothing=eps, tau=0.05)
    loss = LOSSES[loss_type]
    assert torch.allclose(loss(ratios, with_margin), loss(shifted_ratios, without), atol=1e-6)


def test_the_global_label_smoothing_makes_sigmoid_cdpo(model_dir, tmp_path):
    trainer = make(model_dir, tmp_path, pairs(), pair_columns=[], beta=0.2, label_smoothing=0.1)
    shake(trainer)
    loss, _ = loss_and_gradient(trainer, range(8))
    by_hand = []
    for row in range(8):
        z = 0.2 * margin_by_hand(trainer, row)
        by_hand.append(-0.9 * log_sigmoid(z) - 0.1 * log_sigmoid(-z))
    assert loss.item() == pytest.approx(sum(by_hand) / 8, abs=1e-5)


def test_a_trainer_with_another_loss_is_found_out(model_dir, tmp_path):
    trainer = make(
        model_dir, tmp_path, full(), trainer=PairDoubled, pair_columns=["beta", "weight"]
    )
    with pytest.raises(
        RuntimeError, match=r"gives the loss 1\.386\d+ where 0\.693\d+ was expected"
    ):
        train(trainer)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"weight": [*[1.0] * 7, -0.1]},
            "1 of 8 values of weight .* not finite float32 numbers, 0 or more",
        ),
        (
            {"margin": [*[1.0] * 7, math.inf]},
            "1 of 8 values of margin .* the first is inf in row 7",
        ),
        ({"label_smoothing": [0.5] * 8}, "8 of 8 values of label_smoothing .* below 0.5"),
        ({"weight": [1e300, *[1.0] * 7]}, "1 of 8 values of weight .* the first is 1e[+]300"),
        ({"weight": [*[1.0] * 7, 1e-60]}, "1 of 8 values of weight .* the first is 1e-60"),
        ({"margin": [0.0, -1e39, *[1.0] * 6]}, "1 of 8 values of margin .* the first is -1e[+]39"),
        ({"weight": [None, *[1.0] * 7]}, "1 of 8 rows .* have no weight, the first is row 0"),
    ],
)
def test_values_that_break_their_rule_are_refused(tmp_path, columns, message):
    with pytest.raises(ValueError, match=message):
        make("no-such-model", tmp_path, pairs(**columns), pair_columns=[*columns])


@pytest.mark.parametrize("z", [-1e4, -300.0, -120.0, -88.0, 0.0, 3.0, 120.0])
def test_discopop_is_finite_for_every_margin(z):
    difference = torch.tensor([z], requires_grad=True)
    ratios = LogRatios(
        chosen=difference, rejected=torch.zeros(1), chosen_length=torch.ones(1),
        rejected_length=torch.ones(1),
    )  # fmt: skip
    one, none = torch.ones(1), torch.zeros(1)
    loss = LOSSES["discopop"](
        ratios, Pairwise(beta=one, margin=none, label_smoothing=none, tau=0.05)
    )
    loss.sum().backward()
    blend = 1 / (1 + math.exp(-z / 0.05)) if z > -30 else 0.0
    by_hand = math.log1p(math.exp(-z)) * (1 - blend) if z > -700 else -z
    by_hand += blend * math.exp(-z) if blend else 0.0
    assert loss.item() == pytest.approx(by_hand, rel=1e-5, abs=1e-30)
    assert torch.isfinite(difference.grad).all()


@pytest.mark.parametrize("value", [0.5, 0.7, -0.1, math.nan])
def test_a_label_smoothing_for_all_pairs_has_the_limits_of_the_column(tmp_path, value):
    with pytest.raises(ValueError, match=f"label_smoothing must be .* below 0.5, not {value}"):
        PairDPOConfig(**settings(tmp_path, label_smoothing=value))


@pytest.mark.parametrize("eps", [0.0, 1e-46, 1e-300])
def test_exo_refuses_the_smoothing_of_a_stream_that_is_0_in_float32(eps):
    collator = PairCollator(lambda rows: {}, ("label_smoothing",), exo=True)
    with pytest.raises(ValueError, match="exo_pair needs a label_smoothing above 0"):
        collator([{"label_smoothing": 0.1}, {"label_smoothing": eps}])
    assert PairCollator(lambda rows: {}, ("label_smoothing",))([{"label_smoothing": eps}])


def test_rows_without_a_value_are_dropped_or_made_neutral(model_dir, tmp_path):
    data = pairs(beta=[None, *BETAS[1:]], weight=[2.0, None, *[1.0] * 6])
    run = {"pair_columns": ["beta", "weight"]}
    dropped = make(model_dir, tmp_path, data, missing_values="drop", **run)
    assert len(dropped.train_dataset) == 6
    assert dropped.rows_without_beta == {"train": 2}
    filled = make(model_dir, tmp_path, data, missing_values="constant", beta=0.2, **run)
    assert filled.train_dataset["beta"][0] == 0.2
    assert filled.train_dataset["weight"][:2] == [2.0, 1.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"use_weighting": True, "loss_type": ["sigmoid", "sft"]},
            "use_weighting fails in TRL with the loss_type sft",
        ),
        (
            {"pair_columns": ["margin"], "loss_type": ["ipo", "sft"]},
            "loss_type ipo is not a function of beta D alone, so a margin per pair",
        ),
        (
            {"pair_columns": ["margin"], "loss_type": ["sft"]},
            "loss_type sft is not a function of beta D alone",
        ),
        ({"loss_type": ["sigmoid", "aot"]}, "loss_type aot sorts the batch"),
        ({"beta_dpo": -1.0}, "beta_dpo must be in [0, 1e+06], not -1.0"),
        ({"alpha_dpo": 0.1}, "loss_type sigmoid sums over tokens: set loss_type: [sigmoid_norm]"),
        ({"alpha_dpo_gamma": 0.1}, "alpha_dpo_gamma: 0.1 acts with alpha_dpo only"),
        (
            {
                "alpha_dpo": 0.1,
                "loss_type": ["sigmoid_norm"],
                "f_divergence_type": "js_divergence",
            },
            "alpha_dpo is not defined for f_divergence_type js_divergence",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        PairDPOConfig(**settings(tmp_path, **({"pair_columns": ["weight"]} | change)))


def test_exo_takes_no_smoothing_of_0(tmp_path):
    data = Dataset.from_dict(PAIRS | {"label_smoothing": SMOOTHING})
    run = {"pair_columns": ["label_smoothing"], "loss_type": ["exo_pair"], "label_smoothing": 0.1}
    with pytest.raises(ValueError, match="exo_pair needs a label_smoothing above 0"):
        make("no-such-model", tmp_path, data, **run)


def test_eight_times_one_pair_accumulates_to_one_batch(model_dir, tmp_path):
    run = {"optim": "sgd", "pair_columns": ALL}
    one_batch = make(model_dir, tmp_path, full(), per_device_train_batch_size=8, **run)
    single = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    eight_steps = make(model_dir, tmp_path, full(), **single, **run)
    shake(one_batch)
    shake(eight_steps)
    left, left_logs = train(one_batch)
    right, right_logs = train(eight_steps)
    for name in left:
        assert torch.allclose(left[name], right[name], atol=1e-6), name
    for key in ("loss", "weight/mean", "pairs/saturated"):
        assert left_logs[0][key] == pytest.approx(right_logs[0][key], abs=1e-4), key


def test_reference_log_probs_that_are_there_are_not_computed_again(
    model_dir,
    tmp_path,
    monkeypatch,
):
    run = {"precompute_ref_log_probs": True}
    first = make(model_dir, tmp_path, pairs(beta=BETAS), **run)
    columns = {
        name: first.train_dataset[name][:] for name in ("ref_chosen_logps", "ref_rejected_logps")
    }
    expected, logs = train(first)
    calls = []
    monkeypatch.setattr(
        DPOTrainer, "compute_ref_log_probs", lambda *_: calls.append(1), raising=True
    )
    swept = make(model_dir, tmp_path, pairs(beta=BETAS, **columns), **run)
    parameters, swept_logs = train(swept)
    assert calls == []
    assert all(torch.equal(parameters[name], expected[name]) for name in expected)
    assert swept_logs == logs


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"ref_chosen_logps": [-1.0] * 8},
            "ref_chosen_logps but not ref_rejected_logps: provide both",
        ),
        (
            {"ref_chosen_logps": [-1.0] * 8, "ref_rejected_logps": [*[-1.0] * 7, 0.5]},
            "1 of 8 values of ref_rejected_logps .* the first is 0.5 in row 7",
        ),
        (
            {"ref_chosen_logps": [-1.0] * 8, "ref_rejected_logps": [math.nan] * 8},
            "8 of 8 values of ref_rejected_logps .* not log-probabilities",
        ),
    ],
)
def test_reference_log_probs_that_are_none_are_refused(
    model_dir,
    tmp_path,
    columns,
    message,
):
    with pytest.raises(ValueError, match=message):
        make(model_dir, tmp_path, pairs(beta=BETAS, **columns), precompute_ref_log_probs=True)
