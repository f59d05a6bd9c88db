"""The command line under bad input: one clear line, an exit code, nothing lost, no traceback."""

import importlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
import yaml

import sp2dpo.cli.main
from sp2dpo.cli.main import _COMMANDS, cli
from support.harness import (
    BUILD,
    COMMAND,
    DEMO,
    SCHEDULE,
    fail,
    run,
    succeed,
    write_pairs,
    write_panel,
)


@pytest.fixture
def inputs(tmp_path, scripted):
    """Everything that `annotate` needs, with nothing wrong."""

    class Inputs:
        pairs = write_pairs(tmp_path / "pairs.jsonl", 10)
        teacher = scripted()
        panel = write_panel(tmp_path / "panel.yaml", teacher.url)
        store = tmp_path / "run.sqlite"

        def annotate(self):
            return ["annotate", "--pairs", self.pairs, "--panel", self.panel, "--store", self.store]

        def rows(self, *lines):
            self.pairs.write_text("".join(line + "\n" for line in lines))

    return Inputs()


def refused(inputs, *, code=1):
    """The error of `annotate`, which must not have asked nor stored anything."""
    error = fail(*inputs.annotate(), code=code)
    assert inputs.teacher.requests == []
    assert not inputs.store.exists()
    return error


def test_a_missing_file_of_pairs_is_named(inputs):
    inputs.pairs.unlink()
    assert "pairs.jsonl: no such file" in refused(inputs)


def test_an_empty_file_holds_no_pair(inputs):
    inputs.rows()
    assert "pairs.jsonl: no row holds a preference pair" in refused(inputs)


def test_wrong_columns_are_named(inputs):
    inputs.rows('{"question": "?", "answer": "!"}')
    done = run(*inputs.annotate())
    assert done.returncode == 1
    assert "set aside 1: missing column chosen (row 1)" in done.stdout
    assert "no row holds a preference pair" in done.stderr
    assert not inputs.store.exists()


def test_broken_json_is_named_with_its_row(inputs):
    good = inputs.pairs.read_text().splitlines()
    inputs.rows(*good[:6], '{"prompt": "Q?", "chosen":', *good[7:])
    assert "line 7 is not JSON" in refused(inputs)


def test_a_typo_in_the_panel_is_named_with_what_was_meant(inputs):
    panel = yaml.safe_load(inputs.panel.read_text())
    panel["teachers"][0]["max_inflight"] = 3
    inputs.panel.write_text(yaml.safe_dump(panel))
    assert "unknown key 'max_inflight', did you mean 'max_in_flight'?" in refused(inputs)


def test_a_panel_that_is_no_yaml_is_named_with_the_line(inputs):
    inputs.panel.write_text("rubric: semantic-gap\nvariants: [direct\nteachers: x\n")
    assert "panel.yaml: not valid YAML (line 3" in refused(inputs)


def test_a_missing_panel_is_named(inputs):
    inputs.panel.unlink()
    assert "panel.yaml" in refused(inputs)


def test_a_first_run_without_pairs_is_told_to_name_them(inputs):
    error = fail("annotate", "--panel", inputs.panel, "--store", inputs.store, code=2)
    assert "give --pairs" in error
    assert not inputs.store.exists()


def test_a_store_in_a_folder_that_is_not_there_is_named(inputs, tmp_path):
    inputs.store = tmp_path / "nowhere" / "run.sqlite"
    assert "there is no folder" in refused(inputs)


def test_a_file_that_is_no_store_is_refused_and_kept(inputs):
    inputs.store.write_text("my only copy of something else\n" * 50)
    assert "not a store of this toolkit" in fail(*inputs.annotate())
    assert inputs.store.read_text().startswith("my only copy")


def test_commands_on_a_missing_store_make_none(tmp_path):
    store = tmp_path / "run.sqlite"
    error = fail(
        "schedule", "--store", store, "--schedule", SCHEDULE, "--out", tmp_path / "b.parquet"
    )
    assert "no such store" in error
    assert list(tmp_path.iterdir()) == []


