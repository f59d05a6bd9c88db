"""The card: what is ours on it, what is people's, and data that must stay text."""

import json
import re
from dataclasses import replace

import pytest
import yaml
from markdown_it import MarkdownIt

from sp2dpo.betas.arms import Arm, compute_betas
from sp2dpo.betas.file import BetaTable
from sp2dpo.betas.schedule import load_schedule
from sp2dpo.dataset.build import write_dataset
from sp2dpo.dataset.card import BEGIN, END, card_license, digest, fenced, merge_card, plain
from sp2dpo.dataset.verify import verify_dataset
from sp2dpo.panel.rubric import load_rubric, parse_rubric
from support.harness import SCHEDULE, filled, kept_reply

OURS = f"""---
license: mit
pretty_name: ours
tags:
- dpo
configs:
- config_name: default
  description: SHA-256 aa
  data_files:
  - split: train
    path: [data/a.parquet]
dataset_info:
- config_name: default
  features: []
---

{BEGIN}
# New
{END}
"""


def head_of(text):
    return yaml.safe_load(re.match(r"---\n(.*?)---\n", text, re.DOTALL)[1])


def test_what_people_write_above_and_below_stays():
    theirs = OURS.replace("# New", "# Old").replace(f"\n{BEGIN}", f"\nAbove.\n\n{BEGIN}")
    text = merge_card(f"{theirs}\nBelow.\n", OURS, license=None, where="README.md")
    assert "Above.\n\n" + BEGIN in text
    assert text.endswith(f"{END}\n\nBelow.\n")
    assert "# New" in text
    assert "# Old" not in text
    assert merge_card(text, OURS, license=None, where="README.md") == text  # nothing drifts


def test_a_card_of_theirs_alone_goes_below():
    text = merge_card("# Mine\n\nWords.\n", OURS, license=None, where="README.md")
    assert text.endswith(f"{END}\n\n# Mine\n\nWords.\n")
    assert merge_card(text, OURS, license=None, where="README.md") == text


def test_their_keys_and_tags_stay_and_stale_configs_of_ours_do_not():
    theirs = {
        "license": "cc-by-4.0",
        "language": ["en"],
        "pretty_name": "Theirs",
        "tags": ["mine", "dpo"],
        "configs": [
            {"config_name": "default", "description": "SHA-256 old"},
            {"config_name": "schedules", "description": "SHA-256 old"},
            {"config_name": "theirs", "data_files": "x.csv"},
        ],
        "viewer": False,
    }
    text = merge_card(f"---\n{yaml.safe_dump(theirs)}---\n", OURS, license=None, where="README.md")
    front_matter = head_of(text)
    assert [config["config_name"] for config in front_matter["configs"]] == ["default", "theirs"]
    assert front_matter["configs"][0]["description"] == "SHA-256 aa"
    assert front_matter["tags"] == ["dpo", "mine"]
    assert (front_matter["license"], front_matter["pretty_name"], front_matter["viewer"]) == (
        "cc-by-4.0",
        "Theirs",
        False,
    )
    relicensed_card = merge_card(text, OURS, license="apache-2.0", where="README.md")
    assert card_license(relicensed_card, where="README.md") == "apache-2.0"


