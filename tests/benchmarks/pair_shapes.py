"""Random pairs with the lengths of real data sets, and a tiny Llama to train on them.

The lengths of prompt, chosen and rejected response are log-normal, in tokens, as fitted to
UltraFeedback and hh-rlhf. `hh-harmless` is the test split of hh-rlhf's harmless-base alone, whose
dialogues are shorter. `512/256/256` are three fixed lengths.
"""

import re
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.trainer_pt_utils import get_length_grouped_indices

# Mean and standard deviation of the logarithm of a length, for prompt, chosen and rejected.
LOG_NORMAL = {
    "UltraFeedback": ((4.8, 0.9), (5.5, 0.6), (5.4, 0.7)),
    "hh": ((4.9, 0.7), (3.9, 0.8), (3.8, 0.9)),
    "hh-harmless": ((4.3, 1.0), (3.4, 0.9), (3.5, 1.0)),
}
LONGEST = 1024
"""Tokens of a sequence: the default `max_length` of TRL."""
SHORTEST, LONGEST_PART = 4, 900
BATCHES_OF_A_POOL = 200


@dataclass(frozen=True)
class Lengths:
    """The tokens of a pair."""

    prompt: int
    chosen: int
    rejected: int

    @property
    def longest(self):
        return self.prompt + max(self.chosen, self.rejected)


def draw(generator, shape, longest=LONGEST):
    """The lengths of a random pair of a shape; no sequence is longer than `longest`."""
    if re.fullmatch(r"\d+/\d+/\d+", shape):
        prompt, chosen, rejected = map(int, shape.split("/"))
    else:
        most = LONGEST_PART * longest // LONGEST
        prompt, chosen, rejected = (
            int(min(most, max(SHORTEST, generator.lognormvariate(mean, deviation))))
            for mean, deviation in LOG_NORMAL[shape]
        )
    return Lengths(prompt, min(chosen, longest - prompt), min(rejected, longest - prompt))


def draw_batches(generator, shape, *, pairs, rounds, grouped, longest=LONGEST):
    """Batches of lengths: at equal distances in a large pool of batches, ordered by size.

    With `grouped`, the batches are those of transformers' sampler that groups rows by length.
    """
    pool = [draw(generator, shape, longest) for _ in range(pairs * BATCHES_OF_A_POOL)]
    order = range(len(pool))
    if grouped:
        order = get_length_grouped_indices(
            [lengths.longest for lengths in pool], pairs, generator=torch.Generator().manual_seed(0)
        )
    batches = [
        [pool[row] for row in order[first : first + pairs]] for first in range(0, len(pool), pairs)
    ]
    batches.sort(key=lambda batch: max(lengths.longest for lengths in batch))
    chosen = [batches[int((number + 0.5) / rounds * BATCHES_OF_A_POOL)] for number in range(rounds)]
    generator.shuffle(chosen)
    return chosen


def make_examples(generator, batch, vocabulary, values=None):
    """Tokenized rows for TRL's collator, with random tokens; `values` are added to each."""

    def tokens(count):
        return [generator.randrange(2, vocabulary) for _ in range(count)]

    return [
        {
            "prompt_ids": tokens(lengths.prompt),
            "chosen_ids": tokens(lengths.chosen),
            "rejected_ids": tokens(lengths.rejected),
        }
        | (values or {})
        for lengths in batch
    ]


def make_rows(generator, batch, vocabulary):
    """The columns of a data set of texts: as many words as tokens, the last added by TRL.

    A response begins with a space, because TRL appends it to the prompt before it reads tokens.
    """

    def text(count):
        return " ".join(f"w{generator.randrange(2, vocabulary)}" for _ in range(count))

    return {
        "prompt": [text(lengths.prompt) for lengths in batch],
        "chosen": [" " + text(max(1, lengths.chosen - 1)) for lengths in batch],
        "rejected": [" " + text(max(1, lengths.rejected - 1)) for lengths in batch],
    }


def make_tokenizer(vocabulary):
    """A tokenizer of words `w2`, `w3` and so on."""
    words = ["<pad>", "<eos>", *(f"w{number}" for number in range(2, vocabulary))]
    tokenizer = Tokenizer(
        models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<pad>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def make_llama(*, vocabulary, hidden, layers, heads, intermediate=None, positions=LONGEST):
    """A Llama with random weights."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=intermediate or 8 * hidden // 3,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=positions,
            pad_token_id=0,
            eos_token_id=1,
        )
    )