def test_a_schedule_and_a_panel_may_be_named_as_recipes(demo, tmp_path):
    store, out = demo / "run.sqlite", tmp_path / "betas.parquet"
    named = run("schedule", "--store", store, "--schedule", "schedules/sp2dpo", "--out", out)
    assert named.returncode == 0, named.stderr
    assert f"sp2dpo schedule: --schedule schedules/sp2dpo is the recipe {SCHEDULE}" in named.stderr
    succeed("schedule", "--store", store, "--schedule", SCHEDULE, "--out", tmp_path / "b.parquet")
    assert out.read_bytes() == (tmp_path / "b.parquet").read_bytes()
    error = fail("schedule", "--store", store, "--schedule", "sp2dpo", "--out", out)
    assert "no such recipe, did you mean 'schedules/sp2dpo'?" in error
    error = fail("serve", "one-teacher", "--teacher", "x")
    assert "no such recipe, did you mean 'panels/one-teacher'?" in error
    error = fail("pilot", "--panel", tmp_path, "--pairs", "p.jsonl", "--store", out)
    assert "is a folder: name a YAML file in it" in error


def test_a_schedule_with_swapped_ends_writes_nothing(demo, tmp_path):
    settings = yaml.safe_load(SCHEDULE.read_text()) | {"beta_min": 0.4}
    schedule, out = tmp_path / "schedule.yaml", tmp_path / "betas.parquet"
    schedule.write_text(yaml.safe_dump(settings))
    error = fail("schedule", "--store", demo / "run.sqlite", "--schedule", schedule, "--out", out)
    assert "beta_min 0.4 must be below beta_max 0.3" in error
    assert not out.exists()


def test_betas_of_another_store_are_refused_by_all_that_take_them(demo, inputs, tmp_path):
    succeed(*inputs.annotate())
    store_and_betas = ["--store", inputs.store, "--betas", demo / "betas.parquet"]
    out = tmp_path / "out"
    for command in (
        ["build", *store_and_betas, "--out", out],
        ["explain", "demo-001", *store_and_betas],
        ["report", *store_and_betas, "--out", tmp_path / "report.html"],
    ):
        assert "run `sp2dpo schedule` again on this store" in fail(*command)
    assert not out.exists()
    assert not (tmp_path / "report.html").exists()


def test_an_output_never_takes_the_place_of_another_kind_of_file(demo, tmp_path):
    store, betas = tmp_path / "run.sqlite", tmp_path / "betas.parquet"
    shutil.copy(demo / "run.sqlite", store)
    shutil.copy(demo / "betas.parquet", betas)
    before = store.read_bytes(), betas.read_bytes()
    plan = ["schedule", "--store", store, "--schedule", SCHEDULE]
    page = ["report", "--store", store, "--betas", betas]
    assert "is not a table of betas of sp2dpo" in fail(*plan, "--out", store)
    assert "is not a report of sp2dpo" in fail(*page, "--out", store)
    assert "is not a report of sp2dpo" in fail(*page, "--out", betas)
    assert (store.read_bytes(), betas.read_bytes()) == before
    for _ in range(2):
        succeed(*plan, "--out", betas)
        succeed(*page, "--out", tmp_path / "report.html")


def test_a_quorum_that_no_pair_has_is_an_error_and_writes_nothing(demo, tmp_path):
    schedule, out = tmp_path / "schedule.yaml", tmp_path / "betas.parquet"
    schedule.write_text(yaml.safe_dump(yaml.safe_load(SCHEDULE.read_text()) | {"quorum": 10}))
    plan = ["schedule", "--store", demo / "run.sqlite", "--schedule", schedule, "--out", out]
    assert "no pair has the quorum of 10 replies, the most is 9" in fail(*plan)
    assert not out.exists()


def test_a_data_set_never_replaces_somebody_elses_folder(demo, tmp_path):
    mine = tmp_path / "thesis.txt"
    mine.write_text("the only copy")
    store_and_betas = ["--store", demo / "run.sqlite", "--betas", demo / "betas.parquet"]
    assert "did not write (thesis.txt)" in fail(*BUILD, *store_and_betas, "--out", tmp_path)
    assert mine.read_text() == "the only copy"


def test_a_mistyped_command_gets_a_hint():
    error = fail("anotate", code=2)
    assert "no command is called 'anotate', did you mean 'annotate'?" in error
    assert "no command is called 'xyz'\n" in fail("xyz", code=2)


