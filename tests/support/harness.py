"""What the tests do again and again: run the command line, write small inputs, start servers."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import yaml

from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.pairs.pair import Pair
from sp2dpo.pairs.sources import Source, SourceRow
from sp2dpo.panel.annotation import Annotation, Key
from sp2dpo.panel.panel import Panel
from sp2dpo.panel.rubric import load_rubric
from sp2dpo.store.store import ReplyRecord

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
DEMO = ROOT / "recipes" / "demo"
SCHEDULE = ROOT / "recipes" / "schedules" / "sp2dpo.yaml"
COMMAND = [sys.executable, "-m", "sp2dpo"]


@contextmanager
def process(*command, **options):
    """A server that prints its address on its first line; ended when the block is left."""
    with subprocess.Popen(
        [sys.executable, *map(str, command)], stdout=subprocess.PIPE, text=True, **options
    ) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            assert address.startswith("http://"), "the server did not start"
            yield address
        finally:
            server.kill()


class Scripted:
    """A running scripted teacher."""

    def __init__(self, url, log):
        self.url = url
        self.log = log

    @property
    def requests(self):
        """The hashes of what it was asked, in order."""
        return self.log.read_text().split() if self.log.exists() else []


def run(*arguments, env=None, timeout=120, **options):
    """Runs `sp2dpo` as a person would."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=os.environ | (env or {}),
        **options,
    )


def succeed(*arguments, **options):
    """Runs `sp2dpo`, which must end well; its output."""
    done = run(*arguments, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def fail(*arguments, code=1, **options):
    """Runs `sp2dpo`, which must end with an error for people; what it says."""
    done = run(*arguments, **options)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()
    return done.stderr


def train(model, dataset, output, *arguments):
    """Launches the training recipe as a person would; what it wrote to results.json."""
    command = [
        Path(sys.executable).with_name("accelerate"), "launch",
        "--config_file", ROOT / "recipes" / "accelerate" / "single.yaml",
        ROOT / "recipes" / "train.py", "--config", ROOT / "recipes" / "dpo" / "tiny-demo.yaml",
        "--model_name_or_path", model, "--dataset", dataset, "--output_dir", output, *arguments,
    ]  # fmt: skip
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((output / "results.json").read_text())


def write_panel(path, url, *, names=("scripted",), rubric="semantic-gap", variants=None, **more):
    """A panel file whose teachers all live at one address."""
    teachers = [
        {
            "name": name,
            "model": "scripted" if name.startswith("scripted") else name,
            "revision": None,
            "base_url": url,
            "sampling": {"temperature": 0, "max_tokens": 300},
            **more,
        }
        for name in names
    ]
    said = {
        "rubric": str(rubric),
        "variants": variants or ["direct", "critic", "reader"],
        "teachers": teachers,
    }
    path.write_text(yaml.safe_dump(said, allow_unicode=True))
    return path


def write_pairs(path, count):
    """A file of plain, distinct pairs."""
    rows = [
        {"prompt": f"Question {n}?", "chosen": f"Good answer {n}.", "rejected": f"Bad answer {n}."}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def panel_of(*teachers, rubric=None, variants=("direct", "critic", "reader")):
    """A panel whose teachers are never asked."""
    return Panel(
        rubric=rubric or load_rubric("semantic-gap"),
        variants=variants,
        teachers=tuple(
            Endpoint(
                name=name,
                model=f"model-{name}",
                revision=None,
                base_urls=("http://127.0.0.1:9/v1",),
                sampling={"temperature": 0, "max_tokens": 100},
            )
            for name in teachers
        ),
    )


def kept(
    pair_id,
    teacher,
    variant,
    magnitude,
    confidence,
    category="style",
    *,
    order="chosen-first",
    better=None,
    expected=(None, None),
    rationale="because",
):
    """A kept reply, for stores made by hand; `expected` is of magnitude and of confidence."""
    return ReplyRecord(
        key=Key(pair_id=pair_id, teacher=teacher, variant=variant, order=order),
        annotation=Annotation(
            category=category,
            magnitude=magnitude,
            confidence=confidence,
            rationale=rationale,
            better=better,
        ),
        reason=None,
        detail=None,
        raw="{}",
        reply=None,
        arrived=0.0,
        magnitude=expected[0],
        confidence=expected[1],
    )


def refused(pair_id, teacher, variant, *, attempt=0, reason="empty", raw=""):
    """A refused reply, for stores made by hand."""
    return ReplyRecord(
        key=Key(pair_id=pair_id, teacher=teacher, variant=variant, attempt=attempt),
        annotation=None,
        reason=reason,
        detail="",
        raw=raw,
        reply=None,
        arrived=0.0,
    )


def pairs_of(count):
    """Plain, distinct pairs as source rows."""
    return [
        SourceRow(
            row=number,
            pair=Pair(
                prompt=({"role": "user", "content": f"Question {number}?"},),
                chosen=({"role": "assistant", "content": f"Good answer {number}."},),
                rejected=({"role": "assistant", "content": f"Bad answer {number}."},),
            ),
            source_id=f"q{number}",
        )
        for number in range(1, count + 1)
    ]


def filled(store, count, *teachers, rubric=None, variants=("direct", "critic", "reader")):
    """Gives a new store its pairs and its panel; returns the ids of the pairs."""
    rows = pairs_of(count)
    store.corpus.add(Source(name="hand.jsonl"), rows)
    store.record_panel(panel_of(*teachers, rubric=rubric, variants=variants))
    return [row.pair.id for row in rows]
