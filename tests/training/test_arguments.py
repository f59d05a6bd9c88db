"""The trainer takes what DPOTrainer takes: arguments by position, streams, images, tokenizers."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from datasets import Dataset, DatasetDict
from PIL import Image
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from trl import DPOConfig, DPOTrainer

from sp2dpo.training.config import CAPTURES
from sp2dpo.training.trainer import PairColumnsMixin, PairDPOConfig, PairDPOTrainer
from support.training import (
    BETAS,
    assert_same,
    conversations,
    make,
    pairs,
    settings,
    train,
    without_ours,
)

pytestmark = [
    # TRL still uses the names that transformers 5.2x deprecates.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
]


class Forwarding(DPOTrainer):
    """Somebody's own trainer, which takes one argument more and passes the others on."""

    def __init__(self, *args, extra=0, **kwargs):
        super().__init__(*args, **kwargs)
        self.extra = extra


class PairForwarding(PairColumnsMixin, Forwarding):
    pass


class Fixed(DPOTrainer):
    """Somebody's own trainer, which takes no evaluation set."""

    def __init__(self, model, args, train_dataset):
        super().__init__(model, args=args, train_dataset=train_dataset)


class PairFixed(PairColumnsMixin, Fixed):
    pass


def test_a_constructor_with_fewer_arguments_gets_its_own(model_dir, tmp_path):
    trainer = PairFixed(
        model_dir, PairDPOConfig(**settings(tmp_path, max_steps=1)), pairs(beta=BETAS)
    )
    train(trainer)
    assert trainer.state.global_step == 1


@pytest.mark.parametrize("trainer", [PairDPOTrainer, PairForwarding])
def test_arguments_are_taken_by_position(model_dir, tmp_path, trainer):
    args = PairDPOConfig(**settings(tmp_path, max_steps=1))
    data, held_out = pairs(beta=BETAS), pairs(beta=BETAS).select(range(3))
    more = {"extra": 3} if trainer is PairForwarding else {}
    by_position = trainer(model_dir, None, args, None, data, held_out, **more)
    assert len(by_position.eval_dataset) == 3
    assert getattr(by_position, "extra", 3) == 3
    by_keyword = PairDPOTrainer(
        model=model_dir, args=args, train_dataset=data, eval_dataset=held_out
    )
    assert_same(train(by_position)[0], train(by_keyword)[0])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (range(99), {}, "up to 1[0-9] arguments by position .model, ref_model, args"),
        (["m"], {"model": "m"}, "the argument model is given twice"),
        (["m"], {"args": DPOConfig}, "not a DPOConfig, .* write PairDPOConfig"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, arguments, options, message):
    if options.get("args"):
        options = {"args": DPOConfig(**settings(tmp_path)), "train_dataset": pairs(beta=BETAS)}
    with pytest.raises(TypeError, match=message):
        PairDPOTrainer(*arguments, **options)


def test_a_config_of_the_users_own_is_told_its_parent(tmp_path):
    class Mine(DPOConfig):
        pass

    with pytest.raises(TypeError, match="let Mine inherit from PairDPOConfig in place of DPOC"):
        PairDPOTrainer("m", args=Mine(**settings(tmp_path)), train_dataset=pairs(beta=BETAS))


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        (None, ValueError, "`train_dataset` is required"),
        ([{}], TypeError, "`train_dataset` must be a `Dataset` or `IterableDataset`, not a list"),
        (DatasetDict(a=pairs(), b=pairs()), TypeError, "not a DatasetDict: pass one of a, b"),
    ],
)
def test_a_training_set_of_another_kind_is_refused(tmp_path, dataset, error, message):
    args = PairDPOConfig(**settings(tmp_path))
    with pytest.raises(error, match=message):
        PairDPOTrainer("no-such-model", args=args, train_dataset=dataset)


def test_a_list_is_no_data_set_for_evaluation(model_dir, tmp_path):
    with pytest.raises(TypeError, match="the eval data set must be a `Dataset` or `Iterable"):
        make(model_dir, tmp_path, pairs(beta=BETAS), eval_dataset=[{}])


@pytest.mark.parametrize("beta", [[], ["beta"]], ids=["stock", "per pair"])
def test_without_args_the_column_beta_is_applied_if_there_is_one(
    model_dir, tmp_path, monkeypatch, caplog, beta
):
    monkeypatch.chdir(tmp_path)
    # The default is bf16, which transformers refuses on a CPU that it was not told to use.
    monkeypatch.setattr(transformers.training_args, "is_torch_bf16_gpu_available", lambda: True)
    with caplog.at_level(logging.WARNING, logger="sp2dpo.training.trainer"):
        trainer = PairDPOTrainer(model_dir, train_dataset=pairs(beta=BETAS) if beta else pairs())
    assert trainer.args.pair_columns == beta
    assert trainer.args.output_dir.endswith("-DPO")
    assert ("no column beta: this is stock DPO" in caplog.text) == (not beta)
    assert ("sp2dpo" in trainer.model.model_tags) == bool(beta)
    assert {"trl", "dpo"} <= set(trainer.model.model_tags)


def test_the_reference_of_a_stream_cannot_be_computed_in_advance(model_dir, tmp_path):
    run = {"precompute_ref_log_probs": True}
    stream = pairs(beta=BETAS).to_iterable_dataset()
    with pytest.raises(ValueError, match=r"IterableDataset, .* the train data set"):
        make("no-such-model", tmp_path, stream, **run)
    for held_out in (stream, {"held_out": stream}):
        with pytest.raises(ValueError, match="not supported with IterableDataset"):
            make(model_dir, tmp_path, pairs(beta=BETAS), eval_dataset=held_out, **run)


