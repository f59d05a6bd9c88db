"""API keys: a panel names a variable and a host, and only the user sends the key there."""

import io
import json
import sys

import pytest

from servers.openai_server import serving
from sp2dpo import annotate_pairs
from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.inference.keys import KeyUse, allow_keys, key_uses, remember_keys, remembered_keys
from sp2dpo.panel.panel import load_panel
from support.harness import fail, run, succeed, write_pairs, write_panel

KEY = "sk-0123456789-abcdef"


def teacher(*urls, variable="TEACHER_API_KEY"):
    return Endpoint(
        name="t", model="m", revision=None, base_urls=urls, api_key_env=variable,
        sampling={"temperature": 0, "max_tokens": 9},
    )  # fmt: skip


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """The file of remembered confirmations, in a home of its own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("TEACHER_API_KEY", KEY)
    # Nothing listens there, so that a request to another machine fails at once.
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    return tmp_path / "config" / "sp2dpo" / "keys.json"


@pytest.fixture
def annotate(tmp_path):
    """The command that annotates with a keyed teacher at an address."""

    def command(url, *options, variable="TEACHER_API_KEY"):
        panel = write_panel(tmp_path / "panel.yaml", url, api_key_env=variable)
        return [
            "annotate", "--pairs", write_pairs(tmp_path / "pairs.jsonl", 2), "--panel", panel,
            "--store", tmp_path / "run.sqlite", "--patience", 0, *options,
        ]  # fmt: skip

    return command


class Terminal(io.StringIO):
    def isatty(self):
        return True


def type_in(monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", Terminal(text))


HOSTED = "https://models.example.com/v1"


def test_a_key_is_not_sent_to_another_machine_unasked(annotate, memory):
    error = fail(*annotate(HOSTED))
    assert "--send-key TEACHER_API_KEY=models.example.com" in error
    assert "only after confirmation" in error
    assert KEY not in error


def test_a_dry_run_does_not_ask(annotate, memory):
    assert "no request was sent" in succeed(*annotate(HOSTED, "--dry-run"))


def test_the_flag_allows_this_host_alone(annotate, memory):
    error = fail(*annotate(HOSTED, "--send-key", "TEACHER_API_KEY=models.example.com"))
    assert "nothing answers at https://models.example.com" in error
    for other in ("TEACHER_API_KEY=example.com", "OTHER_KEY=models.example.com",
                  "TEACHER_API_KEY=http://models.example.com",
                  "TEACHER_API_KEY=models.example.com:8443"):  # fmt: skip
        assert "only after confirmation" in fail(*annotate(HOSTED, "--send-key", other))
    assert not memory.exists()


def test_a_confirmed_key_is_remembered_for_the_next_run(annotate, memory, monkeypatch):
    type_in(monkeypatch, "y\n")
    first = run(*annotate(HOSTED))
    assert "gets the API key in TEACHER_API_KEY, at models.example.com" in first.stdout
    assert f"remembered in {memory}" in first.stdout
    assert "nothing answers" in first.stderr
    type_in(monkeypatch, "")
    second = run(*annotate(HOSTED))
    assert "gets the API key" not in second.stdout
    assert "nothing answers" in second.stderr
    assert json.loads(memory.read_text()) == {"allowed": ["TEACHER_API_KEY=models.example.com"]}
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert "only after confirmation" in fail(*annotate("https://other.example.com/v1"))


def test_a_declined_key_ends_the_run(annotate, memory, monkeypatch, tmp_path):
    type_in(monkeypatch, "n\n")
    assert "only after confirmation" in fail(*annotate(HOSTED))
    assert not memory.exists()
    assert not (tmp_path / "run.sqlite").exists()


def test_a_finished_run_needs_no_key(annotate, memory, scripted, monkeypatch):
    succeed(*annotate(scripted().url))
    monkeypatch.delenv("TEACHER_API_KEY")
    succeed(*annotate(HOSTED))


def test_python_callers_name_the_use(annotate, memory, tmp_path):
    annotate(HOSTED)
    arguments = (tmp_path / "pairs.jsonl", tmp_path / "panel.yaml", tmp_path / "run.sqlite")
    with pytest.raises(ValueError, match=r"send_keys=\['TEACHER_API_KEY=models.example.com'\]"):
        annotate_pairs(*arguments, patience=0)
    with pytest.raises(OSError, match="nothing answers"):
        annotate_pairs(
            *arguments, patience=0, send_keys=["TEACHER_API_KEY=https://Models.example.com:443/"]
        )


def test_a_key_crosses_a_network_unencrypted_only_by_name(annotate, memory, monkeypatch, tmp_path):
    with serving("scripted", "--log", tmp_path / "log") as proxy:
        # As a host of the network: its requests reach the server as a proxy.
        monkeypatch.setenv("HTTP_PROXY", proxy.removesuffix("/v1"))
        url = "http://node7.cluster:8000/v1"
        error = fail(*annotate(url, "--send-key", "TEACHER_API_KEY=node7.cluster:8000"))
        assert "unencrypted" in error
        assert "ssh -L 8000:localhost:8000 node7.cluster" in error
        assert "--send-key TEACHER_API_KEY=http://node7.cluster:8000" in error
        type_in(monkeypatch, "y\n")
        assert "unencrypted" in fail(*annotate(url))
        succeed(*annotate(url, "--send-key", "TEACHER_API_KEY=http://node7.cluster:8000"))


@pytest.mark.parametrize(
    "name",
    [
        "generate",
        # These import AlpacaEval, which takes seconds.
        pytest.param("judge", marks=pytest.mark.slow),
        pytest.param("sweep", marks=pytest.mark.slow),
    ],
)
def test_a_student_and_a_judge_need_the_same_confirmation(name, memory, tmp_path):
    model = {"name": "s", "model": "m", "revision": None, "base_url": HOSTED,
             "api_key_env": "TEACHER_API_KEY"}  # fmt: skip
    prompts, outputs = tmp_path / "prompts.json", tmp_path / "outputs.json"
    prompts.write_text(json.dumps([{"instruction": "Hello?", "output": "Hi.", "generator": "b"}]))
    outputs.write_text(json.dumps([{"instruction": "Hello?", "output": "Ho.", "generator": "g"}]))
    student, judge = tmp_path / "student.yaml", tmp_path / "judge.yaml"
    judge.write_text(json.dumps(model))
    student.write_text(json.dumps(model | {"sampling": {"temperature": 0, "max_tokens": 9}}))
    options = {
        "generate": ("--student", student),
        "judge": ("--judge", judge, "--outputs", outputs),
        "sweep": ("--student", student, "--judge", judge),
    }
    common = ("--prompts", prompts, "--out", tmp_path / name, "--patience", 0)
    command = ("evaluate", name, *common, *options[name])
    assert "--send-key TEACHER_API_KEY=models.example.com" in fail(*command)
    allowed = fail(*command, "--send-key", "TEACHER_API_KEY=models.example.com")
    assert "nothing answers" in allowed


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8000/v1",
        "http://localhost/v1",
        "http://LOCALHOST.:8000/v1",
        "http://[::1]:8000/v1",
        "http://0.0.0.0:8000/v1",
        "https://127.8.9.1/v1",
        "http://[::ffff:127.0.0.1]:1/v1",
    ],
)
def test_servers_of_this_machine_need_no_confirmation(url):
    assert key_uses(teacher(url)) == []


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://API.OpenAI.com/v1", "api.openai.com"),
        ("https://api.openai.com.:443/v1", "api.openai.com"),
        ("https://api.openai.com:8443", "api.openai.com:8443"),
        ("http://10.0.0.5:8000/v1", "http://10.0.0.5:8000"),
        ("http://10.0.0.5:80/v1", "http://10.0.0.5"),
        # No loopback, though some resolvers or readers take them for it.
        ("http://127.1:8000/v1", "http://127.1:8000"),
        ("http://2130706433/v1", "http://2130706433"),
        ("http://evil.localhost/v1", "http://evil.localhost"),
        ("https://localhost.example.com/v1", "localhost.example.com"),
        ("https://[2001:db8::1]:443/v1", "[2001:db8::1]"),
    ],
)
def test_a_use_names_the_host_that_gets_the_key(url, host):
    (use,) = key_uses(teacher(url))
    assert use == KeyUse(variable="TEACHER_API_KEY", host=host)
    assert KeyUse.parse(str(use)) == use


@pytest.mark.parametrize(
    "url",
    [
        "https://\u0430pi.openai.com/v1",  # a Cyrillic letter
        "https://api.openai.com\\.example.com/v1",
        "https://api.openai.com%2eexample.com/v1",
        "https://api.openai.com:443:443/v1",
        "https://user@api.openai.com/v1",
        "http://[::1]example.com/v1",
        "http://example.com[::1]/v1",
        "https://api.openai.com example.com/v1",
    ],
)
def test_a_host_that_readers_could_take_for_another_gets_no_key(url):
    with pytest.raises(ValueError, match="does not name its host in plain ASCII"):
        key_uses(teacher(url))


@pytest.mark.parametrize(
    "variable",
    [
        "HF_TOKEN", "hf_token", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN",
        "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "GOOGLE_APPLICATION_CREDENTIALS",
        "AZURE_CLIENT_SECRET", "GITHUB_TOKEN", "GH_TOKEN", "CI_JOB_TOKEN", "GITLAB_TOKEN",
        "ACTIONS_RUNTIME_TOKEN", "WANDB_API_KEY", "SSH_AUTH_SOCK", "NPM_TOKEN", "PYPI_TOKEN",
        "KUBECONFIG", "PGPASSWORD", "MAIL_PASSWORD", "DEPLOY_PRIVATE_KEY", "KAGGLE_KEY",
    ],
)  # fmt: skip
def test_variables_of_other_services_are_never_sent(variable, tmp_path):
    for urls in ((HOSTED,), ("http://127.0.0.1:8000/v1",), ()):
        with pytest.raises(ValueError, match="another variable"):
            allow_keys([teacher(*urls, variable=variable)], [f"{variable}=models.example.com"])
    panel = write_panel(tmp_path / "panel.yaml", HOSTED, api_key_env=variable)
    with pytest.raises(ValueError, match=rf"api_key_env: {variable} is sent "):
        load_panel(panel)


@pytest.mark.parametrize(
    ("variable", "host"),
    [
        ("HF_TOKEN", "router.huggingface.co"),
        ("GITHUB_TOKEN", "models.github.ai"),
        ("WANDB_API_KEY", "api.inference.wandb.ai"),
        ("OPENAI_API_KEY", "api.openai.com"),
        ("AZURE_OPENAI_API_KEY", "lab.openai.azure.com"),
        ("GOOGLE_API_KEY", "generativelanguage.googleapis.com"),
    ],
)
def test_a_service_that_serves_models_gets_its_own_key_after_confirmation(variable, host):
    model = teacher(f"https://{host}/v1", variable=variable)
    assert [str(use) for use in key_uses(model)] == [f"{variable}={host}"]
    with pytest.raises(ValueError, match="only after confirmation"):
        allow_keys([model], [])
    allow_keys([model], [f"{variable}={host}"])


def test_all_missing_confirmations_are_named_at_once():
    replicas = teacher(*(f"http://node{number}:8000/v1" for number in range(3)))
    with pytest.raises(ValueError, match="for all of them: ") as caught:
        allow_keys([replicas, teacher(HOSTED)], ["TEACHER_API_KEY=http://node1:8000"])
    flags = str(caught.value).partition("for all of them: ")[2]
    assert flags == (
        "--send-key TEACHER_API_KEY=http://node0:8000 --send-key TEACHER_API_KEY=http://node2:8000"
        " --send-key TEACHER_API_KEY=models.example.com"
    )


def test_a_hub_token_beside_its_own_host_goes_nowhere_else():
    for urls in (("https://router.huggingface.co/v1", HOSTED), ("http://router.huggingface.co/v1",),
                 ("https://router.huggingface.co.example.com/v1",)):  # fmt: skip
        with pytest.raises(ValueError, match=r"HF_TOKEN is sent to router\.huggingface\.co alone"):
            key_uses(teacher(*urls, variable="HF_TOKEN"))


@pytest.mark.parametrize(
    "text",
    ["", "TEACHER_API_KEY", "=host", "KEY=", "KEY=host/v1", "KEY=ftp://host", "KEY=a b",
     "KEY=http:/a", "KEY=host:x"],
)  # fmt: skip
def test_a_use_has_one_form(text, annotate, memory):
    with pytest.raises(ValueError, match=r"must be VARIABLE=HOST"):
        KeyUse.parse(text)
    assert "must be VARIABLE=HOST" in fail(*annotate(HOSTED, "--send-key", text), code=2)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"allowed": [1]}', '{"allowed": ["x"]}'])
def test_a_damaged_memory_is_an_error_and_no_confirmation(content, annotate, memory):
    memory.parent.mkdir(parents=True)
    memory.write_text(content)
    error = fail(*annotate(HOSTED))
    assert f"{memory}: not a file of confirmed API keys" in error


def test_confirmations_add_up(memory):
    uses = [KeyUse(variable="A_KEY", host=host) for host in ("a.org", "b.org")]
    for use in uses:
        remember_keys([use])
    assert remembered_keys() == set(uses)


def test_without_a_home_nothing_is_remembered(monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError()))
    assert remember_keys([KeyUse(variable="A_KEY", host="a.org")]) is None
    assert remembered_keys() == frozenset()
