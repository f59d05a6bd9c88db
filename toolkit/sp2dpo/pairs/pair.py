"""Define a preference pair, identified by its content.

`Pair.id` is a hash of the messages, so a pair keeps its id when it is read from another file, in
another order or in another format.
"""

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sp2dpo.text import canonical_json

Message = Mapping[str, Any]
"""One chat turn, with `role`, `content` and other keys of the source, such as `tool_calls`."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A prompt with a preferred and a rejected response.

    Attributes:
        prompt: Conversation before the responses, with at least one message.
        chosen: Preferred continuation, which starts with an assistant turn.
        rejected: Rejected continuation, which starts with an assistant turn and differs from
            `chosen`.
        tools: Definitions of the tools that the conversation may use; empty if there are none.
    """

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    tools: tuple[Any, ...] = ()

    @cached_property
    def id(self) -> str:
        """SHA-256 of the canonical JSON of the messages, as 64 hexadecimal digits.

        Text is normalized to NFC but not stripped. Tools and message keys other than `role` and
        `content` are hashed only if present, so the id of a plain pair depends only on roles and
        contents. A null value counts as absent, because Parquet cannot tell the two apart.
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
    """Return a JSON value with all strings in Unicode NFC and without keys whose value is null."""
    if isinstance(value, str):
        # ASCII is always in NFC, and testing for it is much faster.
        return value if value.isascii() else unicodedata.normalize("NFC", value)
    if isinstance(value, Mapping):
        return {
            unicodedata.normalize("NFC", key): normalise(item)
            for key, item in value.items()
            if item is not None
        }
    # Bytes stay bytes, which JSON refuses; as a list of numbers they would pass.
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [normalise(item) for item in value]
    return value
