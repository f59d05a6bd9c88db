"""Print how far bf16 is from float32: stock TRL, its own noise, and with a shared prompt."""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.precision import ARMS, BATCHES, PAIRS_PER_BATCH, deviations
from support.training import build_model


def main():
    """Print one line for each number."""
    with tempfile.TemporaryDirectory() as folder:
        build_model(folder)
        table = deviations(folder, Path(folder))
    print(f"root mean square deviation from float32, {BATCHES} batches of {PAIRS_PER_BATCH} pairs")
    print(f"{'':16}{'stock':>12}{'reordered':>12}{'shared':>12}")
    for name, by_arm in table.items():
        print(f"{name:16}" + "".join(f"{by_arm[arm]:12.3g}" for arm in ARMS))


if __name__ == "__main__":
    main()
