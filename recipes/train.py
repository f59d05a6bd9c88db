"""Train one model with one beta per pair, as a YAML file describes.

    accelerate launch --config_file recipes/accelerate/single.yaml recipes/train.py \
        --config recipes/dpo/tiny-demo.yaml

The same as `sp2dpo train`, for your own launcher. The keys are those of DataConfig, of
PairDPOConfig (TRL's DPOConfig plus `pair_columns`, `missing_values`, ...) and of TRL's ModelConfig.
Several `--config` options describe one run: a key of a later file replaces the same key of an
earlier one, and the merged settings are printed. A key given on the command line overrides the
files; `--pair_columns` without a value means the same as `pair_columns: []` in YAML, which is stock
DPO.

The script writes the model, its tokenizer and its card to `output_dir` and results.json last: the
run is complete if that file exists. Errors are printed as one line, before the model loads if
possible. Exit code 2 means wrong settings, 1 bad data or a bad model. After signal N (Ctrl-C, or
that of a scheduler) the step is finished, a checkpoint saved, and the exit code is 128 + N; with
`--resume_from_checkpoint true` the same command continues. (`accelerate launch` adds its own
traceback and always exits with 1.)
"""

import sys

from sp2dpo.training import train_command


def main(arguments: list[str]) -> None:
    """Parse, load, train, evaluate, save."""
    train_command(arguments, program="train.py")


if __name__ == "__main__":
    main(sys.argv[1:])
