"""Check that the texts of rows can be trained on.

TRL and transformers report rows that cannot by a traceback that does not name the row, or drop them
without a message. The checks name the first row, the rule and the way out. `chat_templates.py` and
`lengths.py` check rows with the model's tokenizer.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from accelerate.logging import get_logger
from datasets import Dataset, Json, Value
from trl import extract_prompt

from sp2dpo.pairs.prompts import other_prompts, possible_prompts
from sp2dpo.text import escape_controls, shorten

RESPONSES = ("chosen", "rejected")
TEXTS = ("prompt", *RESPONSES)
"""Columns with the texts of a pair."""
IDS = ("pair_id", "source_id", "prompt_id", "id")
"""Columns that name a row in a message, the first of them that a row has."""
ROW = "_row"
"""Column with the number of a row before rows were selected, from 0; see `number_rows`."""
SOURCE = "_source"
"""Column with the name of a row's data set in a mixture."""
IMAGES = ("images", "image")
"""Columns by which TRL recognises a vision data set."""
MEDIA = (*IMAGES, "videos", "video")
PARTS = ("image", "image_url", "input_image", "video", "video_url", "audio", "input_audio")
"""Types of the parts of a message that are not text."""

logger = get_logger(__name__)


def number_rows(dataset: Any) -> Any:
    """Return the rows with their numbers in the column ROW, which messages use after a selection.

    A stream is returned as it is.
    """
    if not isinstance(dataset, Dataset) or ROW in dataset.column_names:
        return dataset
    return dataset.add_column(ROW, list(range(len(dataset))))


def column_names(dataset: Any) -> list[str]:
    """Return the columns of a data set; of a stream that does not know them, by its first row."""
    return dataset.column_names or list(next(iter(dataset), {}))


def name_row(row: Mapping[str, Any], number: int) -> str:
    """Return the name of a row in a message, as `row 5 (pair_id demo-006)`.

    Args:
        row: Values by column; without an id, the beginning of its text is part of the name.
        number: Number of the row in its data set, from 0; the column ROW replaces it.
    """
    place = f"{row.get(ROW, number)} of {row[SOURCE]}" if SOURCE in row else row.get(ROW, number)
    key = next((key for key in IDS if row.get(key) is not None), None)
    if key is not None:
        return f"row {place} ({key} {shorten(escape_controls(str(row[key])), 80)})"
    text = row.get("prompt") or row.get("chosen") or ""
    if not isinstance(text, str):
        turns = [
            turn for turn in text if isinstance(turn, Mapping) and turn.get("role") != "system"
        ]
        contents = [turn.get("content") for turn in turns]
        text = next((content for content in contents if isinstance(content, str)), "")
    start = shorten(escape_controls(text), 40)
    return f'row {place} ("{start}")' if start else f"row {place}"


