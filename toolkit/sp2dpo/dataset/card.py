"""The card of a data set: its README.md, generated from the manifest's facts.

What is generated stands between two marks. The rest of the file is for people, and stays.
"""

import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import yaml
from datasets import Features

from sp2dpo.betas.columns import BETA_COLUMNS
from sp2dpo.dataset.manifest import CONFIGS, listed_files
from sp2dpo.panel.rubric import Rubric
from sp2dpo.text import escape_controls, format_fixed, format_interval, format_percent

BEGIN = "<!-- sp2dpo: what follows is generated; write above or below it, and it stays -->"
END = "<!-- sp2dpo: up to here -->"
_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+\-.!|~&:@])")
_TICKS = re.compile("`+")
_DIGESTS = "SHA-256 "
"""What the description of a config of ours begins with."""
_LISTED = 10
"""Pairs with a doubtful label that the card names; the file has them all."""


def render_card(
    facts: Mapping[str, Any],
    features: Mapping[str, Features],
    rubric: Rubric,
    suspects: Sequence[Mapping[str, Any]],
) -> str:
    """The text of README.md as nobody has written on it yet.

    Args:
        facts: what the manifest says.
        features: the columns of each config.
        rubric: that the teachers were asked under.
        suspects: the lines of the list of doubtful labels.
    """
    return _joined(head(facts, features), "\n", _block(facts, features, rubric, suspects), "")


def merge_card(text: str, card: str, *, license: str | None, where: str) -> str:
    """A card in the place of another, with what people wrote there.

    Their text above and below the marks stays; a card without marks is theirs whole, and goes
    below. Of the YAML the keys that are not ours stay, their tags beside ours, and their `license`,
    `language` and `pretty_name` in the place of ours.

    Args:
        text: of the other card.
        card: as `card` makes it.
        license: that was asked for, and stands in the place of theirs.
        where: for messages.

    Raises:
        ValueError: one mark is missing, or stands twice, or the YAML cannot be read.
    """
    theirs, above, below = _parted(text, where=where)
    ours, _, _ = _parted(card, where="the new card")
    said: dict[str, Any] = dict(ours)
    for key, value in theirs.items():
        if key in ("license", "language", "pretty_name") or key not in ours:
            said[key] = value
        elif key == "tags" and isinstance(value, list):
            said[key] = [*ours[key], *(tag for tag in value if tag not in ours[key])]
        elif key in ("configs", "dataset_info") and isinstance(value, list):
            said[key] = [*ours[key], *_foreign(value, theirs, ours)]
    if license is not None:
        said["license"] = license
    return _joined(said, above, _between(card), below)


