"""The card of a data set: its README.md, generated from the manifest's facts."""

import re
from collections.abc import Mapping
from typing import Any

import jinja2
import yaml
from datasets import Features

from sp2dpo.rubric import Rubric
from sp2dpo.terminal import harmless

_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+\-.!|~&])")


def card(facts: Mapping[str, Any], features: Mapping[str, Features], rubric: Rubric) -> str:
    """The text of README.md.

    Args:
        facts: what the manifest says.
        features: the columns of each config.
        rubric: that the teachers were asked under.
    """
    template = _templates().get_template("card.md.jinja")
    return template.render(
        head=_head(facts, features),
        facts=facts,
        rubric=rubric,
        schedule=yaml.safe_dump(facts["schedule"], sort_keys=False),
        arm=yaml.safe_dump(facts["arm"], sort_keys=False),
        formulas=facts["formulas"],
        ends=_ends(facts["schedule"]),
        columns=features["default"],
        tells=facts["counts"]["labels_disputed"] is not None,
    )


def _ends(schedule: Mapping[str, Any]) -> tuple[float, float]:
    """The lowest and the highest beta that any category may get."""
    every = (schedule, *schedule.get("envelopes", {}).values())
    return min(one["beta_min"] for one in every), max(one["beta_max"] for one in every)


def _head(facts: Mapping[str, Any], features: Mapping[str, Features]) -> str:
    """The YAML that the Hub and `datasets` read.

    `datasets` keeps what it has read of a local folder under a hash of this YAML and the folder's
    name, not of its files: without their digests here, betas of another schedule, built into a
    folder of the same name, would be served from the cache of the first.
    """
    folders = {"default": "data", "annotations": "annotations"}
    digests = {
        name: [one["sha256"] for path, one in facts["files"].items() if path.startswith(folder)]
        for name, folder in folders.items()
    }
    said = {
        "pretty_name": f"{facts['source']['name']} with per-pair beta",
        "task_categories": ["text-generation"],
        "annotations_creators": ["machine-generated"],
        "size_categories": [_size(facts["counts"]["rows"])],
        "tags": ["dpo", "preference", "sp2dpo", "per-pair-beta"],
        "configs": [
            {
                "config_name": name,
                "description": f"SHA-256 {' '.join(digests[name])}",
                "data_files": [{"split": "train", "path": f"{folders[name]}/train-*"}],
                **({"default": True} if name == "default" else {}),
            }
            for name in features
        ],
        "dataset_info": [
            {"config_name": name, "features": columns._to_yaml_list()}
            for name, columns in features.items()
        ],
    }
    return yaml.safe_dump(said, sort_keys=False, allow_unicode=True)


def _size(rows: int) -> str:
    return next((name for limit, name in _SIZES if rows < limit), "n>10M")


def _templates() -> jinja2.Environment:
    # Markdown is not HTML: data is escaped by the `plain` filter, where it stands.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sp2dpo"),
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["plain"] = plain
    return environment


def plain(text: object) -> str:
    """Data as Markdown text: harmless, on one line, every mark of Markdown and HTML escaped."""
    return _MARKDOWN.sub(r"\\\1", harmless(" ".join(str(text).split())))
