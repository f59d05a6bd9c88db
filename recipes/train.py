"""Train one model with one beta per pair, as a YAML file describes.

    accelerate launch --config_file recipes/accelerate/single.yaml recipes/train.py \
        --config recipes/dpo/tiny-demo.yaml

The keys are those of DataConfig, of PairDPOConfig (TRL's DPOConfig plus `pair_columns`,
`missing_values`, ...) and of TRL's ModelConfig. Several `--config` options describe one run: a key
of a later file replaces the same key of an earlier one, and the merged settings are printed. A key
given on the command line overrides the files; `--pair_columns` without a value means the same as
`pair_columns: []` in YAML, which is stock DPO.

The script writes the model, its tokenizer and its card to `output_dir` and results.json last: the
run is complete if that file exists. Errors are printed as one line, before the model loads if
possible. Exit code 2 means wrong settings, 1 bad data or a bad model. After signal N (Ctrl-C, or
that of a scheduler) the step is finished, a checkpoint saved, and the exit code is 128 + N; with
`--resume_from_checkpoint true` the same command continues. (`accelerate launch` adds its own
traceback and always exits with 1.)
"""

import os
import sys

from trl import ModelConfig

from sp2dpo.training import (
    DataConfig,
    PairDPOConfig,
    one_line_errors,
    parse_settings,
    prepare_run,
    stoppable,
)

# accelerate does not set RANK if it starts a single process.
MAIN_PROCESS = os.environ.get("RANK", "0") == "0"


def main(arguments: list[str]) -> None:
    """Parse, load, train, evaluate, save."""
    # Searched for here, because an error can occur before the arguments are parsed.
    traceback = "--traceback" in arguments
    with one_line_errors("train.py", 2, traceback=traceback):
        data, args, model = parse(arguments)
    with one_line_errors("train.py", 1, traceback=traceback), stoppable("train.py"):
        run = prepare_run(data, args, model)
        run.train()
    if MAIN_PROCESS:
        print(f"{args.output_dir}: the model and results.json are written")


def parse(arguments: list[str]) -> tuple[DataConfig, PairDPOConfig, ModelConfig]:
    """Return the settings of the YAML files, overridden by those of the command line.

    Raises:
        ValueError: On an unknown key, on a bad value, and if the data set or the model is missing.
    """
    settings = parse_settings(arguments, (DataConfig, PairDPOConfig, ModelConfig))
    if len(settings.files) > 1 and MAIN_PROCESS:
        print("\n".join(settings.merged.lines()))
    data, args, model = settings.configs
    for key, value in (("dataset", data.dataset), ("model_name_or_path", model.model_name_or_path)):
        if not value:
            raise ValueError(f"{key} is missing: set it in the YAML file or give --{key}")
    return data, args, model


if __name__ == "__main__":
    main(sys.argv[1:])
