"""Tokens of the Hub out of whatever a person, or a log, is shown."""

import logging
import os
import re
import sys

_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_TOKEN = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{8,}")
HIDDEN = "***"


def redacted(text: str) -> str:
    """The text without tokens: those in the environment, of the login, and what looks like one."""
    for token in _tokens():
        text = text.replace(token, HIDDEN)
    return _TOKEN.sub(HIDDEN, text)


def _tokens() -> list[str]:
    found = [os.environ.get(name, "").strip() for name in _VARIABLES]
    client = sys.modules.get("huggingface_hub")  # a token that nobody has loaded is in no message
    if client is not None:
        found.append(client.get_token() or "")
    return [token for token in found if len(token) >= 8]


class Redacted(logging.Filter):
    """Takes tokens out of log records."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keeps every record."""
        record.msg, record.args = redacted(record.getMessage()), ()
        return True
