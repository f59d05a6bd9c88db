"""A data set on its way to a Hub and back, through the real clients in processes of their own."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.error import HTTPError

import pytest

from support.harness import COMMAND, DEMO, ROOT, launch_training, run
from support.hub import LICENSE, TOKEN, Hub

SIGNED = ROOT / "recipes" / "schedules" / "signed.yaml"


@pytest.fixture(scope="module")
def published(hub, releases):
    """A repo that holds the first release, tagged v1."""
    output = hub.publish(releases / "one", "org/pairs", "--tag", "v1")
    assert "tag v1" in output
    return "org/pairs"


def test_a_stranger_loads_it_with_stock_datasets(hub, published):
    output = hub.python(
        "import json, sys; sys.modules['sp2dpo'] = None\n"
        "from datasets import load_dataset\n"
        f"name = {published!r}\n"
        "rows = load_dataset(name, split='train')\n"
        "tagged = load_dataset(name, 'schedules', revision='v1', split='train')\n"
        "streamed = load_dataset(name, 'annotations', split='train', streaming=True)\n"
        "print(json.dumps([len(rows), rows['beta'][:3], rows.features['category'].names[0],\n"
        "  tagged.column_names, tagged['default'][:3], sum(1 for _ in streamed)]))"
    )
    rows, betas, category, columns, default, replies = json.loads(output.splitlines()[-1])
    assert (rows, replies, category) == (96, 864, "safety")
    assert columns == ["pair_id", "default", "signed"]
    assert betas == default


@pytest.mark.slow
def test_two_steps_are_trained_on_it_with_stock_trl_and_with_ours(
    hub, published, tiny_student, tmp_path
):
    # In a process of its own: the Hub's client reads its variables when it is imported.
    results = launch_training(
        tiny_student, published, tmp_path / "ours", "--max_steps", "2", env=hub.env
    )
    assert results["data"]["dataset"] == published
    assert results["data"]["revision"] == hub.head(published)
    hub.python(
        "from datasets import load_dataset\n"
        "from trl import DPOConfig, DPOTrainer\n"
        f"rows = load_dataset({published!r}, split='train')\n"
        f"args = DPOConfig({str(tmp_path / 'stock')!r}, max_steps=2, report_to='none',\n"
        "  use_cpu=True, bf16=False, per_device_train_batch_size=2, save_strategy='no')\n"
        f"done = DPOTrainer({str(tiny_student)!r}, args=args, train_dataset=rows).train()\n"
        "assert done.global_step == 2"
    )


def test_load_pairs_checks_what_it_loads(hub, published):
    output = hub.python(
        "from sp2dpo.dataset.load import load_pairs\n"
        f"rows = load_pairs('{published}@v1')\n"
        "print(len(rows), rows.features['category'].names[0])"
    )
    assert output.split()[-2:] == ["96", "safety"]


def test_the_same_again_changes_nothing(hub, published, releases):
    before = hub.head(published)
    output = hub.publish(releases / "one", published, "--tag", "v1")
    assert "everything is up to date" in output
    assert "tag v1 existed already" in output
    assert hub.head(published) == before


def test_verify_looks_at_a_repo_and_names_its_commit(hub, published):
    done = hub.run("verify", f"{published}@v1", "--json")
    result = json.loads(done.stdout)
    assert result["consistent"], done.stdout
    assert result["commit"] == hub.head(published)
    assert [check["name"] for check in result["checks"]] == [
        "files", "card", "rubric", "pairs", "replies", "betas", "schedules",
    ]  # fmt: skip


def test_a_dry_run_says_what_would_change_and_changes_nothing(hub, releases):
    output = hub.publish(releases / "one", "org/dry", "--dry-run")
    assert "would change 9 files" in output
    assert "data/train-00000-of-00001.parquet" in output
    with pytest.raises(urllib.error.HTTPError):
        hub.head("org/dry")


def test_a_second_release_leaves_the_first_and_what_people_wrote(hub, releases):
    repo = "org/second"
    hub.publish(releases / "one", repo, "--tag", "v1")
    card = hub.text(repo, "README.md")
    theirs = card.replace("tags:\n", "language: [en]\ntags:\n- mine\n").replace(
        "\n<!-- sp2dpo: what", "\nRead *this* first.\n\n<!-- sp2dpo: what"
    )
    theirs += "\n## Thanks\n\nTo all.\n"
    hub.ask("/_test/commit", {"repo": repo, "path": "README.md", "text": theirs})
    hub.ask("/_test/commit", {"repo": repo, "path": "data/train-theirs.csv", "text": "a,b\n1,2\n"})
    verified = hub.run("verify", repo)
    assert verified.returncode == 3  # what people write does not matter, rows that they add do
    assert "the manifest does not list data/train-theirs.csv" in verified.stdout
    assert verified.stdout.count("DIFFERS") == 1
    output = hub.publish(releases / "two", repo, "--tag", "v2")
    assert "removed" in output  # the config that the second release has not
    card = hub.text(repo, "README.md")
    for words in ("Read *this* first.", "## Thanks\n\nTo all.", "language:\n- en", "- mine"):
        assert words in card
    assert "schedules/" not in card
    assert hub.text(repo, "data/train-theirs.csv") == "a,b\n1,2\n"
    assert hub.schedule(repo, "v1") == "product"
    assert hub.schedule(repo) == hub.schedule(repo, "v2") == "signed"
    lengths = hub.python(
        "from datasets import load_dataset\n"
        f"for tag in ('v1', 'v2'): print(len(load_dataset({repo!r}, revision=tag, split='train')))"
    )
    assert lengths.split() == ["96", "96"]  # not a row of theirs among them


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "the licence of pairs.jsonl is not known: state with --license"),
        (("--license", "nonsense"), "Invalid metadata in README.md"),
    ],
)
def test_a_licence_that_tells_nothing_is_refused(hub, releases, words, message):
    assert message in hub.refuses(releases / "one", "org/unlicensed", *words)


def test_a_refusal_creates_and_changes_no_repo(hub, releases):
    hub.refuses(releases / "one", "org/never", "--private", "--gated", "auto")
    with pytest.raises(HTTPError):
        hub.head("org/never")
    hub.publish(releases / "one", "org/ours")
    error = hub.refuses(releases / "two", "org/ours", *LICENSE, "--gated", "auto", "--private")
    assert "it is public" in error
    hub.python(
        "from huggingface_hub import HfApi\n"
        "api = HfApi(); api.create_repo('org/rows', repo_type='dataset')\n"
        "api.upload_file(repo_id='org/rows', repo_type='dataset', path_in_repo='rows.csv',\n"
        "  path_or_fileobj=b'a,b\\n')\n"
    )
    hub.refuses(releases / "one", "org/rows", *LICENSE, "--gated", "manual")
    for repo in ("org/ours", "org/rows"):
        assert not hub.ask(f"/api/datasets/{repo}")["gated"]


def test_a_tag_with_other_content_stays(hub, releases, published):
    before = hub.head(published)
    error = hub.refuses(releases / "two", published, *LICENSE, "--tag", "v1")
    assert "tag v1 is there, with other content" in error
    assert hub.head(published) == before


def test_other_data_are_not_touched_unless_asked(hub, releases):
    hub.python(
        "from huggingface_hub import HfApi\n"
        "api = HfApi(); api.create_repo('org/foreign', repo_type='dataset')\n"
        "api.upload_file(repo_id='org/foreign', repo_type='dataset', path_in_repo='rows.csv',\n"
        "  path_or_fileobj=b'a,b\\n')\n"
        "api.upload_file(repo_id='org/foreign', repo_type='dataset', path_in_repo='README.md',\n"
        "  path_or_fileobj=b'---\\nlicense: mit\\n---\\n# Theirs\\n')"
    )
    before = hub.head("org/foreign")
    assert "(rows.csv)" in hub.refuses(releases / "one", "org/foreign")
    assert hub.head("org/foreign") == before
    done = hub.run("publish", releases / "one", "--repo", "org/foreign", "--create-pr")
    assert "/discussions/1" in done.stdout, done.stderr
    assert hub.head("org/foreign") == before
    again = hub.run("publish", releases / "one", "--repo", "org/foreign", "--create-pr")
    assert "pull request #1" in again.stdout  # the open one is the same
    assert hub.schedule("org/foreign", "refs%2Fpr%2F1") == "product"
    done = hub.run("publish", releases / "one", "--repo", "org/foreign", "--overwrite")
    assert done.returncode == 0, done.stderr
    card = hub.text("org/foreign", "README.md")
    assert "license: mit" in card  # what the card there said
    assert card.endswith("# Theirs\n")
    assert hub.text("org/foreign", "rows.csv") == "a,b\n"


def test_private_and_gated_repos(hub, releases):
    hub.publish(releases / "one", "org/closed", "--private", "--gated", "manual")
    info = hub.ask("/api/datasets/org/closed")
    assert (info["private"], info["gated"]) == (True, "manual")
    hub.publish(releases / "one", "org/open")
    assert "it is public" in hub.refuses(releases / "one", "org/open", *LICENSE, "--private")


def test_a_folder_that_was_changed_is_not_published(hub, releases, tmp_path):
    folder = shutil.copytree(releases / "one", tmp_path / "one")
    with (folder / "label_noise.jsonl").open("a") as file:
        file.write("{}\n")
    assert "is not what `build` wrote" in hub.refuses(folder, "org/changed", *LICENSE)
    assert "no manifest.json" in hub.refuses(tmp_path, "org/changed", *LICENSE)


def test_without_a_token_nobody_is_asked_for_one(hub, releases, tmp_path):
    env = hub.env | {"HF_TOKEN": "", "HF_HOME": str(tmp_path)}
    done = run("publish", releases / "one", "--repo", "org/x", *LICENSE, env=env)
    assert done.returncode == 1
    assert "hf auth login" in done.stderr


FAULTS = """
import json, sys, urllib.request
from pathlib import Path
from sp2dpo.dataset.publish import PublishOptions, publish_dataset

