"""Find the columns of a row that may hold its prompt.

A prompt may be taken from the beginning that two texts share only if no column holds it: responses
often share a beginning, such as "Sure!", that is no prompt. So each other column must be one that
surely holds none: a number, or metadata by its whole name. These functions only lead to refusals;
which column is the prompt is decided by the shapes that `shapes` knows, or by the user.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


NAMES = _names(
    "prompt question instruction input query problem request dialogue dialog conversation "
    "messages context history turns human post utterance userprompt userinput usermessage "
    "userquery promptmessages chat ask goal premise choice option"
)
"""Names of columns whose content, whatever it is, may be the prompt; see `_key`."""
_SURE = _names(
    "prompt question instruction input query problem userprompt userinput usermessage userquery "
    "promptmessages"
)
"""Of these names, those whose text is a whole prompt."""
_CONTEXT = _SURE - {"prompt"} | _names("messages conversation context history passage document")
"""Names of columns that hold the prompt, or what it is about, beside a column `prompt`."""
SYSTEM = ("system", "system_prompt", "system_message")
"""Columns that hold the system message."""
_SYSTEMS = _names(
    "system systemprompt systemmessage systeminstruction systemcontent systemtext sys sysprompt "
    "sysmessage sysmsg sysinstruction"
)
"""Names of columns that may hold a system message; see `_key`."""
_TAGS = _names("task user title topic text passage document article body paragraph story")
"""Names of columns that may hold the prompt or a part of it, or only a tag, such as `task: qa`."""
_PASSAGES = _names("text passage document article body paragraph story")
"""Those of these that may also be a list of texts."""
_WORDS = _names(
    "prompt question instruction input query problem request dialogue dialog conversation message "
    "messages context history utterance"
)
"""Words in the name of a column that may hold the prompt."""
_OTHERS = _names(
    "answer answers response responses completion completions generation generations output "
    "outputs chosen rejected reference gold solution truth rationale reason reasoning explanation "
    "feedback critique comment comments note notes description license licence citation url uri "
    "link path file model models annotator annotators metadata meta images image videos video "
    "audio tools id ids date time timestamp language domain category categories label labels tag "
    "tags subset split reward score scores rating ratings error ranking justification principle "
    "rubric judge judgement judgment labelling labeling annotation evaluation grading "
    "version created updated name names author"
)
"""Words in the name of a column whose content is about the pair, or a response, not a prompt."""
_METADATA = _names(
    "id ids uid uuid guid hash sha md idx index source sources origin dataset datasets subset "
    "subsets split splits config model models llm engine provider annotator annotators author "
    "worker judge evaluator score scores rating ratings reward rewards margin rank ranking "
    "confidence agreement preference preferences winner winners verdict beta betas criteria "
    "teachers comparison category categories subcategory language languages lang locale domain "
    "domains license licence url urls uri link doi citation timestamp time date datetime created "
    "updated version status type kind format difficulty level quality label labels tag tags group "
    "batch meta metadata token tokens length count"
)
"""Words in the names of columns that hold no prompt, if all words are of these or `_SIDES`."""
_ANSWERS = _names(
    "answer answers response responses completion completions generation generations output "
    "outputs solution gold rationale reason explanation feedback critique justification judgement "
    "judgment"
)
"""Likewise, words in the names of columns of long texts."""
_SIDES = _names("chosen rejected name names data at of by is a b all full final mean avg overall")
"""Words that may be beside those of `_METADATA` and `_ANSWERS`."""
_MARK = re.compile("[?\uff1f]\\s*$")


def named_prompts(row: Mapping[str, Any]) -> list[str]:
    """Return the columns whose name and content are those of a prompt, in the order of the row."""
    return [name for name, value in row.items() if _is_named_prompt(name, value)]


def possible_prompts(row: Mapping[str, Any]) -> list[str]:
    """Return the columns that may hold the prompt of two texts.

    Those whose name or content is that of a prompt, or if there are none, all columns that do not
    surely hold something else.
    """
    return _likely_prompts(row) or [name for name in row if not _holds_no_prompt(name, row[name])]


def empty_prompts(row: Mapping[str, Any]) -> list[str]:
    """Return the columns that have the name of a prompt and no content."""
    return [name for name, value in row.items() if _is_empty(value) and _key(name) in NAMES]


@lru_cache(maxsize=4096)
def is_context_name(name: str) -> bool:
    """Return whether a column has the name of a prompt, or of what a prompt is about."""
    return name != "prompt" and _key(name) in _CONTEXT


@lru_cache(maxsize=4096)
def is_system_name(name: str) -> bool:
    """Return whether a column has the name of a system message, in any spelling."""
    return _key(name) in _SYSTEMS


def _likely_prompts(row: Mapping[str, Any]) -> list[str]:
    return [
        name
        for name, value in row.items()
        if _is_named_prompt(name, value)
        or (
            (_key(name) in _TAGS or name in SYSTEM)
            and isinstance(value, str)
            and len(value.split()) > 1
        )
        or (not _words(name) & _OTHERS and reads_as_prompt(value))
    ]


def other_prompts(row: Mapping[str, Any], beginning: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the columns that hold another prompt than two conversations share.

    Args:
        row: Values by column.
        beginning: The turns with which both conversations begin.
    """
    turns = [
        (turn.get("content") or "").strip() for turn in beginning if turn.get("role") != "system"
    ]
    return [
        name
        for name, value in row.items()
        if _key(name) in (_SURE if isinstance(value, str) else NAMES)
        and _is_content(value)
        and not _agrees(value, turns)
    ]


