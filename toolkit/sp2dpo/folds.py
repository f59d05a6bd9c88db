"""Folds: parts of a data set by its prompts, the same in every run, whatever else is in the data.

Pairs of one prompt share a place, so that no prompt stands on both sides of a split.
"""

import hashlib
import json
from typing import Any


def place(prompt: Any) -> float:
    """Return a prompt's place in [0, 1): the head of its SHA-256.

    Args:
        prompt: as JSON values: a text, or messages.
    """
    text = json.dumps(prompt, sort_keys=True, ensure_ascii=False)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def fold_of(prompt: Any, folds: int) -> int:
    """Return the fold of a prompt, from 0.

    Args:
        prompt: as in `place`.
        folds: how many there are.
    """
    return int(place(prompt) * folds)
