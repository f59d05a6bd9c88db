"""Train a reward model on the pairs of a data set, without those of one fold of the prompts.

    accelerate launch --config_file recipes/accelerate/single.yaml recipes/reward.py \
        --config recipes/reward/tiny-demo.yaml --folds 3 --fold 0 --output_dir demo/rewards/fold-0

The same as `sp2dpo reward`, for your own launcher. The keys are those of FoldConfig, of TRL's
RewardConfig and of its ModelConfig. One run trains one model. With K folds, K runs train K models,
each without one fold, and `sp2dpo score --folds K --model 'demo/rewards/fold-{fold}'` scores each
pair by the model that has not seen its prompt. The loss is -log s(h), h = r(chosen) - r(rejected).
Rows with `keep: false` are left out. The script writes the model to `output_dir` and results.json
last. Signals and exit codes: as train.py.
"""

import sys

from sp2dpo.training import reward_command


def main(arguments: list[str]) -> None:
    """Parse, load, train, evaluate, save."""
    reward_command(arguments, program="reward.py")


if __name__ == "__main__":
    main(sys.argv[1:])
