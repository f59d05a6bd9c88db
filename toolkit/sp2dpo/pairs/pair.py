"""A preference pair and its identity.

A pair is known by what it says: `Pair.id` is a hash over its messages, so the same pair read from
another file, in another order or format is the same pair.
"""

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sp2dpo.text import canonical_json

Message = Mapping[str, Any]
"""One chat turn: `role`, `content`, and whatever else the source holds (`tool_calls`, `name`)."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A prompt with the response that was preferred and the one that was not.

    Attributes:
        prompt: the conversation up to the responses; at least one message.
        chosen: the preferred continuation; starts with an assistant turn.
        rejected: the other continuation; starts with an assistant turn and differs from `chosen`.
        tools: the tool definitions that the conversation may use; empty where there are none.
    """

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    tools: tuple[Any, ...] = ()

    @cached_property
    def id(self) -> str:
        """64 hexadecimal digits: SHA-256 of the canonical JSON of the NFC-normalised messages.

        Text is normalised to NFC but not stripped. Keys beyond `role` and `content` and the tools
        count only where they are present, so a plain pair's id depends on its roles and contents
        alone. What is null counts as absent: Parquet cannot tell the two apart.
        """
        content: dict[str, Any] = {
            "prompt": self.prompt,
            "chosen": self.chosen,
            "rejected": self.rejected,
        }
        if self.tools:
            content["tools"] = self.tools
        return hashlib.sha256(canonical_json(normalise(content)).encode()).hexdigest()


def normalise(value: Any) -> Any:
    """The value with every string in Unicode normal form C and without the keys that are null."""
    if isinstance(value, str):
        return value if value.isascii() else unicodedata.normalize("NFC", value)
    if isinstance(value, Mapping):
        return {
            unicodedata.normalize("NFC", key): normalise(item)
            for key, item in value.items()
            if item is not None
        }
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [normalise(item) for item in value]
    return value
