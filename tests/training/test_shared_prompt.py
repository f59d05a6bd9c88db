"""The prompt of a pair is computed once: the numbers are those of TRL's own forward pass."""

import copy
import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaModel
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import add_fused_lm_head

from sp2dpo.training.columns import PairCollator
from sp2dpo.training.exactness import reason_against
from sp2dpo.training.pair_rows import group_rows, plan_rows
from sp2dpo.training.shared_prompt import (
    PAIR_ROWS,
    PER_TOKEN,
    run_groups,
    share_prompts,
)
from sp2dpo.training.trainer import PairDPOConfig, PairDPOTrainer
from support.precision import deviations
from support.training import (
    BETAS,
    assert_same,
    loss_and_gradient,
    make,
    pairs,
    settings,
    shake,
    train,
    without_ours,
)

pytestmark = [
    # TRL still uses the names that transformers 5.2x deprecates.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The `'keep_end'` truncation mode:FutureWarning"),
]

TOKENS = 7
"""Few, so that responses often begin alike, and the padding token 0 is among them."""
FIELDS = ("log_probs", "entropy", "mean_logits", "is_top1", "log_sum_sq_probs")


@pytest.fixture(scope="module")
def model():
    """A causal model with TRL's fused head, twice: as it is, and patched; equal weights."""
    both = []
    for _ in range(2):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=TOKENS, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, initializer_range=0.5,
        )  # fmt: skip
        # Its gradients cancel to a few digits, which float32 would not show.
        both.append(LlamaForCausalLM(config).double())
        add_fused_lm_head(both[-1], outputs=FIELDS)
    share_prompts(both[1], run_groups)
    return SimpleNamespace(stock=both[0], shared=both[1])


tokens = st.lists(st.integers(0, TOKENS - 1), max_size=9)
pair = st.fixed_dictionaries(
    {"prompt_ids": tokens, "chosen_ids": tokens, "rejected_ids": tokens}
).filter(
    # TRL cannot collate a sequence without any token.
    lambda row: row["prompt_ids"] or (row["chosen_ids"] and row["rejected_ids"])
)
collators = st.builds(
    DataCollatorForPreference,
    pad_token_id=st.just(0),
    max_length=st.one_of(st.none(), st.integers(2, 12)),
    truncation_mode=st.sampled_from(["keep_start", "keep_end"]),
    pad_to_multiple_of=st.sampled_from([None, 8]),
)


@examples(max_examples=80, deadline=None)
@given(batch=st.lists(pair, min_size=1, max_size=4), collator=collators, left=st.booleans())
def test_outputs_and_gradients_are_those_of_two_sequences_per_pair(model, batch, collator, left):
    batch = collator(batch)
    if batch["input_ids"].size(1) < 2:
        return
    if left:  # as somebody's own collator might
        shift = (batch["attention_mask"] == 0).sum(1)
        batch = {
            name: torch.stack([row.roll(int(by)) for row, by in zip(value, shift, strict=True)])
            for name, value in batch.items()
        }
    completion = batch.pop("completion_mask")
    rows = plan_rows(batch["input_ids"], batch["attention_mask"], completion)
    if rows is None:
        # No prompt, padded on the left: TRL predicts the first token from padding.
        assert left
        return
    labels = batch["input_ids"].masked_fill(completion == 0, -100)
    weights = torch.randn(labels[:, 1:].shape, generator=torch.Generator().manual_seed(0))
    outputs, gradients = [], []
    for network, key in ((model.stock, {}), (model.shared, {PAIR_ROWS: rows})):
        network.zero_grad()
        output = network(**batch, **key, labels=labels, fused_lm_head=True)
        (output.log_probs * weights).sum().backward()
        outputs.append(output)
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    for name in PER_TOKEN:
        theirs, ours = (getattr(output, name) for output in outputs)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert (gradients[1] - gradients[0]).norm() <= 1e-5 * gradients[0].norm()


@examples(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=9), calls=st.integers(1, 4))
def test_every_row_is_in_one_group_and_the_groups_are_as_many_as_asked(lengths, calls):
    for groups in (group_rows(lengths), group_rows(lengths, calls=calls)):
        assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    assert len(groups) == min(calls, len(lengths))


def test_a_shared_prompt_is_computed_once():
    batch = collator(None)(
        [{"prompt_ids": [1] * 10, "chosen_ids": [2, 3, 4], "rejected_ids": [5, 6]}]
    )
    rows = plan_rows(*batch.values())
    # The last token of a response predicts nothing.
    assert rows.lengths == (10 + 2 + 1,)
    assert rows.source.tolist() == [*range(12), 13 + 10]