def ask_for_prompt(names: Sequence[str], row: Mapping[str, Any], *, implicit: bool) -> str:
    """Return the sentence that says how to name the prompt, which may be in these columns.

    Args:
        names: The columns.
        row: Values by column.
        implicit: Whether the prompt may also be the beginning that the responses share.
    """
    if all(is_system_name(name) for name in names):
        way = " or prompt= if it is what chosen and rejected begin with" if implicit else ""
        return f"a column {names[0]}, but none with the prompt: give --columns prompt=COLUMN{way}"
    listed = " or ".join(repr(name) for name in names[:3])
    ways = [f"prompt={names[0]}"]
    texts = [name for name in names if isinstance(row[name], str)]
    lists = [name for name in names if isinstance(row[name], list | tuple)]
    if len(texts) > 1:
        ways.append(f"prompt={texts[0]}+{texts[1]} to join them")
    if texts and lists:
        ways.append(f"messages={lists[0]},prompt={texts[0]} if the messages come before the text")
    if implicit:
        ways.append("prompt= if it is what chosen and rejected begin with")
    return f"the prompt may be in column {listed}: give --columns {', or '.join(ways)}"


def _key(name: object) -> str:
    """Return a column's name without case, separators and a plural's `s`."""
    key = "".join(character for character in str(name).casefold() if character.isalnum())
    known = NAMES | _TAGS
    return key if key in known or key.removesuffix("s") not in known else key.removesuffix("s")


def _words(name: object) -> set[str]:
    """Return the words of a column's name, in `snake_case`, `kebab-case` or `camelCase`."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", str(name))
    return {word for word in re.split(r"[^a-z]+", parted.casefold()) if word}


def _is_named_prompt(name: str, value: Any) -> bool:
    if not _is_content(value):
        return False
    key = _key(name)
    if key in NAMES:
        return True
    if name in SYSTEM:
        return False
    if key in _TAGS:
        is_list = key in _PASSAGES and isinstance(value, list | tuple)
        return reads_as_prompt(" ".join(map(str, value)) if is_list else value)
    words = _words(name)
    if words & _OTHERS:
        return False
    # A column of messages, whatever it is called, or text in a column such as `the_question`.
    return _is_turns(value) or (
        isinstance(value, str) and bool(words & _WORDS) and len(value.split()) > 1
    )


def reads_as_prompt(value: Any) -> bool:
    """Return whether a value is text of some length, or a question."""
    if not isinstance(value, str):
        return False
    text = value.strip()
    # Scripts without spaces between words have no words to count.
    dense = len(text) >= 8 and not any("\0" <= character < "\x80" for character in text)
    return len(text.split()) >= 4 or dense or bool(text and _MARK.search(text))


def _holds_no_prompt(name: str, value: Any) -> bool:
    """Return whether a column surely holds no prompt, by its type or by its whole name."""
    if not isinstance(value, str | Mapping | list | tuple | None):
        return True  # a number, a date or bytes
    words = _words(name)
    if _is_empty(value):
        return _key(name) not in NAMES and not words & _WORDS
    if isinstance(value, Mapping) and any(
        _is_named_prompt(str(key), item) for key, item in value.items()
    ):
        return False
    if words & _ANSWERS and words <= _ANSWERS | _METADATA | _SIDES:
        return True
    if words & _METADATA and words <= _METADATA | _SIDES:
        # In data about translation, `source` is the text to translate.
        is_text = reads_as_prompt(value) if _key(name) == "source" else _is_question(value)
        return not is_text
    # Such as `prompt_id` and `question_type`, which may also be how a whole text is called.
    is_word = isinstance(value, str) and value.isascii() and len(value.split()) == 1
    return is_word and _last_word(name) in _METADATA and not _is_question(value)


def _last_word(name: str) -> str:
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).casefold()
    return re.split(r"[^a-z]+", parted)[-1]


def _is_question(value: Any) -> bool:
    # An address may end with a question mark, too.
    is_address = isinstance(value, str) and value.isascii() and len(value.split()) == 1
    return isinstance(value, str) and not is_address and _MARK.search(value) is not None


def _is_empty(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, Mapping | list | tuple) and not value)


def _is_content(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    # Numbers and dates are no prompts, whatever their column is called.
    return isinstance(value, Mapping | list | tuple) and bool(value)


def _is_turns(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(item, Mapping) and ("role" in item or "from" in item) for item in value
    )


def _agrees(value: Any, turns: Sequence[str]) -> bool:
    """Return whether a column's text is in one of these turns, or its messages begin as they do."""
    if isinstance(value, str):
        text = value.strip()
        return any(turn and (text in turn or turn in text) for turn in turns)
    if not _is_turns(value):
        return True  # neither text nor messages: nothing to compare
    contents = [
        item.get("content") or item.get("value") or ""
        for item in value
        if (item.get("role") or item.get("from")) != "system"
    ]
    if not all(isinstance(content, str) for content in contents):
        return True
    contents = [content.strip() for content in contents]
    shorter = min(len(contents), len(turns))
    return contents[:shorter] == list(turns[:shorter])
