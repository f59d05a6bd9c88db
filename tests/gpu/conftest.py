"""The device of the tests that need a GPU."""

import pytest

from gpu.checks import require_gpu


@pytest.fixture(scope="session")
def device():
    """The GPU; without one, the run ends with a sentence."""
    print(require_gpu())
    return "cuda"
