"""Read the images of a pair as URIs, and refuse rows whose images or videos nobody would see.

TRL's formats hold images in the columns `images` and `image` and in content parts of messages. A
teacher that is sent only the text would judge a pair without knowing what it is about.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from sp2dpo.pairs.pair import Message

IMAGES = ("images", "image")
"""Columns of TRL's formats that hold images."""
_VIDEOS = ("videos", "video")
_SOUNDS = ("audios", "audio")
COLUMNS = (*IMAGES, *_VIDEOS, *_SOUNDS)
"""Columns of TRL's formats that hold images, videos or sound."""
_KINDS = {
    "image": frozenset({
        "image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "screenshot",
        "screenshots", "frame", "frames", "pixel", "pixels",
    }),
    "video": frozenset({"video", "videos", "clip", "clips"}),
    "audio": frozenset({"audio", "audios", "sound", "sounds", "wav"}),
}  # fmt: skip
"""Words in the names of other columns, by what the columns may hold."""
_PLACES = frozenset(
    {"path", "paths", "url", "urls", "uri", "file", "files", "filename", "base", "b", "bytes",
     "data", "values", "link"}
)  # fmt: skip
"""Words beside these in the name of a column that holds nothing else."""
_FILE = re.compile(
    r"(?:data:(?:image|video|audio)/\S*|(?:https?:)?[^\s?]+\.(?:png|jpe?g|gif|webp|bmp|tiff?|svg|mp4|"
    r"webm|mov|avi|mkv|wav|mp3|flac|ogg|m4a)(?:\?\S*)?)\s*\Z",
    re.IGNORECASE,
)
PLACEHOLDER = re.compile(
    r"\A\s*<(?:image|img|video|audio)>|<(?:image|video|audio)>\s*\Z|<image_?\d+>|"
    r"<\|(?:image|image_pad|vision_start|video|audio)\|>|<img>[^<>]*</img>|data:image/\w+;base64,"
)
"""Where the text of a prompt states the place of an image, a video or sound."""
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
    for key in [key for key in turn if key in COLUMNS or _kind_of(key, turn[key])]:
        if _is_empty(turn[key]) or key == "images":
            continue
        if key != "image":
            raise InvalidMedia(f"{name} holds a message with {key}, which teachers are not sent")
        own = [*_items(turn.get("images")), *_items(turn[key])]
        turn = {k: turn[k] for k in turn if k != key} | {"images": own}
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
            image = next(
                (part[key] for key in (kind, *IMAGES, "image_url", "url") if part.get(key)), None
            )
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
    for name, value in row.items():
        if name in COLUMNS and not _is_empty(value):
            if name not in IMAGES:
                raise InvalidMedia(f"holds {name}, which teachers are not sent")
            _check_seen(name, images=images, way=f", or give --columns images= {_BY_TEXT}")
        elif name in COLUMNS:
            continue
        elif (kind := _kind_of(name, value)) in ("video", "audio"):
            raise InvalidMedia(
                f"column {name!r} holds {kind}, which teachers are not sent: give --columns "
                f"images= {_BY_TEXT}"
            )
        elif kind or _is_image_file(value):
            raise InvalidMedia(
                f"column {name!r} holds an image, which teachers do not see: give --columns "
                f"images={name}, or images= {_BY_TEXT}"
            )


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


_BY_TEXT = "to judge by the text alone"


def without_media(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row without its columns of images, videos and sound."""
    return {name: value for name, value in row.items() if not is_media(name, value)}


def is_media(name: str, value: Any) -> bool:
    """Return whether a column holds images, videos or sound, by its name and value."""
    return name in COLUMNS or _kind_of(name, value) is not None or _is_image_file(value)


def _kind_of(name: str, value: Any) -> str | None:
    """Return `image`, `video` or `audio` for a column of another name that holds it, else None."""
    if isinstance(value, list | tuple):
        value = next((item for item in value if item is not None), None)
    kind, alone = _kind_of_name(name)
    if isinstance(value, Mapping):
        keys = ("bytes", "path", "url", "base64", "data", "src")
        value = next((value[key] for key in keys if value.get(key)), None)
        if kind is not None and value is not None:
            return kind
    if isinstance(value, bytes) or (isinstance(value, list | tuple) and value):
        return kind if alone else None
    if not isinstance(value, str) or not value.strip():
        return None
    if kind is None:
        # Any other column may hold the address of a page.
        start = re.match("data:(image|video|audio)/", value[:20])
        return start.group(1) if start else None
    return kind if _FILE.match(value) or (alone and len(value.split()) == 1) else None


@lru_cache(maxsize=4096)
def _kind_of_name(name: str) -> tuple[str | None, bool]:
    """Return what a column of this name may hold, and whether it has no other words."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", str(name))
    words = {word for word in re.split(r"[^a-z]+", parted.casefold()) if word}
    kind = next((kind for kind, known in _KINDS.items() if words & known), None)
    return kind, kind is not None and words <= _KINDS[kind] | _PLACES


def _items(value: Any) -> list[Any]:
    if _is_empty(value):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _check_seen(name: str, *, images: bool, way: str = "") -> None:
    if not images:
        raise InvalidMedia(
            f"holds {name}, which teachers do not see: each teacher of the panel needs "
            f"`sees_images: true`{way}"
        )


def _is_empty(value: Any) -> bool:
    if isinstance(value, str | bytes | Mapping):
        return not value
    return value is None or (isinstance(value, Sequence) and all(item is None for item in value))


def _is_image_file(value: Any) -> bool:
    """Return whether a column has the bytes of an image, as the `datasets` library stores it."""
    if isinstance(value, list | tuple) and value:
        value = value[0]
    # First the common case, because this is called for every column of every row.
    if isinstance(value, str | int | float) or not isinstance(value, Mapping):
        return False
    data = value.get("bytes")
    return isinstance(data, bytes) and _kind(data) is not None


def _kind(data: bytes) -> str | None:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((name for start, name in _SIGNATURES.items() if data.startswith(start)), None)


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
        kind = _kind(image)
        if kind is not None:
            return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
        raise InvalidMedia("holds an image that is no PNG, JPEG, GIF, WebP or BMP file")
    raise InvalidMedia("holds an image that is neither bytes nor a data or https URI")
