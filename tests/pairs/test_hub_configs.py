"""Data sets on the Hub with several configs: each can be named, and errors say how."""

import json
import os
import subprocess
import sys

import pytest
from test_hub_sources import client

from sp2dpo.hub import HubName
from support.harness import TESTS, process

PARTS = {
    "org/several": {"preference": ["train", "test"], "feed.back-2": ["train"], "en us": ["train"]},
    "org/default": {"default": ["train"], "extra": ["train"]},
    "org/marked": {"a": ["train"], "b": ["train"]},
    "org/single": {"only": ["test"]},
}


def write(root, name, configs):
    folder = root / name.replace("/", "-") / "main"
    entries = []
    for config, splits in configs.items():
        files = []
        for split in splits:
            path = folder / config.replace(" ", "-") / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            row = {"prompt": f"{config} {split}?", "chosen": "A.", "rejected": "B."}
            path.write_text(json.dumps(row) + "\n")
            files.append({"split": split, "path": path.relative_to(folder).as_posix()})
        entry = {"config_name": config, "data_files": files}
        entries.append(entry | ({"default": True} if (name, config) == ("org/marked", "b") else {}))
    card = f"---\nlicense: mit\nconfigs: {json.dumps(entries)}\n---\n"
    (folder / "README.md").write_text(card)
    return folder.parent


NAMES = {
    "org/several/preference": ("org/several/preference:train", "preference train?"),
    "org/several/preference:test": ("org/several/preference:test", "preference test?"),
    "org/several/feed.back-2:train@main": ("org/several/feed.back-2:train", "feed.back-2 train?"),
    "org/several/en us": ("org/several/en us:train", "en us train?"),
    "org/default": ("org/default:train", "default train?"),
    "org/default/default": ("org/default:train", "default train?"),
    "org/default/extra": ("org/default/extra:train", "extra train?"),
    "org/marked": ("org/marked:train", "b train?"),
    "org/marked/a": ("org/marked/a:train", "a train?"),
    "org/single": ("org/single:test", "only test?"),
    "org/single/only:test": ("org/single:test", "only test?"),
}
CONFIGS = "preference, feed.back-2, en us: pass"
ERRORS = {
    "org/several": f"it has 3 configs: {CONFIGS} org/several/preference or org/several/feed.back-2",
    "org/several:preference": f"it has 3 configs: {CONFIGS} org/several/preference or "
                              "org/several/feed.back-2 or 'org/several/en us'",
    "org/several:train@main": f"{CONFIGS} org/several/preference:train@main or ",
    "org/several/nope": f"it has no config nope, but {CONFIGS} org/several/preference or ",
    "org/default/nope": "it has no config nope, but default, extra: pass org/default/default or ",
    "org/several/preference:no": "org/several/preference has the splits train, test: name one as "
                                 "org/several/preference:SPLIT",
}  # fmt: skip
TRAINING = """
import json, sys
from sp2dpo.training.provenance import read_split, trace_rows

answers = []
for text in sys.argv[1:]:
    try:
        rows = read_split(text, "train", None)
        answers.append([rows["prompt"][0], trace_rows(text, None, rows, []).revision])
    except ValueError as error:
        answers.append(str(error))
json.dump(answers, sys.stdout)
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    root = tmp_path_factory.mktemp("configs")
    seeds = [
        word
        for name, configs in PARTS.items()
        for word in ("--seed", f"{name}={write(root, name, configs)}")
    ]
    with process(TESTS / "servers" / "hub_server.py", "--root", root / "objects", *seeds) as url:
        yield url


@pytest.fixture(scope="module")
def answers(url, tmp_path_factory):
    names = [*NAMES, *ERRORS]
    return dict(zip(names, client(url, tmp_path_factory.mktemp("home"), *names), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_config_is_read_and_the_default_one_has_no_name(answers, name):
    shown, prompt = NAMES[name]
    answer = answers[name]
    assert (answer["name"], answer["rows"][0][2]) == (shown, prompt)
    assert answer["license"] == "mit"


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_lists_the_configs_and_what_to_pass(answers, name):
    assert ERRORS[name] in answers[name]["said"]
    assert answers[name]["error"] == "ValueError"


def test_training_takes_the_same_names(url, tmp_path):
    names = ["org/several/preference", "org/several/feed.back-2:train@main", "org/single:test",
             "org/several", "org/several/nope", "org/default"]  # fmt: skip
    settings = {"HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path),
                "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", TRAINING, *names],
        env=os.environ | settings, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second, third, several, nope, default = json.loads(done.stdout)
    prompts = [answer[0] for answer in (first, second, third, default)]
    assert prompts == ["preference train?", "feed.back-2 train?", "only test?", "default train?"]
    assert all(len(answer[1]) == 40 for answer in (first, second, third, default))
    assert several.startswith(f"org/several: {ERRORS['org/several']}")
    assert "no config nope, but" in nope


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("org/name", ("org/name", None, None, None)),
        ("org/name:test", ("org/name", None, "test", None)),
        ("org/name@v1/x", ("org/name", None, None, "v1/x")),
        ("org/name/a.b-c d:x@v1", ("org/name", "a.b-c d", "x", "v1")),
        ("org/name/20231101.über", ("org/name", "20231101.über", None, None)),
    ],
)
def test_a_name_is_parsed_and_written_again(text, parts):
    name = HubName.parse(text)
    assert (name.repo, name.config, name.split, name.revision) == parts
    assert str(name) == text


@pytest.mark.parametrize(
    "text", ["name", "org/name/", "org/name/a/b", "org/name/a*", "./x", "/x/y"]
)
def test_what_is_no_name_on_the_hub_is_refused(text):
    assert HubName.parse(text) is None
