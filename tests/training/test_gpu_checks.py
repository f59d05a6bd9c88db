"""The checks of `make test-gpu` run on a CPU, small: what a GPU will run is not run there first."""

import pytest

import gpu.test_gpu
from gpu.checks import (
    check_bf16,
    check_float32,
    check_fused_head,
    check_training,
    lora,
    quantization,
    require_gpu,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's, of its compiler's code
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gpu")


def test_shared_prompts_are_exact_in_float32(folder):
    check_float32(folder, "cpu", "sdpa")


def test_shared_prompts_in_bf16_are_as_near_to_float32_as_stock_trl(folder):
    check_bf16(folder, "cpu", "sdpa")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # the compiler's, of itself
def test_training_with_torch_compile(folder):
    check_training(folder, "cpu", 1e-4, torch_compile=True, torch_compile_backend="eager")


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


def test_without_a_gpu_the_tests_that_need_one_end_with_a_sentence(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(pytest.exit.Exception, match="these tests need a GPU, and torch sees none"):
        require_gpu()


def test_all_tests_that_need_a_gpu_are_marked():
    marks = {mark.name for mark in gpu.test_gpu.pytestmark}
    assert "gpu" in marks
