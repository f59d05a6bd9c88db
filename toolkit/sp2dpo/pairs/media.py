"""Read the images of a pair as URIs, and refuse rows whose images or videos nobody would see.

TRL's formats hold images in the columns `images` and `image` and in content parts of messages. A
teacher that is sent only the text would judge a pair without knowing what it is about.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from sp2dpo.pairs.pair import Message

IMAGES = ("images", "image")
"""Columns of TRL's formats that hold images."""
_VIDEOS = ("videos", "video")
_SOUNDS = ("audios", "audio")
COLUMNS = (*IMAGES, *_VIDEOS, *_SOUNDS)
"""Columns of TRL's formats that hold images, videos or sound."""
_TEXT_PARTS = ("text", "input_text", "output_text")
_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "png",
    b"\xff\xd8\xff": "jpeg",
    b"GIF8": "gif",
    b"BM": "bmp",
}


class InvalidMedia(ValueError):
    """A row has images, videos or sound that cannot be used; the message says why."""


def split_content(turn: Message, name: str, *, images: bool) -> Message:
    """Return a message whose content is text, with the images of its parts in the key `images`.

    The texts of the parts are joined without anything between them, as chat templates do.

    Args:
        turn: A message whose content may be a list of parts.
        name: Column of the message, for the error.
        images: Whether images are read.

    Raises:
        InvalidMedia: If there is a part that is neither text nor an image, or an image that is not
            to be read.
    """
    content = turn.get("content")
    own = turn.get("images")
    if not _is_empty(own):
        _check_seen("an image", images=images)
        turn = {**turn, "images": _uris(own)}
    if isinstance(content, str | bytes) or not isinstance(content, Sequence):
        return turn
    texts, uris = [], list(turn.get("images") or ())
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in _TEXT_PARTS and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif isinstance(kind, str) and "image" in kind:
            _check_seen("an image", images=images)
            image = next((part[key] for key in (kind, *IMAGES, "url") if part.get(key)), None)
            # Without an image, the part is the place of the next one in the column `images`.
            uris += [] if image is None else [_uri(image)]
        elif isinstance(kind, str) and any(word in kind for word in ("video", "audio")):
            raise InvalidMedia(f"{name} holds a part of type {kind}, which teachers are not sent")
        else:
            raise InvalidMedia(f"{name} holds content that is not text")
    return {**turn, "content": "".join(texts), "images": uris or None}


def check_no_media(row: Mapping[str, Any], *, images: bool) -> None:
    """Raise InvalidMedia if a row has columns with videos or sound, or with images not to be read.

    Args:
        row: Values by column.
        images: Whether images are read.
    """
    for name in COLUMNS:
        if _is_empty(row.get(name)):
            continue
        if name not in IMAGES:
            raise InvalidMedia(f"holds {name}, which teachers are not sent")
        _check_seen(name, images=images)


def attach_images(row: Mapping[str, Any], prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return the prompt with the images of the row's columns in its first user turn.

    Raises:
        InvalidMedia: If an image is neither bytes nor a URI, or there is no user turn.
    """
    uris = [uri for name in IMAGES if not _is_empty(row.get(name)) for uri in _uris(row[name])]
    if not uris:
        return prompt
    at = next((n for n, turn in enumerate(prompt) if turn["role"] == "user"), None)
    if at is None:
        raise InvalidMedia("holds images, but the prompt has no user turn")
    turn = {**prompt[at], "images": [*(prompt[at].get("images") or ()), *uris]}
    return (*prompt[:at], turn, *prompt[at + 1 :])


def _check_seen(name: str, *, images: bool) -> None:
    if not images:
        raise InvalidMedia(
            f"holds {name}, which teachers do not see: each teacher of the panel needs "
            "`sees_images: true`"
        )


def _is_empty(value: Any) -> bool:
    # By length, because a PIL image or an array has no truth value of this meaning.
    return value is None or (isinstance(value, str | bytes | Sequence | Mapping) and not len(value))


def _uris(value: Any) -> list[str]:
    several = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return [_uri(item) for item in (value if several else [value])]


def _uri(image: Any) -> str:
    """Return the data or https URI of an image.

    Args:
        image: A URI, the bytes of a file, an object of OpenAI's API (`url`), or one of the
            `datasets` library (`bytes`, `path`).
    """
    if isinstance(image, Mapping):
        image = next((image[key] for key in ("bytes", "url", "path") if image.get(key)), None)
    if isinstance(image, str) and image.startswith(("https://", "data:image/")):
        return image
    if isinstance(image, bytes):
        kind = next((name for start, name in _SIGNATURES.items() if image.startswith(start)), None)
        kind = "webp" if image[:4] == b"RIFF" and image[8:12] == b"WEBP" else kind
        if kind is not None:
            return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
        raise InvalidMedia("holds an image that is no PNG, JPEG, GIF, WebP or BMP file")
    raise InvalidMedia("holds an image that is neither bytes nor a data or https URI")
