"""The arguments of `vllm serve`, read as vLLM reads them."""

import re
from collections.abc import Sequence


def _flag(word: str) -> str:
    """The flag that an argument names, as vLLM reads it: `--no_x.y=z` is `--x`."""
    name = re.split("[=.]", word, maxsplit=1)[0].replace("_", "-")
    return f"--{name.removeprefix('--no-')}" if name.startswith("--no-") else name


def names(args: Sequence[str], flag: str) -> bool:
    """Whether the arguments say anything about a flag."""
    return any(_is_for(word, flag) for word in args)


def _is_for(word: str, flag: str) -> bool:
    # vLLM takes the beginning of a flag for the flag. `--tokenizer` rightly stands for
    # `--tokenizer-revision` too: another tokenizer has other revisions.
    name = _flag(word)
    return name == flag or (len(name) > 3 and name[:2] == "--" and flag.startswith(name))


def value_of(args: Sequence[str], flag: str) -> str | None:
    """What the last naming of a flag says, as `--flag=value` or as `--flag value`."""
    value = None
    for word, following in zip(args, [*args, None][1:], strict=True):
        if _is_for(word, flag):
            value = word.partition("=")[2] if "=" in word else following
    return value


def turns_on(args: Sequence[str], flag: str) -> bool:
    """Whether the last naming of a switch turns it on."""
    named = [word for word in args if _is_for(word, flag)]
    return bool(named) and not named[-1].startswith(("--no-", "--no_"))