url, one, two, after = sys.argv[1], *map(Path, sys.argv[2:4]), sys.argv[4] == "after"

def tell(said):
    data = json.dumps(said).encode()
    urllib.request.urlopen(urllib.request.Request(f"{url}/_test/fault", data)).close()

def log():
    with urllib.request.urlopen(f"{url}/_test/log") as answer:
        return json.load(answer)

counted = f"org/counted-{sys.argv[4]}-{sys.argv[5]}"
publish_dataset(one, PublishOptions(repo=counted, tag="v1", license="mit"))
tell(None)
publish_dataset(two, PublishOptions(repo=counted, license="mit"))
asked = len(log()) + 1  # and the tag's
found = []
for place in range(asked):
    repo = f"org/fault-{sys.argv[4]}-{sys.argv[5]}-{place}"
    publish_dataset(one, PublishOptions(repo=repo, tag="v1", license="mit"))
    tell(None)
    status = int(sys.argv[5])
    tell({"skip": place, "status": status, "after": after, "count": 1 if status >= 500 else 99})
    try:
        options = PublishOptions(repo=repo, tag="v2", license="mit")
        done = publish_dataset(two, options)
        outcome = "done"
    except (OSError, ValueError) as error:
        outcome = str(error)
    tell(None)
    found.append([repo, outcome])
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("when", "status"),
    [
        ("before", 500),
        ("after", 500),
        ("before", 403),
    ],
)
def test_a_fault_at_any_request_leaves_a_whole_release(hub, releases, when, status):
    """500 once: in the end all is there. 403 from then on: the release before is whole."""
    folders = (str(releases / "one"), str(releases / "two"))
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, hub.url, *folders, when, str(status)],
        env=os.environ | hub.env,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    attempts = json.loads(done.stdout.splitlines()[-1])
    assert len(attempts) > 10
    outcomes = set()
    for repo, outcome in attempts:
        files = {file["rfilename"] for file in hub.ask(f"/api/datasets/{repo}")["siblings"]}
        is_second = hub.schedule(repo) == "signed"
        outcomes.add((outcome == "done", is_second))
        assert ("schedules/train-00000-of-00001.parquet" in files) != is_second
        assert hub.schedule(repo, "v1") == "product"
        if outcome == "done":
            assert hub.schedule(repo, "v2") == "signed"
        else:
            assert outcome.startswith(repo), outcome
            assert "\n" not in outcome
    if status == 500:
        assert outcomes == {(True, True)}
    else:
        assert (False, False) in outcomes