def test_a_stream_may_bring_its_reference_log_probs(model_dir, tmp_path):
    run = {"precompute_ref_log_probs": True, "max_steps": 2}
    given = {"ref_chosen_logps": [-8.5] * 8, "ref_rejected_logps": [-9.0] * 8}
    stream = pairs(beta=BETAS, **given).to_iterable_dataset()
    trainer = make(model_dir, tmp_path, stream, **run)
    batch = trainer.data_collator([next(iter(trainer.train_dataset))])
    assert batch["ref_chosen_logps"].tolist() == [-8.5]
    train(trainer)


@pytest.mark.parametrize("given", ["name", "model"])
def test_a_tokenizer_that_is_given_replaces_one_that_the_model_lacks(model_dir, tmp_path, given):
    bare = shutil.copytree(model_dir, tmp_path / "bare")
    for path in bare.glob("*token*"):
        path.unlink()
    model = str(bare) if given == "name" else LlamaForCausalLM.from_pretrained(bare)
    trainer = PairDPOTrainer(
        model,
        args=PairDPOConfig(**settings(tmp_path)),
        train_dataset=Dataset.from_dict(conversations(beta=BETAS)),
        processing_class=AutoTokenizer.from_pretrained(model_dir),
    )
    stock = make(model_dir, tmp_path, pairs(beta=BETAS))
    assert trainer.train_dataset.column_names != stock.train_dataset.column_names
    assert trainer.train_dataset[0]["prompt_ids"] != stock.train_dataset[0]["prompt_ids"]


class Dropping(DPOTrainer):
    """Somebody's own trainer, which leaves TRL's columns alone in the data set."""

    def _prepare_dataset(self, *args, **kwargs):
        prepared = super()._prepare_dataset(*args, **kwargs)
        return prepared.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"])


class PairDropping(PairColumnsMixin, Dropping):
    pass


def test_a_column_that_a_subclass_drops_is_named(model_dir, tmp_path):
    with pytest.raises(ValueError, match="_prepare_dataset of the trainer drops the column beta"):
        make(model_dir, tmp_path, pairs(beta=BETAS), trainer=PairDropping)


if CAPTURES:  # the oldest TRL has no images in DPO's collator

    @pytest.fixture(scope="module")
    def vision_model(model_dir, tmp_path_factory):
        """A folder with a random Llava of two tiny layers, and its processor."""
        folder = str(tmp_path_factory.mktemp("vision"))
        tokenizer = AutoTokenizer.from_pretrained(model_dir)
        tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
        LlavaProcessor(
            image_processor=CLIPImageProcessor(
                size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
            ),
            tokenizer=tokenizer,
            patch_size=8,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template="{% for m in messages %}{{ m['role'] }}: {% for part in m['content'] %}"
            "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}<eos>"
            "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}",
        ).save_pretrained(folder)
        torch.manual_seed(0)
        tiny = {
            "hidden_size": 16, "intermediate_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 2,
        }  # fmt: skip
        LlavaForConditionalGeneration(
            LlavaConfig(
                vision_config=CLIPVisionConfig(image_size=16, patch_size=8, **tiny),
                text_config=LlamaConfig(vocab_size=len(tokenizer), pad_token_id=0, **tiny),
                image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            )
        ).save_pretrained(folder)
        return folder

    def with_images(**columns):
        images = [[Image.new("RGB", (16, 16), (20 * n, 0, 0))] for n in range(8)]
        return Dataset.from_dict(conversations(images=images, **columns))

    @pytest.mark.parametrize("columns", [{}, {"beta": [0.1] * 8}], ids=["stock", "uniform"])
    def test_a_vision_language_model_trains_like_stock_trl(vision_model, tmp_path, columns):
        run = {"max_length": None, "per_device_train_batch_size": 2, "beta": 0.1}
        stock = make(vision_model, tmp_path, with_images(), trainer=DPOTrainer, **run)
        ours = make(vision_model, tmp_path, with_images(**columns), pair_columns=[*columns], **run)
        stock_parameters, stock_logs = train(stock)
        our_parameters, our_logs = train(ours)
        assert_same(our_parameters, stock_parameters)
        assert without_ours(our_logs) == stock_logs

    def test_a_model_of_texts_refuses_images_and_one_of_images_a_missing_prompt(
        vision_model, model_dir, tmp_path
    ):
        with pytest.raises(ValueError, match=r"8 of 8 rows of the train data set have images"):
            make(model_dir, tmp_path, with_images(beta=BETAS))
        with pytest.raises(ValueError, match="has images and no column prompt"):
            make(vision_model, tmp_path, with_images(beta=BETAS).remove_columns("prompt"))


def test_a_stream_that_is_saved_by_epochs_has_them(model_dir, tmp_path):
    stream = pairs(beta=BETAS).to_iterable_dataset()
    changes = {"save_strategy": "epoch", "max_steps": 4, "per_device_train_batch_size": 4}
    trainer = make(model_dir, tmp_path, stream, **changes)
    trainer.train()
    saved = {path.name for path in Path(trainer.args.output_dir).glob("checkpoint-*")}
    assert saved == {"checkpoint-2", "checkpoint-4"}
