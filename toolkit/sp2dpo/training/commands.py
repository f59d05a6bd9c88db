"""The commands that train: from their arguments to a model, a line about it and an exit code.

`sp2dpo train`, `sp2dpo reward` and the scripts in recipes/ call these functions; `main` runs one of
them in a process that `launcher` has started.
"""

import os
import shlex
import sys
from collections.abc import Sequence

import torch
from tqdm import tqdm
from trl import ModelConfig

from sp2dpo.training.config import PairDPOConfig
from sp2dpo.training.console import one_line_errors
from sp2dpo.training.engines import COMMAND, Engine
from sp2dpo.training.launcher import check_engine, skip_compilation
from sp2dpo.training.reward_run import FoldConfig, RewardModelConfig, prepare_reward_run
from sp2dpo.training.run import DataConfig, prepare_run
from sp2dpo.training.run_config import ParsedSettings, compose, parse_settings, take_configs
from sp2dpo.training.stopping import stoppable

TRAINING = (DataConfig, PairDPOConfig, ModelConfig)
"""The classes whose fields are the settings of `train`."""
REWARD = (FoldConfig, RewardModelConfig, ModelConfig)
"""The classes whose fields are the settings of `reward`."""


def train_command(
    arguments: Sequence[str], *, program: str = "sp2dpo train", command: Sequence[str] = ()
) -> None:
    """Train one model with one beta per pair: parse, load, train, evaluate, save.

    Args:
        arguments: Any number of `--config FILE.yaml` and `--key value`; the keys are those of
            DataConfig, of PairDPOConfig (TRL's DPOConfig and ours) and of TRL's ModelConfig.
        program: Name of the program, with which messages begin.
        command: Words of the command that a user has to repeat to resume the run; empty for those
            of this process.

    Raises:
        SystemExit: With 2 if the settings are wrong, 1 if the data or the model are, and 128 + N
            after signal N.
    """
    # Searched for here, because an error can occur before the arguments are parsed.
    traceback = "--traceback" in arguments
    with one_line_errors(program, 2, traceback=traceback):
        settings = parse_training(arguments)
        if len(settings.files) > 1:
            _print_on_main("\n".join(settings.merged.lines()))
        data, args, model = settings.configs
    with one_line_errors(program, 1, traceback=traceback), stoppable(program, command):
        run = prepare_run(data, args, model)
        run.train()
    _print_on_main(f"{args.output_dir}: the model and results.json are written")


def parse_training(arguments: Sequence[str]) -> ParsedSettings:
    """Return the settings of the YAML files, overridden by those of the command line.

    Raises:
        ValueError: On an unknown key, on a bad value, and if the data set or the model is missing.
    """
    settings = parse_settings(arguments, TRAINING)
    data, _, model = settings.configs
    dataset = data.dataset or data.datasets
    for key, value in (("dataset", dataset), ("model_name_or_path", model.model_name_or_path)):
        if not value:
            raise ValueError(f"{key} is missing: set it in the YAML file or give --{key}")
    return settings


def reward_command(
    arguments: Sequence[str], *, program: str = "sp2dpo reward", command: Sequence[str] = ()
) -> None:
    """Train a reward model on the pairs of a data set, without those of one fold of the prompts.

    Args:
        arguments: As for `train_command`; the keys are those of FoldConfig, of RewardModelConfig
            (TRL's RewardConfig and ours) and of TRL's ModelConfig.
        program: Name of the program, with which messages begin.
        command: As for `train_command`.

    Raises:
        SystemExit: As for `train_command`.
    """
    traceback = "--traceback" in arguments
    with one_line_errors(program, 2, traceback=traceback):
        data, args, model = parse_reward(arguments).configs
    with one_line_errors(program, 1, traceback=traceback), stoppable(program, command):
        run = prepare_reward_run(data, args, model)
        run.train()
    _print_on_main(f"{args.output_dir}: the reward model and results.json are written")


def parse_reward(arguments: Sequence[str]) -> ParsedSettings:
    """Return the settings of the YAML files, overridden by those of the command line.

    Raises:
        ValueError: On an unknown key, on a bad value, and if the data set is missing.
    """
    return parse_settings(arguments, REWARD)


def use_one_gpu(program: str) -> None:
    """Hide all GPUs but the first: in one process, the Trainer would spread batches over all.

    Args:
        program: Name of the program, with which the line about it begins.
    """
    number = torch.cuda.device_count()
    if number > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.partition(",")[0]
        tqdm.write(
            f"{program}: uses one of {number} GPUs; --engine ddp or zero3 uses all",
            file=sys.stderr,
        )


def plan_lines(name: str, program: str, arguments: Sequence[str], engine: Engine) -> list[str]:
    """Return the merged settings and the command that would be launched, after a check of both.

    Args:
        name: Name of the command, `train` or `reward`.
        program: Name of the program, with which messages begin.
        arguments: Its arguments.
        engine: The engine that would run it.

    Raises:
        SystemExit: With 2 if the settings are wrong or the engine cannot run here.
    """
    with one_line_errors(program, 2, traceback="--traceback" in arguments):
        if engine.config is not None:
            engine = check_engine(engine)
        parse = {"train": parse_training, "reward": parse_reward}[name]
        settings = parse([*arguments, *_share_of_batch(arguments, engine.processes or 1)])
    _, others = take_configs(arguments)
    lines = settings.merged.lines()
    if others:
        lines.append(f"# from the command line: {shlex.join(others)}")
    if engine.config is None:
        return [*lines, "# one process, without a launcher; nothing was started"]
    launch = ["accelerate", "launch", *engine.launch_options(), "--module"]
    launch += ["sp2dpo.training.process", "commands", name]
    command = shlex.join([*launch, *arguments])
    return [*lines, f"# nothing was started; the launch is: {command}"]


def _share_of_batch(arguments: Sequence[str], processes: int) -> list[str]:
    """Return the option by which one process checks `global_batch_size` for several.

    Raises:
        ValueError: If the processes cannot have equal shares.
    """
    paths, others = take_configs(arguments)
    key = "--global_batch_size"
    words = [word for each in others for word in each.split("=", 1)]
    size = str(compose(paths).settings.get(key[2:]))
    if key in words[:-1]:
        size = words[len(words) - words[::-1].index(key)]
    if processes == 1 or not size.isdecimal():
        return []
    share, remainder = divmod(int(size), processes)
    if remainder:
        raise ValueError(f"global_batch_size {size} is not a multiple of the {processes} processes")
    return [key, str(share)]


def _print_on_main(text: str) -> None:
    # accelerate does not set RANK if it starts a single process.
    if os.environ.get("RANK", "0") == "0":
        tqdm.write(text)


def main(words: Sequence[str]) -> None:
    """Run the command that the first word names with the other words as its arguments."""
    name, *arguments = words
    run = {"train": train_command, "reward": reward_command}[name]
    skip_compilation()
    command = shlex.split(os.environ.get(COMMAND, ""))
    run(arguments, program=f"sp2dpo {name}", command=command)
