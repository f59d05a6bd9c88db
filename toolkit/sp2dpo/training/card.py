"""The model's card: what a run was trained on, in every version that is written or pushed."""

import copy
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

from sp2dpo.text import escape_controls, longer_fence, redact
from sp2dpo.training.provenance import display_name, trace_loaded

# The mixin is meant for TRL's trainers, whose methods differ between versions.
Trainer: Any = object

# Output folders, trackers, secrets and settings that depend on the machine.
_LEFT_OUT = frozenset(
    {"output_dir", "hub_token", "report_to", "debug", "pair_columns", "traceback"}
    | {"run_name", "project"}
    # They do not change the model.
    | {"resume_from_checkpoint", "save_only_model"}
    # Set by `quiet_libraries` and `set_current_names`, not by the user.
    | {"dataloader_pin_memory", "disable_tqdm", "activation_checkpointing"}
)


_SECRET = re.compile(r"(^|_)(tokens?|keys?|secrets?|passwords?|credentials?|auth)$|storage_options")
"""Names of options that may hold a secret."""


class DataCardMixin(Trainer):
    """Write a section about the data and the settings into the card of a trainer's model.

    A trainer writes its card anew for every checkpoint and every push. The section is therefore
    added by `create_model_card`.

    Attributes:
        card_section: Text that is appended to the card, in Markdown; see `card_section`. If it is
            not set, what is known of the train data set and the settings; empty for no section.
        card_datasets: Names of the data sets on the Hub, for the card's metadata; if it is not set,
            that of the train data set, if it was loaded from the Hub.
        card_rows: The train data set as it was given to the trainer.
    """

    card_section: str | None = None
    card_datasets: Sequence[str] | None = None
    card_rows: Any = None
    _known_rows: Mapping[str, Any] | None = None

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: Any = None
    ) -> None:
        """Write the card as TRL does, from its template, and append `card_section`."""
        if not self.is_world_process_zero():
            return
        section, known = self._describe()
        names = [dataset_name] if dataset_name else list(known)
        args = self.args
        folder = Path(str(args.output_dir))
        # Written elsewhere and renamed: a push in the background may read the card at any time.
        with tempfile.TemporaryDirectory() as temporary:
            self.args = copy.copy(args)
            self.args.output_dir = temporary
            try:
                # TRL's template has a sentence for one data set.
                super().create_model_card(model_name, names[0] if len(names) == 1 else None, tags)
            finally:
                self.args = args
            written = Path(temporary, "README.md")
            if not written.exists():  # a trainer's own method may write it elsewhere, or not at all
                return
            card = ModelCard.load(written)
        if len(names) > 1:
            metadata: Any = card.data  # its attributes are the keys of the card
            metadata.datasets = names
        # The Trainer uploads no file whose name begins with an underscore.
        complete = folder / "_README.md"
        complete.write_text(f"{card}{section}", encoding="utf-8")
        complete.replace(folder / "README.md")

    def _describe(self) -> tuple[str, Sequence[str]]:
        """Return the section, and the names of the data sets on the Hub."""
        section, names = self.card_section, self.card_datasets
        if section is not None and names is not None:
            return section, names
        if self._known_rows is None:  # once: a hash of all rows
            columns = getattr(self.args, "pair_columns", [])
            self._known_rows = trace_loaded(self.card_rows, self.train_dataset, columns)
        name = self._known_rows.get("dataset")
        if section is None:
            section = card_section(dict(self._known_rows), changed_settings([self.args]))
        if names is None:
            names = [name] if name and "/" in name else []
        return section, names


def card_section(data: dict[str, Any], settings: dict[str, Any]) -> str:
    """Return a section of a model card, in Markdown.

    Args:
        data: What the model was trained on, as `data` in results.json.
        settings: Settings of the run by key; see `changed_settings`.
    """
    content = {"data": data, "settings": settings}
    text = escape_controls(yaml.safe_dump(content, sort_keys=False).rstrip())
    fence = max("`" * 4, longer_fence(text), key=len)
    return "\n".join(
        [
            "\n\n## Data and settings\n",
            "The data, the settings that differ from the defaults, and SHA-256 hashes of the data"
            " set's manifest and of the columns that acted, with the pairs' ids, in the order of"
            " the rows.\n",
            f"{fence}yaml",
            text,
            f"{fence}\n",
        ]
    )


def changed_settings(configs: Sequence[Any]) -> dict[str, Any]:
    """Return the settings that differ from their defaults, by key; paths of folders become names.

    Output folders, trackers, secrets and settings that depend on the machine are left out.
    """
    changed: dict[str, Any] = {}
    for config in configs:
        for setting in fields(config):
            value = getattr(config, setting.name)
            factory = setting.default_factory
            default = setting.default if factory is MISSING else factory()
            if setting.init and value != default and setting.name not in _LEFT_OUT:
                plain = _plain(value)
                if plain is not None:
                    changed[setting.name] = plain
    return changed


def _plain(value: Any) -> Any:
    """Return a setting as a value of YAML that may be published; None if there is none.

    Paths become names, secrets are left out.
    """
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, str):
        return redact(display_name(value))
    if is_dataclass(value) and not isinstance(value, type):
        return changed_settings([value])
    if isinstance(value, dict):
        items = {str(key): _plain(item) for key, item in remove_secrets(value).items()}
        return {key: item for key, item in items.items() if item is not None} or None
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (int, float)) else None


def remove_secrets(options: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return options, such as `model_init_kwargs`, without those that hold tokens or passwords."""
    return {key: value for key, value in options.items() if not _SECRET.search(str(key).lower())}
