"""What needs a GPU; `make test-gpu` runs it. See `checks`."""

import pytest
import torch

from benchmarks.pair_shapes import Lengths
from gpu.checks import (
    check_bf16,
    check_float32,
    check_fused_head,
    check_training,
    flash_attention,
    lora,
    make_trainer,
    numbers,
    quantization,
)

# A warning of a driver or of a compiler is no failure: these tests run on machines that we do not
# know.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gpu")


@pytest.mark.parametrize("attention", ["sdpa", "flex_attention"])
def test_shared_prompts_are_exact_in_float32(folder, device, attention):
    check_float32(folder, device, attention)


@pytest.mark.parametrize("attention", ["sdpa", "flex_attention", *flash_attention()])
def test_shared_prompts_in_bf16_are_as_near_to_float32_as_stock_trl(folder, device, attention):
    check_bf16(folder, device, attention)


@pytest.mark.parametrize("attention", ["sdpa", "flex_attention", *flash_attention()])
def test_training_with_gradient_checkpointing_in_bf16(folder, device, attention):
    check_training(
        folder, device, 0.02, attention=attention, bf16=True, gradient_checkpointing=True
    )


@pytest.mark.parametrize("attention", ["sdpa", "flex_attention"])
def test_training_with_torch_compile(folder, device, attention):
    check_training(folder, device, 0.02, attention=attention, bf16=True, torch_compile=True)


def test_training_with_lora(folder, device):
    check_training(folder, device, 0.02, bf16=True, peft_config=lora(), learning_rate=1e-2)


def test_training_with_qlora(folder, device):
    check_training(
        folder, device, 0.05, bf16=True, gradient_checkpointing=True, peft_config=lora(),
        model_options={"quantization_config": quantization()}, learning_rate=1e-2,
    )  # fmt: skip


def test_the_fused_head_gives_the_log_probs_of_the_logits(folder, device):
    check_fused_head(folder, device)


@pytest.mark.parametrize("attention", ["sdpa", "flex_attention", *flash_attention()])
def test_a_shared_prompt_takes_no_more_memory_than_stock_trl(folder, device, attention):
    lengths = [Lengths(700, 200, 150)] * 8
    peaks = []
    for stock in (True, False):
        trainer = make_trainer(
            folder, device, stock=stock, attention=attention, bf16=True, lengths=lengths
        )
        numbers(trainer, lengths)  # the compiler's own memory
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        numbers(trainer, lengths)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] <= peaks[0], peaks
