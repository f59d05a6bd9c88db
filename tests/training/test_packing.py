"""A batch as one packed row: the states of the rows by themselves, for both kinds of kernels."""

import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sp2dpo.training.packing import (
    BLOCK,
    FlexRunner,
    choose_runner,
    make_block_mask,
    make_varlen,
)
from sp2dpo.training.pair_rows import SHARED, plan_rows
from sp2dpo.training.shared_prompt import run_groups
from support.attention import attention, dense_flex, plain_varlen

# Tokens of prompt, chosen and rejected response.
BATCHES = {
    "short": [(3, 2, 4), (1, 1, 1), (5, 0, 3), (4, 6, 0), (0, 3, 2)],
    "longer than blocks": [(300, 200, 150), (2, 3, 4), (20, 500, 1), (128, 128, 128), (0, 140, 9)],
    "a pair": [(256, 130, 260)],
}


def make_batch(lengths, seed=0):
    """Token ids, attention mask and completion mask as TRL's collator makes them, (2B, T)."""
    generator = torch.Generator().manual_seed(seed)
    sides = [[], []]
    for prompt, *responses in lengths:
        text = torch.randint(2, 64, (prompt,), generator=generator)
        for number, side in enumerate(sides):
            # Responses begin with different tokens, so exactly the prompt is shared.
            response = torch.randint(2, 32, (responses[number],), generator=generator)
            side.append((text, response + number * 32))
    sequences = [*sides[0], *sides[1]]
    width = max(len(prompt) + len(response) for prompt, response in sequences)
    ids, real, scored = torch.zeros(3, len(sequences), width, dtype=torch.long)
    for row, (prompt, response) in enumerate(sequences):
        end = len(prompt) + len(response)
        ids[row, :end] = torch.cat([prompt, response])
        real[row, :end] = 1
        scored[row, max(1, len(prompt)) : end] = 1
    return ids, real, scored


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def states(model, run, lengths):
    """The states of all tokens of a batch."""
    ids, real, scored = make_batch(lengths)
    rows = plan_rows(ids, real, scored)
    backbone = model.base_model
    return run(backbone.forward, ids.flatten()[rows.source], rows, {"use_cache": False})


def gradients(model, run, lengths):
    model.zero_grad()
    computed = states(model, run, lengths)
    (computed * torch.linspace(-1, 1, computed.numel()).view_as(computed)).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def assert_equal_on_a_kernel(model, name, run, lengths):
    expected = states(model, run_groups, lengths)
    expected_gradients = gradients(model, run_groups, lengths)
    before = model.config._attn_implementation
    model.config._attn_implementation = name
    try:
        torch.testing.assert_close(states(model, run, lengths), expected, rtol=1e-5, atol=1e-5)
        difference = gradients(model, run, lengths) - expected_gradients
        assert difference.norm() < 1e-5 * expected_gradients.norm()
    finally:
        model.config._attn_implementation = before


@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES)
def test_a_block_mask_separates_rows_and_responses_like_the_masks_of_rows(model, lengths):
    with attention("flex_attention", dense_flex):
        assert_equal_on_a_kernel(model, "flex_attention", FlexRunner(), lengths)


@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES)
def test_variable_lengths_give_the_states_of_the_rows(model, lengths):
    with attention("plain_flash", plain_varlen):
        model.config._attn_implementation = "plain_flash"
        run = choose_runner(model)
        model.config._attn_implementation = "sdpa"
        assert_equal_on_a_kernel(model, "plain_flash", run, lengths)


# Not compiled here, which is what the kernel would warn of; torch's compiler warns of itself.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:flex_attention called without")
def test_real_flex_attention_takes_the_mask(model):
    expected = states(model, run_groups, BATCHES["longer than blocks"])
    model.config._attn_implementation = "flex_attention"
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            computed = states(model, choose_runner(model), BATCHES["longer than blocks"])
    finally:
        model.config._attn_implementation = "sdpa"
    torch.testing.assert_close(computed, expected, rtol=1e-5, atol=1e-5)


def test_blocks_without_a_visible_token_are_skipped_and_whole_blocks_are_not_masked():
    # 3 blocks of prompt, 2 of chosen, 3 of rejected: no token is in a block of two segments.
    ids, real, scored = make_batch([(3 * BLOCK, 2 * BLOCK + 1, 3 * BLOCK + 1)])
    mask = make_block_mask(plan_rows(ids, real, scored))
    blocks = mask.to_dense()[0, 0]
    expected = torch.ones(8, 8, dtype=torch.int32).tril()
    expected[5:, 3:5] = 0  # rejected queries, chosen keys
    assert blocks.tolist() == expected.tolist()
    assert mask.kv_num_blocks.flatten().tolist() == [1] * 8  # of each query block, the diagonal


def test_random_rows_have_every_visible_token_in_a_block():
    generator = random.Random(0)
    for seed in range(10):
        lengths = [
            tuple(generator.choice((0, 1, 5, 90, 128, 200)) for _ in range(3)) for _ in range(4)
        ]
        lengths = [(prompt, max(chosen, 1), rejected) for prompt, chosen, rejected in lengths]
        rows = plan_rows(*make_batch(lengths, seed))
        mask = make_block_mask(rows)
        size = len(rows.row)
        row, segment = rows.row, rows.segment
        seen = torch.ones(size, size, dtype=torch.bool).tril() & (row[:, None] == row)
        seen &= (segment == SHARED) | (segment[:, None] == segment)
        listed = mask.to_dense()[0, 0].bool()
        whole = listed & ~partial_blocks(mask)
        for blocks, tokens in ((~listed, ~seen), (whole, seen)):
            dense = blocks.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[:size, :size]
            assert tokens[dense].all()


def partial_blocks(mask):
    blocks = torch.zeros(mask.to_dense().shape[2:], dtype=torch.bool)
    for row, count in enumerate(mask.kv_num_blocks[0, 0].tolist()):
        blocks[row, mask.kv_indices[0, 0, row, :count].long()] = True
    return blocks


def test_the_keys_of_a_rejected_response_are_the_prompt_and_itself():
    # The last token of a sequence is not computed, so the chosen rest is 1 token, the other one 2.
    rows = plan_rows(*make_batch([(3, 2, 3), (2, 2, 1)]))
    sequences = make_varlen(rows)
    assert sequences.keys.tolist() == [0, 1, 2, 3, 0, 1, 2, 4, 5, 6, 7, 8]
    assert sequences.query_ends.tolist() == [0, 4, 6, 9]
    assert sequences.key_ends.tolist() == [0, 4, 9, 12]
    assert (sequences.longest_query, sequences.longest_key) == (4, 5)


def test_the_mask_is_made_once_for_policy_and_reference():
    rows = plan_rows(*make_batch(BATCHES["short"]))
    masks = []

    def forward(input_ids, attention_mask, position_ids):
        masks.append(attention_mask)
        return Output(input_ids)

    run = FlexRunner()
    ids = torch.zeros(len(rows.row), dtype=torch.long)
    run(forward, ids, rows, {})
    run(forward, ids, rows, {})
    assert masks[0] is masks[1]


class Output:
    def __init__(self, input_ids):
        self.last_hidden_state = input_ids[..., None]


def test_other_attention_has_no_packed_row(model):
    assert choose_runner(model) is None
