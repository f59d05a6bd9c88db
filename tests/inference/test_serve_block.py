"""What a panel says about servers, and the command and variables that come of it."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from sp2dpo.inference.serve import Serve, flag_value, has_flag, is_path, parse_serve, turns_on
from sp2dpo.inference.vllm import command_lines, environment_variables, serve_warnings, vllm_command
from support.harness import ROOT

WHERE = "panel.yaml: teacher 1: serve"
STRUCTURED = '{"backend":"guidance","disable_any_whitespace":true}'


def block(**settings):
    return parse_serve(
        {"environment": "/opt/vllm", **settings}, where=WHERE, beside=Path("/panels")
    )


def words(serve, *, model="Org/Model", revision=None, port=8000):
    return vllm_command(model, revision, serve, port=port)


def flags(serve, **options):
    return words(serve, **options)[3:]


def test_what_is_not_said_has_a_default():
    assert block() == Serve(
        environment=Path("/opt/vllm"), model=None, args=(), gpus=(), replicas=1, env={}, port=None,
        healthy_within=1800, restarts=3,
    )  # fmt: skip


def test_all_that_can_be_said(tmp_path):
    serve = parse_serve(
        {
            "environment": "../vllm-env",
            "model": "./weights",
            "args": ["--max-model-len", "8192"],
            "gpus": [0, "MIG-4a1f"],
            "replicas": 2,
            "env": {"VLLM_CPU_KVCACHE_SPACE": "1"},
            "port": 8000,
            "healthy_within": 60,
            "restarts": 0,
        },
        where=WHERE,
        beside=tmp_path / "panels",
    )

    assert serve == Serve(
        environment=tmp_path / "vllm-env",
        model=str(tmp_path / "panels" / "weights"),
        args=("--max-model-len", "8192"),
        gpus=("0", "MIG-4a1f"),
        replicas=2,
        env={"VLLM_CPU_KVCACHE_SPACE": "1"},
        port=8000,
        healthy_within=60,
        restarts=0,
    )


def test_a_home_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")

    serve = block(environment="~/vllm", model="~/weights")

    assert serve.program == Path("/home/someone/vllm/bin/vllm")
    assert serve.model == "/home/someone/weights"


@pytest.mark.parametrize("model", ["/weights", "./weights", "../weights", "~/weights", ".", ".."])
def test_a_folder_shows_by_its_beginning(model):
    assert is_path(model)


@pytest.mark.parametrize("model", ["Org/Model", "gpt2", "weights/", ".hidden", "..."])
def test_anything_else_is_an_id_on_the_hub(model):
    assert not is_path(model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"enviroment": "/x"}, "did you mean 'environment'"),
        ({"environment": ""}, "environment: must be a path, not ''"),
        ({"environment": 5}, "environment: must be a path, not 5"),
        ({"environment": None}, "environment: must be a path, not None"),
        ({"environment": "a\nb"}, "environment: must be a path"),
        ({"environment": "~nobody-of-that-name/x"}, "'~nobody-of-that-name/x' is not a path"),
        ({"model": "--trust-remote-code"}, "model: must be a path or an id on the Hub"),
        ({"model": ""}, "model: must be a path or an id on the Hub, not ''"),
        ({"model": None}, "model: must be a path or an id on the Hub, not None"),
        ({"args": "--x"}, "args: must be a list of texts"),
        ({"args": ["--max-model-len", 8192]}, "quote numbers"),
        ({"args": ["a\0b"]}, "args: must be a list of texts"),
        ({"args": ["\ud800"]}, "args: must be a list of texts"),
        ({"args": ["--port=5"]}, "args: must not hold --port: write it as the key port"),
        ({"args": ["--por", "5"]}, "args: must not hold --port"),
        ({"args": ["--model", "x"]}, "args: must not hold --model: write it as the key model"),
        ({"args": ["--uds", "/x"]}, "args: must not hold --uds"),
        ({"args": ["--ssl_keyfile=x"]}, "args: must not hold --ssl-keyfile"),
        ({"gpus": []}, "gpus: must be a list"),
        ({"gpus": 1}, "gpus: must be a list"),
        ({"gpus": [-1]}, "gpus: must be a list"),
        ({"gpus": [True]}, "gpus: must be a list"),
        ({"gpus": ["0,1"]}, "gpus: must be a list"),
        ({"gpus": [0, "0"]}, "each once"),
        ({"gpus": [0, 1, 2], "replicas": 2}, "3 gpus cannot be shared evenly by 2 replicas"),
        ({"gpus": [0], "replicas": 2}, "1 gpus cannot be shared evenly by 2 replicas"),
        ({"gpus": [0], "env": {"CUDA_VISIBLE_DEVICES": "1"}}, "remove one of them"),
        ({"replicas": 0}, "replicas: must be a whole number of at least 1, not 0"),
        ({"replicas": True}, "replicas: must be a whole number of at least 1, not True"),
        ({"replicas": 70000}, "70000 ports from 1 on go beyond 65535"),
        ({"env": ["A=1"]}, "env: must be names"),
        ({"env": {"A": 1}}, "quote numbers"),
        ({"env": {"A=B": "1"}}, "env: must be names"),
        ({"env": {5: "1"}}, "env: must be names"),
        ({"port": 0}, "port: must be a number from 1 to 65535, not 0"),
        ({"port": 65535, "replicas": 2}, "2 ports from 65535 on go beyond 65535"),
        ({"port": "8000"}, "port: must be a number from 1 to 65535, not '8000'"),
        ({"healthy_within": 0}, "healthy_within: must be a number of seconds above 0, not 0"),
        ({"healthy_within": float("inf")}, "not inf"),
        ({"healthy_within": float("nan")}, "not nan"),
        ({"restarts": -1}, "restarts: must be a whole number of at least 0, not -1"),
        ({"restarts": 1.0}, "restarts: must be a whole number of at least 0, not 1.0"),
    ],
)
def test_what_is_wrong_is_named(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        block(**settings)
    assert str(caught.value).startswith(f"{WHERE}: ")


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ValueError, match=r"(?s)args.*replicas.*port.*restarts"):
        block(args=5, replicas=0, port=-1, restarts=None)


def test_links_in_a_circle_are_no_environment(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")

    with pytest.raises(ValueError, match="is not a path"):
        parse_serve({"environment": "a"}, where=WHERE, beside=tmp_path)


def test_a_block_must_be_a_mapping():
    with pytest.raises(ValueError, match="must be keys and values, not 'vllm'"):
        parse_serve("vllm", where=WHERE, beside=Path("/panels"))


def test_the_command_as_it_is_without_more_being_said():
    assert words(block()) == [
        "/opt/vllm/bin/vllm",
        "serve",
        "Org/Model",
        "--served-model-name=Org/Model",
        "--host=127.0.0.1",
        "--port=8000",
        "--generation-config=vllm",
        f"--structured-outputs-config={STRUCTURED}",
        "--enable-prefix-caching",
        "--enable-prompt-tokens-details",
    ]


def test_a_model_of_the_hub_is_loaded_at_its_revision():
    arguments = flags(block(), revision="abc123")

    assert "--revision=abc123" in arguments
    assert "--tokenizer-revision=abc123" in arguments


def test_a_folder_has_no_revision():
    command = words(block(model="/weights"), revision="abc123")

    assert command[2] == "/weights"
    assert "--served-model-name=Org/Model" in command
    assert not [word for word in command if "revision" in word]


def test_the_gpus_of_a_replica_work_together():
    four = block(gpus=[0, 1, 2, 3])

    assert "--tensor-parallel-size=4" in flags(four)
    assert "--tensor-parallel-size=2" in flags(block(gpus=[0, 1, 2, 3], replicas=2))
    assert not [word for word in flags(block(gpus=[3])) if "parallel" in word]


@pytest.mark.parametrize("own", ["-tp=2", "-pp", "--data-parallel-size", "--tensor_parallel_size"])
def test_who_shares_out_the_gpus_differently_is_left_to_it(own):
    arguments = flags(block(gpus=[0, 1], args=[own, "2"]))

    assert [word for word in arguments if "tensor-parallel" in word] == []
    assert arguments[-2:] == [own, "2"]


@pytest.mark.parametrize(
    ("args", "gone"),
    [
        (["--host", "0.0.0.0"], "--host"),
        (["--host=0.0.0.0"], "--host"),
        (["--no-enable-prefix-caching"], "--enable-prefix-caching"),
        (["--no_enable_prefix_caching"], "--enable-prefix-caching"),
        (["--structured-outputs-config.backend=xgrammar"], "--structured-outputs-config"),
        (["--generation_config=auto"], "--generation-config"),
        (["--served-model-name", "a", "b"], "--served-model-name"),
        (["--revision", "main"], "--revision"),
        (["--enable-prompt-tokens", "--x"], "--enable-prompt-tokens-details"),
    ],
)
def test_a_flag_of_the_panel_replaces_ours(args, gone):
    before = flags(block(), revision="abc")
    after = flags(block(args=args), revision="abc")

    remaining = [word for word in before if word.partition("=")[0] != gone]
    assert len(remaining) == len(before) - 1
    assert after == [*remaining, *args]


def test_a_longer_name_is_another_flag():
    arguments = flags(block(args=["--enable-prefix-caching-hash-algo=sha256"]))

    assert "--enable-prefix-caching" in arguments


def test_the_name_of_a_teacher_cannot_pass_for_a_flag():
    with pytest.raises(ValueError, match="must not begin with a dash"):
        words(block(), model="--trust-remote-code")


def test_variables_are_inherited_then_ours_then_the_panels():
    serve = block(env={"DO_NOT_TRACK": "0", "EXTRA": "x"})

    variables = environment_variables(
        {"PATH": "/bin", "HOME": "/h", "EXTRA": "y"}, serve, replica=0
    )

    assert variables == {
        "PATH": "/opt/vllm/bin:/bin",
        "HOME": "/h",
        "EXTRA": "x",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "0",
    }


def test_gpus_are_shared_out_evenly():
    serve = block(gpus=[4, 5, 6, 7], replicas=2)

    seen = [
        environment_variables({}, serve, replica=replica)["CUDA_VISIBLE_DEVICES"]
        for replica in range(2)
    ]

    assert seen == ["4,5", "6,7"]


def test_what_is_shown_can_be_run_by_hand():
    serve = block(gpus=["0", "1"], replicas=2, env={"NOTE": "two words"}, port=9000)

    lines = command_lines("Org/Model", None, serve)

    assert len(lines) == 2
    for number, line in enumerate(lines):
        begin = 'PATH=/opt/vllm/bin:"$PATH" VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 '
        assert line.startswith(f"{begin}CUDA_VISIBLE_DEVICES={number} NOTE='two words' /opt/vllm")
        assert shlex.split(line)[5:] == words(serve, port=9000 + number)


def test_a_port_that_is_not_chosen_yet_is_shown_so():
    (line,) = command_lines("Org/Model", None, block())
    assert " --port=PORT " in line

    (line,) = command_lines("Org/Model", None, block(), ports=(41233,))
    assert " --port=41233 " in line


def test_secrets_are_not_shown():
    (line,) = command_lines(
        "Org/Model", None, block(env={"HF_TOKEN": "hf_abc", "VLLM_API_KEY": "sk-1"})
    )

    assert "hf_abc" not in line
    assert "sk-1" not in line
    assert "HF_TOKEN='(hidden)'" in line


def test_the_command_to_start_by_hand_has_the_flags_of_the_package():
    head = (ROOT / "recipes" / "panels" / "one-teacher.yaml").read_text()
    words = re.search(r"^#   (vllm serve (?:.*\\\n)*.*)", head, re.M)[1].replace("\\\n#", "")
    command = shlex.split(words)
    model = yaml.safe_load(head)["teachers"][0]["model"]
    assert command[1:] == vllm_command(model, None, block(), port=8000)[1:]


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["--trust-remote-code"], "runs code"),
        (["--trust_remote_code"], "runs code"),
        (["--trust-remote"], "runs code"),
        (["--no-trust-remote-code", "--trust-remote-code"], "runs code"),
        (["--host", "0.0.0.0"], "--host '0.0.0.0' offers"),
        (["--host=192.168.1.5"], "--host '192.168.1.5' offers"),
        (["--host="], "--host '' offers"),
        (["--config", "x.yaml"], "not shown here"),
        (["--speculative-config", "{}"], "leave it off for teachers"),
        (["--spec-method=ngram"], "leave it off for teachers"),
        (["-sc", "{}"], "leave it off for teachers"),
    ],
)
def test_what_must_not_be_overlooked_is_said(args, word):
    (warning,) = serve_warnings(block(args=args))
    assert word in warning


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--no-trust-remote-code"],
        ["--trust-remote-code", "--no-trust-remote-code"],
        ["--host", "localhost"],
        ["--host=::1"],
        ["--max-model-len", "8192"],
    ],
)
def test_nothing_is_said_without_need(args):
    assert serve_warnings(block(args=args)) == []


@pytest.mark.parametrize(
    ("args", "host"),
    [
        ([], "127.0.0.1"),
        (["--host", "0.0.0.0"], "127.0.0.1"),
        (["--host=::"], "127.0.0.1"),
        (["--host", "192.168.1.5"], "192.168.1.5"),
        (["--host", "a", "--host=b"], "b"),
        (["--host"], "127.0.0.1"),
    ],
)
def test_where_a_server_is_reached(args, host):
    assert block(args=args).host == host


def test_arguments_are_read_as_vllm_reads_them():
    args = ["--a_b=1", "--c", "2", "--no-d-e", "--f.g=3", "--c=4", "-tp", "5"]

    assert has_flag(args, "--a-b")
    assert has_flag(args, "--d-e")
    assert has_flag(args, "--f")
    assert has_flag(args, "-tp")
    assert not has_flag(args, "-t")
    assert not has_flag(args, "--g")
    assert flag_value(args, "--c") == "4"
    assert flag_value(args, "-tp") == "5"
    assert flag_value(args, "--x") is None
    assert not turns_on(args, "--d-e")
