"""The checks of `make test-gpu` run on a CPU, small: what a GPU will run is not run there first."""

import importlib

import pytest
import torch

import gpu.test_gpu
from gpu.checks import (
    check_bf16,
    check_float32,
    check_fused_head,
    check_training,
    lora,
    make_trainer,
    quantization,
    require_gpu,
)
from sp2dpo.training.exactness import reason_against
from support.attention import attention, dense_flex, plain_varlen
from support.harness import TESTS

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's, of its compiler's code
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gpu")


# FlexAttention has no backward pass on a CPU, and flash attention is not installed.
KERNELS = {"flex_attention": dense_flex, "flash_in_plain_torch": plain_varlen}


@pytest.fixture(params=KERNELS)
def kernel(request):
    """The name of an attention implementation that computes packed rows."""
    # What transformers compiles for minutes, the mask of unpacked rows, is computed as it is.
    with (
        attention(request.param, KERNELS[request.param]),
        torch.compiler.set_stance("force_eager"),
    ):
        yield request.param


def test_shared_prompts_are_exact_in_float32(folder):
    check_float32(folder, "cpu", "sdpa")


def test_packed_rows_are_exact_in_float32(folder, kernel):
    check_float32(folder, "cpu", kernel)


def test_shared_prompts_in_bf16_are_as_near_to_float32_as_stock_trl(folder):
    check_bf16(folder, "cpu", "sdpa")


def test_packed_rows_with_gradient_checkpointing(folder, kernel):
    check_training(folder, "cpu", 1e-4, attention=kernel, gradient_checkpointing=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # the compiler's, of itself
def test_training_with_torch_compile(folder):
    check_training(folder, "cpu", 1e-4, torch_compile=True, torch_compile_backend="eager")


def test_several_gpus_in_one_process_share_no_prompt(folder):
    trainer = make_trainer(folder, "cpu")
    assert reason_against(trainer, trainer.model, trainer.model) is None
    trainer.args._n_gpu = 2
    reason = reason_against(trainer, trainer.model, trainer.model)
    assert "each GPU has a process of its own" in reason


@pytest.mark.slow
def test_training_with_qlora(folder, monkeypatch):
    # As in test_run_files: weights that are packed for some CPUs have no gradient.
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    check_training(
        folder, "cpu", 0.05, bf16=True, peft_config=lora(), learning_rate=1e-2,
        model_options={"quantization_config": quantization()},
    )  # fmt: skip


def test_the_fused_head_gives_the_log_probs_of_the_logits(folder):
    check_fused_head(folder, "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["flex_attention"], indirect=True)
def test_the_benchmark_for_gpus_prints_a_row_for_each_trainer(kernel, monkeypatch, capsys):
    monkeypatch.syspath_prepend(TESTS / "benchmarks")
    train_gpu = importlib.import_module("train_gpu")
    words = ["--tiny", "--rounds", "1", "--shapes", "9/8/7", "--attention", "sdpa", kernel]
    train_gpu.main(words)
    table = capsys.readouterr().out
    for training in ("LoRA", "full"):
        for trainer in ("stock TRL | sdpa", "shared prompt | sdpa", f"shared prompt | {kernel}"):
            assert f"| {training} | 9/8/7 | {trainer}" in table
    assert "left out" not in table


def test_without_a_gpu_the_tests_that_need_one_end_with_a_sentence(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(pytest.exit.Exception, match="these tests need a GPU, and torch sees none"):
        require_gpu()


def test_all_tests_that_need_a_gpu_are_marked():
    marks = {mark.name for mark in gpu.test_gpu.pytestmark}
    assert "gpu" in marks
