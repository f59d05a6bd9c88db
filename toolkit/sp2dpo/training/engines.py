"""Engines: how many processes train, and what they share. Starts them and waits for them.

An engine is a configuration of accelerate: one of `recipes/accelerate`, a file, or the default that
`accelerate config` has written. This module does not import torch; `launcher` runs accelerate in a
program of its own.
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from huggingface_hub.constants import HF_HOME

from sp2dpo.inference import keeper
from sp2dpo.interrupts import forward_signals
from sp2dpo.recipes import find_recipe, list_recipes
from sp2dpo.settings import did_you_mean

COMMAND = "SP2DPO_COMMAND"
"""Variable that tells the processes which command the user has to repeat to resume the run."""
SINGLE = "single"
PATIENCE = 3600
"""Seconds in which a run that is stopped has to save its checkpoint, before it is killed."""
_FOLDER = "accelerate"
_DEFAULTS = ("default_config.yaml", "default_config.json")


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine and where it runs.

    Attributes:
        name: Its name, or the path of its file.
        config: Configuration file of accelerate; None for a single process without accelerate.
        processes: Number of processes on all machines; None for that of the file, or for one on
            each GPU if the engine is one of the package.
        machines: Number of machines; None for that of the file.
        machine_rank: Number of this machine, from 0; None for that of the file.
        main_process_ip: Address of machine 0; None for that of the file.
        main_process_port: Port on machine 0; None for that of the file, or a free one.
        mixed_precision: `no`, so that the settings `bf16` and `fp16` of a run decide alone; None
            for that of the file, which would hold where both are false.
        is_carried: Whether the file is one of the package, whose number of processes is an example.
    """

    name: str
    config: str | None
    processes: int | None = None
    machines: int | None = None
    machine_rank: int | None = None
    main_process_ip: str | None = None
    main_process_port: int | None = None
    mixed_precision: str | None = None
    is_carried: bool = False

    def launch_options(self) -> list[str]:
        """Return the options of `accelerate launch` that stand for this engine."""
        options = ["--config_file", self.config or ""]
        for option, value in (
            ("num_processes", self.processes),
            ("num_machines", self.machines),
            ("machine_rank", self.machine_rank),
            ("main_process_ip", self.main_process_ip),
            ("main_process_port", self.main_process_port),
            ("mixed_precision", self.mixed_precision),
        ):
            if value is not None:
                options += [f"--{option}", str(value)]
        return options


def choose_engine(name: str | None, processes: int | None) -> Engine:
    """Return the engine of a name.

    Args:
        name: `single`, the name of a file in `recipes/accelerate`, or the path of an accelerate
            configuration. None stands for the user's default configuration of accelerate, if there
            is one; else for `ddp` with several processes, and for `single` otherwise.
        processes: Number of processes; None as for Engine.

    Raises:
        ValueError: If there is no such engine, or it cannot have so many processes.
    """
    if name is None:
        default = default_config()
        if default is not None:
            return Engine(name=str(default), config=str(default), processes=processes)
        name = "ddp" if (processes or 1) > 1 else SINGLE
    if name == SINGLE:
        if (processes or 1) > 1:
            raise ValueError(
                f"--engine single is one process, not {processes}: give --engine ddp, zero3, ..."
            )
        return Engine(name=name, config=None)
    recipe = find_recipe(f"{_FOLDER}/{name}")
    path = Path(name)
    if recipe is not None and not path.is_file():
        return Engine(name=name, config=str(recipe.path), processes=processes, is_carried=True)
    if path.is_dir():
        raise ValueError(f"--engine {name} is a folder: name a configuration file of accelerate")
    if not path.is_file():
        names = engine_names()
        raise ValueError(
            f"--engine {name} is neither a file nor an engine{did_you_mean(name, names)} (known:"
            f" {', '.join(names)})"
        )
    return Engine(name=name, config=name, processes=processes)


def engine_names() -> list[str]:
    """Return the names of the engines that the package carries."""
    names = [recipe.name.partition("/") for recipe in list_recipes()]
    return [name for folder, _, name in names if folder == _FOLDER]


def default_config() -> Path | None:
    """Return the file that `accelerate config` has written; None if there is none."""
    folder = Path(HF_HOME).expanduser() / "accelerate"
    return next((folder / name for name in _DEFAULTS if (folder / name).is_file()), None)


def launch(engine: Engine, name: str, arguments: Sequence[str], command: Sequence[str]) -> int:
    """Run a command of `commands` in the processes of an engine; return its exit code.

    A signal goes to all processes, which save a checkpoint and end; a second one, 3 seconds later,
    ends them at once. They also end if this process is killed.

    Args:
        engine: The engine; it must have a configuration.
        name: Name of the command, `train` or `reward`.
        arguments: Its arguments.
        command: Words of the command that the user has given.

    Returns:
        The exit code of the process that failed first; 128 + N after signal N.
    """
    words = [sys.executable, "-I", "-S", keeper.__file__, "--wait-for-all"]
    words += [str(os.getpid()), str(PATIENCE)]
    words += [sys.executable, "-m", "sp2dpo.training.process", "launcher"]
    words += [json.dumps(asdict(engine)), name]
    # A file of the current folder must not take the place of a module of the same name.
    env = os.environ | {COMMAND: shlex.join(command), "PYTHONSAFEPATH": "1"}
    with (
        subprocess.Popen(
            [*words, *arguments], stdin=subprocess.DEVNULL, start_new_session=True, env=env
        ) as process,
        forward_signals(lambda numbers: process.send_signal(numbers[-1])) as received,
    ):
        code = process.wait()
    if code and received:
        return 128 + received[0]
    return 128 - code if code < 0 else code


def on_machines(
    engine: Engine, machines: int | None, rank: int | None, ip: str | None, port: int | None
) -> Engine:
    """Return the engine on several machines.

    Raises:
        ValueError: If machines are given to an engine of one process.
    """
    if engine.config is None:
        if any(value is not None for value in (machines, rank, ip, port)):
            raise ValueError(
                "--machines, --machine-rank, --main-process-ip and --main-process-port need an"
                " engine of several processes: give --engine zero3-multinode"
            )
        return engine
    return replace(
        engine, machines=machines, machine_rank=rank, main_process_ip=ip, main_process_port=port
    )
