"""Teachers that see images are sent them; no other teacher judges a pair that has some."""

import base64
import hashlib
import json
import sqlite3
from contextlib import closing

import pytest
import yaml

from sp2dpo.panel.rubric import count_images, holds_chat_marks, load_rubric, message_text
from sp2dpo.store.store import Store
from support.harness import SCHEDULE, fail, succeed, write_panel

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)
DATA = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
FIRST, SECOND = "https://example.org/a.png", "https://example.org/b.png"
TURNS = {
    "chosen": [{"role": "assistant", "content": "A cat."}],
    "rejected": [{"role": "assistant", "content": "A dog."}],
}
ROWS = [
    {"prompt": "What is seen?", "chosen": "A cat.", "rejected": "A dog.", "images": [DATA]},
    {"prompt": "What is seen?", "chosen": "A cat.", "rejected": "A dog.", "images": [FIRST]},
    {
        "prompt": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Compare."},
                    {"type": "image_url", "image_url": {"url": FIRST}},
                    {"type": "image_url", "image_url": {"url": SECOND}},
                ],
            }
        ],
        **TURNS,
    },
    {"prompt": "Say ok.", "chosen": "ok", "rejected": "no"},
]


@pytest.fixture
def files(tmp_path):
    class Files:
        pairs = tmp_path / "pairs.jsonl"
        panel = tmp_path / "panel.yaml"
        store = tmp_path / "run.sqlite"
        out = tmp_path / "requests.jsonl"

        def write(self, url, rubric="semantic-gap", **teacher):
            self.pairs.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
            write_panel(self.panel, url, variants=["direct", "critic"], rubric=rubric, **teacher)
            return ["--pairs", self.pairs, "--panel", self.panel, "--store", self.store]

        def requests(self):
            """The user messages of all exported requests."""
            succeed("export-requests", *self.write_sighted(), "--out", self.out)
            lines = self.out.read_text().splitlines()
            return [json.loads(line)["body"]["messages"][-1]["content"] for line in lines]

        def write_sighted(self):
            return self.write("http://127.0.0.1:9/v1", sees_images=True)

    return Files()


def test_a_request_holds_the_images_of_its_pair_between_the_pair_and_the_last_paragraph(files):
    contents = files.requests()
    assert [type(content) for content in contents] == [list] * 6 + [str] * 2
    for content, urls in zip(contents[::2], ([DATA], [FIRST], [FIRST, SECOND]), strict=False):
        assert [part["type"] for part in content] == ["text", *["image_url"] * len(urls), "text"]
        assert [part["image_url"] for part in content[1:-1]] == [{"url": url} for url in urls]
        shared = content[0]["text"]
        mark = shared.rsplit("\n", 1)[1]
        numbers = "\n".join(f"[image {n}]" for n, _ in enumerate(urls, 1))
        assert f"\n{numbers}\n{mark} chosen (assistant)\n" in shared
        assert not any(url in shared for url in urls)
    first, second = contents[:2]
    # All but the last paragraph is the same, so that a prefix cache serves it.
    assert first[:-1] == second[:-1]
    assert first[-1] != second[-1]


def test_pairs_with_other_images_are_other_pairs(files):
    files.requests()
    with Store(files.store) as store:
        pairs = [row.pair for row, _ in store.corpus.rows()]
        assert len({pair.id for pair in pairs}) == 4
        assert [count_images(pair) for pair in pairs] == [1, 1, 2, 0]
        assert store.corpus.image_pairs() == 3


def test_images_are_numbered_in_the_order_in_which_they_are_shown(files):
    files.requests()
    rubric = load_rubric("semantic-gap-blind")
    with Store(files.store) as store:
        pair = [row.pair for row, _ in store.corpus.rows()][2]
    shown = pair.chosen[0] | {"images": [DATA]}
    pair = type(pair)(prompt=pair.prompt, chosen=(shown,), rejected=pair.rejected)
    for order, position in (("chosen-first", 0), ("rejected-first", 1)):
        (*_, message) = rubric.messages(pair, "direct", order)
        images = [part["image_url"]["url"] for part in message["content"] if "image_url" in part]
        assert images == [FIRST, SECOND, DATA]
        text = message_text(message)
        assert text.index("[image 3]") > text.index("A cat.")
        assert (text.index("[image 3]") > text.index("A dog.")) == bool(position)
    assert not holds_chat_marks(pair)


def test_a_teacher_is_sent_the_parts_over_http(scripted, files):
    teacher = scripted()
    command = ["annotate", *files.write(teacher.url, sees_images=True)]
    plan = succeed(*command, "--dry-run")
    assert "8 requests, about " in plan
    assert "prompt tokens and 8 images" in plan
    assert "8 asked for = 8 kept" in succeed(*command)
    sent = {hashlib.sha256(url.encode()).hexdigest() for url in (DATA, FIRST, SECOND)}
    assert sent <= set(teacher.requests)


@pytest.mark.parametrize("others", [{}, {"sees_images": False}])
def test_rows_with_images_are_set_aside_unless_all_teachers_see_them(files, others):
    options = files.write("http://127.0.0.1:9/v1", names=["a", "b"])
    panel = yaml.safe_load(files.panel.read_text())
    panel["teachers"][0]["sees_images"] = True
    panel["teachers"][1] |= others
    files.panel.write_text(yaml.safe_dump(panel))
    output = succeed("annotate", *options, "--dry-run")
    assert "4 rows = 1 usable + 3 set aside" in output
    assert "sees_images: true" in output


def test_a_store_with_images_is_refused_to_a_panel_that_does_not_see_them(scripted, files):
    files.requests()
    options = files.write(scripted().url)
    for command in (options, options[2:]):
        error = fail("annotate", *command)
        assert "3 pairs of " in error
        assert "set `sees_images: true` for each" in error
    with closing(sqlite3.connect(files.store)) as database:
        assert database.execute("SELECT count(*) FROM replies").fetchone() == (0,)


def test_a_store_without_images_goes_on_without_them(scripted, files):
    teacher = scripted()
    assert "3 set aside" in succeed("annotate", *files.write(teacher.url))
    options = files.write(teacher.url, sees_images=True)
    assert "2 asked for = 2 kept + 0 refused + 0 pending" in succeed("annotate", *options)


def test_explain_and_the_report_do_not_show_the_data_of_images(scripted, files):
    teacher = scripted()
    options = files.write(teacher.url, sees_images=True)
    succeed("annotate", *options)
    with Store(files.store) as store:
        ids = [row.pair.id for row, _ in store.corpus.rows()]
    schedule = files.store.with_name("schedule.yaml")
    schedule.write_text(SCHEDULE.read_text().replace("quorum: 3", "quorum: 1"))
    betas = files.store.with_name("betas.parquet")
    succeed("schedule", "--store", files.store, "--schedule", schedule, "--out", betas)
    text = succeed("explain", ids[0], "--store", files.store, "--betas", betas)
    assert "  | image: data:image/png;base64," in text
    assert DATA not in text
    assert f"  | image: {SECOND}" in succeed(
        "explain", ids[2], "--store", files.store, "--betas", betas
    )
    store = ["--store", files.store, "--betas", betas]
    page = files.store.with_name("report.html")
    succeed("report", *store, "--out", page)
    assert "[1 image]" in page.read_text()
    assert "base64" not in page.read_text()
