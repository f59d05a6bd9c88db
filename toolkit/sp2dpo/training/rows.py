"""Check that rows can be trained on: their texts, the model's chat template, and their lengths.

TRL and transformers report such rows by a traceback that does not name the row, or drop them
without a message. The checks of this module name the first row, the rule and the way out.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jinja2
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from accelerate.logging import get_logger
from datasets import Dataset, Json, Value
from transformers import AutoConfig, AutoProcessor, AutoTokenizer
from trl import extract_prompt

from sp2dpo.pairs.prompts import other_prompts, possible_prompts
from sp2dpo.text import escape_controls, one_line, shorten

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
REFUSALS = ("error", "drop")
"""How to treat rows that the chat template refuses."""
DROP_OR_CHOOSE = (
    "set template_errors: drop to leave these rows out, or train a model whose template accepts"
    " them"
)
TEMPLATE_ERRORS = (
    jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError,
    RecursionError,
)  # fmt: skip
"""Errors of a chat template: those that it raises, and those of the expressions in it."""

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
    for number, row in _rows(dataset, (*IDS, ROW, SOURCE, *TEXTS)):
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


def _rows(dataset: Any, names: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
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
    for number, row in _rows(dataset, dataset.column_names):
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
    for number, row in _rows(dataset, (*IDS, ROW, SOURCE, "prompt", "tools")):
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


def check_template(
    tokenizer: Any,
    dataset: Dataset,
    name: str,
    model: str,
    *,
    every_row: bool = False,
    way_out: str = DROP_OR_CHOOSE,
) -> int:
    """Check that the chat template of a model accepts the conversations of a data set.

    Rows with the same roles and kinds of content are alike for nearly every template: one of them
    is rendered. If the template refuses any, all rows are rendered, to count them.

    Args:
        tokenizer: Tokenizer of the model.
        dataset: The rows, as `check_rows` returns them.
        name: Name of the data set in messages.
        model: Name of the model in messages.
        every_row: Whether to render all rows.
        way_out: What to do about refused rows, for the message.

    Returns:
        The number of rows with tools if the template ignores tools, else 0.

    Raises:
        ValueError: If the template refuses a row, or if there is none; the message names the first
            row.
    """
    where = f"the {name} data set"
    if isinstance(dataset[0]["chosen"], str) and tokenizer.eos_token is None:
        raise ValueError(
            f"the tokenizer of {model} has no end-of-sequence token, which ends the responses of"
            f" {where}: set eos_token in its tokenizer_config.json"
        )
    refused: list[str] = []
    shapes: set[Any] = set()
    with_tools, ignores_tools = 0, False
    for number, row in enumerate(_conversations(dataset)):
        if not shapes and not tokenizer.chat_template:
            raise ValueError(
                f"the tokenizer of {model} has no chat template, and {where} holds conversations:"
                " train a model that has one, or save one with its tokenizer"
            )
        with_tools += bool(row.get("tools"))
        shape = _shape(row)
        if not every_row and shape in shapes:
            continue
        shapes.add(shape)
        reason = _refusal(tokenizer, row)
        if reason is None:
            ignores_tools = _ignores_tools(tokenizer, row) or ignores_tools
            continue
        if not every_row:
            check_template(tokenizer, dataset, name, model, every_row=True, way_out=way_out)
        refused.append(f"{name_row(row, number)}{reason}")
    if refused:
        raise ValueError(
            f"the chat template of {model} refuses {len(refused)} of {len(dataset)} rows of"
            f" {where}, the first is {refused[0]}; {way_out}"
        )
    return with_tools if ignores_tools else 0


def drop_refused(tokenizer: Any, dataset: Any, name: str, model: str) -> Any:
    """Return the rows whose conversations the chat template of a model accepts.

    The arguments are those of `check_template`; all rows are rendered.

    Raises:
        ValueError: If no row is left.
    """
    refused = {
        number: f"{name_row(row, number)}{reason}"
        for number, row in enumerate(_conversations(dataset))
        if (reason := _refusal(tokenizer, row)) is not None
    }
    if not refused:
        return dataset
    first = next(iter(refused.values()))
    if len(refused) == len(dataset):
        raise ValueError(
            f"the chat template of {model} refuses all {len(dataset)} rows of the {name} data set,"
            f" the first is {first}; train a model whose template accepts them"
        )
    logger.warning(
        f"the {name} data set: {len(refused)} of {len(dataset)} rows are dropped, which the chat"
        f" template of {model} refuses; the first is {first}"
    )
    return dataset.select([row for row in range(len(dataset)) if row not in refused])


def _refusal(tokenizer: Any, row: Mapping[str, Any]) -> str | None:
    """Return why a template refuses a row, as the end of a message; None if it accepts it."""
    try:
        for chat, options in _chats(row):
            tokenizer.apply_chat_template(chat, tokenize=False, **options)
    except TEMPLATE_ERRORS as error:
        roles = ", ".join(turn["role"] for turn in (*(row.get("prompt") or []), *row["chosen"]))
        return f", with the roles {roles}: {describe(error)}"
    return None


def warn_of_tools(ignored: int, name: str, model: str) -> None:
    """Log that the chat template of a model ignores the tools of so many rows, if there are any."""
    if ignored:
        logger.warning(
            f"the {name} data set: the chat template of {model} ignores tools, so the model does"
            f" not see those of {ignored} rows"
        )


def describe(error: BaseException) -> str:
    """Return the message of a template's error on one line, with its type if Python raised it."""
    text = escape_controls(one_line(error)).rstrip(".")
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"line {error.lineno} of the template: {text}"
    return text if type(error) is jinja2.TemplateError else f"{type(error).__name__}: {text}"