def check_rows(dataset: Any, name: str, *, sees_images: Callable[[], bool] = lambda: False) -> Any:
    """Check the texts of the rows, and return them with `tools` as JSON text or null.

    A column of images or videos without any value is removed. Of a stream, only the columns are
    checked.

    Args:
        dataset: The rows to train or evaluate on, a Dataset or an IterableDataset.
        name: Name of the data set in messages.
        sees_images: Returns whether the model takes images. If not, rows with images are refused.
            It is called only for rows that have some.

    Raises:
        ValueError: If a column is missing, if the prompt may be in another column, or if the texts
            of a row cannot be trained on; the message names the first row.
    """
    where = f"the {name} data set"
    if isinstance(dataset, Dataset) and not len(dataset):
        raise ValueError(f"{where} has no rows: choose another data set or split")
    columns = column_names(dataset)
    shown = ", ".join(column for column in columns if column not in (ROW, SOURCE))
    for column in RESPONSES:
        if column not in columns:
            raise ValueError(
                f"{where} has no column {column} (it has {shown}): rename the column, or let"
                " `sp2dpo annotate` and `sp2dpo build` read the source"
            )
    if not isinstance(dataset, Dataset):
        return dataset
    dataset = _check_media(dataset, where, sees_images)
    # TRL finds no prompt in the responses of a vision data set.
    if "prompt" not in columns and any(name in dataset.column_names for name in IMAGES):
        raise ValueError(
            f"{where} has images and no column prompt (it has {shown}): add the column prompt"
        )
    problems: dict[str, list[str]] = {}
    repeated = 0
    for number, row in iterate_rows(dataset, (*IDS, ROW, SOURCE, *TEXTS)):
        problem = _find_problem(row, sees_images)
        if problem:
            problems.setdefault(problem, []).append(name_row(row, number))
        repeated += problem is None and _repeats_prompt(row)
    if problems:
        problem, rows = next(iter(problems.items()))
        raise ValueError(
            f"{len(rows)} of {len(dataset)} rows of {where} cannot be trained on ({problem}), the"
            f" first is {rows[0]}: let `sp2dpo annotate` and `sp2dpo build` read the source, or"
            " correct these rows or leave them out"
        )
    if repeated == len(dataset):
        raise ValueError(
            f"in all {len(dataset)} rows of {where}, chosen and rejected repeat the prompt, which"
            " would be trained on twice: remove the column prompt, or remove the prompt from the"
            " responses"
        )
    if "prompt" not in columns:
        _check_implicit(dataset, where)
    return _tools_as_text(dataset, where) if "tools" in columns else dataset