def _foreign(
    value: list[Any], theirs: Mapping[str, Any], ours: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
    """Configs that people added: neither of this release nor of an earlier one of ours."""
    known = {one["config_name"] for one in ours["configs"]}
    for one in theirs.get("configs") or []:
        if isinstance(one, dict) and str(one.get("description", "")).startswith(_DIGESTS):
            known.add(one.get("config_name"))
    return [one for one in value if isinstance(one, dict) and one.get("config_name") not in known]


def digest(text: str, *, where: str) -> str:
    """SHA-256 over what of a card is ours: the part between the marks, its configs and columns.

    Raises:
        ValueError: as `merged`.
    """
    said, _, _ = _parted(text, where=where)
    known = list(CONFIGS)
    held = {
        key: [one for one in said.get(key) or [] if one.get("config_name") in known]
        for key in ("configs", "dataset_info")
    }
    block = _between(text.replace("\r\n", "\n"))
    content = json.dumps([held, block], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def card_license(text: str, *, where: str) -> str | None:
    """The licence that a card names.

    Raises:
        ValueError: as `merged`.
    """
    said = _parted(text, where=where)[0].get("license")
    return said if isinstance(said, str) else None


def _joined(said: Mapping[str, Any], above: str, block: str, below: str) -> str:
    text = yaml.safe_dump(dict(said), sort_keys=False, allow_unicode=True)
    return f"---\n{text}---\n{above}{BEGIN}\n{block}{END}\n{below}"


def _between(text: str) -> str:
    return text.split(f"{BEGIN}\n", 1)[1].split(f"{END}\n", 1)[0] if BEGIN in text else ""


def _parted(text: str, *, where: str) -> tuple[dict[str, Any], str, str]:
    """The YAML, and what stands above and below the marks."""
    text = text.replace("\r\n", "\n")
    found = re.match(r"---\n(.*?)^---[ \t]*(?:\n|\Z)", text, re.DOTALL | re.MULTILINE)
    said: Any = {}
    if found:
        try:
            said = yaml.safe_load(found[1]) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"{where}: its YAML cannot be read: {_line(error)}") from error
        if not isinstance(said, dict):
            raise ValueError(f"{where}: its YAML holds no keys")
        text = text[found.end() :]
    marks = text.count(BEGIN), text.count(END)
    if marks == (0, 0):
        return said, "\n", f"\n{text.lstrip()}" if text.strip() else ""
    begin, end = text.find(BEGIN), text.find(END)
    if marks != (1, 1) or begin > end:
        raise ValueError(
            f"{where}: the mark `{BEGIN}` stands there {marks[0]} times and `{END}` {marks[1]} "
            "times: each must stand there once, in this order"
        )
    return said, text[:begin], text[end + len(END) :].removeprefix("\n")


def head(facts: Mapping[str, Any], features: Mapping[str, Features]) -> dict[str, Any]:
    """The YAML that the Hub and `datasets` read.

    `datasets` keeps what it has read of a local folder under a hash of this YAML and the folder's
    name, not of its files: without their digests here, betas of another schedule, built into a
    folder of the same name, would be served from the cache of the first. Files are named one by
    one, so that a stranger's file beside them is not taken for more rows.
    """
    hub = ":" in facts["source"]["name"] and facts["source"]["revision"]
    return {
        **({"license": facts["license"]} if facts["license"] else {}),
        "pretty_name": f"{escape_controls(facts['source']['name'])} with per-pair beta",
        "task_categories": ["text-generation"],
        "annotations_creators": ["machine-generated"],
        "size_categories": [_size(facts["counts"]["rows"])],
        **({"source_datasets": [facts["source"]["name"].split(":")[0]]} if hub else {}),
        "tags": ["dpo", "preference", "sp2dpo", "per-pair-beta", "trl"],
        "configs": [
            {
                "config_name": name,
                "description": _DIGESTS
                + " ".join(facts["files"][file]["sha256"] for file in listed_files(facts, name)),
                "data_files": [{"split": "train", "path": listed_files(facts, name)}],
                **({"default": True} if name == "default" else {}),
            }
            for name in features
        ],
        "dataset_info": [
            {"config_name": name, "features": columns._to_yaml_list()}
            for name, columns in features.items()
        ],
    }


def _block(
    facts: Mapping[str, Any],
    features: Mapping[str, Features],
    rubric: Rubric,
    suspects: Sequence[Mapping[str, Any]],
) -> str:
    return (
        _templates()
        .get_template("card.md.jinja")
        .render(
            facts=facts,
            rubric=rubric,
            repo=facts["repo"] or "PATH_OR_REPO",
            columns=features["default"],
            column_rows=_column_rows(facts, features["default"], rubric),
            schedules=[name for name in features.get("schedules", ()) if name != "pair_id"],
            suspects=suspects[:_LISTED],
            tells=facts["counts"]["labels_disputed"] is not None,
        )
    )


def _column_rows(
    facts: Mapping[str, Any], features: Features, rubric: Rubric
) -> list[tuple[str, str, str]]:
    """Return the rows of the table of columns: the list of columns, made specific to these betas.

    Args:
        facts: The manifest.
        features: Columns of the `default` config.
        rubric: Rubric of the annotations.
    """
    counts, arm, ranges = facts["counts"], facts["arm"], facts["ranges"]
    tells = counts["labels_disputed"] is not None
    values = {name: _within(ends) for name, ends in ranges.items()}
    values["pair_id"] = "64 hexadecimal digits"
    values["beta"] = _within([facts["beta"]["min"], facts["beta"]["max"]])
    values["category"] = f"one of {len(rubric.categories)}"
    meanings = {column.name: column.meaning for column in BETA_COLUMNS}
    if "beta" in arm:
        meanings["beta"] = plain(arm["beta"])
    meanings["beta"] += f"; null below the quorum of {facts['schedule']['quorum']} replies"
    all_kept = counts["pairs_kept"] == counts["pairs_with_beta"]
    meanings["keep"] += ": whether it has a beta" if all_kept else f": {counts['pairs_kept']} are"
    scale = "on a scale from {0.min} to {0.max}"
    meanings["magnitude"] = f"{scale.format(rubric.magnitude)}, {meanings['magnitude']}"
    meanings["confidence"] = f"{scale.format(rubric.confidence)}, likewise"
    expected = " with expectations" if facts["schedule"]["estimate"] == "expected" else ""
    meanings["votes"] = f"kept replies{expected}, and the teachers that gave them"
    for name in ("weight", "margin"):
        if name in arm:
            meanings[name] += f": {plain(arm[name])}"
    if tells:
        meanings["gap"] += ": the signed gap, but at least 0"
    else:
        told = "teachers who are told the label cannot"
        values["label_disputed"] = "null"
        meanings["signed_gap"] = f"the same: {told} prefer the rejected response"
        meanings["label_disputed"] = f"{told} dispute it"
        meanings["spread"] = meanings["spread"].replace("signed ", "")
    rows = []
    for column in BETA_COLUMNS:
        if column.name not in features or column.name == "teachers":
            continue
        names, shown = f"`{column.name}`", values.get(column.name, "true, false")
        if column.name == "votes":
            names, shown = f"{names}, `teachers`", f"{shown}, {values['teachers']}"
        rows.append((names, shown, meanings[column.name]))
    return rows


def _size(rows: int) -> str:
    return next((name for limit, name in _SIZES if rows < limit), "n>10M")


def _templates() -> jinja2.Environment:
    # Markdown is not HTML: data is escaped by the `plain` filter, where it stands.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sp2dpo.dataset"),
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "plain": plain,
        "yaml": fenced,
        "within": _within,
        "interval": format_interval,
        "check": _check,
    }
    return environment


