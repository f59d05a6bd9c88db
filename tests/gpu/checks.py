"""What `make test-gpu` checks, as functions of the device: the quick tests run them on a CPU."""

import contextlib
import importlib.util
import random
from dataclasses import dataclass

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig
from trl import DPOConfig, DPOTrainer
from trl.trainer.utils import add_fused_lm_head

from benchmarks.pair_shapes import Lengths, make_examples, make_rows, make_tokenizer
from sp2dpo.training import PairDPOConfig, PairDPOTrainer

VOCABULARY = 512
SIZE = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
LENGTHS = [
    Lengths(*lengths)
    for lengths in [(300, 200, 150), (20, 40, 1), (130, 128, 90), (5, 3, 60), (400, 10, 10)]
]
SHORT = [Lengths(*lengths) for lengths in [(12, 9, 5), (3, 1, 6), (8, 8, 8), (1, 2, 1)]]
"""The same for CPUs."""


@dataclass(frozen=True)
class Numbers:
    """What a batch gives.

    Attributes:
        log_probs: Of the chosen and then of the rejected responses, in nats, (2B,), float64.
        loss: The loss.
        gradient: Of all trained parameters, flattened, float64.
    """

    log_probs: torch.Tensor
    loss: float
    gradient: torch.Tensor


def require_gpu():
    """The name of the GPU; without one, end all tests with a sentence."""
    if not torch.cuda.is_available():
        pytest.exit(
            "these tests need a GPU, and torch sees none: torch.cuda.is_available() is false (torch"
            f" {torch.__version__}); run `make test-gpu` on a machine with a GPU, in an environment"
            " with a PyTorch build for it",
            returncode=1,
        )
    return torch.cuda.get_device_name(0)


def flash_attention():
    """The names of flash attention in transformers, where the package is installed."""
    return ["flash_attention_2"] if importlib.util.find_spec("flash_attn") else []


def make_model(folder, attention="sdpa", **options):
    """A tiny Llama with random weights, read from a folder."""
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        config = LlamaConfig(
            **SIZE, vocab_size=VOCABULARY, max_position_embeddings=2048,
            pad_token_id=0, eos_token_id=1, initializer_range=0.08,
        )  # fmt: skip
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    by_transformers = attention in ("sdpa", "flex_attention", *flash_attention())
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        attn_implementation=attention if by_transformers else "sdpa",
        **({"dtype": "float32"} | options),
    )
    model.config._attn_implementation = attention  # one of the tests, in plain torch
    return model


def make_trainer(folder, device, *, attention="sdpa", stock=False, lengths=None, **settings):
    """A trainer with a beta of 0.1 for every pair, or stock TRL with the same beta."""
    lengths = lengths or (SHORT if device == "cpu" else LENGTHS)
    rows = make_rows(random.Random(0), lengths, VOCABULARY)
    model_options = settings.pop("model_options", {})
    peft_config = settings.pop("peft_config", None)
    settings = {
        "output_dir": str(folder / "run"),
        "beta": 0.1,
        "per_device_train_batch_size": len(lengths),
        "max_steps": 3,
        "learning_rate": 1.0e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
        "use_cpu": device == "cpu",
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 0,
    } | settings
    reference = None if peft_config else make_model(folder / "model", attention, **model_options)
    trainer = (DPOTrainer if stock else PairDPOTrainer)(
        make_model(folder / "model", attention, **model_options),
        ref_model=reference,
        args=DPOConfig(**settings) if stock else PairDPOConfig(**settings),
        train_dataset=Dataset.from_dict(
            rows if stock else rows | {"beta": [0.1] * len(rows["prompt"])}
        ),
        processing_class=make_tokenizer(VOCABULARY),
        peft_config=peft_config,
    )
    return trainer


