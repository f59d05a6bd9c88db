"""Format text for a terminal and for models: escape controls, split chat marks, hide tokens."""

import json
import logging
import math
import os
import re
import sys
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from itertools import chain, pairwise
from typing import Any

# C0 and C1 controls except newline and tab, unpaired surrogates, and characters that reorder or
# hide text: bidi marks, zero widths, soft hyphens, blank letters, variation selectors and tags. The
# joiners U+200C and U+200D and the selector U+FE0F are allowed: scripts and emoji need them.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufe00-\ufe0e\ufeff"
    "\uffa0\ufff0-\ufffb\U000e0000-\U000e0fff]"
)


def escape_controls(text: str) -> str:
    """Return the text with control and invisible characters written as Unicode escapes."""
    return _UNSAFE.sub(lambda match: _code(ord(match[0])), text)


def _code(number: int) -> str:
    return f"\\u{number:04x}" if number <= 0xFFFF else f"\\U{number:08x}"


# Names of control tokens in <...> and [...]. The first ones are words and tags elsewhere, so they
# count in their exact case only.
_ANGLE_NAMES = (
    r"s|img|image|video|audio|ref|box|quad|role|IMG_CONTEXT|PRE|SUF|MID|AI|用户"
    r"|_user|_bot|_system|_start|_end",
    r"bos|eos|pad|unk|cls|sep|mask|sop|eop|eod|eot|eom|eoa|eoh|eoc|bot|endoftext"
    r"|(?:bos|eos|eop|mask)_token|mask:\d+|(?:tokens_)?unused_?\d+|(?:reserved|special|extra_id)_\d+"
    r"|(?:start|begin|end)_of_[a-z_]+|(?:start|end)_function_[a-z]+|no_?think|think(?:ing)?|thought"
    r"|tools?(?:_[a-z]+)*|toolcalls?|available_tools|functions?(?:_(?:calls?|response))?"
    r"|arg_(?:key|value)|scratch_pad|escape|fim_[a-z]+|file_?(?:name|_sep)|repo_?name|gh_stars"
    r"|(?:jupyter|issue|commit)_[a-z_]+|empty_output|(?:image|audio)_soft_token|global-img"
    r"|fake_token_around_image|row_\d+_col_\d+|longcat_[a-z_]+|(?:seed|minimax):[a-z_]+",
)
_SQUARE_NAMES = (
    r"BOS|EOS|EOT|PAD|UNK|CLS|SEP|MASK|IMG|AUDIO|ARGS|THINK|TRANSCRIBE|PREFIX|MIDDLE|SUFFIX",
    r"inst|system_prompt|tool_(?:calls|results|content)|available_tools|model_settings|[gs]mask"
    r"|(?:start|end)_header_id|extra_id_\d+|control_\d+|img_(?:break|end)|begin_audio"
    r"|streaming_pad|call_id|unused_?\d+",
)
# A mark is split at the end of its match, before the look-ahead. The first look-ahead of a bracket
# is quick and excludes most brackets of code.
_MARK = re.compile(
    # <|im_start|>, <|turn>, and names with blanks, as DeepSeek's may be written
    r"<\|(?=(?!\s|\|*>)[^<>\n]{1,100}>)"
    # <turn|>
    r"|<(?=[^<>|\s][^<>\s]{0,99}\|>)"
    # <s>, <start_of_turn>, </think>, <<SYS>>
    r"|<(?=/?\w[\w:-]{0,60}>)(?=/?(?:" + _ANGLE_NAMES[0] + r"|(?i:" + _ANGLE_NAMES[1] + r"))>)"
    r"|<<(?=/?(?i:sys)>>)"
    # [INST], [|user|]
    r"|\[(?=/?\w{3,30}\])(?=/?(?:" + _SQUARE_NAMES[0] + r"|(?i:" + _SQUARE_NAMES[1] + r"))\])"
    r"|\[\|(?=[^\[\]|\s]{1,100}\|\])"
    # MiniMax: ]~b], ]~!b[, [e~[; Falcon: >>TITLE<<; DeepSeek: |DSML|
    r"|\](?=[~!]!?[a-z]~?[\[\]])|\[(?=[a-z]~\[)|>>(?=[A-Z][A-Z_]*<<)|\|(?=DSML\|)"
    # GLM and Qwen read these words as switches
    r"|/(?=no_?think)"
)
_OF_MARKS = re.compile(r"[\w<>\[\]|/~!:\"-]", re.ASCII)
"""Characters that marks consist of."""


def has_chat_marks(text: str) -> bool:
    """Return whether the text contains control tokens of chat templates; see `split_chat_marks`."""
    return _MARK.search(_fold(text)) is not None