def iterate_rows(dataset: Any, names: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number, from 0, and these columns of each row, as Python values."""
    present = [name for name in names if name in dataset.column_names]
    number = 0
    # In batches, because `datasets` takes much longer for one row at a time.
    for batch in dataset.select_columns(present).with_format(None).iter(1000):
        for values in zip(*(batch[name] for name in present), strict=True):
            yield number, dict(zip(present, values, strict=True))
            number += 1


def _check_media(dataset: Dataset, where: str, sees_images: Callable[[], bool]) -> Dataset:
    for column in MEDIA:
        if column not in dataset.column_names:
            continue
        filled = _filled_rows(dataset, column)
        if filled and column in IMAGES and sees_images():
            continue
        if filled:
            texts: Any = dataset.remove_columns(column)
            raise ValueError(
                f"{len(filled)} of {len(dataset)} rows of {where} have {column}, the first is"
                f" {name_row(texts[filled[0]], filled[0])}: the rows are vision-related, and the"
                " model is no vision-language model, so that only texts can be trained on; leave"
                " these rows out"
            )
        # TRL takes the column alone for a sign of a vision data set.
        dataset = dataset.remove_columns(column)
    return dataset


def _filled_rows(dataset: Dataset, column: str) -> list[int]:
    """Return the numbers of the rows with a value, without decoding the images of a data set."""
    table: Any = dataset.select_columns([column]).with_format("arrow")[:]
    values = table.column(0)
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        lengths = pc.call_function("list_value_length", [values])
        filled = pc.call_function("greater", [lengths, pa.scalar(0, lengths.type)])
    else:
        filled = pc.call_function("is_valid", [values])
    return [number for number, value in enumerate(filled.to_pylist()) if value]


def _find_problem(row: Mapping[str, Any], sees_images: Callable[[], bool]) -> str | None:
    """Return why the texts of a row cannot be trained on; None if they can."""
    kinds = {}
    for column in TEXTS:
        if column not in row:
            continue
        value = row[column]
        # An empty response is legal: the end of the turn is trained.
        if value is None or (column == "prompt" and not value) or value == []:
            return f"{column} is empty"
        if isinstance(value, str):
            kinds[column] = "text"
            continue
        if not isinstance(value, list) or not all(
            isinstance(turn, Mapping) and isinstance(turn.get("role"), str) for turn in value
        ):
            return f"{column} is neither text nor a list of messages with a role"
        if any(_shows_media(turn) for turn in value) and not sees_images():
            return f"{column} holds images or videos, and only texts can be trained on"
        kinds[column] = "a conversation"
    if len(set(kinds.values())) > 1:
        return ", ".join(f"{column} is {kind}" for column, kind in kinds.items())
    return None


def _shows_media(turn: Mapping[str, Any]) -> bool:
    if any(turn.get(key) for key in MEDIA):
        return True
    content = turn.get("content")
    parts = content if isinstance(content, list) else []
    return any(isinstance(part, Mapping) and part.get("type") in PARTS for part in parts)


def _repeats_prompt(row: Mapping[str, Any]) -> bool:
    prompt = row.get("prompt")
    return bool(prompt) and all(row[side][: len(prompt)] == prompt for side in RESPONSES)


def _common_beginning(row: Mapping[str, Any]) -> Any:
    """Return what TRL takes for the prompt of a row without one; empty if there is none."""
    chosen, rejected = (row[side] for side in RESPONSES)
    # TRL's function fails for an empty text, and for texts that differ from their first character
    # on it can return all but the last one.
    if isinstance(chosen, str) and chosen[:1] != rejected[:1]:
        return ""
    return extract_prompt({"chosen": chosen, "rejected": rejected})["prompt"] if chosen else ""


def _check_implicit(dataset: Dataset, where: str) -> None:
    """Refuse to take a common beginning for the prompt if a column may hold another one."""
    refused: list[tuple[str, list[str]]] = []
    prompts: Counter[str] = Counter()
    for number, row in iterate_rows(dataset, dataset.column_names):
        more = {
            key: value
            for key, value in row.items()
            if key not in (*RESPONSES, "tools", ROW, SOURCE)
        }
        prompt = _common_beginning(row)
        names = possible_prompts(more) if isinstance(prompt, str) else other_prompts(more, prompt)
        if names:
            refused.append((name_row(row, number), names))
        elif not prompt:
            raise ValueError(
                f"{where} has no column prompt, and chosen and rejected of {name_row(row, number)}"
                " share no beginning: add the column prompt"
            )
        prompts[str(prompt)] += 1
    if refused:
        row, names = refused[0]
        # A system message alone is no prompt.
        first = next((name for name in names if "system" not in name.lower()), names[0])
        raise ValueError(
            f"{where} has no column prompt, and the prompt of {len(refused)} of {len(dataset)} rows"
            f" may be in another column, of {row} in {', '.join(names)}: rename that column to"
            f" prompt, or let `sp2dpo annotate --columns prompt={first}` and `sp2dpo build` read"
            " the source"
        )
    shared, count = prompts.most_common(1)[0]
    repeats = f"; it is {shorten(shared, 60)!r} in {count} of them" if count > 1 else ""
    logger.warning(
        f"{where} has no column prompt: the beginning that chosen and rejected share is the prompt"
        f" of {len(dataset)} rows{repeats}"
    )


def _tools_as_text(dataset: Dataset, where: str) -> Dataset:
    """Return the rows with `tools` as JSON text, null for none.

    A template may describe an empty list of tools, and Arrow gives every object of a column the
    keys of all objects, with null where an object has none.
    """
    feature = dataset.features["tools"]
    exact = any(isinstance(f, Json | Value) for f in (feature, getattr(feature, "feature", None)))
    texts: list[str | None] = []
    for number, row in iterate_rows(dataset, (*IDS, ROW, SOURCE, "prompt", "tools")):
        tools = row["tools"]
        try:
            tools = json.loads(tools) if isinstance(tools, str) and tools.strip() else tools
        except ValueError as error:
            raise ValueError(
                f"the tools of {name_row(row, number)} of {where} are not JSON: {error}"
            ) from error
        if not tools:
            texts.append(None)
            continue
        if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
            raise ValueError(
                f"the tools of {name_row(row, number)} of {where} are not a list of objects"
            )
        texts.append(json.dumps(tools if exact else _without_nulls(tools), ensure_ascii=False))
    return dataset.remove_columns("tools").add_column("tools", pa.array(texts, pa.string()))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