def _conversations(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """Yield the rows, with the columns that a template or a message uses; none if they are text."""
    for _, row in _rows(dataset, (*IDS, ROW, SOURCE, *TEXTS, "tools", "chat_template_kwargs")):
        if isinstance(row["chosen"], str):
            return
        yield row


def _chats(row: Mapping[str, Any]) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """Yield the conversations of a row with the options, as TRL renders them."""
    options = _options(row)
    prompt = row.get("prompt") or []
    if prompt:
        yield prompt, {**options, "add_generation_prompt": True}
    for side in RESPONSES:
        yield [*prompt, *row[side]], options


def _options(row: Mapping[str, Any]) -> dict[str, Any]:
    tools = row.get("tools")
    return {
        "tools": json.loads(tools) if isinstance(tools, str) else tools or None,
        **(row.get("chat_template_kwargs") or {}),
    }


def _ignores_tools(tokenizer: Any, row: Mapping[str, Any]) -> bool:
    options = _options(row)
    if not options["tools"]:
        return False
    chat, _ = next(_chats(row))
    texts = [
        tokenizer.apply_chat_template(chat, tokenize=False, **{**options, "tools": tools})
        for tools in (options["tools"], None)
    ]
    return texts[0] == texts[1]


def _shape(row: Mapping[str, Any]) -> Any:
    """Return what a template distinguishes in a row: roles, kinds of content, keys, and tools."""
    turns = [
        (
            column, turn["role"], type(turn.get("content")), not turn.get("content"),
            frozenset(key for key, value in turn.items() if value is not None),
        )
        for column in TEXTS
        for turn in row.get(column) or []
    ]  # fmt: skip
    return bool(row.get("tools")), str(row.get("chat_template_kwargs")), tuple(turns)


def read_model_files(
    model: str, revision: str | None, *, trust_remote_code: bool
) -> tuple[Any, Any]:
    """Return the tokenizer and the configuration of a model, without its weights.

    Raises:
        ValueError: If they cannot be read.
    """
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    with _reading(model):
        tokenizer = AutoTokenizer.from_pretrained(model, **options)
    return tokenizer, read_config(model, **options)


def read_config(model: str, revision: str | None, *, trust_remote_code: bool) -> Any:
    """Return the configuration of a model; raise ValueError if it cannot be read."""
    with _reading(model):
        return AutoConfig.from_pretrained(
            model, revision=revision, trust_remote_code=trust_remote_code
        )


def read_processing_class(model: str, revision: str | None, *, trust_remote_code: bool) -> Any:
    """Return the tokenizer of a model, or its processor if it takes images, as TRL reads them.

    Raises:
        ValueError: If it cannot be read.
    """
    with _reading(model):
        return AutoProcessor.from_pretrained(
            model, revision=revision, trust_remote_code=trust_remote_code
        )


@contextmanager
def _reading(model: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(f"the model {model} cannot be read: {one_line(error)}") from error


def context_length(config: Any) -> int | None:
    """Return the longest sequence of a model in tokens; None if its configuration has no limit."""
    text = config.get_text_config()
    most = getattr(text, "max_position_embeddings", None)
    if not isinstance(most, int) or most <= 0:
        return None
    scaling = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    original, factor = scaling.get("original_max_position_embeddings"), scaling.get("factor")
    # Some configurations name the length before scaling.
    return max(most, int(original * factor)) if original and factor else most


def drop_truncated(prepared: Any, longest: int) -> Any:
    """Return the rows whose prompt leaves a token of the responses, as TRL 1.16 does; 1.0 does not.

    Args:
        prepared: A Dataset with the column prompt_ids.
        longest: Length to which sequences are truncated, at their end.
    """
    short = token_counts(prepared, "prompt_ids") < longest
    return prepared if short.all() else prepared.select(short.nonzero()[0])


def check_lengths(
    given: Any,
    prepared: Any,
    name: str,
    *,
    limit: str,
    context: int | None,
    longest: int | None,
    report: str | None = None,
) -> None:
    """Check the rows that tokenization and TRL's limit of the length have left.

    Args:
        given: The Dataset before.
        prepared: The Dataset after, with the columns chosen_ids and rejected_ids, and prompt_ids if
            the prompt is not part of these.
        name: Name of the data set in messages.
        limit: The rule by which TRL drops rows and the way out, for messages.
        context: Longest sequence of the model in tokens; None if there is no limit.
        longest: Length to which sequences are truncated; None if they are not.
        report: What is logged about cut and dropped rows, if it is not empty; None for the number
            of dropped rows with `limit`.

    Raises:
        ValueError: If no row is left, if a response has no tokens, or if a sequence is longer than
            the model's context.
    """
    where = f"the {name} data set"
    if not len(prepared):
        raise ValueError(
            f"no row of {where} is left, the first of {len(given)} is {name_row(given[0], 0)}:"
            f" {limit}"
        )
    dropped = len(given) - len(prepared)
    if report is None and dropped:
        report = f"{dropped} of {len(given)} rows are dropped: {limit}"
    if report:
        logger.warning(f"{where}: {report}")
    for side in RESPONSES:
        lengths = token_counts(prepared, f"{side}_ids")
        if not lengths.all():
            empty = int(lengths.argmin())
            raise ValueError(
                f"{side} of {name_row(prepared[empty], empty)} of {where} has no tokens: its text"
                " is empty, or the chat template leaves it out; leave the row out"
            )
        if "prompt_ids" in prepared.column_names:
            lengths = lengths + token_counts(prepared, "prompt_ids")
        row = int(lengths.argmax())
        most = int(lengths[row])
        if context is not None and min(most, longest or most) > context:
            raise ValueError(
                f"{name_row(prepared[row], row)} of {where} has {most} tokens, and the model's"
                f" context has {context}: set max_length to {context} or less"
            )


def token_counts(dataset: Any, column: str) -> Any:
    """Return the lengths of the lists in a column, (N,), without converting the lists to Python."""
    values = dataset.select_columns([column]).with_format("arrow")[:].column(0)
    return pl.Series(values).list.len().to_numpy()
