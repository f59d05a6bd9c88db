"""The commands `train`, `reward`, `sweep` and `score`."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from sp2dpo.cli.options import FILE, FOLDER, command_words, find_yaml, print_lines
from sp2dpo.cli.settings import SettingsCommand

if TYPE_CHECKING:
    from click.decorators import FC

    from sp2dpo.training.engines import Engine

_LIBRARIES = ("torch", "transformers", "trl", "accelerate", "peft")
# Every other option is a setting, which the training checks.
_PASS_ON = {"ignore_unknown_options": True}
# click would join these lines into one paragraph; \b at its beginning forbids that.
_TRAIN, _REWARD, _SWEEP = (
    """\b
sp2dpo train --config dpo/tiny-demo
sp2dpo train --config dpo/models/qwen3-4b --config dpo/methods/sp2dpo --engine zero3 --dataset DIR
""",
    """\b
sp2dpo reward --config reward/tiny-demo --folds 3 --fold 0 --output_dir rewards/fold-0
""",
    """\b
sp2dpo sweep --out DIR --config dpo/tiny-demo --vary beta=0.03,0.1 --arm dpo/methods/sp2dpo
""",
)
_CONFIG = click.option(
    "--config",
    "configs",
    metavar="FILE_OR_RECIPE",
    multiple=True,
    help="YAML file of settings, or name of a recipe (`sp2dpo recipes`); repeatable: a later one "
    "overrides an earlier one.",
)
_ENGINE = click.option(
    "--engine",
    "engines",
    metavar="ENGINE",
    multiple=True,
    help="single, ddp, zero1, zero2, zero3, fsdp2, zero3-multinode, or a configuration file of "
    "accelerate [default: that of `accelerate config` if there is one, else single].",
)
_PROCESSES = click.option(
    "--processes",
    type=click.IntRange(min=1),
    help="Number of processes, of all machines together [default: one on each GPU].",
)
_SETTINGS = click.argument("settings", metavar="[--KEY VALUE]...", nargs=-1, type=click.UNPROCESSED)


def _add_options(command: "FC") -> "FC":
    """Add the options of `train` and `reward`, the first one last, as decorators do."""
    for option in (
        _SETTINGS,
        click.option(
            "--dry-run", is_flag=True, help="Check the settings and print what would be launched."
        ),
        click.option("--main-process-port", type=click.IntRange(1, 65535), help="Its port."),
        click.option("--main-process-ip", metavar="ADDRESS", help="Address of machine 0."),
        click.option(
            "--machine-rank", type=click.IntRange(min=0), help="Number of this machine, from 0."
        ),
        click.option("--machines", type=click.IntRange(min=1), help="Number of machines."),
        _PROCESSES,
        _ENGINE,
        _CONFIG,
    ):
        command = option(command)
    return command


@click.command(cls=SettingsCommand, context_settings=_PASS_ON, epilog=_TRAIN)
@_add_options
@click.pass_obj
def train(debug: bool, **options: Any) -> None:
    """Train a model with one beta per pair.

    The settings are those of TRL's DPOConfig and ModelConfig and our own, in YAML files or as --KEY
    VALUE. A signal saves a checkpoint; --resume_from_checkpoint true continues from it. The exit
    code is 2 for wrong settings, 1 for bad data or a bad model, 128 + N after signal N.
    """
    _run_training("train", debug=debug, **options)


@click.command(cls=SettingsCommand, context_settings=_PASS_ON, epilog=_REWARD)
@_add_options
@click.pass_obj
def reward(debug: bool, **options: Any) -> None:
    """Train a reward model on all prompts but those of one fold.

    The settings are those of TRL's RewardConfig and ModelConfig and our own. `sp2dpo score` then
    scores each pair by the model that has not seen its prompt. Signals and exit codes: as `train`.
    """
    _run_training("reward", debug=debug, **options)


@click.command(context_settings=_PASS_ON, epilog=_SWEEP)
@click.option("--out", type=FOLDER, required=True, help="Folder for the runs and sweep.json.")
@_CONFIG
@click.option(
    "--vary",
    metavar="KEY=VALUE,VALUE,...",
    multiple=True,
    help="One run for each value; several options give all combinations.",
)
@click.option(
    "--arm",
    "arms",
    metavar="FILE_OR_RECIPE",
    multiple=True,
    help="One more run, with this YAML file after those of --config; repeatable.",
)
@_ENGINE
@_PROCESSES
@_SETTINGS
@click.pass_obj
def sweep(
    debug: bool,
    out: Path,
    configs: tuple[str, ...],
    vary: tuple[str, ...],
    arms: tuple[str, ...],
    engines: tuple[str, ...],
    processes: int | None,
    settings: tuple[str, ...],
) -> None:
    """Train a model with several settings and compare them.

    The runs share the reference model's log-probs. A complete run is not repeated, and a run that
    fails does not stop the others. Other options, such as --learning_rate 1.0e-6, apply to all
    runs.
    """
    program = "sp2dpo sweep"
    _require_libraries(program)
    words = ["--out", str(out)]
    for option, names in (("--config", configs), ("--arm", arms)):
        for path in _find_configs(program, option, names, "dpo"):
            words += [option, path]
    words += [word for each in vary for word in ("--vary", each)]
    if engines:
        words += ["--engine", _only_engine(program, engines)]
    if processes is not None:
        words += ["--processes", str(processes)]
    from sp2dpo.diagnostics.agreement import wilson_interval
    from sp2dpo.training.sweep_command import sweep_command

    words += [*settings, *(["--traceback", "true"] if debug else [])]
    sys.exit(sweep_command(words, wilson_interval, program=program, command=command_words()))


def _run_training(
    name: str,
    *,
    debug: bool,
    configs: tuple[str, ...],
    engines: tuple[str, ...],
    processes: int | None,
    machines: int | None,
    machine_rank: int | None,
    main_process_ip: str | None,
    main_process_port: int | None,
    dry_run: bool,
    settings: tuple[str, ...],
) -> None:
    program = f"sp2dpo {name}"
    _require_libraries(program)
    if settings and not settings[0].startswith("-"):
        _refuse(program, f"{settings[0]!r} is no option: a YAML file is given as --config FILE")
    folder = {"train": "dpo", "reward": "reward"}[name]
    words = []
    for path in _find_configs(program, "--config", configs, folder):
        words += ["--config", path]
    words += [*settings, *(["--traceback", "true"] if debug else [])]
    from sp2dpo.training.engines import choose_engine, launch, on_machines
    from sp2dpo.training.process import quiet_imports

    quiet_imports()

    try:
        engine = choose_engine(_only_engine(program, engines) if engines else None, processes)
        engine = on_machines(engine, machines, machine_rank, main_process_ip, main_process_port)
    except ValueError as error:
        _refuse(program, str(error))
    if not engines and engine.config is not None:
        print_lines(
            [f"{program}: runs with --engine {engine.name}; --engine single is one process"],
            err=True,
        )
    if dry_run:
        _print_plan(name, program, words, engine)
    elif engine.config is None:
        from sp2dpo.training import commands

        commands.use_one_gpu(program)
        run = {"train": commands.train_command, "reward": commands.reward_command}[name]
        run(words, program=program, command=command_words())
    else:
        sys.exit(launch(engine, name, words, command_words()))


def _print_plan(name: str, program: str, words: Sequence[str], engine: "Engine") -> None:
    """Print the merged settings and what would be launched, after a check of both."""
    from sp2dpo.training.commands import plan_lines

    print_lines(plan_lines(name, program, words, engine))


def _require_libraries(program: str) -> None:
    # Not imported: that takes seconds, and the processes of an engine do it themselves.
    missing = [library for library in _LIBRARIES if find_spec(library) is None]
    if missing:
        print_lines(
            [f"{program} needs {missing[0]}, which is not installed: pip install 'sp2dpo[train]'"],
            err=True,
        )
        sys.exit(1)


def _only_engine(program: str, engines: Sequence[str]) -> str:
    if len(engines) > 1:
        _refuse(program, f"--engine is given {len(engines)} times: {', '.join(engines)}")
    return engines[0]


def _find_configs(program: str, option: str, names: Sequence[str], folder: str) -> list[str]:
    """Return the paths of YAML files that are named by path or as recipes."""
    try:
        return [str(find_yaml(name, folder, option=option, program=program)) for name in names]
    except ValueError as error:
        _refuse(program, str(error))


def _refuse(program: str, message: str) -> NoReturn:
    print_lines([f"{program}: {message}"], err=True)
    sys.exit(2)


@click.command()
@click.option(
    "--data",
    required=True,
    help="Data set: a folder written by `build`, or org/name@revision on the Hub.",
)
@click.option(
    "--model",
    required=True,
    help="Reward model: a folder or org/name on the Hub; with --folds, {fold} stands for the fold.",
)
@click.option("--revision", help="Revision of the model on the Hub.")
@click.option(
    "--folds",
    type=click.IntRange(min=1, max=100),
    default=1,
    show_default=True,
    help="Number of models; each pair is scored by the model of its prompt's fold.",
)
@click.option(
    "--batch-size",
    # A pair is two conversations, which are scored in the same batch.
    type=click.IntRange(min=2),
    default=16,
    show_default=True,
    help="Conversations per batch.",
)
@click.option(
    "--max-length",
    type=click.IntRange(min=8),
    default=2048,
    show_default=True,
    help="Maximum tokens of a conversation; longer ones are truncated at the beginning.",
)
@click.option("--device", help="cpu, cuda, ... [default: a GPU if there is one].")
@click.option("--out", type=FILE, required=True, help="Parquet file to write.")
def score(
    data: str,
    model: str,
    revision: str | None,
    folds: int,
    batch_size: int,
    max_length: int,
    device: str | None,
    out: Path,
) -> None:
    """Score every pair with a reward model, for MADPO and ODPO.

    Safe to interrupt: run the same command again to resume.
    """
    if folds > 1 and "{fold}" not in model:
        raise click.UsageError(
            f"--folds {folds}: put {{fold}} into --model, as in org/model-{{fold}}"
        )
    from sp2dpo.betas.scores import read_scores

    try:
        # These modules import torch, which not every installation has.
        from sp2dpo.training.provenance import display_name, read_split
        from sp2dpo.training.reward_model import Scoring, score_dataset
    except ImportError as error:
        raise ValueError(f"scoring needs PyTorch ({error}): pip install 'sp2dpo[train]'") from error
    scoring = Scoring(
        data=display_name(data), model=model, revision=revision, folds=folds, max_length=max_length
    )
    rows = read_split(data, "train", None)
    summary = score_dataset(rows, scoring, out, batch_size=batch_size, device=device)
    read_scores(out)  # refuse scores that `schedule` would refuse
    pairs, agreeing = summary.pairs, summary.agreeing
    lines = [
        f"{pairs} pairs: reward margin mean {summary.mean:.4g}, min {summary.minimum:.4g}, max "
        f"{summary.maximum:.4g}; {agreeing} agree with their labels ({agreeing / pairs:.0%})"
    ]
    if summary.resumed:
        lines.insert(0, f"{summary.resumed} pairs were scored before")
    if summary.truncated:
        lines.append(
            f"{summary.truncated} of them longer than {max_length} tokens: cut at the beginning"
        )
    print_lines([*lines, f"wrote {out}"])
