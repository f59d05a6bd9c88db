"""Images, videos and sound in a pair: nobody judges by the text what belongs to a picture."""

import base64
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sp2dpo.pairs.sources import SetAside, SourceRow, open_source, read_rows

TEXTS = {"prompt": "What is this?", "chosen": "A cat.", "rejected": "A dog."}
PNG = b"\x89PNG\r\n\x1a\n" + bytes(30)
URI = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
LINK = "https://example.org/cat.jpeg"


def write(path, *rows):
    """A Parquet file, which may hold bytes, or JSON Lines."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path, **options):
    return list(read_rows(open_source(str(path), **options)))


def asked(*parts):
    """A row whose prompt has these content parts."""
    text = {"type": "text", "text": "What is this?"}
    return TEXTS | {
        "prompt": [{"role": "user", "content": [*parts, text]}],
        "chosen": [{"role": "assistant", "content": "A cat."}],
        "rejected": [{"role": "assistant", "content": "A dog."}],
    }


ROWS = {
    "a column images": TEXTS | {"images": [LINK]},
    "a column image": TEXTS | {"image": LINK},
    "an image_url part": asked({"type": "image_url", "image_url": {"url": LINK}}),
    "an image part": asked({"type": "image", "image": LINK}),
    "an input_image part": asked({"type": "input_image", "image_url": LINK}),
    "a placeholder and a column": asked({"type": "image"}) | {"images": [LINK]},
    "a message of Ollama": TEXTS
    | {
        "prompt": [{"role": "user", "content": "What is this?", "images": [LINK]}],
    },
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_with_an_image_is_set_aside_unless_images_are_read(tmp_path, name):
    path = write(tmp_path / "p.jsonl", ROWS[name], TEXTS)
    aside, plain = read(path)
    assert isinstance(aside, SetAside)
    assert "which teachers do not see" in aside.reason
    assert "sees_images: true" in aside.reason
    assert isinstance(plain, SourceRow)
    row, same = read(path, images=True)
    assert isinstance(row, SourceRow)
    assert row.pair.prompt == ({"role": "user", "content": "What is this?", "images": [LINK]},)
    assert row.columns == {}
    assert same.pair.id == plain.pair.id != row.pair.id


def test_images_of_other_content_make_another_pair(tmp_path):
    path = write(tmp_path / "p.jsonl", *(TEXTS | {"images": [f"{LINK}?{n}"]} for n in range(3)))
    assert len({row.pair.id for row in read(path, images=True)}) == 3


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n", "png"),
        (b"\xff\xd8\xff\xe0", "jpeg"),
        (b"GIF89a", "gif"),
        (b"RIFF0000WEBP", "webp"),
    ],
)
def test_the_bytes_of_a_file_become_a_data_uri(tmp_path, start, kind):
    row = TEXTS | {"images": [{"bytes": start + bytes(9), "path": None}]}
    path = write(tmp_path / "p.parquet", row)
    (row,) = read(path, images=True)
    (uri,) = row.pair.prompt[0]["images"]
    assert uri.startswith(f"data:image/{kind};base64,")
    assert base64.b64decode(uri.partition(",")[2]) == start + bytes(9)


def test_several_images_stay_in_their_order_behind_those_of_the_message(tmp_path):
    row = asked({"type": "image_url", "image_url": {"url": LINK}}) | {"images": [URI, LINK]}
    (row,) = read(write(tmp_path / "p.jsonl", row), images=True)
    assert row.pair.prompt[0]["images"] == [LINK, URI, LINK]


def test_an_image_goes_to_the_first_turn_of_the_user(tmp_path):
    prompt = [
        {"role": "system", "content": "Look."},
        {"role": "user", "content": "What is this?"},
        {"role": "assistant", "content": "This?"},
        {"role": "user", "content": "Yes."},
    ]
    row = TEXTS | {"prompt": prompt, "image": LINK}
    (row,) = read(write(tmp_path / "p.jsonl", row), images=True)
    assert [turn.get("images") for turn in row.pair.prompt] == [None, [LINK], None, None]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (TEXTS | {"videos": ["v.mp4"]}, "holds videos, which teachers are not sent"),
        (TEXTS | {"video": "v.mp4"}, "holds video, which"),
        (TEXTS | {"audio": {"path": "a.wav"}}, "holds audio, which"),
        (asked({"type": "video", "video": "v.mp4"}), "holds a part of type video"),
        (asked({"type": "video_url", "video_url": {"url": LINK}}), "of type video_url"),
        (asked({"type": "input_audio", "input_audio": {}}), "of type input_audio"),
        (asked({"type": "table"}), "prompt holds content that is not text"),
        (asked({"text": "no type"}), "prompt holds content that is not text"),
        (asked("text"), "prompt holds content that is not text"),
        (TEXTS | {"images": ["cat.png"]}, "neither bytes nor a data or https URI"),
        (TEXTS | {"images": ["http://example.org/cat.png"]}, "neither bytes nor"),
        (TEXTS | {"images": [7]}, "neither bytes nor"),
        (TEXTS | {"images": [{"path": "cat.png", "bytes": None}]}, "neither bytes nor"),
        (
            TEXTS | {"prompt": [{"role": "system", "content": "Look."}], "images": [LINK]},
            "the prompt has no user turn",
        ),
    ],
)
def test_what_no_teacher_could_see_is_set_aside_also_where_images_are_read(tmp_path, row, expected):
    (aside,) = read(write(tmp_path / "p.jsonl", row), images=True)
    assert isinstance(aside, SetAside)
    assert expected in aside.reason


@pytest.mark.parametrize(
    "columns",
    [
        {"images": None},
        {"images": []},
        {"images": [None]},
        {"image": ""},
        {"videos": []},
        {"audio": None},
    ],
)
def test_columns_without_an_image_are_no_obstacle(tmp_path, columns):
    (row,) = read(write(tmp_path / "p.jsonl", TEXTS | columns))
    assert isinstance(row, SourceRow)
    assert row.columns == columns


def test_an_image_in_a_column_of_any_name_is_noticed(tmp_path):
    path = write(tmp_path / "p.parquet", TEXTS | {"photo": {"bytes": PNG, "path": "a.png"}})
    (aside,) = read(path)
    assert "column 'photo' holds an image" in aside.reason
    assert "--columns images=photo" in aside.reason
    # Not the bytes of the image, which would be most of the store.
    assert json.loads(aside.raw)["photo"]["bytes"].startswith(f"{len(PNG)} bytes, SHA-256 ")
    (row,) = read(path, columns={"images": "photo"}, images=True)
    assert row.pair.prompt[0]["images"] == [URI]
    assert row.columns == {}
    (row,) = read(path, columns={"images": ""})
    assert isinstance(row, SourceRow)
    assert row.columns["photo"]["path"] == "a.png"


def test_a_video_can_be_left_out_like_an_image(tmp_path):
    path = write(tmp_path / "p.jsonl", TEXTS | {"video": "v.mp4", "images": [LINK]})
    (row,) = read(path, columns={"images": ""})
    assert row.columns == {"video": "v.mp4", "images": [LINK]}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "A cat."}], "A cat."),
        ([{"type": "text", "text": "A "}, {"type": "text", "text": "cat."}], "A cat."),
        ([{"type": "output_text", "text": "A cat.", "image_url": None}], "A cat."),
        ([{"type": "text", "text": ""}, {"type": "input_text", "text": "A cat."}], "A cat."),
    ],
)
def test_text_parts_are_joined_as_chat_templates_join_them(tmp_path, content, text):
    row = TEXTS | {
        "chosen": [{"role": "assistant", "content": content}],
        "rejected": [{"role": "assistant", "content": "A dog."}],
    }
    (row,) = read(write(tmp_path / "p.jsonl", row))
    assert row.pair.chosen == ({"role": "assistant", "content": text},)


@pytest.mark.parametrize(
    "columns",
    [
        {"img": "cat.png"},
        {"image_url": LINK},
        {"image_urls": [LINK]},
        {"imagePath": "folder/cat"},
        {"Image": {"path": "cat.jpg"}},
        {"img": {"bytes": None, "path": "cat.jpg"}},
        {"picture": URI},
        {"query_image": "cat.jpg"},
        {"screenshot": {"url": LINK}},
        {"frames": ["1.jpg", "2.jpg"]},
        {"image_base64": "iVBORw0KGgoAAAANSUhEUgAAAAE"},
        {"image_0": "iVBORw0KGgoAAAANSUhEUgAAAAE"},
        {"pixel_values": [[1, 2]]},
        {"attachment": URI},
    ],
)
def test_images_under_other_names_are_noticed(tmp_path, columns):
    path = write(tmp_path / "p.jsonl", TEXTS | columns)
    (name,) = columns
    for options in ({}, {"images": True}):
        (aside,) = read(path, **options)
        assert isinstance(aside, SetAside)
        assert f"column {name!r} holds an image" in aside.reason
    (row,) = read(path, columns={"images": ""})
    assert row.columns == columns


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        ({"video_path": "a.mp4"}, "video"),
        ({"clip": {"path": "a.webm"}}, "video"),
        ({"audio_path": "a.wav"}, "audio"),
        ({"sound_file": "a.mp3"}, "audio"),
    ],
)
def test_videos_and_sound_under_other_names_are_noticed(tmp_path, columns, kind):
    (aside,) = read(write(tmp_path / "p.jsonl", TEXTS | columns), images=True)
    assert f"holds {kind}, which teachers are not sent" in aside.reason


@pytest.mark.parametrize(
    "columns",
    [
        {"image_count": 2, "video": None, "img": ""},
        {"image_caption": "A cat on a mat.", "image_id": "00017"},
        {"url": "https://example.org/cat.png", "file": "cat.pdf"},
        {"photo": {"path": None, "bytes": None}, "images": [None], "picture_of": "a cat"},
        {"frame_rate": 30, "has_image": False},
    ],
)
def test_columns_about_images_are_no_images(tmp_path, columns):
    (row,) = read(write(tmp_path / "p.jsonl", TEXTS | columns))
    assert isinstance(row, SourceRow), row
    assert row.columns == columns


def test_an_image_of_a_message_travels_with_it(tmp_path):
    turns = [{"role": "user", "content": "What is this?", "image": LINK}]
    path = write(tmp_path / "p.jsonl", TEXTS | {"prompt": turns})
    (aside,) = read(path)
    assert "which teachers do not see" in aside.reason
    (row,) = read(path, images=True)
    assert row.pair.prompt == ({"role": "user", "content": "What is this?", "images": [LINK]},)
    turns = [{"role": "user", "content": "What is this?", "audio": "a.wav"}]
    (aside,) = read(write(tmp_path / "p.jsonl", TEXTS | {"prompt": turns}), images=True)
    assert "prompt holds a message with audio, which teachers are not sent" in aside.reason


@pytest.mark.parametrize(
    "text",
    [
        "<image>\nWhat is it?",
        "What is it?\n<image>",
        "<video> What is it?",
        "What is it? <img>cat.jpg</img>",
        "Compare <image_1> and <image_2>.",
        "<|vision_start|><|image_pad|> What is it?",
        f"![]({URI}) What is it?",
    ],
)
def test_the_place_of_an_image_that_is_not_there_is_noticed(tmp_path, text):
    rows = [TEXTS | {"prompt": text}, TEXTS | {"prompt": [{"role": "user", "content": text}]}]
    for aside in read(write(tmp_path / "p.jsonl", *rows)):
        assert isinstance(aside, SetAside)
        assert "states the place of an image" in aside.reason
    assert isinstance(read(tmp_path / "p.jsonl", columns={"images": ""})[0], SourceRow)


@pytest.mark.parametrize(
    "text", ["How do I use a <video> tag?", "Is <img> or <image> right?", "An image: :-)"]
)
def test_questions_about_tags_are_no_images(tmp_path, text):
    (row,) = read(write(tmp_path / "p.jsonl", TEXTS | {"prompt": text}))
    assert isinstance(row, SourceRow)