def split_chat_marks(text: str) -> str:
    """Return the text with a space in every control token, such as `<| im_start|>` or `[ INST]`.

    Tokenizers read `<|im_start|>`, `[INST]` or `<end_of_turn>` in a message as the end or the start
    of a turn. With a space, they read ordinary text, and people still read the mark. A text without
    marks is returned unchanged.
    """
    while ends := [match.end() for match in _MARK.finditer(_fold(text))]:
        bounds = [0, *ends, len(text)]
        text = " ".join(text[start:end] for start, end in pairwise(bounds))
    return text


def _fold(text: str) -> str:
    """Return the text with full-width forms as ASCII; every character keeps its position."""
    if text.isascii():
        return text
    folded, foldable = _foldable()
    for pattern in (foldable, _MATHEMATICAL):
        text = pattern.sub(lambda match: folded.get(match[0], match[0]), text)
    return text


_MATHEMATICAL = re.compile("[\U0001d400-\U0001d7ff]")


@cache
def _foldable() -> tuple[dict[str, str], re.Pattern[str]]:
    """Return the characters that NFKC turns into one of marks, and a pattern of the 16-bit ones.

    DeepSeek's marks have full-width bars, and tokenizers with NFKC fold all such forms.
    """
    # The planes in which Unicode has compatibility forms of ASCII characters.
    characters = map(chr, chain(range(0x80, 0x10000), range(0x1D400, 0x1D800)))
    folded = {char: unicodedata.normalize("NFKC", char) for char in characters}
    folded = {char: plain for char, plain in folded.items() if _OF_MARKS.fullmatch(plain)}
    # `re` searches a set with other characters one by one.
    few = re.escape("".join(char for char in folded if char <= "\uffff"))
    return folded, re.compile(f"[{few}]")


_TICKS = re.compile("`+")


def longer_fence(text: str) -> str:
    """Return a fence of Markdown that no fence in a text ends."""
    # A block ends at a fence that is at least as long as the first one.
    return "`" * max(3, 1 + max(map(len, _TICKS.findall(text)), default=0))


def one_line(value: object) -> str:
    """Return the text of a value, such as an error, with all white space as single spaces."""
    return " ".join(str(value).split())


def shorten(text: str, length: int = 300) -> str:
    """Return the text on one line, cut to `length` characters and "..."."""
    line = one_line(text)
    return line if len(line) <= length else f"{line[:length]}..."


def count_noun(number: int, singular: str, plural: str | None = None) -> str:
    """Return a number with its noun, as `1 line` or `2 lines`; pass `plural` if it is irregular."""
    return f"{number} {singular if number == 1 else plural or f'{singular}s'}"


def format_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, indent: str = ""
) -> list[str]:
    """Return the lines of a table; columns that hold only numbers are aligned to the right."""
    columns = list(zip(head, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [all(_is_number(cell) for cell in column[1:]) for column in columns]
    lines = []
    for row in (head, *rows):
        cells = (
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        )
        lines.append((indent + "  ".join(cells)).rstrip())
    return lines


def _is_number(cell: str) -> bool:
    # Also true of an empty cell and of a missing value (`UNKNOWN`).
    return bool(re.fullmatch(r"[-+\d.,%]*", cell))


UNKNOWN = "-"
WIDTH = 100
"""Longest line of console output, in characters."""
_SHORTEST = 9
"""Shortest length to which a cell is cut, in characters."""
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
# A word with its quoted parts: a line break inside quotes would change the argument.
_SHELL_WORD = re.compile(r"""(?:[^\s'"\\]|\\.|'[^']*'|"(?:[^"\\]|\\.)*")+""", re.DOTALL)


def format_count(number: float | None) -> str:
    """Format a count with thousands separators."""
    return UNKNOWN if number is None else f"{number:,.0f}"


def format_percent(share: float | None) -> str:
    """Format a share in [0, 1] as a percentage."""
    return UNKNOWN if share is None else f"{share:.1%}"


def format_fixed(number: float | None, digits: int = 2, *, signed: bool = False) -> str:
    """Format a number with a fixed number of decimals."""
    if number is None:
        return UNKNOWN
    return f"{number:{'+' if signed else ''}.{digits}f}"


def format_interval(
    value: float | None,
    low: float | None,
    high: float | None,
    digits: int = 2,
    *,
    signed: bool = False,
) -> str:
    """Format a value with its interval, if it has one: `0.85 (0.80 to 0.90)`."""
    if value is None:
        return UNKNOWN
    if low is None or high is None:
        return format_fixed(value, digits, signed=signed)
    value_text, *ends = (
        format_fixed(number, digits, signed=signed) for number in (value, low, high)
    )
    return f"{value_text} ({' to '.join(ends)})"


def interval_note(draws: int) -> str:
    """Return the sentence that says how the intervals of a table were computed."""
    return f"Intervals: 95 %, from {format_count(draws)} bootstrap samples; none under 10 pairs."


def format_significant(number: float | None) -> str:
    """Format a number with three significant digits; from 100 up, as an integer."""
    if number is None:
        return UNKNOWN
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def format_duration(seconds: float | None) -> str:
    """Format a duration in seconds, minutes, hours or days."""
    if seconds is None:
        return UNKNOWN
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def format_money(amounts: Mapping[str, float]) -> str:
    """Format amounts by currency; amounts below 1 with three significant digits."""
    return " + ".join(
        f"{f'{amount:.3g}' if 0 < amount < 1 else f'{amount:,.2f}'} {currency}"
        for currency, amount in amounts.items()
    )


def wrap(line: str) -> list[str]:
    """Wrap a line to `WIDTH`, with controls escaped; continuation lines are indented by two."""
    line = escape_controls(line)
    if len(line) <= WIDTH:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()))
    return textwrap.wrap(
        line.strip(),
        WIDTH,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def shell_lines(command: str, *, indent: str = "") -> list[str]:
    """Wrap a shell command with backslashes, so that a shell reads the same command.

    Args:
        command: The command on one line.
        indent: Prefix of each line; continuation lines are indented by two more.
    """
    words = _SHELL_WORD.findall(escape_controls(command))
    first = next((n for n, word in enumerate(words) if not _ASSIGNMENT.match(word)), len(words))
    # Keep program, subcommand and model on one line.
    words[first : first + 3] = [" ".join(words[first : first + 3])]
    lines = [indent + words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) + len("  \\") <= WIDTH:
            lines[-1] += f" {word}"
        else:
            lines[-1] += " \\"
            lines.append(f"{indent}  {word}")
    return lines


def format_narrow_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, names: int, indent: str = ""
) -> list[str]:
    """Return the lines of a table, with its first columns cut so that it fits `WIDTH` if possible.

    Args:
        head: Column titles.
        rows: Cells of each row; controls are escaped.
        names: Number of columns, from the left, that may be cut; the JSON output has full names.
        indent: Prefix of each line.
    """
    rows = [[escape_controls(cell) for cell in row] for row in rows]
    # Each round cuts the column that is then the widest.
    for _ in range(names):
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        excess = len(indent) + sum(widths) + 2 * (len(widths) - 1) - WIDTH
        if excess <= 0:
            break
        widest = max(range(names), key=lambda at: widths[at])
        room = max(_SHORTEST, len(head[widest]), widths[widest] - excess)
        rows = [
            [_cut(cell, room) if at == widest else cell for at, cell in enumerate(row)]
            for row in rows
        ]
    return format_table(head, rows, indent=indent)


