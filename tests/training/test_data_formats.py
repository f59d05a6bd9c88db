"""Data sets with a format (torch, numpy, ...) and marked rows, wherever the trainer takes them."""

import pytest
from datasets import Dataset, IterableDataset

from sp2dpo.training.columns import apply_marks, column_values, without_format
from support.training import BETAS, PAIRS, build_model, conversations, make, pairs, shake, train

pytestmark = [
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
]

FORMATS = ("torch", "numpy", "pandas", "arrow", "polars")
MARKS = {"keep": [True, False, None, *[True] * 5], "flip": [None, False, True, True, *[False] * 4]}
ROWS = [0, 2, 3, 4, 5, 6, 7]


def marked_by_hand():
    texts = {name: [PAIRS[name][row] for row in ROWS] for name in PAIRS}
    for place in (1, 2):
        chosen, rejected = texts["chosen"][place], texts["rejected"][place]
        texts["chosen"][place], texts["rejected"][place] = rejected, chosen
    return Dataset.from_dict(texts | {"beta": [BETAS[row] for row in ROWS]})


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("formats")
    build_model(folder / "model")
    made = make(str(folder / "model"), folder, pairs(beta=BETAS))
    shake(made)
    return made


@pytest.fixture(scope="module")
def expected(trainer):
    return trainer.evaluate(pairs(beta=BETAS))["eval_loss"]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_format_changes_no_loss(trainer, expected, kind):
    data = pairs(beta=BETAS)
    assert trainer.evaluate(data.with_format(kind))["eval_loss"] == expected
    hidden = data.with_format(kind, columns=["beta"])  # the other columns are there all the same
    assert trainer.evaluate(hidden)["eval_loss"] == expected
    stream = data.to_iterable_dataset().with_format(kind)
    assert trainer.evaluate({"arm": stream})["eval_arm_loss"] == expected


def test_a_run_on_formatted_conversations_is_that_of_plain_ones(model_dir, tmp_path):
    data = Dataset.from_dict(conversations(beta=BETAS, label_smoothing=[0.1] * 8))
    run = {
        "pair_columns": ["beta", "label_smoothing"], "loss_type": ["exo_pair"], "max_steps": 2,
        "label_smoothing": 0.1, "precompute_ref_log_probs": True,
    }  # fmt: skip
    plain = train(make(model_dir, tmp_path, data, eval_dataset=data, **run))
    tensors = data.with_format("torch")
    formatted = make(model_dir, tmp_path, tensors, eval_dataset={"eval": tensors}, **run)
    assert formatted.train_dataset["beta"][:] == BETAS  # not those of float32
    parameters, logs = train(formatted)
    assert logs == plain[1]
    assert all((parameters[name] == value).all() for name, value in plain[0].items())


def test_reference_log_probs_in_a_format_are_used_as_they_are(model_dir, tmp_path):
    logps = {name: [-1.1] * 8 for name in ("ref_chosen_logps", "ref_rejected_logps")}
    data = pairs(beta=BETAS, **logps).with_format("numpy")
    made = make(model_dir, tmp_path, data, precompute_ref_log_probs=True)
    assert made.train_dataset["ref_chosen_logps"][:] == [-1.1] * 8


@pytest.mark.parametrize("kind", [None, "torch", "pandas"])
@pytest.mark.parametrize("stream", [False, True])
def test_marks_are_obeyed_by_evaluate(trainer, kind, stream):
    by_hand = marked_by_hand()
    # Trainer's mean over the batches of a stream counts an incomplete batch as a complete one.
    by_hand = trainer.evaluate(by_hand.to_iterable_dataset() if stream else by_hand)["eval_loss"]
    data = pairs(beta=BETAS, **MARKS).with_format(kind)
    data = data.to_iterable_dataset().with_format(kind) if stream else data
    assert trainer.evaluate(data)["eval_loss"] == by_hand
    assert trainer.evaluate({"arm": data, "plain": pairs(beta=BETAS)})["eval_arm_loss"] == by_hand


def test_marks_of_a_formatted_data_set_keep_the_digits_of_its_columns():
    data, counts = apply_marks(pairs(beta=BETAS, **MARKS).with_format("torch"), name="train")
    assert (counts.left_out, counts.flipped) == (1, 2)
    assert data["beta"][:] == [BETAS[row] for row in ROWS]


def test_a_transform_of_the_user_stays():
    shouted = pairs(beta=BETAS).with_transform(lambda rows: {"prompt": ["!"] * len(rows["prompt"])})
    assert without_format(shouted)[0] == {"prompt": "!"}
    assert column_values(shouted, "beta") == BETAS


def test_a_stream_without_marks_has_no_counts_and_may_be_empty():
    stream = pairs(beta=BETAS).to_iterable_dataset()
    assert apply_marks(stream, name="train") == (stream, None)
    empty = IterableDataset.from_generator(lambda: iter(()))
    assert apply_marks(empty, name="train") == (empty, None)


def test_a_stream_whose_rows_differ_in_their_marks_is_read():
    def rows():
        yield {"beta": 0.1, "chosen": "a", "rejected": "b", "flip": True}
        yield {"beta": 0.2, "chosen": "c", "rejected": "d"}

    data, counts = apply_marks(IterableDataset.from_generator(rows), name="train")
    assert counts is None
    assert [(row["chosen"], row["rejected"]) for row in data] == [("b", "a"), ("c", "d")]
