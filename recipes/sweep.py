"""Train one model with several settings and compare them; the reference log-probs are shared.

    python recipes/sweep.py --out sweep \
        --config recipes/dpo/tiny-demo.yaml --config recipes/dpo/methods/tuned-beta.yaml \
        --vary beta=0.005,0.01,0.02,0.05,0.1,0.3 --arm recipes/dpo/methods/sp2dpo.yaml

The same as `sp2dpo sweep`. Each value of `--vary` gives a run with the `--config` files and that
value; several `--vary` options give all combinations of their values. Each `--arm` gives a run with
the `--config` files and that file. `--engine` and `--processes` are those of `sp2dpo train`, which
each run is; other options, such as `--learning_rate 1.0e-6`, apply to all runs. A run that is
complete is not repeated, and a run that fails does not stop the others. After Ctrl-C or the signal
of a scheduler, the current run saves a checkpoint; the same command goes on from there.

The script prints a table of the runs' results on the held-out pairs, and writes sweep.json. The
losses of runs with different betas cannot be compared; accuracies and unscaled margins can.
"""

import sys

from sp2dpo import wilson_interval
from sp2dpo.training import sweep_command


def main(arguments: list[str]) -> int:
    """Run all incomplete runs, print the table, and return the exit code."""
    return sweep_command(arguments, wilson_interval, program="sweep.py")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
