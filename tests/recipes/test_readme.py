"""README and guides hold: commands, snippets, the demo's table, links and pictures."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import click
import pytest
import yaml

import sp2dpo
import sp2dpo.training
from sp2dpo.cli.main import cli
from support.harness import DEMO, ROOT, forking_path

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKING = [
    *PAGES,
    ROOT / "ARCHITECTURE.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "recipes").rglob("README.md")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")


def blocks(language, pages=PAGES):
    """The code blocks of a language, in all pages."""
    return [
        block
        for page in pages
        for block in re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)
    ]


def anchors(page):
    """The anchors that GitHub makes of a page's headings."""
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", prose, flags=re.MULTILINE)
    }


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_anchors_and_pictures_resolve(page):
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    broken = []
    for pair in LINK.findall(prose):
        link = pair[0] or pair[1]
        if re.match(r"https?:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def commands_in(page):
    """Each `sp2dpo` command of a page's shell blocks, as words."""
    for block in blocks("sh", [page]):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip().startswith("sp2dpo "):
                yield shlex.split(line, comments=True)[1:]


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_and_option_exists(page):
    for words in commands_in(page):
        command, context = cli, click.Context(cli)
        arguments = list(words)
        while arguments and isinstance(command, click.Group):
            inner = command.get_command(context, arguments[0])
            if inner is None:
                break
            command, arguments = inner, arguments[1:]
        assert command is not cli, words
        options = {
            name for param in command.params for name in (*param.opts, *param.secondary_opts)
        }
        if command.context_settings.get("ignore_unknown_options"):
            from sp2dpo.training.commands import REWARD, TRAINING

            configs = REWARD if command.name == "reward" else TRAINING
            options |= {f"--{field.name}" for config in configs for field in fields(config)}
        assert {word for word in arguments if word.startswith("--")} <= options, words


def run_in(folder, *command, forks=True, **env):
    """Runs a command with this environment's programs first on the path, `sp2dpo` in forks."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    if forks:
        path = forking_path(env)
    result = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PATH": path} | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory, replay_url, tiny_student):
    """A folder in which the README's commands find what they name.

    The panel is the one that the README points to, but for the teacher and its address.
    """
    folder = tmp_path_factory.mktemp("readme")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    (folder / "pairs.jsonl").symlink_to(DEMO / "pairs.jsonl")
    panel = yaml.safe_load((ROOT / "recipes" / "panels" / "one-teacher.yaml").read_text())
    panel["teachers"][0] |= {"model": "reader-a", "base_url": replay_url}
    (folder / "panel.yaml").write_text(yaml.safe_dump(panel))
    (folder / "MODEL").symlink_to(tiny_student)
    return folder


@pytest.fixture(scope="module")
def walked(folder):
    """The folder after the commands for one's own pairs; bootstrap and training are cut short."""
    (commands,) = [block for block in blocks("sh") if "--output_dir student/" in block]
    commands = commands.replace('pip install -e ".[train]"', "")
    short = "--model_name_or_path MODEL --dtype float32 --bf16 false --max_steps 2 --held_out 0.2"
    short += " --eval_steps 2 --use_cpu true"
    commands = commands.replace("--output_dir student/", f"--output_dir student/ {short}")
    commands = commands.replace("sp2dpo report ", "sp2dpo report --draws 20 ")
    run_in(folder, "bash", "-e", "-c", commands, forks=False)
    return folder


def test_the_commands_for_your_own_pairs_run_as_they_stand(walked):
    assert "<html" in (walked / "report.html").read_text()
    assert (walked / "student" / "results.json").is_file()


def test_the_commands_around_a_large_run_do_as_they_stand(walked):
    (commands,) = [block for block in blocks("sh") if "sp2dpo pilot" in block]
    pilot, dry_run, status = (line.partition("#")[0] for line in commands.splitlines())
    assert "go" in run_in(walked, "bash", "-e", "-c", pilot).lower()
    assert "no request was sent" in run_in(walked, "bash", "-e", "-c", dry_run)
    assert "the file is intact" in run_in(walked, "bash", "-e", "-c", status)


def test_the_commands_before_training_do_as_they_stand(walked):
    (commands,) = [block for block in blocks("sh") if "sp2dpo agreement" in block]
    (walked / "schedule.yaml").write_text((ROOT / "recipes/schedules/sp2dpo.yaml").read_text())
    second_schedule = ROOT / "recipes" / "schedules" / "signed.yaml"
    run_in(
        walked, "sp2dpo", "schedule", "--store", "run.sqlite", "--schedule", str(second_schedule),
        "--out", "other.parquet",
    )  # fmt: skip
    output = run_in(walked, "bash", "-e", "-c", commands)
    for words in ("Krippendorff's alpha", "what is varied", "verdict", "kept for training by both"):
        assert words in output
    assert (walked / "both.png").stat().st_size > 0


@pytest.mark.slow
def test_the_commands_that_publish_do_as_they_stand(walked, hub):
    (commands,) = [block for block in blocks("sh") if "sp2dpo publish dataset/" in block]
    arm = ROOT / "recipes" / "schedules" / "arms" / "rand.yaml"
    run_in(
        walked, "sp2dpo", "schedule", "--store", "run.sqlite", "--schedule", str(arm),
        "--out", "rand.parquet",
    )  # fmt: skip
    output = run_in(walked, "bash", "-e", "-c", commands, **hub.env)
    assert "consistent: dataset" in output
    assert "would change 9 files" in output
    output = run_in(walked, "bash", "-e", "-c", commands.replace(" --dry-run", ""), **hub.env)
    assert "tag v1" in output
    snippet = (
        'import sp2dpo.dataset.load; print(len(sp2dpo.dataset.load.load_pairs("org/name@v1")))'
    )
    assert run_in(walked, "python", "-c", snippet, **hub.env).strip() == "96"
    (commands,) = [block for block in blocks("sh") if "space deploy" in block]
    (deploy,) = [line for line in commands.splitlines() if "space deploy" in line]
    deploy = deploy.replace("@tag", "@v1")
    output = run_in(walked, "bash", "-e", "-c", deploy, **hub.env)
    assert output.startswith("org/inspector: ")


def test_the_snippet_trains(walked):
    (snippet,) = [block for block in blocks("python") if "trainer.train()" in block]
    short = 'learning_rate=5.0e-7, max_steps=1, report_to="none", use_cpu=True'
    snippet = snippet.replace('"org/model"', '"MODEL"').replace("learning_rate=5.0e-7", short)
    run_in(walked, "python", "-c", snippet)


@pytest.mark.slow
def test_the_demo_prints_the_readmes_table(tmp_path):
    demo = f"python recipes/demo/run.py --out {tmp_path}/demo 2>&1"
    output = run_in(ROOT, "bash", "-c", demo, forks=False)
    assert not re.search(r"warning|deprecat|it/s|%\|", output, re.IGNORECASE), output
    (table,) = [block for block in blocks("text") if "Spearman" in block]
    for line in table.splitlines():
        # What the students reach depends on the processor to the last digit.
        assert line.startswith("student") or line in output.splitlines(), line
    for student in ("beta 0.1 for all", "beta per pair"):
        line = rf"student, {student}, 24 held-out pairs +accuracy 0\.\d\d \(0\.\d\d to 0\.\d\d\), "
        assert re.search(line + r"unscaled margin [+-]\d+\.\d\d nats", output)
    assert "no evidence for or against the method" in output
    assert {path.name for path in (tmp_path / "demo").iterdir()} >= {
        "run.sqlite", "betas.parquet", "dataset", "report.html", "students",
    }  # fmt: skip


def test_the_python_page_lists_the_public_names():
    text = (ROOT / "docs" / "python.md").read_text()
    names = set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| `.*$", text, re.MULTILINE))))
    assert names == {*sp2dpo.__all__, *sp2dpo.training.__all__} - {"__version__"}


def test_the_snippets_of_the_python_page_run(walked):
    load, annotate, to_dataset = blocks("python", [ROOT / "docs" / "python.md"])
    assert run_in(walked, "python", "-c", load).startswith("96 ")
    assert run_in(walked, "python", "-c", annotate).split()[0].isdecimal()  # replies kept
    assert run_in(walked, "python", "-c", to_dataset).splitlines()[-1] == "True"