SETTINGS = [
    {"precompute_ref_log_probs": True},
    {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    {"gradient_checkpointing": True},
    {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    {"use_weighting": True},
    {"ld_alpha": 0.5},
    {"loss_type": ["sigmoid", "sft"], "loss_weights": [0.7, 0.3]},
    {"f_divergence_type": "js_divergence"},
    {"sync_ref_model": True, "ref_model_sync_steps": 1},
    {"max_length": 24},
    {"max_length": 12, "truncation_mode": "keep_end"},
    {"model_init_kwargs": {"attn_implementation": "eager"}},
]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: "-".join(setting))
def test_training_and_evaluation_give_the_numbers_of_stock_trl_under(model_dir, tmp_path, setting):
    run = {"eval_strategy": "steps", "eval_steps": 2, "beta": 0.1, **setting}
    # AdamW's first steps divide a gradient by its own size: rounding of a 0 would move a weight.
    run |= {"optim": "sgd", "learning_rate": 0.1}
    stock = make(
        model_dir, tmp_path, pairs(), trainer=DPOTrainer,
        eval_dataset=pairs().select(range(5)), **run,
    )  # fmt: skip
    data = pairs(beta=[0.1] * 8)
    ours = make(model_dir, tmp_path, data, eval_dataset=data.select(range(5)), **run)
    stock_parameters, stock_logs = train(stock)
    our_parameters, our_logs = train(ours)
    assert ours._shared_prompt.reason is None
    for name, theirs in stock_parameters.items():
        torch.testing.assert_close(our_parameters[name], theirs, rtol=1e-5, atol=1e-6)
    for entry, theirs in zip(without_ours(our_logs), stock_logs, strict=True):
        assert entry == pytest.approx(theirs, rel=1e-4, abs=2e-6)


def test_a_model_that_was_unwrapped_evaluates_as_before(model_dir, tmp_path):
    data = pairs(beta=BETAS)
    trainer = make(model_dir, tmp_path, data, eval_dataset=data, bf16=True, max_steps=1)
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    # It removes TRL's LM head, too: a stock trainer cannot evaluate after it.
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    assert trainer.evaluate()["eval_loss"] == loss
    assert trainer._shared_prompt.reason is None


def test_mixed_precision_may_wrap_the_forward_after_the_reference_was_computed(model_dir, tmp_path):
    run = {"bf16": True, "precompute_ref_log_probs": True, "optim": "sgd"}
    trainer = make(model_dir, tmp_path, pairs(beta=[0.1] * 8), **run)
    before = trainer.model.forward
    _, logs = train(trainer)
    assert trainer.model.forward != before  # accelerate's, around ours
    assert trainer._shared_prompt.reason is None
    stock = make(model_dir, tmp_path, pairs(), trainer=DPOTrainer, beta=0.1, **run)
    _, expected = train(stock)
    for ours, theirs in zip(without_ours(logs)[:-1], expected[:-1], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-3)
        assert ours["logps/chosen"] == pytest.approx(theirs["logps/chosen"], rel=2e-3)


SMALL = {
    "vocab_size": TOKENS, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
SMALL_GPT2 = {"vocab_size": TOKENS, "n_embd": 16, "n_layer": 2, "n_head": 2}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
SMALL_OPT = SMALL | {"ffn_dim": 16, "word_embed_proj_dim": 16}
SMALL_FALCON = {"vocab_size": TOKENS, "hidden_size": 16, "num_attention_heads": 2}
SMALL_GPT_NEO = {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "hidden_size": 16}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}


def build(kind, changes):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **changes))


def collator(max_length):
    return DataCollatorForPreference(pad_token_id=0, max_length=max_length)


