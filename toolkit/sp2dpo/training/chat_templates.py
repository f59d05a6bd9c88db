"""Check that the chat template of a model accepts the conversations of a data set."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import jinja2
from accelerate.logging import get_logger
from datasets import Dataset

from sp2dpo.text import escape_controls, one_line
from sp2dpo.training.rows import IDS, RESPONSES, ROW, SOURCE, TEXTS, iterate_rows, name_row

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
        return f", with the roles {roles}: {describe_template_error(error)}"
    return None


def warn_of_tools(ignored: int, name: str, model: str) -> None:
    """Log that the chat template of a model ignores the tools of so many rows, if there are any."""
    if ignored:
        logger.warning(
            f"the {name} data set: the chat template of {model} ignores tools, so the model does"
            f" not see those of {ignored} rows"
        )


def describe_template_error(error: BaseException) -> str:
    """Return the message of a template's error on one line, with its type if Python raised it."""
    text = escape_controls(one_line(error)).rstrip(".")
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"line {error.lineno} of the template: {text}"
    return text if type(error) is jinja2.TemplateError else f"{type(error).__name__}: {text}"


def _conversations(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """Yield the rows, with the columns that a template or a message uses; none if they are text."""
    for _, row in iterate_rows(
        dataset, (*IDS, ROW, SOURCE, *TEXTS, "tools", "chat_template_kwargs")
    ):
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