def test_somebody_else_is_quicker(hub, releases):
    repo = "org/race"
    hub.publish(releases / "one", repo)
    hub.clear()
    # Only this repo's commits are raced: the fault writes to the first repo of the Hub otherwise.
    before = hub.head(repo)
    script = f"""
import json, threading, urllib.request
from pathlib import Path
from sp2dpo.dataset import repo as hub_repo
from sp2dpo.dataset.publish import PublishOptions, publish_dataset
stock, raced = hub_repo.HubRepo.commit, []
def commit(self, *args, **more):
    if len(raced) < 2:
        raced.append(1)
        said = {{"repo": self.name, "path": f"notes-{{len(raced)}}.txt", "text": "theirs"}}
        urllib.request.urlopen("{hub.url}/_test/commit", json.dumps(said).encode()).close()
    return stock(self, *args, **more)
hub_repo.HubRepo.commit = commit
said = []
order = PublishOptions(repo="{repo}", tag="v2", license="mit")
publish_dataset(Path({str(releases / "two")!r}), order, notify=said.append)
print(len(said), said[0])
"""
    assert "2 somebody else has committed meanwhile" in hub.python(script)
    assert hub.head(repo) != before
    assert hub.schedule(repo) == hub.schedule(repo, "v2") == "signed"
    assert hub.text(repo, "notes-1.txt") == hub.text(repo, "notes-2.txt") == "theirs"


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_whole_release(hub, releases):
    draw, ends = random.Random(0), set()
    for number in range(6):
        repo = f"org/killed-{number}"
        hub.publish(releases / "one", repo, "--tag", "v1")
        hub.clear()
        hub.fault(status=0, wait=0.05, count=1000)  # slow, so that there is something to hit
        words = ["publish", releases / "two", "--repo", repo, *LICENSE, "--tag", "v2"]
        running = subprocess.Popen(
            [*COMMAND, *map(str, words)],
            env=os.environ | hub.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not hub.ask("/_test/log"):
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 1.5))
        running.kill()
        running.wait()
        hub.clear()
        ends.add(hub.schedule(repo))
        verified = hub.run("verify", repo)
        assert verified.returncode == 0, verified.stdout
        hub.publish(releases / "two", repo, "--tag", "v2")
        assert hub.schedule(repo, "v1") == "product"
        assert hub.schedule(repo, "v2") == "signed"
    assert "product" in ends  # it was hit before the commit, too