def reasons(model, **trainer):
    trainer = {
        "accelerator": SimpleNamespace(parallelism_config=None),
        "args": SimpleNamespace(n_gpu=1),
        "data_collator": PairCollator(collator(1024), ("beta",)),
    } | trainer
    return reason_against(SimpleNamespace(**trainer), model, model)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("qwen2", SMALL),
        ("qwen3", SMALL),
        ("mistral", SMALL | {"sliding_window": 1024}),  # as long as max_length
        ("gpt2", SMALL_GPT2 | NO_DROPOUT),  # learned positions
        ("opt", SMALL_OPT | {"dropout": 0.0}),
        ("gemma", SMALL),
        ("gemma2", SMALL),  # soft-capped, alternating windows
        ("phi", SMALL),
        ("gpt_neox", SMALL),
        ("mixtral", SMALL | EXPERTS),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_model_families_give_the_same_log_probs(kind, changes):
    network = build(kind, changes)
    assert reasons(network) is None
    add_fused_lm_head(network)
    batch = DataCollatorForPreference(pad_token_id=0)(
        [
            {"prompt_ids": [3, 4, 5] * 4, "chosen_ids": [1, 2, 3, 4], "rejected_ids": [6, 2]},
            {"prompt_ids": [2], "chosen_ids": [5, 4], "rejected_ids": [5] * 7},
        ]
    )
    rows = plan_rows(*batch.values())
    batch["labels"] = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
    expected = network(**batch, fused_lm_head=True).log_probs
    additive = network.config._attn_implementation == "eager"
    share_prompts(network, partial(run_groups, additive=additive))
    ours = network(**batch, fused_lm_head=True, **{PAIR_ROWS: rows}).log_probs
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("bloom", SMALL, "position ids"),
        ("mamba", SMALL | {"state_size": 4}, "position ids"),
        ("falcon", SMALL_FALCON | {"alibi": True}, "ALiBi"),
        (
            "mistral",
            SMALL | {"sliding_window": 512},
            "last 512 tokens only, and max_length is 1024",
        ),
        ("gemma3_text", SMALL, "last 4096 tokens|last 512 tokens"),
        ("lfm2", SMALL | {"full_attn_idxs": [1]}, r"without full attention \(conv\)"),
        (
            "gpt_neo",
            SMALL
            | {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]},
            "local",
        ),
        ("gpt2", SMALL_GPT2, r"dropout is on \(transformer\.drop: 0\.1\)"),
        ("opt", SMALL_OPT, r"dropout is on \(model\.decoder\.dropout: 0\.1\)"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_model_families_that_would_differ_are_left_out(kind, changes, reason):
    longest = 8192 if kind == "gemma3_text" else 1024
    assert re.search(reason, reasons(build(kind, changes), data_collator=collator(longest)))


def test_a_collator_that_may_not_truncate_leaves_sharing_in_a_window_out():
    network = build("mistral", SMALL | {"sliding_window": 1024})
    assert reasons(network) is None
    for other in (
        collator(None),
        lambda examples: {},
        PairCollator(lambda examples: {}, ("beta",)),
    ):
        reason = reasons(network, data_collator=other)
        assert reason == "the model attends to the last 1024 tokens only, and no max_length applies"


def test_settings_that_would_change_the_numbers_leave_sharing_out():
    experts = build("mixtral", SMALL | EXPERTS)
    assert "auxiliary loss" in reasons(experts, aux_loss_enabled=True)
    experts.config.output_router_logits = True  # TRL's head then reads what rows do not have
    assert "auxiliary loss" in reasons(experts)
    network = build("qwen2", SMALL)
    noisy = SimpleNamespace(n_gpu=1, neftune_noise_alpha=5.0)
    assert "neftune_noise_alpha" in reasons(network, args=noisy)
    network.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}
    assert "split across devices" in reasons(network)


def test_a_copy_of_a_model_computes_with_its_own_weights(model):
    batch = DataCollatorForPreference(pad_token_id=0)(
        [{"prompt_ids": [1, 2], "chosen_ids": [3, 4], "rejected_ids": [5, 6]}]
    )
    rows = plan_rows(*batch.values())
    batch["labels"] = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
    copied = copy.deepcopy(model.shared)
    expected = copied(**batch, fused_lm_head=True, **{PAIR_ROWS: rows}).log_probs
    changed = copy.deepcopy(model.shared)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(2)
        for key in ({PAIR_ROWS: rows}, {}):
            ours = changed(**batch, fused_lm_head=True, **key).log_probs
            assert (ours - expected).abs().max() > 0.01


class WithoutPositions(LlamaModel):
    """Counts positions itself, whatever it is given."""

    def forward(self, *args, position_ids=None, **options):
        return super().forward(*args, **options)


class WithoutMask(LlamaModel):
    """Attends to all earlier tokens of its row, whatever it is given."""

    def forward(self, *args, attention_mask=None, position_ids=None, **options):
        return super().forward(*args, position_ids=position_ids, **options)


@pytest.mark.parametrize(
    ("kind", "ignored"), [(WithoutPositions, "position ids"), (WithoutMask, "mask")]
)
def test_a_model_that_does_otherwise_than_it_says_trains_as_in_trl(
    model_dir, tmp_path, caplog, kind, ignored
):
    trained = []
    for trainer in (DPOTrainer, PairDPOTrainer):
        network = AutoModelForCausalLM.from_pretrained(model_dir)
        network.model.__class__ = kind
        config = DPOConfig if trainer is DPOTrainer else PairDPOConfig
        made = trainer(
            network, args=config(**settings(tmp_path)), train_dataset=pairs(beta=[0.1] * 8)
        )
        trained.append(train(made))
    assert_same(trained[1][0], trained[0][0])
    assert "sum to -" in caplog.text or f"ignores the {ignored}" in caplog.text