def numbers(trainer, lengths):
    """The numbers of one batch."""
    examples = make_examples(random.Random(1), lengths, VOCABULARY, {"beta": 0.1})
    if not isinstance(trainer, PairDPOTrainer):
        examples = [{k: v for k, v in row.items() if k != "beta"} for row in examples]
    batch = trainer._prepare_inputs(trainer.data_collator(examples))
    trainer.model.train()
    shake(trainer.model)
    trainer.model.zero_grad()
    with trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    gradient = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
    log_probs = trainer.compute_ref_log_probs(trainer.model, dict(batch))
    check_shared(trainer)
    return Numbers(
        log_probs=torch.cat(log_probs).double().cpu(),
        loss=loss.item(),
        gradient=torch.cat(gradient).double().cpu(),
    )


def shake(model):
    """Move the policy away from its reference, the same way every time."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter += 0.02 * noise.to(parameter)


def check_shared(trainer):
    """Fail if the trainer computes the prompt of a pair twice."""
    if isinstance(trainer, PairDPOTrainer) and trainer.args.shared_prompt:
        assert trainer._shared_prompt.reason is None, trainer._shared_prompt.reason


def check_float32(folder, device, attention):
    """Shared prompts with an attention kernel give the numbers of stock TRL with SDPA."""
    lengths = SHORT if device == "cpu" else LENGTHS
    stock = numbers(make_trainer(folder, device, stock=True), lengths)
    ours = numbers(make_trainer(folder, device, attention=attention), lengths)
    torch.testing.assert_close(ours.log_probs, stock.log_probs, rtol=1e-5, atol=1e-3)
    assert abs(ours.loss - stock.loss) < 1e-4
    assert distance(ours.gradient, stock.gradient) < 1e-4


def check_bf16(folder, device, attention):
    """In bf16, shared prompts are as near to float32 as stock TRL with the same kernel is."""
    lengths = SHORT if device == "cpu" else LENGTHS
    exact = numbers(make_trainer(folder, device, stock=True), lengths)
    half = {"attention": attention, "bf16": True}
    stock = numbers(make_trainer(folder, device, stock=True, **half), lengths)
    ours = numbers(make_trainer(folder, device, **half), lengths)
    # Each is a random error of the same size: with 2 B log-probs, one may well be twice the other.
    for field in ("log_probs", "gradient"):
        noise = distance(getattr(stock, field), getattr(exact, field))
        error = distance(getattr(ours, field), getattr(exact, field))
        print(f"{attention}, {field}: error {error:.1e}, that of stock TRL {noise:.1e}")
        assert error < 2 * noise, (field, error, noise)


def distance(ours, theirs):
    """The norm of the difference, relative."""
    return ((ours - theirs).norm() / theirs.norm()).item()


def losses(trainer):
    trainer.train()
    check_shared(trainer)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def check_training(folder, device, tolerance, *, context=contextlib.nullcontext, **settings):
    """Three steps with a shared prompt give the losses of three steps without, and they fall."""
    with context():
        ours = losses(make_trainer(folder, device, **settings))
    theirs = losses(make_trainer(folder, device, **(settings | {"shared_prompt": False})))
    assert len(ours) == 3
    assert ours[-1] < ours[0]
    for mine, other in zip(ours, theirs, strict=True):
        assert abs(mine - other) < tolerance, (ours, theirs)


def lora():
    return LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")


def quantization():
    """Four bits; an error in one sentence where bitsandbytes is missing."""
    assert importlib.util.find_spec("bitsandbytes"), (
        "QLoRA was not checked: bitsandbytes is not installed; pip install bitsandbytes"
    )
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )


def check_fused_head(folder, device):
    """TRL's fused head, which is a Triton kernel on GPUs, gives the log-probs of the logits."""
    model = make_model(folder / "model").to(device)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, VOCABULARY, (3, 40), generator=generator).to(device)
    labels = ids.clone()
    labels[:, :10] = -100
    model.zero_grad()
    output = model(input_ids=ids, labels=labels, fused_lm_head=True)
    output.log_probs.sum().backward()
    fused = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    table = model(input_ids=ids).logits[:, :-1].float().log_softmax(-1)
    expected = table.gather(2, ids[:, 1:, None]).squeeze(2) * (labels[:, 1:] != -100)
    expected.sum().backward()
    plain = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(output.log_probs, expected, rtol=1e-4, atol=1e-4)
    assert distance(fused, plain) < 1e-4