def _cut(text: str, length: int) -> str:
    """Cut the middle out of a name, because names of models often differ at their ends."""
    if len(text) <= length:
        return text
    end = (length - 3) // 2
    return f"{text[: length - 3 - end]}...{text[len(text) - end :]}"


_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
# Tokens of users begin with hf_, those of organisations with api_org_.
_TOKEN = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{8,}")
HIDDEN = "***"


def redact(text: str) -> str:
    """Return the text with all tokens of Hugging Face replaced, known ones and likely ones."""
    for token in _tokens():
        text = text.replace(token, HIDDEN)
    return _TOKEN.sub(HIDDEN, text)


def _tokens() -> list[str]:
    tokens = [os.environ.get(name, "").strip() for name in _VARIABLES]
    client = sys.modules.get("huggingface_hub")  # a token that was never loaded cannot leak
    if client is not None:
        tokens.append(client.get_token() or "")
    # Replacing an empty or very short one would garble unrelated text.
    return [token for token in tokens if len(token) >= 8]


class RedactFilter(logging.Filter):
    """Remove tokens from log records."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact a record; none is dropped."""
        # Format first, because a token may be among the arguments, and drop these.
        record.msg, record.args = redact(record.getMessage()), ()
        return True


def json_values(value: Any) -> Any:
    """Return a result as the mappings, lists and scalars that `json.dumps` takes.

    The keys of a dataclass are the names of its fields, in their order, except that the metadata of
    a field may give another key (`json`). A dataclass with a method `as_mapping` is left to it. NaN
    and infinities, which JSON lacks, become None.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "as_mapping"):
        return json_values(value.as_mapping())
    if is_dataclass(value) and not isinstance(value, type):
        keys = {item.name: item.metadata.get("json", item.name) for item in fields(value)}
        return {key: json_values(getattr(value, name)) for name, key in keys.items()}
    if isinstance(value, Mapping):
        return {key: json_values(item) for key, item in value.items()}
    return [json_values(item) for item in value] if isinstance(value, list | tuple) else value


def format_json(value: Any, *, indent: int | None = 2, ensure_ascii: bool = True) -> str:
    """Return the JSON text of a result, as `json_values` gives it, which every parser reads."""
    return json.dumps(json_values(value), indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)


def canonical_json(value: Any) -> str:
    """Return the canonical JSON of a value: sorted keys, no spaces, no unneeded escapes."""
    # NaN is not JSON; `settings.is_json` relies on the error.
    return json.dumps(
        value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
    )
