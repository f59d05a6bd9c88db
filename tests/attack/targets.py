"""What is attacked: the files that are changed, and the readers that they are given to."""

import contextlib
import hashlib
import importlib
import json
import random
import re
import shutil
from dataclasses import dataclass

import pyarrow.parquet as pq

from attack import readers
from attack.changes import change
from sp2dpo.dataset.card import digest as card_digest
from sp2dpo.panel.rubric import read_rubric

ROWS, REPLIES, OTHERS = (
    f"dataset/{config}/train-00000-of-00001.parquet"
    for config in ("data", "annotations", "schedules")
)
MANIFEST, CARD, RUBRIC = "dataset/manifest.json", "dataset/README.md", "dataset/rubric.yaml"


@dataclass(frozen=True)
class Target:
    """A kind of file and what reads it.

    Attributes:
        files: Files of which one is changed in each case.
        beside: Files and folders that the reader needs.
        read: The reader.
        share: Number of cases, of about 1,250 in all targets together.
        group: Key of `MODULES`.
        is_input: Whether another result is right: the file says what its author wants.
        is_listed: Whether the manifest lists the file. A forger mends the manifest; then another
            result may be right, but all readers must agree.
    """

    files: tuple
    beside: tuple
    read: object
    share: int
    group: str = "core"
    is_input: bool = False
    is_listed: bool = False


_STORE, _DATA = ("run.sqlite",), ("dataset",)
_PANEL = ("panel.yaml", "semantic-gap.yaml")
_EVALUATION = ("prompts.json", "student.yaml", "judge.yaml", "outputs", "judged")


def _dataset(*files, share, read=readers.verify_and_load, group="core"):
    is_listed = files != (MANIFEST,)
    return Target(files, _DATA, read, share, group, is_listed=is_listed)


def _evaluation(*files, share, read, is_input=False):
    return Target(files, _EVALUATION, read, share, "evaluation", is_input)


def _input(*files, share, read, beside=(), group="core"):
    return Target(files, beside, read, share, group, is_input=True)


TARGETS = {
    "manifest": _dataset(MANIFEST, share=80),
    "card": _dataset(CARD, share=50),
    "rubric": _dataset(RUBRIC, share=50),
    "rows": _dataset(ROWS, share=80),
    "replies": _dataset(REPLIES, share=60),
    "other schedules": _dataset(OTHERS, share=40),
    "data set, trained on": _dataset(
        MANIFEST, CARD, ROWS, ROWS, share=80, read=readers.train, group="train"
    ),
    "data set, inspected": _dataset(
        MANIFEST, RUBRIC, ROWS, REPLIES, OTHERS, share=120, read=readers.inspect, group="inspector"
    ),
    "store": Target(
        _STORE, (*_PANEL, "sp2dpo.yaml", "shard.sqlite", "betas.parquet"), readers.store, 160
    ),
    "betas": Target(("betas.parquet",), (*_STORE, "signed.parquet"), readers.betas, 60),
    "scores": _input(
        "scores.parquet", share=30, read=readers.scores,
        beside=(*_STORE, "madpo.yaml", "sp2dpo.yaml"),
    ),
    "journal of generate": _evaluation("outputs/replies.jsonl", share=50, read=readers.generate),
    "journal of judge": _evaluation("judged/verdicts.jsonl", share=40, read=readers.judge),
    "verdicts": _evaluation(
        "judged/annotations.json", "judged/evaluation.json", share=40, read=readers.compare
    ),
    "outputs": _evaluation("outputs/outputs.json", share=20, read=readers.judge),
    "prompts, student": _evaluation(
        "prompts.json", "student.yaml", share=40, read=readers.generate, is_input=True
    ),
    "judge": _evaluation("judge.yaml", share=10, read=readers.judge, is_input=True),
    "pairs.jsonl": _input("pairs.jsonl", share=40, read=readers.annotate, beside=_PANEL),
    "pairs.jsonl.gz": _input("pairs.jsonl.gz", share=10, read=readers.annotate, beside=_PANEL),
    "pairs.parquet": _input("pairs.parquet", share=40, read=readers.annotate, beside=_PANEL),
    "panel": _input(*_PANEL, share=50, read=readers.annotate, beside=(*_PANEL, "pairs.jsonl")),
    "batch replies": _input(
        "replies.jsonl", share=30, read=readers.import_replies, beside=(*_PANEL, "shard.sqlite")
    ),
    "schedule": _input("signed.yaml", share=30, read=readers.schedule, beside=_STORE),
    "arm": _input(
        "madpo.yaml", share=20, read=readers.schedule,
        beside=(*_STORE, "scores.parquet", "sp2dpo.yaml"),
    ),
    "gold": _input("gold.jsonl", share=20, read=readers.gold, beside=(*_STORE, "betas.parquet")),
    "study": _input(
        "study/smoke.yaml", "study/methods.yaml", share=30, read=readers.study, beside=("study",),
        group="train",
    ),
    "training settings": _input(
        "train.yaml", share=40, read=readers.training_settings, group="train"
    ),
}  # fmt: skip