def test_an_architecture_that_takes_no_such_mask_trains_as_in_trl(model_dir, tmp_path, caplog):
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    trained = []
    for trainer, config in ((DPOTrainer, DPOConfig), (PairDPOTrainer, PairDPOConfig)):
        changes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": len(tokenizer)}
        network, reference = (build("openai-gpt", changes | NO_DROPOUT) for _ in range(2))
        made = trainer(
            network, ref_model=reference, args=config(**settings(tmp_path, max_steps=1)),
            train_dataset=pairs(beta=[0.1] * 8), processing_class=tokenizer,
        )  # fmt: skip
        trained.append(train(made)[0])
    assert_same(trained[1], trained[0])
    assert "does not take a mask for every pair" in caplog.text


def test_in_16_bits_the_loss_is_that_of_float32_to_rounding(model_dir, tmp_path):
    losses = {}
    for bf16 in (True, False):
        trainer = make(model_dir, tmp_path, pairs(beta=BETAS), bf16=bf16)
        shake(trainer)
        with trainer.compute_loss_context_manager():
            losses[bf16], _ = loss_and_gradient(trainer, range(8))
        assert trainer._shared_prompt.reason is None
    assert losses[True].item() != losses[False].item()
    assert losses[True].item() == pytest.approx(losses[False].item(), rel=2e-2)


@pytest.mark.slow
def test_in_16_bits_the_numbers_of_a_run_are_as_close_to_float32_as_those_of_stock_trl(
    model_dir, tmp_path
):
    """Rounding differs with the order of the rows and the padding: nothing but its size can agree.

    The root mean square deviation from float32, over 16 batches, is at most 1.25 times that of
    stock TRL, on the pairs in one order or in another, whichever is larger.
    """
    for name, by_arm in deviations(model_dir, tmp_path).items():
        assert min(by_arm.values()) > 0, name  # bf16 rounds
        assert by_arm["shared"] <= 1.25 * max(by_arm["stock"], by_arm["reordered"]), name


@pytest.mark.parametrize("again", [False, True], ids=["new", "trained-again"])
def test_adapters_are_trained_against_their_reference_as_in_trl(model_dir, tmp_path, again):
    trained = []
    for trainer in (DPOTrainer, PairDPOTrainer):
        config = DPOConfig if trainer is DPOTrainer else PairDPOConfig
        torch.manual_seed(0)
        adapter = LoraConfig(
            r=2, target_modules=["q_proj"], init_lora_weights=not again, task_type="CAUSAL_LM"
        )
        network, options = model_dir, {"peft_config": adapter}
        if again:
            network = get_peft_model(AutoModelForCausalLM.from_pretrained(model_dir), adapter)
            options = {}
        args = config(**settings(tmp_path, optim="sgd", learning_rate=1.0))
        made = trainer(network, args=args, train_dataset=pairs(beta=[0.1] * 8), **options)
        trained.append(train(made))
    for name, expected in trained[0][0].items():
        torch.testing.assert_close(trained[1][0][name], expected, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(without_ours(trained[1][1]), trained[0][1], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=2e-6)


def test_columns_see_the_log_probs_that_they_see_without(model_dir, tmp_path):
    columns = {"beta": BETAS, "weight": [0.5, 1.5] * 4, "margin": [0.1, 0.0] * 4}
    losses = []
    for shared in (True, False):
        trainer = make(
            model_dir, tmp_path, pairs(**columns), pair_columns=list(columns), shared_prompt=shared
        )
        shake(trainer)
        losses.append(loss_and_gradient(trainer, range(8)))
    torch.testing.assert_close(losses[0][0], losses[1][0], rtol=1e-5, atol=0)
    torch.testing.assert_close(losses[0][1], losses[1][1], rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:`return_outputs=True`:FutureWarning")
def test_outputs_that_are_asked_for_have_trls_logits(model_dir, tmp_path):
    trainer = make(model_dir, tmp_path, pairs(beta=BETAS))
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(3)])
    with torch.no_grad():
        _, output = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)
        expected = trainer.model(batch["input_ids"], attention_mask=batch["attention_mask"])
    assert torch.equal(output.logits, expected.logits)
