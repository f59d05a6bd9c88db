"""Soft labels from the replies to the student: every command on one store of a blind panel."""

import json
import shutil
from dataclasses import replace
from itertools import product

import numpy as np
import polars as pl
import pytest
from datasets import load_dataset
from safetensors.numpy import load_file

from sp2dpo.betas.file import read_betas, write_betas
from sp2dpo.betas.label_fit import Interval
from sp2dpo.panel.rubric import CHOSEN_FIRST, REJECTED_FIRST, load_rubric
from sp2dpo.report.page import render_page
from sp2dpo.report.report import build_report
from sp2dpo.store.store import Store
from support.harness import BUILD, SCHEDULE, fail, filled, kept_reply, succeed, train
from support.harness import run as run_command
from support.panels import simulate_classes

ARMS = SCHEDULE.parent / "arms"
TEACHERS = ("a", "b", "c")
PAIRS = 80


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A store of a blind panel, and a file with the truth of each of its labels."""
    folder = tmp_path_factory.mktemp("run")
    panel = simulate_classes(np.random.default_rng(0), pairs=PAIRS, accuracy=0.8, strength=0.9)
    rubric = load_rubric("semantic-gap-blind")
    with Store(folder / "run.sqlite", write=True) as store:
        ids = filled(store, PAIRS, *TEACHERS, rubric=rubric, variants=("direct",))
        replies = []
        for (n, pair_id), (t, teacher), order in product(
            enumerate(ids), enumerate(TEACHERS), (CHOSEN_FIRST, REJECTED_FIRST)
        ):
            s = float(panel.by_teacher[n, t])
            better = "tie" if s == 0 else "AB"[(s > 0) != (order == CHOSEN_FIRST)]
            answer = {"category": "style", "better": better, "magnitude": round(abs(s) * 10)}
            answer |= {"confidence": 10, "rationale": "because"}
            reply = kept_reply(
                pair_id, teacher, "direct", answer["magnitude"], 10, order=order, better=better
            )
            replies.append(replace(reply, raw=json.dumps(answer)))
        store.add_replies(replies)
    truths = (
        {"pair_id": pair_id, "label_ok": bool(right)}
        for pair_id, right in zip(ids, panel.right, strict=True)
    )
    (folder / "gold.jsonl").write_text("".join(json.dumps(each) + "\n" for each in truths))
    return folder


def schedule(run, name, *options, out=None):
    out = out or run / f"{name}.parquet"
    store, arm = run / "run.sqlite", ARMS / f"{name}.yaml"
    return out, succeed("schedule", "--store", store, "--schedule", arm, "--out", out, *options)


def test_what_was_found_is_printed_and_kept_with_the_betas(run):
    out, printed = schedule(run, "soft-latent")
    labels = read_betas(out).labels
    assert labels.pairs == PAIRS
    assert labels.teacher_accuracy.keys() == set(TEACHERS)
    assert f"accuracy of the labels: {labels.label_accuracy}" in printed
    assert "accuracy of the teachers: a 0." in printed
    assert f"EM converged after {labels.iterations} steps" in printed
    assert f"{labels.exchanged} with their responses exchanged" in printed
    before = out.read_bytes()
    schedule(run, "soft-latent")
    assert out.read_bytes() == before


def test_a_file_that_says_something_else_was_found_is_refused(run, tmp_path):
    out, _ = schedule(run, "soft-anchored", out=tmp_path / "betas.parquet")
    betas = read_betas(out)
    write_betas(replace(betas, labels=replace(betas.labels, exchanged=0)), out)
    said = fail("audit", "--store", run / "run.sqlite", "--betas", out)
    assert "what the estimate of the labels found does not follow from the replies" in said
    # Tables of earlier releases do not say what was found.
    write_betas(replace(betas, labels=None), out)
    assert read_betas(out).labels is None
    succeed("explain", betas.table["pair_id"][0], "--store", run / "run.sqlite", "--betas", out)


def test_the_slope_is_fitted_to_known_truths(run, tmp_path):
    _, printed = schedule(run, "soft-calibrated", out=tmp_path / "labels.parquet")
    assert "slope of the labels on the signed gap: " in printed
    out, printed = schedule(
        run, "soft-calibrated", "--gold", run / "gold.jsonl", out=tmp_path / "gold.parquet"
    )
    betas = read_betas(out)
    assert f"slope of {betas.labels.truths} known truths on the signed gap: " in printed
    # The panel is better than the labels, so it agrees with the truth more often than with them.
    to_labels = read_betas(tmp_path / "labels.parquet").labels.slope
    assert betas.labels.slope.estimate > to_labels.estimate
    # The arm of the file computes the same table without the truths.
    assert betas.arm.label_smoothing.slope == betas.labels.slope.estimate
    succeed("audit", "--store", run / "run.sqlite", "--betas", out, "--draws", 20)


def test_too_few_truths_and_arms_without_a_slope_to_fit_are_refused(run, tmp_path):
    few = tmp_path / "few.jsonl"
    few.write_text("".join((run / "gold.jsonl").read_text().splitlines(keepends=True)[:2]))
    options = ("--store", run / "run.sqlite", "--out", tmp_path / "betas.parquet", "--gold", few)
    said = fail("schedule", *options, "--schedule", ARMS / "soft-calibrated.yaml")
    assert "of the 2 known truths are about pairs with a signed gap other than 0" in said
    assert "add known truths, or omit --gold" in said
    said = fail("schedule", *options, "--schedule", ARMS / "soft-latent.yaml")
    assert "--gold is not used: give an arm with `label_smoothing: calibrated`" in said
    assert not (tmp_path / "betas.parquet").exists()


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("soft-free", "(1 + "),
        ("soft-calibrated", "sigmoid("),
        ("soft-anchored", "sigmoid(logit("),
        ("soft-latent", "latent: right with probability 0."),
    ],
)
def test_explain_repeats_the_probability_of_a_label(run, name, formula):
    out, _ = schedule(run, name)
    row = read_betas(out).table.filter("flip").row(0, named=True)
    said = succeed("explain", row["pair_id"], "--store", run / "run.sqlite", "--betas", out)
    assert formula in said
    assert f"so the label smoothing is {row['label_smoothing']:.6g}" in said
    assert "trained on, with its responses exchanged" in said


@pytest.fixture(scope="module")
def built(run):
    """The data set of soft labels from a latent class model."""
    betas, _ = schedule(run, "soft-latent")
    out = run / "dataset"
    succeed(*BUILD, "--store", run / "run.sqlite", "--betas", betas, "--out", out)
    return out


def test_the_data_set_carries_the_soft_labels_and_what_was_found(run, built):
    rows = load_dataset(str(built), split="train")
    table = read_betas(run / "soft-latent.parquet").table
    by_pair = dict(zip(rows["pair_id"], rows["label_smoothing"], strict=True))
    assert by_pair == dict(table.select("pair_id", "label_smoothing").iter_rows())
    card = (built / "README.md").read_text()
    assert "What the estimate of the labels found:" in card
    assert "- accuracy of the labels: 0" in card.replace("\\", "")
    assert '`PairDPOConfig(pair_columns=["beta", "label_smoothing"], ...)`' in card
    assert "| `label_smoothing` |" in card
    assert "NOT consistent" not in succeed("verify", built)
    manifest = json.loads((built / "manifest.json").read_text())
    assert manifest["labels"]["teacher_accuracy"].keys() == set(TEACHERS)


def test_a_data_set_that_says_something_else_was_found_is_not_verified(built, tmp_path):
    folder = tmp_path / "dataset"
    shutil.copytree(built, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["labels"]["label_accuracy"]["estimate"] = 0.99
    (folder / "manifest.json").write_text(json.dumps(manifest))
    result = run_command("verify", folder)
    assert result.returncode == 3
    assert "`labels` in the manifest does not follow from the replies" in result.stdout


def test_soft_labels_are_no_column_of_betas_alone(run, built, tmp_path):
    for name, column in (("soft-free", "label_smoothing"), ("temperature", "weight")):
        other, _ = schedule(run, name, out=tmp_path / f"{name}.parquet")
        said = fail(
            *BUILD, "--store", run / "run.sqlite", "--betas", run / "soft-latent.parquet",
            "--out", tmp_path / "dataset", "--also", f"other={other}",
        )  # fmt: skip
        assert f"this arm also has {column}" in said


def test_the_report_shows_what_was_found(run, tmp_path):
    betas, _ = schedule(run, "soft-latent")
    page = tmp_path / "report.html"
    printed = succeed(
        "report", "--store", run / "run.sqlite", "--betas", betas, "--out", page, "--draws", 20,
        "--json",
    )  # fmt: skip
    found = json.loads(printed)
    assert found["labels"]["label_accuracy"]["low"] < found["labels"]["label_accuracy"]["high"]
    assert found["label_cautions"] == []
    html = page.read_text()
    assert '<h2 id="labels">Soft labels</h2>' in html
    assert "if teachers may err together" in html


def test_the_report_warns_of_a_fit_that_cannot_be_trusted(run):
    betas_file, _ = schedule(run, "soft-latent")
    betas = read_betas(betas_file)
    doubtful = Interval(estimate=0.51, low=0.5, high=0.55)
    betas = replace(betas, labels=replace(betas.labels, label_accuracy=doubtful, converged=False))
    with Store(run / "run.sqlite") as store:
        page = render_page(build_report(store, betas, store.annotations(), draws=20))
    assert "either many labels are wrong, or the teachers err together" in page
    assert "did not converge in" in page


def test_two_uses_of_the_replies_are_compared(run):
    tables = [schedule(run, name)[0] for name in ("soft-latent", "soft-free")]
    found = json.loads(succeed("compare", *tables, "--json"))
    assert found["pairs"]


@pytest.mark.slow
def test_training_exchanges_and_smooths_the_labels(run, built, tiny_student, tmp_path):
    # One plain step over all rows: at D = 0 the gradient of a pair is -beta (1/2 - eps) times that
    # of D, which is the share 1 - 2 eps of that of a hard label.
    short = (
        "--max_steps", "1", "--held_out", "0", "--eval_strategy", "no", "--optim", "sgd",
        "--lr_scheduler_type", "constant", "--learning_rate", "1.0", "--max_grad_norm", "0",
        "--warmup_steps", "0", "--per_device_train_batch_size", "20",
        "--gradient_accumulation_steps", "4",
    )  # fmt: skip
    start = load_file(tiny_student / "model.safetensors")
    table = read_betas(run / "soft-latent.parquet").table
    moved = {}
    for name, columns in (("soft", ("beta", "label_smoothing")), ("hard", ("beta",))):
        results = train(tiny_student, built, tmp_path / name, *short, "--pair_columns", *columns)
        assert results["rows"]["train"]["flipped"] == table["flip"].sum()
        end = load_file(tmp_path / name / "model.safetensors")
        moved[name] = np.concatenate([(end[key] - start[key]).ravel() for key in start])
    ratio = np.linalg.norm(moved["soft"]) / np.linalg.norm(moved["hard"])
    # The responses of this source differ alike in all pairs, so their gradients add up, with the
    # opposite sign where they are exchanged.
    signs = 1 - 2 * table["flip"].cast(pl.Int8)
    shares = 1 - 2 * table["label_smoothing"]
    assert ratio == pytest.approx((signs * shares).sum() / signs.sum(), abs=0.02)
    assert 0.9 < ratio < 1