def test_debug_shows_where_an_error_arose(tmp_path):
    missing = ["--store", tmp_path / "none", "--schedule", SCHEDULE, "--out", tmp_path / "b"]
    assert "Traceback" in run("--debug", "schedule", *missing).stderr
    assert "Traceback" in run("schedule", *missing, "--debug").stderr


def test_help_loads_nothing_heavy():
    heavy = ["polars", "pyarrow", "datasets", "torch", "trl", "gradio", "aiohttp", "numpy"]
    script = (
        "import sys; from sp2dpo.cli.main import cli; cli(['--help'], standalone_mode=False); "
        f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "annotate" in done.stdout
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("name", _COMMANDS)
def test_the_list_of_commands_repeats_what_each_says_of_itself(name):
    command = cli.get_command(click.Context(cli), name)
    assert (command.name, command.get_short_help_str(200)) == (name, _COMMANDS[name][1])


def test_every_command_of_the_package_is_listed():
    listed = set()
    for path in Path(sp2dpo.cli.main.__file__).parent.glob("*.py"):
        module = importlib.import_module(f"sp2dpo.cli.{path.stem}")
        commands = {value for value in vars(module).values() if isinstance(value, click.Command)}
        inner = {each for group in commands for each in getattr(group, "commands", {}).values()}
        listed |= {command.name for command in commands - inner - {cli}}
    assert listed == _COMMANDS.keys()


def test_a_command_imports_its_own_module_alone():
    script = (
        "import sys; from sp2dpo.cli.main import main; sys.argv = ['sp2dpo', 'schema', 'panel']; "
        "main(); print([name for name in sys.modules if name.startswith('sp2dpo.cli.')], "
        "file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "['sp2dpo.cli.main', 'sp2dpo.cli.schema']"


def test_every_command_explains_itself():
    listed = succeed("--help")
    for command in ("annotate", "schedule", "explain", "build", "report"):
        assert command in listed
        assert "--store" in succeed(command, "--help")


def test_explain_shows_every_reply_and_the_arithmetic(demo):
    lines = succeed(
        "explain", "demo-001", "--store", demo / "run.sqlite", "--betas", demo / "betas.parquet"
    ).splitlines()
    assert any(line.startswith("prompt (user)") for line in lines)
    for teacher in ("reader-a", "reader-b", "reader-c"):
        for variant in ("direct", "critic", "reader"):
            assert any(line.startswith(f"{teacher}  {variant}") for line in lines)
    (beta,) = [line for line in lines if line.startswith("beta  ")]
    assert beta.startswith("beta  0.03 + (0.3 - 0.03) x ")


def test_explain_neutralises_terminal_escapes(inputs, tmp_path):
    inputs.rows('{"prompt": "Q", "chosen": "\\u001b[2Jgone\\u202e", "rejected": "no"}')
    schedule = yaml.safe_load(SCHEDULE.read_text()) | {"quorum": 1}
    (tmp_path / "schedule.yaml").write_text(yaml.safe_dump(schedule))
    betas = tmp_path / "betas.parquet"
    succeed(*inputs.annotate())
    succeed(
        "schedule", "--store", inputs.store,
        "--schedule", tmp_path / "schedule.yaml", "--out", betas,
    )  # fmt: skip
    import polars as pl

    pair_id = pl.read_parquet(betas)["pair_id"][0]
    output = succeed("explain", pair_id[:12], "--store", inputs.store, "--betas", betas)
    assert "\x1b" not in output
    assert "\u202e" not in output
    assert "\\u001b[2Jgone\\u202e" in output


def test_explain_of_an_unknown_pair_is_named(demo):
    error = fail(
        "explain", "demo-999", "--store", demo / "run.sqlite", "--betas", demo / "betas.parquet"
    )
    assert "no pair is called 'demo-999'" in error


def test_the_demo_gives_the_numbers_that_the_readme_shows(demo):
    import json

    import polars as pl

    betas = pl.read_parquet(demo / "betas.parquet")
    beta = betas["beta"]
    assert (len(beta), beta.min(), beta.max()) == (96, 0.03, 0.3)
    assert round(beta.mean(), 3) == 0.166
    counts = json.loads((demo / "dataset" / "manifest.json").read_text())["counts"]
    assert (counts["kept"], counts["refused"]) == (864, 0)
    rows = pl.read_parquet(demo / "dataset" / "data" / "*.parquet")
    planted = pl.read_ndjson(DEMO / "planted.jsonl").select("label_flipped", source_id="pair_id")
    at_the_floor = rows.join(planted, on="source_id").filter(pl.col("beta") == 0.03)
    assert (len(at_the_floor), at_the_floor["label_flipped"].sum()) == (19, 12)


def test_a_damaged_store_is_called_damaged_and_not_safe(demo, tmp_path):
    store = tmp_path / "run.sqlite"
    shutil.copy(demo / "run.sqlite", store)
    with store.open("r+b") as file:  # the first page stays, so that it is still a store
        file.seek(4096)
        file.write(b"\xff" * (store.stat().st_size - 4096))
    plan = ["--schedule", SCHEDULE, "--out", tmp_path / "betas.parquet"]
    error = fail("schedule", "--store", store, *plan)
    assert "run.sqlite is damaged (" in error
    assert "keep it and its -wal file" in error
    assert "`sqlite3 FILE .recover`" in error
    assert "safe" not in error


def test_an_output_that_cannot_be_written_is_named_with_its_folder(demo, tmp_path):
    out = tmp_path / f"{'x' * 250}.parquet"
    plan = ["--store", demo / "run.sqlite", "--schedule", SCHEDULE]
    error = fail("schedule", *plan, "--out", out)
    assert error.startswith(f"sp2dpo: {out}: File name too long")


def test_no_file_name_steers_the_terminal(demo, tmp_path):
    odd = tmp_path / "odd\x1b[2J[1].parquet"
    store = ["--store", demo / "run.sqlite"]
    store_and_betas = [*store, "--betas", odd]
    for output in (
        succeed("schedule", *store, "--schedule", SCHEDULE, "--out", odd),
        succeed(*BUILD, *store_and_betas, "--out", tmp_path / "data\x1b2J"),
        succeed("report", *store_and_betas, "--out", tmp_path / "page\x1b[2J.html"),
        fail("schedule", *store, "--schedule", tmp_path / "no\x1b[2J.yaml", "--out", odd),
        fail("report", *store, "--betas", tmp_path, "--out", tmp_path / "\x1b[2J", code=2),
        fail("annotate", "--panel", odd, "--store", tmp_path / "\x1b[2J", code=1),
        run("--debug", "status", "--store", tmp_path / "\x1b[2J").stderr,
    ):
        assert "\x1b" not in output
    assert "\\u001b[2J" in output


def test_explain_says_how_many_digits_it_takes():
    help_text = " ".join(succeed("explain", "--help").split())
    assert "at least eight of its first digits" in help_text


def begun(pipe):
    """The other end of a pipe once somebody reads from it."""
    try:
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return None


def test_being_told_to_end_leaves_one_line_and_no_temporary_file(demo, tmp_path):
    """The command waits for replies that never come."""
    os.mkfifo(tmp_path / "replies.jsonl")
    shutil.copy(demo / "run.sqlite", tmp_path / "run.sqlite")
    command = [
        "import-replies", "--panel", demo / "panel.yaml", "--store", tmp_path / "run.sqlite",
        tmp_path / "replies.jsonl",
    ]  # fmt: skip
    with subprocess.Popen(
        [*COMMAND, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        try:
            while (pipe := begun(tmp_path / "replies.jsonl")) is None:
                assert running.poll() is None, running.communicate()
                time.sleep(0.02)
            time.sleep(0.1)
            running.terminate()
            _, error = running.communicate(timeout=20)
        finally:
            running.kill()
        os.close(pipe)
    assert running.returncode == 143
    assert error == (
        "stopped by SIGTERM; run the same command again to resume: python -m sp2dpo "
        f"{shlex.join(map(str, command))}\n"
    )
    assert {path.name for path in tmp_path.iterdir()} <= {
        "replies.jsonl", "run.sqlite", "run.sqlite-wal", "run.sqlite-shm",
    }  # fmt: skip
