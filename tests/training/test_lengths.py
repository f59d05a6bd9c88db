"""What a length limit cuts, counted by hand."""

import logging

import pytest
from datasets import Dataset

from sp2dpo.training.config import PairDPOConfig
from sp2dpo.training.lengths import measure_lengths
from support.training import make, pairs


def prepared(*lengths):
    """Rows with so many tokens in prompt, chosen and rejected."""
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = zip(*lengths, strict=True)
    return Dataset.from_dict(
        {name: [[1] * n for n in column] for name, column in zip(names, rows, strict=True)}
    )


def test_pairs_cut_at_their_end_are_counted_with_the_tokens_that_are_lost():
    report = measure_lengths(
        prepared((4, 2, 2), (4, 8, 2), (10, 3, 1), (3, 7, 7)), 10, "keep_start"
    )
    assert (report.pairs, report.cut, report.emptied) == (4, 2, 1)
    # 2 tokens of the second pair, and all 24 of the third, which is dropped.
    assert report.tokens_lost == pytest.approx((2 + 24) / (12 + 18 + 24 + 20))
    assert (report.keeps_99_percent, report.keeps_all) == (13, 13)
    assert report.sentence(12) == (
        "max_length 10 cuts 2 of 4 pairs at their end (50 %), of which 1 are dropped, whose prompt"
        " alone fills it, and loses 35.1 % of the tokens; max_length 13 would keep 99 % of the"
        " pairs whole, 13 all of them (the model's context has 12)"
    )


def test_pairs_cut_at_their_beginning_lose_prompts():
    report = measure_lengths(prepared((4, 2, 2), (4, 10, 2), (3, 8, 1)), 10, "keep_end")
    assert (report.cut, report.emptied) == (2, 1)
    assert report.tokens_lost == pytest.approx((4 + 1) / (12 + 20 + 15))


def test_nothing_is_logged_if_nothing_is_cut_and_99_percent_may_be_whole_already():
    assert measure_lengths(prepared((4, 2, 2)), 6, "keep_start").sentence(None) == ""
    many = measure_lengths(prepared(*[(1, 1, 1)] * 99, (1, 50, 1)), 10, "keep_start")
    assert (many.keeps_99_percent, many.keeps_all) == (2, 51)
    assert many.sentence(None).endswith("; max_length 51 all of them")


def test_a_trainer_logs_the_sentence_once_and_drops_what_trl_drops(model_dir, tmp_path, caplog):
    PairDPOConfig(output_dir="unused", bf16=False)
    texts = {"prompt": ["a" * 20, "b", "c"], "chosen": ["d", "e" * 30, "f"], "rejected": ["g"] * 3}
    with caplog.at_level(logging.WARNING):
        trainer = make(
            model_dir, tmp_path, Dataset.from_dict(texts | {"beta": [0.1] * 3}), max_length=20
        )
    (message,) = [r.getMessage() for r in caplog.records if "max_length" in r.getMessage()]
    assert "the train data set: max_length 20 cuts 2 of 3 pairs" in message
    assert "of which 1 are dropped" in message
    assert trainer.train_dataset["prompt"][:] == ["b", "c"]
    assert trainer.length_reports["train"].keeps_all == 32
    whole = make(model_dir, tmp_path, pairs(beta=[0.1] * 8), max_length=200)
    assert whole.length_reports["train"].cut == 0
