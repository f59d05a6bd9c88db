"""Reference log-probs that were precomputed under another `max_length` are used again,
with `truncation_mode: keep_end`.

Expected: that what they depend on is in the key of the cache. Seen with TRL 1.16.0, with a data set
on the disk, whose cache outlives the process.
"""

import sys
import tempfile
import warnings
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

warnings.simplefilter("ignore")
PAIRS = {
    "prompt": ["w0 w1", "w2 w3", "w4 w5", "w6 w7"],
    "chosen": ["w8 w9 w10", "w11", "w12 w13", "w14 w15"],
    "rejected": ["w16", "w17 w18", "w19 w20 w21", "w22"],
}


def make(pairs, **settings):
    words = ["<pad>", "<eos>", *(f"w{number}" for number in range(30))]
    tokenizer = Tokenizer(
        models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<pad>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip
    folder = tempfile.mkdtemp()
    model.save_pretrained(folder)
    plain = {
        "output_dir": tempfile.mkdtemp(), "report_to": "none", "use_cpu": True, "bf16": False,
        "disable_tqdm": True, "max_steps": 2, "logging_steps": 1, "learning_rate": 1e-2,
        "per_device_train_batch_size": 4, "save_strategy": "no",
    }  # fmt: skip
    return DPOTrainer(
        folder,
        args=DPOConfig(**plain | settings),
        train_dataset=pairs,
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>"
        ),
    )


folder = Path(tempfile.mkdtemp())
Dataset.from_dict(PAIRS).to_parquet(folder / "train.parquet")


def reference(**settings):
    rows = Dataset.from_parquet(str(folder / "train.parquet"), cache_dir=str(folder / "cache"))
    trainer = make(rows, precompute_ref_log_probs=True, **settings)
    return trainer.train_dataset["ref_chosen_logps"][:]


def fresh(**settings):
    return make(Dataset.from_dict(PAIRS), precompute_ref_log_probs=True, **settings).train_dataset[
        "ref_chosen_logps"
    ][:]


cut = {"truncation_mode": "keep_end", "max_length": 3}
reference(**cut)
after, right = (make_them(**cut | {"max_length": 5}) for make_them in (reference, fresh))
if after != right:
    sys.exit(f"defect: {after} in place of {right}")
