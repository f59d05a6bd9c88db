"""What the tests of the training share: a tiny model, eight pairs, and trainers on them."""

import atexit
import json
from functools import cache
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from sp2dpo.training.commands import parse_training
from sp2dpo.training.trainer import PairColumnsMixin, PairDPOConfig, PairDPOTrainer
from support.harness import CommandServer

BETAS = [0.03, 0.3, 0.1, 0.05, 0.2, 0.07, 0.15, 0.25]
PAIRS = {
    "prompt": [f"say the number {n}" for n in range(8)],
    "chosen": ["one two", "a b c", "yes it is", "no", "three", "here", "so be it", "all of them"],
    "rejected": ["x", "never", "q q", "maybe so", "none", "z z z", "go", "who knows it"],
}
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def parse(arguments):
    """The settings of data, trainer and model that the arguments of `sp2dpo train` give."""
    return parse_training(arguments).configs


def build_model(directory):
    """Save a random model of two tiny layers and its tokenizer, a token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<eos>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(directory)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=256,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=1,
        )
    ).save_pretrained(directory)


def pairs(**columns):
    return Dataset.from_dict(PAIRS | columns)


def settings(tmp_path, **changes):
    return {
        "output_dir": str(tmp_path / "run"),
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "max_steps": 3,
        "learning_rate": 1.0e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 0,
    } | changes


def train(trainer):
    """Train and return the parameters and what was logged, times left out."""
    trainer.train()
    trained = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    logs = [
        {k: v for k, v in entry.items() if "runtime" not in k and "per_second" not in k}
        for entry in trainer.state.log_history
    ]
    return trained, logs


def without_ours(logs):
    names = ("beta/", "margins/unscaled", "weight/", "pairs/", "gradient_share/", "accuracy/")
    ours = (*names, *(f"eval_{name}" for name in names))
    return [{k: v for k, v in entry.items() if not k.startswith(ours)} for entry in logs]


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def make(model_dir, tmp_path, dataset, *, trainer=PairDPOTrainer, eval_dataset=None, **changes):
    config = DPOConfig if trainer is DPOTrainer else PairDPOConfig
    args = config(**settings(tmp_path, **changes))
    return trainer(model_dir, args=args, train_dataset=dataset, eval_dataset=eval_dataset)


def shake(trainer):
    """Move the policy away from its reference, the same way every time: no D_i is 0."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def loss_and_gradient(trainer, rows):
    batch = trainer.data_collator([trainer.train_dataset[row] for row in rows])
    trainer.model.zero_grad()
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
    return loss.detach().clone(), gradient.clone()


def margin_by_hand(trainer, row):
    """D of one pair, in nats, from plain forward passes and log_softmax."""
    example = trainer.train_dataset[row]
    sums = []
    for model in (trainer.model, trainer.ref_model):
        for answer in ("chosen_ids", "rejected_ids"):
            ids = torch.tensor([example["prompt_ids"] + example[answer]])
            with torch.no_grad():
                logps = model(input_ids=ids).logits[0].log_softmax(-1)
            first = len(example["prompt_ids"])
            sums.append(sum(logps[t - 1, ids[0, t]].item() for t in range(first, ids.shape[1])))
    return (sums[0] - sums[2]) - (sums[1] - sums[3])


# accelerate makes FSDP of GPUs alone: on CPUs it falls back to DDP without a word.
FSDP_ON_CPUS = """
import os
from accelerate import Accelerator
from accelerate.state import AcceleratorState, DistributedType
if os.environ.get("ACCELERATE_USE_FSDP") == "true":
    plain = AcceleratorState.__init__
    def on_cpus(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        plugin = kwargs.get("fsdp_plugin") or getattr(self, "fsdp_plugin", None)
        if self.distributed_type == DistributedType.MULTI_CPU and plugin is not None:
            if self._mixed_precision != "no":
                plugin.set_mixed_precision(self._mixed_precision)
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugin
    AcceleratorState.__init__ = on_cpus
    # On a CPU torch leaves the gathered state sharded: gather it here.
    Accelerator.get_state_dict = lambda self, model, **kwargs: {
        name: getattr(value, "full_tensor", value.clone)().clone()
        for name, value in model.state_dict().items()
    }
"""


class Doubled(DPOTrainer):
    """Somebody's own trainer: its loss is twice TRL's."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        assert "beta" not in inputs
        return 2 * super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


class PairDoubled(PairColumnsMixin, Doubled):
    pass


@cache
def _launch_server():
    modules = (
        "sp2dpo.training.run", "sp2dpo.training.commands", "sp2dpo.training.trainer",
        "trl.trainer.dpo_trainer", "deepspeed", "torch.distributed.run",
        "accelerate.commands.launch",
    )  # fmt: skip
    settings = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    server = CommandServer(settings, modules)
    atexit.register(server.close)
    return server


def launch(module, *words, folder=None, timeout=600, **env):
    """Run a launcher; it and its processes are forks, which share their imports."""
    server = _launch_server()
    env = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} | env
    return server.run(
        *words, module=module, folder=folder, timeout=timeout,
        env=env | {"PYTHON_EXEC": str(server.python)},
    )  # fmt: skip


def run_in(processes, script, tmp_path, **run):
    """Run the script in so many processes, return the JSON objects it printed."""
    Path(tmp_path, "script.py").write_text(script)
    Path(tmp_path, "run.json").write_text(json.dumps(run))
    words = ("--standalone", f"--nproc_per_node={processes}", "script.py", "run.json")
    result = launch("torch.distributed.run", *words, folder=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith('{"')]


TWO_PROCESSES_RUN = """
import json, os, sys
from datasets import Dataset
from sp2dpo.training.trainer import PairDPOConfig, PairDPOTrainer

run = json.load(open(sys.argv[1]))
for settings in run["runs"]:
    trainer = PairDPOTrainer(
        run["model"],
        args=PairDPOConfig(**settings),
        train_dataset=Dataset.from_dict(run["pairs"]),
    )
    trainer.train()
    if trainer.accelerator.is_main_process:
        log = trainer.state.log_history[:-1]
        print(json.dumps({"processes": trainer.accelerator.num_processes, "log": log}))
    trainer.accelerator.wait_for_everyone()
sys.stdout.flush()
os._exit(0)  # gloo's threads sometimes abort a process that is tidied up
"""


def train_in_two_processes(tmp_path, model_dir, *runs):
    """Train with each of these settings, in one launch; the log of each."""
    lines = run_in(
        2, TWO_PROCESSES_RUN, tmp_path, model=model_dir, pairs=PAIRS | {"beta": BETAS}, runs=runs
    )
    assert [line["processes"] for line in lines] == [2] * len(runs)
    return [line["log"] for line in lines]


def conversations(**columns):
    """The pairs as `sp2dpo build` writes them."""
    turns = {
        name: [[{"role": "user" if name == "prompt" else "assistant", "content": c}] for c in texts]
        for name, texts in PAIRS.items()
    }
    return turns | {"pair_id": [f"pair-{n}" for n in range(8)]} | columns