def plain(text: object) -> str:
    """Data as Markdown text: harmless, on one line, every mark of Markdown and HTML escaped."""
    return _MARKDOWN.sub(r"\\\1", escape_controls(" ".join(str(text).split())))


def fenced(said: Mapping[str, Any]) -> str:
    """Data as a block of YAML that nothing in it can close; long texts stand as they are."""
    text = escape_controls(
        yaml.dump(
            dict(said), Dumper=_Verbatim, sort_keys=False, allow_unicode=True, width=sys.maxsize
        )
    )
    fence = "`" * max(3, 1 + max(map(len, _TICKS.findall(text)), default=0))
    return f"{fence}yaml\n{text}{fence}"


class _Verbatim(yaml.SafeDumper):
    """Writes a text of several lines as it is."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Verbatim.add_representer(str, _text)


def _within(ends: Sequence[float | None]) -> str:
    """The ends of what stands in a column."""
    if ends[0] is None or ends[1] is None:
        return "none"
    return f"{ends[0]:.4g} to {ends[1]:.4g}"


def _check(one: Mapping[str, Any]) -> str:
    """The value of a check, with its interval where it has one."""
    as_said = format_percent if one["unit"] == "share" else format_fixed
    value = as_said(one["value"])
    return (
        value
        if one["low"] is None
        else f"{value} ({as_said(one['low'])} to {as_said(one['high'])})"
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
