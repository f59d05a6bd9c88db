"""Under DeepSpeed with bf16 Trainer rounds every float tensor of a batch, not inputs alone.

Expected: that precomputed reference log-probs and other numbers of a batch keep their precision.
Seen with transformers 5.24 and DeepSpeed 0.19; one process on a CPU shows it.
"""

import os
import sys
import tempfile

import deepspeed
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

LOG_PROB = -126.86

os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # two minutes of compiling
engine = {"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}
engine |= {"train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto"}
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, eos_token_id=1,
    )
)  # fmt: skip
trainer = Trainer(
    model,
    args=TrainingArguments(
        output_dir=tempfile.mkdtemp(), report_to="none", bf16=True, use_cpu=True, deepspeed=engine
    ),
)
batch = trainer._prepare_inputs({"ref_chosen_logps": torch.tensor([LOG_PROB])})
log_prob = batch["ref_chosen_logps"].item()
if abs(log_prob - LOG_PROB) > 1e-3:
    sys.exit(f"defect: {log_prob} in place of {LOG_PROB}")
