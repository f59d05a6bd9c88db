"""The inspector from the command line, and as a Space: what is pushed, and that it runs alone."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import venv

import psutil
import pyarrow.parquet as pq
import pytest

from support.browser import INSPECTOR, answers, free_port, inspector
from support.harness import COMMAND, DEMO, run
from tools.inspector_demo import KEPT, build

FILES = {
    path.relative_to(INSPECTOR).as_posix()
    for path in INSPECTOR.rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
}


def title_of(browser, url):
    page = browser.new_page()
    page.goto(url)
    page.wait_for_selector('.inspector[data-state="ready"]')
    title = page.get_by_role("heading", level=1).inner_text()
    page.close()
    return title


def test_a_folder_is_opened_until_it_is_stopped(browser, demo):
    port = free_port()
    command = [*COMMAND, "space", "--data", demo / "dataset", "--port", port]
    running = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}/"
        answers(url)
        assert title_of(browser, url) == "dataset"
        # As a terminal sends it: to both.
        for process in (*psutil.Process(running.pid).children(), running):
            process.send_signal(signal.SIGINT)
        assert running.wait(timeout=30) == 0
    finally:
        running.kill()
        running.wait()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("./nowhere", "./nowhere: neither a folder nor a data set on the Hub"),
        ("../nowhere", "../nowhere: neither a folder nor a data set on the Hub"),
        ("README.md", "README.md: neither a folder nor a data set on the Hub"),
        ("nowhere", "nowhere: neither a folder nor a data set on the Hub"),
        (str(DEMO), "has no manifest.json: `sp2dpo build` creates one"),
        ("a/b/c", "a/b/c: neither a folder nor a data set on the Hub"),
    ],
)
def test_what_is_no_data_set_is_refused(data, why):
    done = run("space", "--data", data)
    assert done.returncode == 1
    assert why in done.stderr
    assert "Traceback" not in done.stderr


def deploy(hub, *words):
    return hub.run("space", "deploy", "--repo", "org/page", *words)


def test_a_space_is_pushed_in_one_commit_and_again_in_none(hub, releases):
    hub.publish(releases / "one", "org/shown", "--tag", "v1")
    done = deploy(hub, "--data", "org/shown@v1")
    assert done.returncode == 0, done.stderr
    assert f"{len(FILES)} files changed, 0 up to date" in done.stdout
    info = hub.ask("/api/spaces/org/page")
    assert {file["rfilename"] for file in info["siblings"]} == FILES | {".gitattributes"}
    assert info["cardData"]["datasets"] == ["org/shown"]
    assert info["cardData"]["sdk"] == "gradio"
    variables = hub.ask("/api/spaces/org/page/variables")
    assert variables == {"SP2DPO_DATA": {"key": "SP2DPO_DATA", "value": "org/shown@v1"}}
    again = deploy(hub, "--data", "org/shown@v1")
    assert f"0 files changed, {len(FILES)} up to date, at {info['sha']}" in again.stdout
    # Back to the demo: the variable goes, and the card names no data set.
    back = deploy(hub)
    assert "1 file changed" in back.stdout
    assert hub.ask("/api/spaces/org/page/variables") == {}
    assert "datasets" not in hub.ask("/api/spaces/org/page")["cardData"]
    deploy(hub, "--data", "org/shown@v1")


def test_another_program_a_folder_and_nobody_are_refused(hub, demo):
    hub.python(
        "from huggingface_hub import HfApi\n"
        "api = HfApi()\n"
        "api.create_repo('org/game', repo_type='space', space_sdk='gradio', exist_ok=True)\n"
        "api.upload_file(repo_id='org/game', repo_type='space', path_in_repo='game.py',\n"
        "  path_or_fileobj=b'1')"
    )
    words = ("space", "deploy", "--repo", "org/game")
    done = hub.run(*words)
    assert done.returncode == 1
    assert "org/game: it is another program (game.py): name another --repo" in done.stderr
    assert hub.run(*words, "--overwrite").returncode == 0
    info = hub.ask("/api/spaces/org/game")
    assert {file["rfilename"] for file in info["siblings"]} == FILES | {".gitattributes"}
    done = deploy(hub, "--data", demo / "dataset")
    assert "is a folder, which a Space cannot see: `sp2dpo publish` it first" in done.stderr
    done = run("space", "deploy", "--repo", "org/x", env=hub.env | {"HF_TOKEN": ""})
    assert "you are not logged in to the Hugging Face Hub" in done.stderr
    assert "--data must be given after deploy" in run("space", "--data", "a/b", "deploy").stderr


@pytest.mark.parametrize("option", [("--port", "7860"), ("--host", "::"), ("--allow-host", "a.b")])
def test_options_of_the_local_inspector_are_refused_before_deploy(option):
    done = run("space", *option, "deploy", "--repo", "org/page")
    assert done.returncode == 2
    assert f"{option[0]} is for the inspector on this machine, not for deploy" in done.stderr


def test_a_name_to_allow_is_a_host_name():
    done = run("space", "--allow-host", "https://a.example/")
    assert done.returncode == 1
    assert "https://a.example/: not a host name" in done.stderr


@pytest.mark.slow
def test_the_inspector_ends_with_the_command_and_with_the_program_that_runs_it(demo, tmp_path):
    code = "from sp2dpo.dataset.space import run_inspector as r; import sys; r(sys.argv[1], port="
    for command, number in (
        ([*COMMAND, "space", "--data", demo / "dataset", "--port"], signal.SIGTERM),
        ([*COMMAND, "space", "--data", demo / "dataset", "--port"], signal.SIGKILL),
        ([sys.executable, "-c", code + "int(sys.argv[2]))", demo / "dataset"], signal.SIGTERM),
        ([sys.executable, "-c", code + "int(sys.argv[2]))", demo / "dataset"], signal.SIGKILL),
    ):
        port = free_port()
        running = subprocess.Popen(
            [str(word) for word in (*command, port)], stdout=subprocess.DEVNULL,
            env=os.environ | {"TMPDIR": str(tmp_path)},
        )  # fmt: skip
        try:
            answers(f"http://127.0.0.1:{port}/")
            (served, *_) = [
                process
                for process in (
                    psutil.Process(running.pid),
                    *psutil.Process(running.pid).children(),
                )
                if "app.py" in " ".join(process.cmdline())
            ]
            running.send_signal(number)
            running.wait(timeout=20)
            psutil.wait_procs([served], timeout=20)
            socket.create_server(("127.0.0.1", port)).close()
        finally:
            running.kill()
            running.wait()


@pytest.mark.slow
def test_the_pushed_space_runs_alone_from_its_own_requirements(hub, releases, browser, tmp_path):
    """In a clean environment: no sp2dpo, no torch; the files are those that the Hub gives."""
    hub.publish(releases / "one", "org/shown", "--tag", "v1")
    assert deploy(hub, "--data", "org/shown@v1").returncode == 0
    where = str(tmp_path / "space")
    hub.python(
        "from huggingface_hub import snapshot_download\n"
        f"snapshot_download('org/page', repo_type='space', local_dir={where!r})"
    )
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "-r", "requirements.txt"], cwd=tmp_path / "space", check=True)
    listed = subprocess.run(
        [python, "-m", "pip", "list"], capture_output=True, text=True, check=True
    )
    assert not re.search(r"^(sp2dpo|torch|datasets|polars) ", listed.stdout, flags=re.MULTILINE)
    env = {"PYTHONPATH": "", **hub.env}
    with inspector("org/shown@v1", python=python, folder=tmp_path / "space", **env) as url:
        assert title_of(browser, url).startswith("org/shown at ")


def test_the_demo_that_it_starts_with_is_what_build_makes_of_the_corpus(tmp_path):
    stored, rebuilt = INSPECTOR / "demo", build(tmp_path)
    assert sorted(path.name for path in stored.iterdir()) == sorted(KEPT)
    for name in ("data", "annotations", "schedules"):
        file = f"{name}/train-00000-of-00001.parquet"
        tables = [pq.read_table(folder / file) for folder in (stored, rebuilt)]
        assert tables[0].schema.equals(tables[1].schema)
        assert_equal_but_for_rounding(*(table.to_pylist() for table in tables))
        if name == "data":
            assert tables[0]["beta"].equals(tables[1]["beta"])
    assert (stored / "rubric.yaml").read_bytes() == (rebuilt / "rubric.yaml").read_bytes()
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (stored, rebuilt)]
    for manifest in manifests:
        # Bytes of Parquet and PNG follow the libraries' versions.
        del manifest["files"], manifest["card_sha256"]
    # The last digits of sums and quantiles follow the processor; all else is exact.
    assert_equal_but_for_rounding(*manifests)


def assert_equal_but_for_rounding(left, right):
    """Compares JSON values: floats to 1e-9 relative, everything else exactly."""
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key, value in left.items():
            assert_equal_but_for_rounding(value, right[key])
    elif isinstance(left, list):
        assert len(left) == len(right)
        for pair in zip(left, right, strict=True):
            assert_equal_but_for_rounding(*pair)
    elif isinstance(left, float):
        assert left == pytest.approx(right, rel=1e-9, abs=0)
    else:
        assert left == right


@pytest.mark.parametrize(
    "different", [{"a": [1.001]}, {"a": [1]}, {"a": [1.0, 2.0]}, {"b": [1.0]}, {"a": ["1.0"]}]
)
def test_a_difference_that_is_no_rounding_is_found(different):
    assert_equal_but_for_rounding({"a": [1.0]}, {"a": [1.0 + 1e-12]})
    with pytest.raises(AssertionError):
        assert_equal_but_for_rounding({"a": [1.0]}, different)