def test_the_digest_covers_what_is_ours_and_nothing_else():
    same = digest(OURS, where="README.md")
    for text in (
        OURS + "\nWords.\n",
        OURS.replace("license: mit", "license: odc-by"),
        OURS.replace("- dpo", "- dpo\n- mine"),
        OURS.replace("\n", "\r\n"),
    ):
        assert digest(text, where="README.md") == same
    for text in (OURS.replace("# New", "# Newer"), OURS.replace("data/a", "data/b")):
        assert digest(text, where="README.md") != same


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OURS.replace(END, ""), "occurs 1 times and"),
        (OURS + OURS.split("---\n")[2], "occurs 2 times"),
        ("---\na: [\n---\n", "its YAML header: not valid YAML"),
        ("---\n- a\n---\n", "its YAML is not a mapping"),
    ],
)
def test_a_card_that_cannot_be_taken_apart_is_refused(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        merge_card(text, OURS, license=None, where="README.md")


HOSTILE = [
    "<script>alert(1)</script>",
    "![x](http://evil.example/x.png)",
    "[a](javascript:alert(1))",
    "http://evil.example",
    "| a | b |",
    f"{END}",
    "`<b>`",
    "&lt;b&gt;",
    "@someone #1",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_data_on_the_card_is_text(text):
    page = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(f"| {plain(text)} |\n")
    assert not re.search(r"<(script|img|a|b|table|code)\b", page), page
    assert BEGIN not in plain(text)
    assert END not in plain(text)


def test_nothing_in_a_rubric_closes_its_block():
    rubric = {"task": "Judge.\n```\n<script>\n````\nstill\n", "name": "x"}
    page = MarkdownIt("commonmark").render(f"{fenced(rubric)}\n\nafter\n")
    assert page.count("<pre>") == 1
    assert "<script>" not in page
    assert page.endswith("<p>after</p>\n")
    block = fenced(rubric).split("\n", 1)[1].rsplit("\n", 1)[0]
    assert yaml.safe_load(block) == rubric


MARKUP = (
    "x <img src=x onerror=alert(1)> [l](javascript:y) ![i](http://e/i) | `c` $m$ </details> &amp;"
)


def test_markup_and_marks_in_names_and_prompts_stay_text_and_the_data_set_verifies(
    new_store, tmp_path
):
    config = json.loads(json.dumps(load_rubric("semantic-gap").as_mapping()))
    config["name"] = f"{MARKUP} {END}"
    config["task"] += f"\n{BEGIN}\n---\nconfigs: []\n---\n{END}\n````\n</details>"
    config["categories"] = {f"{MARKUP} {END}": "all", **config["categories"]}
    config["variants"] = {MARKUP: f"{END}", **config["variants"]}
    rubric = parse_rubric(config, where="rubric")
    store = new_store()
    ids = filled(store, 3, MARKUP, rubric=rubric, variants=(MARKUP,))
    first = next(iter(rubric.categories))
    answer = {"category": first, "magnitude": 5, "confidence": 5}
    raw = json.dumps({"rationale": MARKUP, **answer})
    store.add_replies(
        replace(
            kept_reply(each, MARKUP, MARKUP, 5, 5, answer["category"], rationale=MARKUP), raw=raw
        )
        for each in ids
    )
    schedule = load_schedule(SCHEDULE)
    annotations = store.annotations()
    betas = BetaTable(
        table=compute_betas(annotations, Arm(of=schedule)),
        arm=Arm(of=schedule),
        annotations_hash=annotations.hash,
    )
    for _ in range(2):  # the second time over an earlier build
        write_dataset(store, betas, tmp_path / "out", draws=20)
    result = verify_dataset(tmp_path / "out")
    assert result.consistent, result.checks
    body = (tmp_path / "out" / "README.md").read_text().split("\n---\n", 1)[1]
    assert body.count(BEGIN) == body.count(END) == 1
    page = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(body)
    outside = re.sub(r"<pre>.*?</pre>", "", page, flags=re.DOTALL)
    assert set(re.findall(r"<img src=.([^\s>]+)", outside)) <= {'assets/betas.png"'}
    assert "onerror=alert(1)>" not in outside
    assert re.findall(r'<a href="([^"]+)"', page) == ["https://arxiv.org/abs/2601.22385"]
    assert page.count("</details>") == 1


def test_the_card_of_the_demo_is_whole(demo):
    card = (demo / "dataset" / "README.md").read_text()
    manifest = json.loads((demo / "dataset" / "manifest.json").read_text())
    assert manifest["card_sha256"] == digest(card, where="README.md")
    page = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(
        card.split("---\n", 2)[2]
    )
    assert re.findall(r'<img src="([^"]+)"', page) == ["assets/betas.png"]
    assert (demo / "dataset" / "assets" / "betas.png").read_bytes()[:4] == b"\x89PNG"
    for words in (
        "the <code>beta</code> column is silently ignored</strong>",
        "PairDPOTrainer as DPOTrainer",
        "row[&quot;gap&quot;] &gt;= 0.5",
        "Krippendorff",
        "Known biases, measured",
        "sp2dpo verify",
        "@article{he2026sp2dpo",
        "reader-a",
    ):
        assert words in page, words
    rubric = yaml.safe_load((demo / "dataset" / "rubric.yaml").read_text())
    for text in rubric["variants"].values():
        assert text.strip().split("\n")[0] in card  # the prompts, word for word
    assert "127.0.0.1" not in card + json.dumps(manifest)
