"""Run accelerate's launcher so that signals reach all processes and exit codes come back.

    python -m sp2dpo.training.process launcher ENGINE COMMAND ARGUMENTS...

ENGINE is an `engines.Engine` as JSON, COMMAND is one of `commands`. Of its own, `accelerate launch`
forwards no signal to a single process, kills several ones 30 seconds after a signal, prints a
traceback after an error, and always exits with 1.
"""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType

import psutil
import torch
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from sp2dpo.text import count_noun, one_line
from sp2dpo.training.engines import Engine
from sp2dpo.yaml_files import read_yaml

_SIGNALS = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU,
)  # fmt: skip
_ONE_PROCESS = ("NO", "MULTI_CPU")
"""Types of which accelerate starts one process without a word, whatever their number is."""


class _Forwarder:
    """Sends the signals that this process receives to its children.

    Attributes:
        number: Number of the first signal; None as long as there was none.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        for number in _SIGNALS:
            signal.signal(number, self._forward)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
        children = psutil.Process().children()
        if not children:  # no process has started yet
            os._exit(128 + number)
        for child in children:
            with suppress(psutil.NoSuchProcess):  # it has ended
                child.send_signal(number)


def main(words: Sequence[str]) -> int:
    """Launch the processes, wait for them, and return the exit code of the one that failed first.

    Returns:
        0 if all succeeded; 2 if the engine cannot run here; 128 + N if signal N ended a process.
    """
    engine, name, *arguments = words
    program = f"sp2dpo {name}"
    traceback = "--traceback" in arguments
    forwarder = _Forwarder()
    try:
        checked = check_engine(Engine(**json.loads(engine)))
        if _is_on_cpu(checked):
            _prepare_for_cpus(checked)
            # Else each process without a GPU trains on its own, on all pairs.
            arguments = ["--use_cpu", "true", *arguments]
        command = ["--module", "sp2dpo.training.process", "commands", name, *arguments]
        args = launch_command_parser().parse_args([*checked.launch_options(), *command])
        if not traceback:
            # torchrun logs a table of the processes that have failed.
            logging.disable(logging.ERROR)
        # Not in this thread, in which torchrun would handle the signals itself.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(launch_command, args).result()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        return _exit_code(program, f"process {rank}", failure.exitcode, forwarder)
    except subprocess.CalledProcessError as error:
        return _exit_code(program, "the training", error.returncode, forwarder)
    except (ValueError, TypeError, AttributeError, OSError, ImportError) as error:
        if traceback:
            raise
        sys.stderr.write(f"{program}: {one_line(error)}\n")
        return 2
    return 0


def check_engine(engine: Engine) -> Engine:
    """Return the engine as it runs here.

    It has its number of processes, port 0 (any free one) on one machine, and no precision of its
    own but fp8, for which a run has no setting.

    Raises:
        ValueError: If this machine cannot run it.
        OSError: If its file cannot be read.
    """
    config = read_yaml(Path(engine.config or ""))
    name, kind = f"--engine {engine.name}", str(config.get("distributed_type", "NO"))
    machines = engine.machines or int(config.get("num_machines") or 1)
    on_cpu = _is_on_cpu(engine)
    gpus = 0 if on_cpu else torch.accelerator.device_count()
    processes = engine.processes
    if processes is None and engine.is_carried:
        processes = gpus * machines
        if not gpus:
            raise ValueError(
                f"{name}: no GPU is visible; give --processes N for N processes on the CPU"
            )
    processes = processes or int(config.get("num_processes") or 1)
    here, remainder = divmod(processes, machines)
    if remainder:
        raise ValueError(
            f"{name}: {processes} processes cannot be spread evenly over {machines} machines:"
            " --processes counts those of all machines"
        )
    if machines > 1 and not (engine.main_process_ip or config.get("main_process_ip")):
        raise ValueError(
            f"{name}: {machines} machines need the address of the first: give --main-process-ip,"
            " and --machine-rank on each"
        )
    if kind in _ONE_PROCESS and processes > 1:
        raise ValueError(
            f"{name}: accelerate starts one process with distributed_type {kind}, not {processes}:"
            " set it to MULTI_GPU, on CPUs with use_cpu: true"
        )
    if kind == "FSDP" and on_cpu:
        raise ValueError(
            f"{name} needs GPUs and none is visible (accelerate would run DDP): give --engine ddp"
            " or zero3"
        )
    if gpus and here > gpus:
        visible = f"{count_noun(gpus, 'GPU')} {'is' if gpus == 1 else 'are'} visible"
        raise ValueError(
            f"{name}: {here} processes on this machine need as many GPUs, and {visible}: give"
            f" --processes {gpus * machines}"
        )
    port = engine.main_process_port
    if port is None and machines == 1 and not config.get("main_process_port"):
        port = 0  # a free one, so that two runs fit on one machine
    precision = "no" if config.get("mixed_precision") != "fp8" else None
    return replace(engine, processes=processes, main_process_port=port, mixed_precision=precision)


def _is_on_cpu(engine: Engine) -> bool:
    config = read_yaml(Path(engine.config or ""))
    return bool(config.get("use_cpu")) or not torch.accelerator.is_available()


def _prepare_for_cpus(engine: Engine) -> None:
    """Share the processors among the processes, and tell DeepSpeed that there is no GPU."""
    here = (engine.processes or 1) // (engine.machines or 1)
    threads = max(1, len(os.sched_getaffinity(0)) // max(1, here))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("DS_ACCELERATOR", "cpu")


def skip_compilation() -> None:
    """Keep DeepSpeed from compiling an operation of CPUs, for minutes and in all processes at once.

    It is a reduction in shared memory, which only inference uses.
    """
    uses_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    if uses_deepspeed and os.environ.get("DS_ACCELERATOR") == "cpu":
        import deepspeed  # noqa: PLC0415 - not installed everywhere, and slow

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _exit_code(program: str, process: str, code: int, forwarder: _Forwarder) -> int:
    """Return the exit code of a process that failed, and print what it could not say itself."""
    if code >= 0:
        return code
    name = signal.Signals(-code).name
    if forwarder.number is not None:
        sys.stderr.write(f"{program}: stopped by {name}; no checkpoint was saved by this process\n")
        return 128 + forwarder.number
    reason = ", as by the kernel when memory runs out" * (name == "SIGKILL")
    sys.stderr.write(f"{program}: {process} was ended by {name}{reason}\n")
    return 128 - code