MODULES = {
    "core": (
        "sp2dpo.annotation.dry_run", "sp2dpo.annotation.reply_files", "sp2dpo.annotation.run",
        "sp2dpo.annotation.request_files", "sp2dpo.betas.compute", "sp2dpo.betas.explain",
        "sp2dpo.dataset.build", "sp2dpo.dataset.load", "sp2dpo.diagnostics.audit",
        "sp2dpo.diagnostics.comparison", "sp2dpo.diagnostics.text", "sp2dpo.pairs.reading",
        "sp2dpo.report.page", "sp2dpo.report.plots", "sp2dpo.report.status", "sp2dpo.report.text",
        "sp2dpo.store.merge", "sp2dpo.store.reread", "scipy.io",
    ),
    "train": (
        "sp2dpo.training.run", "sp2dpo.training.run_config", "sp2dpo.dataset.load", "scipy.io",
    ),
    "evaluation": (
        "sp2dpo.evaluation.outputs", "sp2dpo.evaluation.text", "sp2dpo.evaluation.winrates",
        "openai.resources", "tiktoken_ext.openai_public",
    ),
    "inspector": ("loader",),
}  # fmt: skip
"""What the readers of each group import; imported once, before the forks."""


def preload(group):
    """Import what the readers of a group import."""
    for name in (*MODULES[group], "sp2dpo.cli.main"):
        importlib.import_module(name)
    if group == "evaluation":
        from sp2dpo.evaluation.verdicts import import_alpaca_eval

        import_alpaca_eval()
    if group == "train":
        from support.harness import recipe

        recipe("train")
        for name in ("config", "methods"):
            importlib.import_module(name)


def draw(seed, name, number):
    """Return the random numbers of a case."""
    return random.Random(f"{seed}:{name}:{number}")


def copy_files(target, folder, inputs):
    """Copy the unchanged files of a target into a new folder."""
    folder.mkdir(parents=True)
    beside = set(target.beside)
    for name in beside | {name for name in target.files if name.split("/")[0] not in beside}:
        copy = shutil.copytree if (inputs / name).is_dir() else shutil.copyfile
        copy(inputs / name, folder / name)


def add_file(rng, folder):
    """Put rows with exchanged responses where `load_dataset` may find them."""
    table = pq.read_table(folder / "data" / "train-00000-of-00001.parquet")
    names = {"chosen": "rejected", "rejected": "chosen"}
    table = table.rename_columns([names.get(column, column) for column in table.column_names])
    place = rng.choice(
        ("data/train-00001-of-00002.parquet", "data/more.parquet", "more.parquet", "x/y.parquet")
    )
    (folder / place).parent.mkdir(exist_ok=True)
    pq.write_table(table, folder / place)
    if rng.randrange(2):
        card = folder / "README.md"
        text = card.read_text(encoding="utf-8")
        card.write_text(re.sub(r"- data/\S*", f"- {place}", text), encoding="utf-8")
        return f"the card names {place}"
    return f"{place} added"


def _mend(folder, name):
    """Write the hashes of a changed file where the manifest and the card state them."""
    path, card = folder / MANIFEST, folder / CARD
    manifest = json.loads(path.read_text(encoding="utf-8"))
    if name != CARD:
        entry, data = manifest["files"][name.removeprefix("dataset/")], (folder / name).read_bytes()
        was, entry["bytes"] = entry["sha256"], len(data)
        entry["sha256"] = hashlib.sha256(data).hexdigest()
        text = card.read_text(encoding="utf-8").replace(was, entry["sha256"])
        card.write_text(text, encoding="utf-8")
    with contextlib.suppress(ValueError):
        manifest["card_sha256"] = card_digest(card.read_bytes().decode(), where=CARD)
    if name == RUBRIC:
        with contextlib.suppress(ValueError):
            manifest["rubric"]["sha256"] = read_rubric(folder / name).hash
    path.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def make_case(target, rng, folder, inputs):
    """Copy the files of a case and change one of them.

    Returns:
        What was changed, and whether the manifest was mended.
    """
    copy_files(target, folder, inputs)
    name = rng.choice(target.files)
    other = inputs / rng.choice(("pairs.jsonl", "panel.yaml", "betas.parquet", MANIFEST, ROWS))
    if name in (CARD, ROWS) and rng.randrange(12) == 0:
        what = add_file(rng, folder / "dataset")
    else:
        what = f"{name}: {change(rng, folder / name, other)}"
    is_mended = rng.randrange(5) < 3 and target.is_listed and name != MANIFEST
    if not is_mended or (folder / name).is_symlink() or not (folder / name).is_file():
        return what, False
    _mend(folder, name)
    return f"{what} (manifest mended)", True
