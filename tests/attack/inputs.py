"""The small inputs that the attack changes: the same bytes from every run of the same versions."""

import gzip
import json
import shutil
from pathlib import Path
from unittest import mock

import polars as pl
import yaml

from sp2dpo.annotation.request_files import export_requests
from sp2dpo.betas.compute import schedule_store
from sp2dpo.betas.file import read_betas, write_betas
from sp2dpo.dataset.build import build_dataset
from sp2dpo.evaluation import verdicts
from sp2dpo.evaluation.models import load_judge, load_student
from sp2dpo.evaluation.outputs import JOURNAL, generate_outputs, run_settings
from sp2dpo.evaluation.prompts import read_prompts
from sp2dpo.files import Journal
from sp2dpo.inference.chats import ChatResult
from sp2dpo.inference.client import parse_reply
from sp2dpo.pairs.pair import Pair
from sp2dpo.pairs.sources import Source, SourceRow
from sp2dpo.panel.annotation import Key, parse_annotation
from sp2dpo.panel.panel import load_panel
from sp2dpo.store.records import ReplyRecord
from sp2dpo.store.store import Store

ROOT = Path(__file__).parents[2]
SCHEDULES = ROOT / "recipes" / "schedules"
PAIRS, TEACHERS, VARIANTS = 12, ("reader-a", "reader-b", "reader-c"), ("direct", "critic", "reader")
CATEGORIES = ("safety", "factuality", "instruction", "style", "none")


def write_inputs(folder):
    """Write all inputs into an empty folder."""
    _write_settings(folder)
    _write_pairs(folder)
    for name, first in (("run.sqlite", 0), ("shard.sqlite", 1)):
        _write_store(folder, folder / name, first)
    _write_betas(folder)
    build_dataset(
        folder / "run.sqlite",
        folder / "betas.parquet",
        folder / "dataset",
        others={"signed": folder / "signed.parquet"},
        draws=20,
    )
    _write_batch(folder)
    _write_evaluation(folder)
    for path in folder.glob("*.sqlite-*"):  # readers leave them
        path.unlink()


def _write_settings(folder):
    teachers = [
        {
            "name": name,
            "model": f"model-{name}",
            "revision": None,
            "base_url": "http://127.0.0.1:9/v1",
            "sampling": {"temperature": 0, "max_tokens": 300, "seed": 7},
        }
        for name in TEACHERS
    ]
    rubric = folder / "semantic-gap.yaml"
    shutil.copy(ROOT / "recipes" / "rubrics" / "semantic-gap.yaml", rubric)
    panel = {"rubric": "semantic-gap.yaml", "variants": list(VARIANTS), "teachers": teachers}
    (folder / "panel.yaml").write_text(yaml.safe_dump(panel, sort_keys=False))
    shutil.copy(SCHEDULES / "sp2dpo.yaml", folder / "sp2dpo.yaml")
    shutil.copy(SCHEDULES / "signed.yaml", folder / "signed.yaml")
    for name in ("madpo", "constant", "permuted"):
        arm = yaml.safe_load((SCHEDULES / "arms" / f"{name}.yaml").read_text())
        (folder / f"{name}.yaml").write_text(
            yaml.safe_dump(arm | {"of": "sp2dpo.yaml"}, sort_keys=False)
        )
    shutil.copy(ROOT / "recipes" / "dpo" / "tiny-demo.yaml", folder / "train.yaml")
    shutil.copytree(
        ROOT / "recipes" / "study",
        folder / "study",
        ignore=shutil.ignore_patterns("results", "__pycache__", "*.md", "*.py"),
    )


def _pair(number):
    return Pair(
        prompt=({"role": "user", "content": f"Question {number}: why – and how?"},),
        chosen=({"role": "assistant", "content": f"Good answer {number}.\nIt explains. " * 3},),
        rejected=({"role": "assistant", "content": f"Bad answer {number}. "},),
    )


def _write_pairs(folder):
    rows = [
        {
            "id": f"q{number}",
            "prompt": f"Question {number}: why – and how?",
            "chosen": f"Good answer {number}.\nIt explains.",
            "rejected": f"Bad answer {number}.",
            "topic": ["law", "art", "maths"][number % 3],
        }
        for number in range(PAIRS)
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "pairs.jsonl").write_text(lines)
    with gzip.GzipFile(folder / "pairs.jsonl.gz", "wb", mtime=0) as file:
        file.write(lines.encode())
    pl.DataFrame(rows).write_parquet(folder / "pairs.parquet")
    gold = [
        {"pair_id": f"q{number}", "label": "chosen", "category": "style", "magnitude": 5}
        for number in range(PAIRS)
    ]
    (folder / "gold.jsonl").write_text("".join(json.dumps(row) + "\n" for row in gold))


