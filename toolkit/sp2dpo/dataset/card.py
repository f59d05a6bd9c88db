"""Generate the card of a data set, its README.md, from the manifest.

The generated text is between two markers; text that people write outside them is preserved.
"""

import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
import yaml
from datasets import Features
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from sp2dpo.betas.columns import BETA_COLUMNS
from sp2dpo.dataset.manifest import Manifest, Suspect
from sp2dpo.files import check_regular, decode_text, read_capped
from sp2dpo.hub import HubName
from sp2dpo.listing import CONFIGS, LARGEST_CARD
from sp2dpo.panel.rubric import Rubric
from sp2dpo.settings import is_json
from sp2dpo.text import (
    canonical_json,
    escape_controls,
    format_fixed,
    format_interval,
    format_percent,
    longer_fence,
    one_line,
    shorten,
)
from sp2dpo.yaml_files import parse_yaml

BEGIN = "<!-- sp2dpo: what follows is generated; write above or below it, and it stays -->"
END = "<!-- sp2dpo: up to here -->"
_MARK = "<!-- sp2dpo:"
"""Beginning of both markers."""
# The Hub's size categories, by the number of rows that they end before.
_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
    (1_000_000_000, "100M<n<1B"),
)
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|~:@$])")
_ENTITIES = str.maketrans({"<": "&lt;", ">": "&gt;", "&": "&amp;"})
_UNPLAIN = re.compile(r"[^\w ./+-]")
_HEADER = re.compile(r"---\n(.*?)^---[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
_DIGESTS = "SHA-256 "
"""Beginning of the description of a generated config."""
_LISTED = 10
"""Maximum number of doubtful labels on the card; `label_noise.jsonl` lists all of them."""


def render_card(
    manifest: Manifest,
    features: Mapping[str, Features],
    rubric: Rubric,
    suspects: Sequence[Suspect],
) -> str:
    """Return the text of a new README.md.

    Args:
        manifest: The manifest, with the hashes of all files.
        features: Columns of each config.
        rubric: Rubric of the annotations.
        suspects: Doubtful labels, the most doubtful first; the card lists some of them.
    """
    template = _environment().get_template("card.md.jinja")
    block = template.render(
        facts=asdict(manifest),
        labels=manifest.labels,
        rubric=rubric,
        # A placeholder in the snippets until `publish` knows the repo.
        repo=manifest.repo or "PATH_OR_REPO",
        columns=features["default"],
        column_rows=_column_rows(manifest, features["default"], rubric),
        schedules=[name for name in features.get("schedules", ()) if name != "pair_id"],
        suspects=suspects[:_LISTED],
        tells=manifest.counts.labels_disputed is not None,
    )
    # A text of the rubric may hold the markers, which would end the block.
    block = block.replace(_MARK, _MARK.replace("<!", "< !"))
    return _join(_metadata(manifest, features), "\n", block, "")


def merge_card(text: str, card: str, *, license: str | None, where: str) -> str:
    """Return a new card that preserves what people wrote on an existing one.

    Text outside the markers is preserved; the text of a card without markers is moved below the
    generated part. In the YAML, generated keys replace existing ones, with three exceptions: tags
    are merged, configs that the toolkit did not generate are preserved, and an existing `license`,
    `language` or `pretty_name` takes precedence.

    Args:
        text: Text of the existing card.
        card: New card, as `render_card` returns it.
        license: Licence that replaces the existing one; None to keep the existing one.
        where: Name of the existing card, for messages.

    Raises:
        ValueError: The markers are incomplete or repeated, or the YAML is invalid.
    """
    existing, above, below = _split(text, where=where)
    generated, _, _ = _split(card, where="the new card")
    metadata: dict[str, Any] = dict(generated)
    for key, value in existing.items():
        if key in ("license", "language", "pretty_name") or key not in generated:
            metadata[key] = value
        elif key == "tags" and isinstance(value, list):
            metadata[key] = [*generated[key], *(tag for tag in value if tag not in generated[key])]
        elif key in ("configs", "dataset_info") and isinstance(value, list):
            metadata[key] = [*generated[key], *_foreign_configs(value, existing, generated)]
    if license is not None:
        metadata["license"] = license
    return _join(metadata, above, _between(card), below)


def _foreign_configs(
    entries: list[Any], existing: Mapping[str, Any], generated: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
    """Return the entries of configs that neither this nor an earlier release generated."""
    names = {config["config_name"] for config in generated["configs"]}
    # An earlier release may have had configs that this one lacks; their description identifies
    # them.
    for config in existing.get("configs") or []:
        if isinstance(config, dict) and str(config.get("description", "")).startswith(_DIGESTS):
            names.add(config.get("config_name"))
    return [
        entry
        for entry in entries
        if isinstance(entry, dict) and entry.get("config_name") not in names
    ]


def digest(text: str, *, where: str) -> str:
    """Return the SHA-256 over the generated content: the text between the markers and the configs.

    Raises:
        ValueError: As for `merge_card`.
    """
    metadata, _, _ = _split(text, where=where)
    generated = {}
    for key in ("configs", "dataset_info"):
        entries = metadata.get(key)
        # Of one config, the Hub also takes the entry itself instead of a list.
        entries = entries if isinstance(entries, list) else [entries]
        dicts = [entry for entry in entries if isinstance(entry, dict)]
        generated[key] = [entry for entry in dicts if _config_name(entry) in CONFIGS]
    if not is_json(generated):
        raise ValueError(f"{where}: its configs hold values that `build` does not write")
    block = _between(text.replace("\r\n", "\n"))
    content = json.dumps([generated, block], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def read_card(path: Path) -> str:
    """Return the text of a card, at most `LARGEST_CARD` bytes.

    Raises:
        ValueError: It is larger, or not UTF-8.
        OSError: It cannot be read.
    """
    check_regular(path)
    return decode_text(read_capped(path, LARGEST_CARD), where=path.name)


def check_configs(
    text: str,
    manifest: Manifest,
    features: Mapping[str, Features],
    *,
    where: str,
    digests: bool,
) -> None:
    """Check that `load_dataset` reads the files of the manifest, with the columns of these files.

    Args:
        text: Text of the card.
        manifest: The manifest.
        features: Columns of each config, as its files have them.
        where: Name of the card, for messages.
        digests: Whether the descriptions of the configs, by which `datasets` tells data sets in its
            cache apart, are compared too.

    Raises:
        ValueError: The YAML differs from what `build` writes for these files, or has configs that
            the manifest does not have.
    """
    metadata, _, _ = _split(text, where=where)
    block = REGEX_YAML_BLOCK.search(text.removeprefix("\ufeff"))
    # The Hub's client finds the YAML by a pattern of its own.
    if block is None or block[2].replace("\r\n", "\n") != _yaml_text(text):
        raise ValueError(f"{where}: it has no YAML between `---` and `---` that the Hub reads")
    generated = _metadata(manifest, features)
    for key in ("configs", "dataset_info"):
        entries = metadata.get(key)
        if not isinstance(entries, list):
            raise ValueError(f"{where}: {key} is not a list")
        expected = {entry["config_name"]: entry for entry in generated[key]}
        names = [_config_name(entry) if isinstance(entry, dict) else "" for entry in entries]
        for name, entry in zip(names, entries, strict=True):
            shown = escape_controls(shorten(name, 80))
            if name not in expected:
                raise ValueError(
                    f"{where}: {key} has the config {shown!r}, which is not in the manifest: move "
                    "other data to another repo"
                )
            wanted = expected[name]
            if not digests and "description" in wanted:
                entry, wanted = ({**each, "description": ""} for each in (entry, wanted))
            # As JSON, because in Python true equals 1.
            if not is_json(entry) or canonical_json(entry) != canonical_json(wanted):
                raise ValueError(
                    f"{where}: {key} describes the config {shown!r} otherwise than its files in "
                    f"the manifest do: {_first_difference(entry, wanted)}"
                )
        if sorted(names) != sorted(expected):
            raise ValueError(f"{where}: {key} does not have each config of the manifest once")


def _first_difference(entry: Mapping[Any, Any], expected: Mapping[str, Any]) -> str:
    keys = dict.fromkeys([*expected, *entry])
    key = next((key for key in keys if entry.get(key) != expected.get(key)), "")
    name, value = shorten(str(key), 40), shorten(repr(entry.get(key)), 120)
    return escape_controls(f"{name} is {value}")


def _config_name(entry: Mapping[str, Any]) -> str:
    # Text, because a value of another type, such as a list, has no hash.
    return str(entry.get("config_name"))


def card_license(text: str, *, where: str) -> str | None:
    """Return the licence that a card states; None if it states none or several.

    Raises:
        ValueError: As for `merge_card`.
    """
    license = _split(text, where=where)[0].get("license")
    return license if isinstance(license, str) else None


def _join(metadata: Mapping[str, Any], above: str, block: str, below: str) -> str:
    text = yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True)
    return f"---\n{text}---\n{above}{BEGIN}\n{block}{END}\n{below}"


def _between(text: str) -> str:
    if BEGIN not in text:
        return ""
    # An editor may leave spaces after a marker, and no line end after the last one.
    after = text.split(BEGIN, 1)[1].lstrip(" \t").removeprefix("\n")
    return after.split(END, 1)[0]


def _split(text: str, *, where: str) -> tuple[dict[str, Any], str, str]:
    """Return the YAML of a card, and the text above and below the markers."""
    # The editor of a person may write CRLF and a byte order mark.
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    match = _HEADER.match(text)
    metadata: Any = {}
    if match:
        values, _ = parse_yaml(match[1], where=f"{where}: its YAML header", aliases=False)
        metadata = {} if values is None else values
        if not isinstance(metadata, dict):
            raise ValueError(f"{where}: its YAML is not a mapping")
        text = text[match.end() :]
    marks = text.count(BEGIN), text.count(END)
    if marks == (0, 0):
        return metadata, "\n", f"\n{text.lstrip()}" if text.strip() else ""
    begin, end = text.find(BEGIN), text.find(END)
    if marks != (1, 1) or begin > end:
        raise ValueError(
            f"{where}: the marker `{BEGIN}` occurs {marks[0]} times and `{END}` {marks[1]} times: "
            "each must occur once, in this order"
        )
    return metadata, text[:begin], text[end + len(END) :].removeprefix("\n")


def _yaml_text(text: str) -> str | None:
    """Return the text between the lines `---` at the beginning of a card."""
    match = _HEADER.match(text.removeprefix("\ufeff").replace("\r\n", "\n"))
    return match[1].removesuffix("\n") if match else None


def _metadata(manifest: Manifest, features: Mapping[str, Features]) -> dict[str, Any]:
    """Return the YAML that the Hub and `datasets` read."""
    # `datasets` caches a local folder under a hash of its name and this YAML, not of its files.
    # Without the files' digests, betas of another schedule in a folder of the same name would be
    # served from the cache. Files are listed one by one, so that other files add no rows.
    source = manifest.source
    # A data set on the Hub has a commit; a file only has a name. `pilot` appends ", sample of N".
    hub = HubName.parse(source.name.partition(", ")[0]) if source.revision else None
    return {
        **({"license": manifest.license} if manifest.license else {}),
        "pretty_name": f"{escape_controls(source.name)} with per-pair beta",
        "task_categories": ["text-generation"],
        "annotations_creators": ["machine-generated"],
        "size_categories": [
            next((name for limit, name in _SIZES if manifest.counts.rows < limit), "1B<n<10B")
        ],
        **({"source_datasets": [hub.repo]} if hub else {}),
        "tags": ["dpo", "preference", "sp2dpo", "per-pair-beta", "trl"],
        "configs": [
            {
                "config_name": name,
                "description": _DIGESTS
                + " ".join(manifest.files[file].sha256 for file in manifest.config_files(name)),
                "data_files": [{"split": "train", "path": manifest.config_files(name)}],
                **({"default": True} if name == "default" else {}),
            }
            for name in features
        ],
        "dataset_info": [
            {"config_name": name, "features": columns._to_yaml_list()}
            for name, columns in features.items()
        ],
    }


def _column_rows(
    manifest: Manifest, features: Features, rubric: Rubric
) -> list[tuple[str, str, str]]:
    """Return name, values and meaning of the columns derived from the replies, for these betas."""
    counts, arm = manifest.counts, manifest.arm
    values = {name: _within(ends) for name, ends in manifest.ranges.items()}
    values["pair_id"] = "64 hexadecimal digits"
    values["beta"] = _within([manifest.beta["min"], manifest.beta["max"]])
    values["category"] = f"one of {len(rubric.categories)}"
    meanings = {column.name: column.meaning for column in BETA_COLUMNS}
    if "beta" in arm:
        meanings["beta"] = plain(arm["beta"])
    meanings["beta"] += f"; null below the quorum of {manifest.schedule['quorum']} replies"
    all_kept = counts.pairs_kept == counts.pairs_with_beta
    meanings["keep"] += (
        "; here all pairs with a beta" if all_kept else f"; {counts.pairs_kept} pairs are"
    )
    scale = "on a scale from {0.min} to {0.max}"
    meanings["magnitude"] = f"{scale.format(rubric.magnitude)}, {meanings['magnitude']}"
    meanings["confidence"] = f"{scale.format(rubric.confidence)}, {meanings['confidence']}"
    if manifest.schedule["estimate"] == "expected":
        meanings["votes"] += ": kept replies with expected scores"
    for name in ("weight", "margin", "label_smoothing"):
        if name in arm:
            meanings[name] += f": {plain(arm[name])}"
    if "temperature" in arm:
        for name in ("beta", "weight"):
            meanings[name] += f"; temperature: {plain(str(arm['temperature']))}"
    if counts.labels_disputed is None:
        reason = "the teachers know the label and cannot dispute it"
        values["label_disputed"] = "null"
        meanings["signed_gap"] += f"; here equal to `gap`: {reason}"
        meanings["label_disputed"] += f"; here null: {reason}"
    return [
        (column.name, values.get(column.name, "true, false"), meanings[column.name])
        for column in BETA_COLUMNS
        if column.name in features
    ]


def _environment() -> jinja2.Environment:
    # Markdown is not HTML: the template escapes data with the `plain` filter.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sp2dpo.dataset"),
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        # The end marker must begin a line, and Jinja removes the last newline by default.
        keep_trailing_newline=True,
        # A missing value is an error; by default, Jinja would write nothing.
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "plain": plain,
        "in_html": in_html,
        "word": word,
        "yaml": fenced,
        "within": _within,
        "interval": lambda estimate: format_interval(
            estimate["value"], estimate["low"], estimate["high"]
        ),
        "check": _check,
    }
    return environment


def plain(text: object) -> str:
    """Return data as one line of text with all Markdown, HTML and control characters escaped."""
    # Entities and not backslashes, because a card may be shown as HTML that is not Markdown.
    return _MARKDOWN.sub(r"\\\1", escape_controls(one_line(text))).translate(_ENTITIES)


def in_html(text: object) -> str:
    """Return data as one line of text for a line of HTML, in which Markdown is not read."""
    return "".join(
        char if char.isalnum() or char == " " else f"&#{ord(char)};"
        for char in escape_controls(one_line(text))
    )


def word(text: object) -> str:
    """Return a name or a hash for a code span, with `?` for every character of other texts."""
    return _UNPLAIN.sub("?", str(text))


def fenced(data: Mapping[str, Any]) -> str:
    """Return data as a fenced block of YAML; no text in it can close the fence."""
    # `width`, because PyYAML folds long lines by default.
    text = escape_controls(
        yaml.dump(
            dict(data), Dumper=_BlockDumper, sort_keys=False, allow_unicode=True, width=sys.maxsize
        )
    )
    fence = longer_fence(text)
    return f"{fence}yaml\n{text}{fence}"


class _BlockDumper(yaml.SafeDumper):
    """Writes text of several lines in block style."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_BlockDumper.add_representer(str, _text)


def _within(ends: Sequence[float | None]) -> str:
    """Return the least and the greatest value of a column as text."""
    if ends[0] is None or ends[1] is None:
        return "none"
    return f"{ends[0]:.4g} to {ends[1]:.4g}"


def _check(check: Mapping[str, Any]) -> str:
    """Return the value of a check, with its interval if it has one."""
    form = format_percent if check["unit"] == "share" else format_fixed
    value = form(check["value"])
    if check["low"] is None:
        return value
    return f"{value} ({form(check['low'])} to {form(check['high'])})"
