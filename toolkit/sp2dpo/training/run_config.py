"""YAML files of a run, one on top of the other: what a run's settings are and where each is from.

The rule: a key of a later file replaces that of an earlier one, whole, lists and mappings too. What
the command line says stands above all files. A key that is there once is not explained twice.
"""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

__all__ = ["RunFiles", "compose", "single_config", "take_configs"]


@dataclass(frozen=True)
class RunFiles:
    """Settings out of several files.

    Attributes:
        settings: Key -> value.
        origin: Key -> the file that it is from.
    """

    settings: Mapping[str, Any]
    origin: Mapping[str, Path]

    def lines(self) -> list[str]:
        """Return the settings as the lines of a YAML file, each with the name of its own file."""
        shown = []
        for key, value in self.settings.items():
            said = yaml.safe_dump(value, default_flow_style=True, width=1000)
            said = said.removesuffix("...\n").rstrip("\n")
            shown.append(f"{key}: {said}  # {self.origin[key].name}")
        return shown


def compose(paths: Sequence[Path]) -> RunFiles:
    """Return the settings of the files, a later one's in place of an earlier one's.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If one is no YAML file of `key: value`.
    """
    settings: dict[str, Any] = {}
    origin: dict[str, Path] = {}
    for path in paths:
        try:
            said = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is no YAML file: {error}") from error
        if not isinstance(said, dict):
            raise ValueError(f"{path} holds no settings, lines of `key: value`")
        settings |= said
        origin |= dict.fromkeys(said, path)
    return RunFiles(settings=settings, origin=origin)


def take_configs(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Return the files that `--config` names, in order, and the other arguments.

    Raises:
        ValueError: If nothing stands behind a `--config`.
    """
    paths: list[Path] = []
    others: list[str] = []
    left = iter(arguments)
    for word in left:
        if word == "--config":
            path = next(left, "")
            if not path or path.startswith("--"):
                raise ValueError("--config takes a file: --config FILE.yaml")
            paths.append(Path(path))
        elif word.startswith("--config="):
            paths.append(Path(word.removeprefix("--config=")))
        else:
            others.append(word)
    return paths, others


@contextmanager
def single_config(files: RunFiles, arguments: Sequence[str]) -> Any:
    """Yield arguments with one `--config`, a file that is there for so long."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        path.write_text(yaml.safe_dump(dict(files.settings), sort_keys=False), encoding="utf-8")
        yield ["--config", str(path), *arguments]
