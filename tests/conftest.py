"""Fixtures of all tests: scripted teachers, small stores, the finished demo."""

import logging
import os
from contextlib import ExitStack

import pytest

from servers.openai_server import serving
from sp2dpo.store.store import Store
from support.browser import chromium
from support.harness import (
    BUILD,
    DEMO,
    ROOT,
    SCHEDULE,
    TESTS,
    Scripted,
    process,
    recipe,
    succeed,
    write_panel,
)
from support.hub import TOKEN, Hub

pytest_plugins = ["support.services_fixtures"]

LONGEST = (
    "recipes/test_study.py",
    "recipes/test_readme.py",
    "inference/test_faults.py",
    "evaluation/test_evaluate.py",
    "dataset/test_publish.py",
    "dataset/test_space_command.py",
    "annotation/test_engines.py",
    "training/test_stopping.py",
    "training/test_two_processes.py",
    "training/test_trl_features.py",
    "training/test_shared_prompt.py",
    "training/test_upstream.py",
    "training/test_training.py",
    "training/test_pair_losses.py",
    "training/test_gpu_checks.py",
    "cli/test_training_commands.py",
    "training/test_reference.py",
    "space/test_space_threats.py",
    "space/test_space_answers.py",
    "space/test_space_page.py",
    "space/test_space_guard.py",
    "dataset/test_dataset.py",
    "training/test_run_files.py",
    "recipes/test_recipes.py",
    "training/test_reward.py",
    "training/test_rows.py",
    "training/test_mixtures.py",
    "inference/test_outage.py",
    "annotation/test_annotate.py",
    "annotation/test_ray.py",
    "betas/test_same_betas.py",
    "cli/test_command_line.py",
)
"""Files that take longest, in this order. They run first, so that one of several processes is not
left alone with a long file at the end."""

# No test asks the real Hub for anything: what is not here fails at once, not after retries.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_collection_modifyitems(items):
    """Put the tests of the longest files first."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.relative_to(TESTS).as_posix(), len(rank)))


@pytest.fixture(autouse=True)
def root_logger_unchanged():
    """Fail a test after which the root logger has another level: it would silence other tests."""
    level = logging.getLogger().level
    yield
    assert logging.getLogger().level == level


@pytest.fixture(scope="session")
def replay_url():
    """The address of the teacher that repeats the demo's recorded replies."""
    with process(DEMO / "replay_teacher.py") as url:
        yield url


@pytest.fixture
def scripted(tmp_path):
    """Starts scripted teachers; each is ended with the test."""
    with ExitStack() as stack:

        def start(behaviour="valid", **options):
            log = tmp_path / f"requests-{len(list(tmp_path.glob('requests-*')))}.log"
            log.touch()
            words = ["--behaviour", behaviour, "--log", log]
            for name, value in options.items():
                words += [f"--{name.replace('_', '-')}", value]
            return Scripted(stack.enter_context(serving("scripted", *words)), log)

        yield start


@pytest.fixture
def new_store(tmp_path):
    """Makes stores in the test's folder; they are closed with the test."""
    with ExitStack() as stack:

        def make(name="run.sqlite"):
            return stack.enter_context(Store(tmp_path / name, write=True))

        yield make


@pytest.fixture(scope="session")
def demo(tmp_path_factory, replay_url):
    """The demo corpus, annotated, scheduled and built by the command line."""
    folder = tmp_path_factory.mktemp("demo")
    panel = write_panel(
        folder / "panel.yaml", replay_url, names=("reader-a", "reader-b", "reader-c")
    )
    store, betas = folder / "run.sqlite", folder / "betas.parquet"
    succeed("annotate", "--pairs", DEMO / "pairs.jsonl", "--panel", panel, "--store", store)
    succeed("schedule", "--store", store, "--schedule", SCHEDULE, "--out", betas)
    succeed(*BUILD, "--store", store, "--betas", betas, "--out", folder / "dataset")
    return folder


@pytest.fixture(scope="session")
def hub(tmp_path_factory):
    """A Hub that takes one token."""
    root = tmp_path_factory.mktemp("hub")
    with process(TESTS / "servers" / "hub_server.py", "--root", root, "--token", TOKEN) as url:
        yield Hub(url, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def releases(demo, tmp_path_factory):
    """The demo under the paper's schedule, with another beside it, and under that one alone."""
    folder = tmp_path_factory.mktemp("releases")
    for name, schedule in (
        ("one", SCHEDULE),
        ("two", ROOT / "recipes" / "schedules" / "signed.yaml"),
    ):
        betas = folder / f"{name}.parquet"
        succeed("schedule", "--store", demo / "run.sqlite", "--schedule", schedule, "--out", betas)
    build = (*BUILD, "--store", demo / "run.sqlite", "--betas")
    also = ("--also", f"signed={folder / 'two.parquet'}")
    succeed(*build, folder / "one.parquet", *also, "--out", folder / "one")
    succeed(*build, folder / "two.parquet", "--out", folder / "two")
    return folder


@pytest.fixture(scope="module")
def browser():
    """Of one module: while it runs, no other event loop does."""
    with chromium() as running:
        yield running


@pytest.fixture(scope="session")
def tiny_student(tmp_path_factory):
    """The folder of a tiny random model with a small vocabulary, quick to train on a CPU."""
    out = tmp_path_factory.mktemp("student") / "model"
    words = ["--text", DEMO / "pairs.jsonl", "--out", out, "--vocab", 400]
    assert recipe("demo/tiny_model").main([str(word) for word in words]) == 0
    return out


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """The folder of an even smaller model, with a token for each byte."""
    from support.training import build_model

    folder = tmp_path_factory.mktemp("model")
    build_model(folder)
    return str(folder)


@pytest.fixture
def script():
    """The recipe that trains, as a module."""
    return recipe("train")
