"""Read what a model says of itself without its weights: tokenizer, configuration, context."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import AutoConfig, AutoProcessor, AutoTokenizer

from sp2dpo.text import one_line


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
