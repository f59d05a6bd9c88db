"""Read the settings of a run from YAML files and the command line.

A key of a later file replaces the same key of an earlier one. Lists and mappings are replaced too,
not merged. The command line overrides all files.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from trl import TrlParser

from sp2dpo.settings import did_you_mean
from sp2dpo.training.trackers import check_trackers
from sp2dpo.yaml_files import read_yaml


@dataclass(frozen=True)
class RunFiles:
    """The merged settings of several files.

    Attributes:
        settings: Values by key.
        origin: The file that sets each key, by key.
    """

    settings: Mapping[str, Any]
    origin: Mapping[str, Path]

    def lines(self) -> list[str]:
        """Return the settings as YAML lines, each with a comment that names its file."""
        lines = []
        for key, value in self.settings.items():
            text = yaml.safe_dump(value, default_flow_style=True, width=1000)
            # PyYAML ends a document that is a bare scalar with the marker `...`.
            text = text.removesuffix("...\n").rstrip("\n")
            lines.append(f"{key}: {text}  # {self.origin[key].name}")
        return lines


@dataclass(frozen=True)
class ParsedSettings:
    """The settings of a run.

    Attributes:
        configs: An instance of each configuration class, in the order of the classes.
        files: The files that `--config` names, in order.
        merged: The merged settings of these files.
    """

    configs: tuple[Any, ...]
    files: Sequence[Path]
    merged: RunFiles


def compose(paths: Sequence[Path]) -> RunFiles:
    """Return the settings of the files; a key of a later file replaces that of an earlier one.

    Raises:
        OSError: If a file cannot be read.
        ValueError: As for `read_yaml_file`.
    """
    settings: dict[str, Any] = {}
    origin: dict[str, Path] = {}
    for path in paths:
        content = read_yaml(path)
        settings |= content
        origin |= dict.fromkeys(content, path)
    return RunFiles(settings=settings, origin=origin)


def take_configs(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Return the files that `--config` names, in order, and the other arguments.

    Raises:
        ValueError: If a `--config` has no value.
    """
    paths: list[Path] = []
    others: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--config":
            path = next(words, "")
            if not path or path.startswith("--"):
                raise ValueError("--config takes a file: --config FILE.yaml")
            paths.append(Path(path))
        elif word.startswith("--config="):
            paths.append(Path(word.removeprefix("--config=")))
        else:
            others.append(word)
    return paths, others


@contextmanager
def single_config(files: RunFiles, arguments: Sequence[str]) -> Iterator[list[str]]:
    """Yield the arguments with one `--config`, a temporary file of the merged settings."""
    # TrlParser takes one `--config` only, and only as a file.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        path.write_text(yaml.safe_dump(dict(files.settings), sort_keys=False), encoding="utf-8")
        yield ["--config", str(path), *arguments]


def parse_settings(arguments: Sequence[str], classes: Sequence[type]) -> ParsedSettings:
    """Return the settings of the YAML files, overridden by those of the command line.

    Args:
        arguments: Any number of `--config FILE.yaml` and `--key value`.
        classes: Dataclasses whose fields are the legal keys.

    Raises:
        ValueError: On an unknown key, on a bad value, and if the package of a tracker is missing.
        OSError: If a file cannot be read.
    """
    paths, arguments = take_configs(arguments)
    files = compose(paths)
    # Without abbreviations, as in YAML: `--learning_rat` is a mistake and not `--learning_rate`.
    usage = "%(prog)s --config FILE.yaml [--key value ...]"
    parser = TrlParser(list[Any](classes), usage=usage, allow_abbrev=False)
    # argparse has no public way to change an argument that another class has added.
    for action in parser._actions:
        if action.dest == "pair_columns":
            action.nargs = "*"  # the list may be empty on the command line too
    with single_config(files, arguments) as merged:
        *parsed, in_yaml, on_command_line = parser.parse_args_and_config(
            merged, return_remaining_strings=True, separate_remaining_strings=True
        )
    # The parser returns unknown YAML keys and their values in turn, so only every second item is a
    # key; it returns unknown command-line arguments unchanged.
    unknown = [*in_yaml[::2], *on_command_line]
    if unknown:
        legal = [field.name for config in classes for field in fields(config)]
        name = unknown[0].removeprefix("--").split("=")[0]
        raise ValueError(f"unknown setting {name}{did_you_mean(name, legal)}")
    for config in parsed:
        check_trackers(getattr(config, "report_to", None) or [])
    return ParsedSettings(configs=tuple(parsed), files=paths, merged=files)