def test_a_corrupted_file_of_the_same_size_is_found(hub, releases):
    repo, path = "org/rotten", "annotations/train-00000-of-00001.parquet"
    # Contents are stored once for all repos: one that no other repo has.
    folder = releases / "two"
    hub.publish(folder, repo)
    fresh_hub = Hub(hub.url, hub.home / "fresh")
    hub.ask("/_test/corrupt", {"repo": repo, "revision": "main", "path": path})
    try:
        done = fresh_hub.run("verify", repo)
        assert done.returncode == 3, done.stdout
        assert re.search(rf"DIFFERS +files +{path} has another SHA-256", done.stdout)
        assert "NOT consistent: org/rotten at " in done.stdout
        output = fresh_hub.python(
            "from sp2dpo.dataset.load import load_pairs\n"
            f"try: load_pairs({repo!r})\n"
            "except ValueError as error: print(error)"
        )
        assert "is not consistent: files: annotations/" in output
    finally:
        hub.ask("/_test/corrupt", {"repo": repo, "revision": "main", "path": path})  # back again


@pytest.mark.parametrize("status", [403, 500])
def test_a_token_is_nowhere(hub, published, releases, status, tmp_path):
    hub.clear()
    hub.fault(status=status, count=1000, match="preupload|/revision/v1", echo=True)
    mine = Hub(hub.url, tmp_path / "home")
    try:
        results = [
            mine.run("--debug", "publish", releases / "one", "--repo", "org/leak", *LICENSE)
            if status == 403
            else mine.run("verify", f"{published}@v1", "--debug")
        ]
    finally:
        hub.clear()
    for result in results:
        assert result.returncode == 1, result.stdout
        assert "Traceback" in result.stderr
        assert "you sent Bearer ***" in result.stderr
        assert TOKEN not in result.stdout + result.stderr
    for path in [*Path(tmp_path).rglob("*"), *releases.rglob("*")]:
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path


def test_every_command_names_its_way_out(hub):
    assert "neither a folder nor a data set" in hub.run("verify", "nowhere").stderr
    assert "the Hub has no such data set" in hub.run("verify", "org/nowhere").stderr
    assert str(DEMO) in hub.run("verify", DEMO).stderr


def test_training_reads_the_files_of_the_manifest_whatever_the_card_names(hub, releases):
    repo = "org/swapped"
    hub.publish(releases / "one", repo)
    row = {"pair_id": "x", "prompt": "p", "chosen": "bad", "rejected": "good", "beta": 1.0}
    hub.ask(
        "/_test/commit", {"repo": repo, "path": "data/other.jsonl", "text": json.dumps(row) + "\n"}
    )
    card = hub.text(repo, "README.md").replace("- data/train-00000-of-00001.parquet", "- data/*")
    hub.ask("/_test/commit", {"repo": repo, "path": "README.md", "text": card})
    output = hub.python(
        "from sp2dpo.training.provenance import read_split, trace_rows\n"
        f"rows = read_split({repo!r}, 'train', None)\n"
        f"print(len(rows), trace_rows({repo!r}, None, rows, ['beta']).revision)\n"
        f"print(len(read_split('{repo}/annotations', 'train', None)))\n"
    )
    assert output.split() == ["96", hub.head(repo), "864"]
    verified = hub.run("verify", repo)
    assert verified.returncode == 3
    assert "does not list data/other.jsonl" in verified.stdout
