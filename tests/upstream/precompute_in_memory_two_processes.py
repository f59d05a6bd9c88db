"""`precompute_ref_log_probs` with a data set in memory and two processes: one finds no file.

Expected: that it works as with a data set on the disk. Seen with TRL 1.16.0. The script starts
itself twice.
"""

import os
import socket
import subprocess
import sys
import tempfile
import warnings

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
        train_dataset=Dataset.from_dict(pairs),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>"
        ),
    )


if "RANK" in os.environ:
    make(PAIRS, precompute_ref_log_probs=True)
    sys.exit(0)
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = str(free.getsockname()[1])
shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
processes = [
    subprocess.Popen(
        [sys.executable, __file__],
        env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        stderr=subprocess.PIPE,
        text=True,
    )
    for rank in range(2)
]
missing = [
    line for process in processes for line in process.communicate()[1].splitlines()
    if "FileNotFoundError: " in line
]  # fmt: skip
if missing:
    sys.exit(f"defect: {missing[0]}")
