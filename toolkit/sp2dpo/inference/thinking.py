"""Find a model's thinking in the text of a reply, where a server does not separate it."""

import re

_TAG = "(?:think|thinking|thoughts?|reasoning|seed:think|longcat_think)"
_ATTRIBUTES = r"(?:\s[^<>\n]{0,100})?"
FINAL = r"(?:<\|channel\|>final\s*(?:<\|constrain\|>\s*\w+)?\s*<\|message\|>)"
"""Pattern of the mark before the answer of gpt-oss."""
_HEADER = r"(?:<\|start\|>assistant\s*)?"
THINKING_START = re.compile(
    rf"\s*(?:<{_TAG}{_ATTRIBUTES}>|\[THINK\]|◁think▷|<\|START_THINKING\|>|<\|channel>thought"
    rf"|{_HEADER}<\|channel\|>(?:analysis|commentary)|analysis(?=[A-Z]))",
    re.I,
)
"""Mark before the thinking with which a text begins."""
THINKING_END = re.compile(
    rf"</{_TAG}>|\[/THINK\]|◁/think▷|<\|END_THINKING\|>|<channel\|>|assistantfinal(?:\s*json)?|{FINAL}",
    re.I,
)
"""Mark after the thinking."""
_BLOCKS = tuple(
    (re.compile(rf"\s*{start}", re.I), re.compile(end, re.I))
    for start, end in (
        *(
            (f"<{tag}{_ATTRIBUTES}>", f"</{tag}>")
            for tag in (
                "think", "thinking", "thoughts?", "reasoning", "seed:think", "longcat_think"
            )
        ),
        (r"\[THINK\]", r"\[/THINK\]"),
        ("◁think▷", "◁/think▷"),
        (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>(?:\s*<\|START_RESPONSE\|>)?"),
        (r"<\|channel>thought", r"<channel\|>"),
        (rf"{_HEADER}<\|channel\|>(?:analysis|commentary)", FINAL),
        # gpt-oss, from a server that drops control tokens.
        (r"analysis(?=[A-Z][^\0]*assistantfinal)", r"assistantfinal(?:\s*json(?=\s*[{\[]))?"),
    )
)  # fmt: skip
"""Marks before and after a model's thinking: Qwen and DeepSeek, Seed, LongCat, Mistral, Kimi,
Command, Gemma, gpt-oss."""
_ANSWER_START = re.compile(rf"\s*{_HEADER}{FINAL}", re.I)
_END_OF_TURN = re.compile(
    r"\s*(?:<\|(?:return|end|END_RESPONSE|END_OF_TURN_TOKEN|im_end|eot_id|eom_id|eot|endoftext"
    r"|end_of_text)\|>|</s>|<end_of_turn>|<turn\|>|<eos>|<\uff5cend\u2581of\u2581sentence\uff5c>|\[EOS\])\s*$"
)
_UNOPENED = re.compile(
    # A line of its own, or directly before an answer: prose has quotes, blanks or stops there.
    r"^[ \t]*(?:</think>|◁/think▷|\[/THINK\]|</seed:think>|<\|END_THINKING\|>)[ \t]*$"
    r"|(?<![`'\"\u201c\u2018\u00ab(])(?:</think>|◁/think▷|\[/THINK\]|</seed:think>|<\|END_THINKING\|>)"
    r"(?=\w|[ \t]*\n|\s*\Z|[ \t]+[A-Z0-9{\[])"
    rf"|<\|start\|>assistant\s*{FINAL}",
    re.M,
)
_OPENING = re.compile(rf"<{_TAG}{_ATTRIBUTES}>|\[THINK\]|◁think▷|<\|START_THINKING\|>", re.I)


def split_thinking(text: str) -> tuple[str | None, str]:
    """Split a reply into the thinking that it begins with, and the text after it.

    The thinking is one block such as `<think>...</think>` or several in a row. The first mark may
    be missing: many chat templates write it into the prompt. The text is empty if a block does not
    end. The thinking is None if there is none.
    """
    thoughts: list[str] = []
    answer = text
    while block := _first_block(answer):
        thought, answer = block
        thoughts.append(thought)
        if not answer:
            break
    if final := _ANSWER_START.match(answer):
        answer = strip_end_mark(answer[final.end() :])
    elif thoughts:
        answer = strip_end_mark(answer)
    elif unopened := _unopened_block(text):
        return unopened
    if not thoughts:
        return None, answer
    return "\n".join(filter(None, thoughts)), answer.lstrip()


def _first_block(text: str) -> tuple[str, str] | None:
    for start, end in _BLOCKS:
        if begin := start.match(text):
            stop = end.search(text, begin.end())
            if stop is None:
                return text[begin.end() :].strip(), ""
            return text[begin.end() : stop.start()].strip(), text[stop.end() :]
    return None


def _unopened_block(text: str) -> tuple[str, str] | None:
    mark = _unopened_mark(text)
    if mark is None:
        return None
    # The template opened the first of several blocks. A loop, because a model that repeats itself
    # can write hundreds of end marks.
    thoughts, answer = [], text
    while mark is not None:
        thoughts.append(answer[: mark.start()].strip())
        answer = answer[mark.end() :]
        mark, further = None, 0
        while answer and (block := _first_block(answer)):
            thoughts.append(block[0])
            answer, further = block[1], further + 1
        if final := _ANSWER_START.match(answer):
            answer = answer[final.end() :]
        elif not further:
            mark = _unopened_mark(answer)
    return "\n".join(filter(None, thoughts)), strip_end_mark(answer).lstrip()


def _unopened_mark(text: str) -> re.Match[str] | None:
    mark = _UNOPENED.search(text)
    # A text about the marks opens the block, too, or shows it in a code block.
    if mark is None or _OPENING.search(text, 0, mark.start()):
        return None
    return None if text.count("```", 0, mark.start()) % 2 else mark


def strip_end_mark(text: str) -> str:
    """Return the text without one mark of a chat template for the end of a turn, if it has one."""
    return _END_OF_TURN.sub("", text)
