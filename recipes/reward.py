"""Train a reward model on the pairs of a data set, without those of one fold of the prompts.

    accelerate launch --config_file recipes/accelerate/single.yaml recipes/reward.py \
        --config recipes/reward/tiny-demo.yaml --folds 3 --fold 0 --output_dir demo/rewards/fold-0

The keys are those of FoldConfig, of TRL's RewardConfig and of its ModelConfig. One run trains one
model. With K folds, K runs train K models, each without one fold, and `sp2dpo score --folds K
--model 'demo/rewards/fold-{fold}'` scores each pair by the model that has not seen its prompt. The
loss is -log s(h), h = r(chosen) - r(rejected). Rows with `keep: false` are left out. The script
writes the model to `output_dir` and results.json last. Signals and exit codes: as train.py.
"""

import os
import sys

from trl import ModelConfig

from sp2dpo.training import (
    FoldConfig,
    RewardModelConfig,
    one_line_errors,
    parse_settings,
    prepare_reward_run,
    stoppable,
)


def main(arguments: list[str]) -> None:
    """Parse, load, train, evaluate, save."""
    # Searched for here, because an error can occur before the arguments are parsed.
    traceback = "--traceback" in arguments
    with one_line_errors("reward.py", 2, traceback=traceback):
        settings = parse_settings(arguments, (FoldConfig, RewardModelConfig, ModelConfig))
        data, args, model = settings.configs
    with one_line_errors("reward.py", 1, traceback=traceback), stoppable("reward.py"):
        run = prepare_reward_run(data, args, model)
        run.train()
    if os.environ.get("RANK", "0") == "0":
        print(f"{args.output_dir}: the reward model and results.json are written")


if __name__ == "__main__":
    main(sys.argv[1:])