def _reply(panel, pair, number, place):
    teacher, variant = TEACHERS[place // 3], VARIANTS[place % 3]
    values = {
        "rationale": f"because of point {place}",
        "category": CATEGORIES[(number + place // 4) % len(CATEGORIES)],
        "magnitude": 1 + (number * 3 + place) % 9,
        "confidence": 3 + (number + 2 * place) % 8,
    }
    raw = json.dumps(values)
    key = Key(pair_id=pair.id, teacher=teacher, variant=variant)
    body = {
        "model": f"model-{teacher}",
        "choices": [{"finish_reason": "stop", "message": {"content": raw}}],
        "usage": {"prompt_tokens": 400 + number, "completion_tokens": 40 + place},
    }
    endpoint = next(each for each in panel.teachers if each.name == teacher)
    is_refused = (number, place) in ((2, 4), (5, 7))
    return ReplyRecord(
        key=key,
        annotation=None if is_refused else parse_annotation(raw, panel.rubric),
        reason="not-json" if is_refused else None,
        detail="expected a value" if is_refused else None,
        raw="No." if is_refused else raw,
        reply=parse_reply(endpoint, body, 0.5),
        arrived=1_700_000_000.0 + 9 * number + place,
    )


def _write_store(folder, path, first):
    panel = load_panel(folder / "panel.yaml")
    with Store(path, write=True) as store:
        pairs = [_pair(number) for number in range(PAIRS)]
        rows = [
            SourceRow(
                row=number + 1,
                pair=pair,
                source_id=f"q{number}",
                columns={"topic": ["law", "art", "maths"][number % 3], "score": number / 7},
            )
            for number, pair in enumerate(pairs)
        ]
        store.corpus.add(Source(name="hand.jsonl"), rows)
        store.record_panel(panel)
        # Of a shard, every other reply is missing.
        store.add_replies(
            _reply(panel, pair, number, place)
            for number, pair in enumerate(pairs)
            for place in range(9)
            if not first or (number + place) % 2
        )


def _write_betas(folder):
    store = folder / "run.sqlite"
    for schedule, betas in (("sp2dpo", "betas"), ("signed", "signed")):
        result = schedule_store(store, folder / f"{schedule}.yaml", None)
        write_betas(result.betas, folder / f"{betas}.parquet")
    table = read_betas(folder / "betas.parquet").table
    margins = [0.5 * place - 2 for place in range(len(table))]
    scores = table.select("pair_id").with_columns(reward_margin=pl.Series(margins))
    scores.write_parquet(folder / "scores.parquet")


def _write_batch(folder):
    panel = load_panel(folder / "panel.yaml")
    export_requests(None, panel, folder / "shard.sqlite", folder / "requests.jsonl")
    answer = json.dumps(
        {"rationale": "because", "category": "style", "magnitude": 4, "confidence": 8}
    )
    lines = []
    for path in sorted(folder.glob("requests*.jsonl")):
        for request in map(json.loads, path.read_text().splitlines()):
            body = {"choices": [{"finish_reason": "stop", "message": {"content": answer}}]}
            response = {"status_code": 200, "body": body}
            line = {"custom_id": request["custom_id"], "response": response, "error": None}
            lines.append(json.dumps(line) + "\n")
        path.unlink()
    (folder / "replies.jsonl").write_text("".join(lines))


def _write_evaluation(folder):
    prompts = [
        {"instruction": f"Do {number}.", "output": f"base {number}", "generator": "base"}
        for number in range(PAIRS)
    ]
    (folder / "prompts.json").write_text(json.dumps(prompts))
    url = "http://127.0.0.1:9/v1"
    student = {"name": "student-a", "model": "student", "revision": None, "base_url": url,
               "sampling": {"temperature": 0.7, "max_tokens": 200, "seed": 0}}  # fmt: skip
    judge = {"name": "judge-a", "model": "judge", "revision": None, "base_url": url}
    (folder / "student.yaml").write_text(yaml.safe_dump(student, sort_keys=False))
    (folder / "judge.yaml").write_text(yaml.safe_dump(judge, sort_keys=False))
    texts, model = read_prompts(str(folder / "prompts.json")), load_student(folder / "student.yaml")
    (folder / "outputs").mkdir()
    with Journal(folder / "outputs" / JOURNAL, run_settings(texts, model)) as journal:
        for number in range(PAIRS):
            journal.add(
                str(number), output=f"answer {number}", finish_reason="stop", tokens=5,
                arrived=1_700_000_000.0 + number,
            )  # fmt: skip
    generate_outputs(texts, model, folder / "outputs")
    with mock.patch.object(verdicts, "answer_chats", _answer):
        verdicts.judge_outputs(
            texts, folder / "outputs", load_judge(folder / "judge.yaml"), folder / "judged"
        )


def _answer(endpoint, chats, take, **_):
    for number, chat in enumerate(chats):
        top = [{"token": "m", "logprob": -0.2 - number / 9}, {"token": "M", "logprob": -1.5}]
        token = {"token": "m", "logprob": top[0]["logprob"], "top_logprobs": top}
        choice = {
            "message": {"content": "m"}, "finish_reason": "length", "logprobs": {"content": [token]}
        }  # fmt: skip
        body = {"model": "judge", "choices": [choice], "usage": {"completion_tokens": 1}}
        take(ChatResult(key=chat.key, reply=parse_reply(endpoint, body, 0.1)))
