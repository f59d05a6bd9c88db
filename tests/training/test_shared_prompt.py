"""The prompt of a pair is computed once: the numbers are those of TRL's own forward pass."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import add_fused_lm_head

from sp2dpo.training.pair_rows import group_rows, plan_rows
from sp2dpo.training.shared_prompt import PAIR_ROWS, PER_TOKEN, run_groups, share_prompts
from support.training import make, pairs, train, without_ours

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
        both.append(LlamaForCausalLM(config))
        add_fused_lm_head(both[-1], outputs=FIELDS)
    share_prompts(both[1], run_groups)
    return SimpleNamespace(stock=both[0], shared=both[1])


tokens = st.lists(st.integers(0, TOKENS - 1), max_size=9)
pair = st.fixed_dictionaries({"prompt_ids": tokens, "chosen_ids": tokens, "rejected_ids": tokens})
collators = st.builds(
    DataCollatorForPreference,
    pad_token_id=st.just(0),
    max_length=st.one_of(st.none(), st.integers(2, 12)),
    truncation_mode=st.sampled_from(["keep_start", "keep_end"]),
    pad_to_multiple_of=st.sampled_from([None, 8]),
)


@examples(max_examples=150, deadline=None)
@given(batch=st.lists(pair, min_size=1, max_size=4), collator=collators, left=st.booleans())
def test_outputs_and_gradients_are_those_of_two_sequences_per_pair(model, batch, collator, left):
    batch = collator([dict(row) for row in batch if sum(map(len, row.values()))] or [ONE])
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
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-4)


ONE = {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]}


@examples(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=9), calls=st.integers(1, 4))
def test_every_row_is_in_one_group_and_the_groups_are_as_many_as_asked(lengths, calls):
    for groups in (group_rows(lengths), group_rows(lengths, calls=calls)):
        assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    assert len(groups) == min(calls, len(lengths))


def test_a_shared_prompt_is_computed_once():
    collator = DataCollatorForPreference(pad_token_id=0)
    batch = collator([{"prompt_ids": [1] * 10, "chosen_ids": [2, 3, 4], "rejected_ids": [5, 6]}])
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
