"""A panel is refused with the file, the key and the value before anyone is asked."""

import json
import re
from dataclasses import asdict, replace

import pytest
import yaml

from sp2dpo.panel.panel import load_panel, parse_record
from support.harness import ROOT

TEACHER = {
    "name": "reader",
    "model": "org/model",
    "revision": "c0ffee",
    "base_url": "http://127.0.0.1:8000/v1",
    "sampling": {"temperature": 0.7, "max_tokens": 300},
}
PANEL = {"rubric": "semantic-gap", "variants": ["direct", "critic"], "teachers": [TEACHER]}


@pytest.fixture
def load(tmp_path):
    """Loads a panel from what its file says, text or mapping."""

    def load(content):
        path = tmp_path / "panel.yaml"
        text = content if isinstance(content, str) else yaml.safe_dump(content, allow_unicode=True)
        path.write_text(text, encoding="utf-8")
        return load_panel(path)

    return load


@pytest.fixture
def error_of(load, tmp_path):
    """The message about a panel that is refused, without the file's name, which must come first."""

    def error_of(content):
        with pytest.raises(ValueError, match=r"panel\.yaml:\d+: ") as refused:
            load(content)
        path, words = re.escape(str(tmp_path / "panel.yaml")), str(refused.value)
        assert re.match(rf"{path}:\d+: ", words)
        return re.sub(rf"(?m)^{path}:\d+: ", "", words)

    return error_of


def with_teacher(**change):
    return PANEL | {"teachers": [TEACHER | change]}


def with_sampling(**change):
    return with_teacher(sampling=TEACHER["sampling"] | change)


def test_the_demos_panel_has_three_readers_and_three_variants():
    panel = load_panel(ROOT / "recipes" / "demo" / "panel.yaml")
    assert [teacher.name for teacher in panel.teachers] == ["reader-a", "reader-b", "reader-c"]
    assert panel.variants == ("direct", "critic", "reader")
    assert panel.rubric.name == "semantic-gap"
    assert all(teacher.sampling["temperature"] == 0 for teacher in panel.teachers)


def test_a_panel_says_all_of_its_teachers(load):
    panel = load(with_teacher(max_in_flight=4, timeout=1.5, api_key_env="KEY", revision=None))
    (teacher,) = panel.teachers
    assert panel.variants == ("direct", "critic")
    assert (teacher.model, teacher.revision) == ("org/model", None)
    assert teacher.base_urls == ("http://127.0.0.1:8000/v1",)
    assert teacher.sampling == {"temperature": 0.7, "max_tokens": 300}
    assert (teacher.max_in_flight, teacher.timeout, teacher.api_key_env) == (4, 1.5, "KEY")


def test_plumbing_has_defaults(load):
    (teacher,) = load(PANEL).teachers
    assert (teacher.max_in_flight, teacher.timeout, teacher.api_key_env) == (64, 300.0, None)
    assert (teacher.warm_prefix, teacher.retries, teacher.serve) == (False, 2, None)
    assert load(PANEL).budget == "full"


def test_a_teacher_has_one_server_or_several_or_says_how_to_start_one(load, error_of, tmp_path):
    several = ["http://127.0.0.1:8000/v1", "http://127.0.0.1:8001/v1"]
    (teacher,) = load(with_teacher(base_url=several)).teachers
    assert teacher.base_urls == tuple(several)
    served = {key: value for key, value in TEACHER.items() if key != "base_url"}
    served["serve"] = {"environment": "vllm"}
    (teacher,) = load(PANEL | {"teachers": [served]}).teachers
    assert teacher.base_urls == ()
    assert teacher.serve.environment == tmp_path / "vllm"
    assert "either base_url" in error_of(with_teacher(serve={"environment": "vllm"}))
    del served["serve"]
    assert "either base_url" in error_of(PANEL | {"teachers": [served]})
    assert "names http://a twice" in error_of(with_teacher(base_url=["http://a", "http://a"]))
    assert "base_url: is empty" in error_of(with_teacher(base_url=[]))
    assert "twice" in error_of(with_teacher(base_url=["http://a/v1", "http://a/v1/"]))


def test_an_address_is_one_and_holds_no_password(error_of):
    assert "is not an address" in error_of(with_teacher(base_url="http://a:99999/v1"))
    assert "names no host" in error_of(with_teacher(base_url="http:///v1"))
    error = error_of(with_teacher(base_url="http://me:hunter2@a/v1"))
    assert "use api_key_env" in error
    assert "hunter2" not in error


def test_a_key_among_the_arguments_of_a_server_is_refused(error_of):
    served = {key: value for key, value in TEACHER.items() if key != "base_url"}
    served["serve"] = {"environment": "vllm", "args": ["--api-key=sk-secret"]}
    error = error_of(PANEL | {"teachers": [served]})
    assert "VLLM_API_KEY" in error


def test_an_adaptive_panel_says_how_far_a_gap_may_still_move(load, error_of):
    panel = load(PANEL | {"budget": "adaptive"})
    assert (panel.budget, panel.tolerance) == ("adaptive", 0.074)
    assert load(PANEL | {"budget": "adaptive", "tolerance": 0.1}).tolerance == 0.1
    assert "did you mean 'adaptive'" in error_of(PANEL | {"budget": "adaptiv"})
    assert panel.covers is None
    assert panel.record().covers == "signed_gap"
    assert load(PANEL | {"budget": "adaptive", "covers": "beta"}).covers == "beta"
    assert "covers requires" in error_of(PANEL | {"covers": "beta"})
    assert "'betas' is not known, did you mean 'beta'" in error_of(
        PANEL | {"budget": "adaptive", "covers": "betas"}
    )
    assert "tolerance requires" in error_of(PANEL | {"tolerance": 0.1})
    assert "tolerance requires" in error_of(PANEL | {"tolerance": 0.1, "budget": "full"})
    assert "tolerance: must be a number above 0, at most 1, not 0" in error_of(
        PANEL | {"budget": "adaptive", "tolerance": 0}
    )


def test_logprobs_are_asked_for_with_their_number_or_not_at_all(load, error_of):
    (teacher,) = load(with_sampling(logprobs=True, top_logprobs=20)).teachers
    assert teacher.sampling["top_logprobs"] == 20
    assert "together, or neither" in error_of(with_sampling(logprobs=True))
    assert "together, or neither" in error_of(with_sampling(top_logprobs=5))


def test_the_record_of_an_earlier_version_covers_betas(load):
    record = asdict(load(PANEL | {"budget": "adaptive"}).record())
    assert record["covers"] == "signed_gap"
    del record["covers"]
    assert parse_record(json.dumps(record)).covers == "beta"


def test_a_panel_that_does_not_say_what_it_covers_goes_on_with_the_stores_adaptive_panel(load):
    panel, full = load(PANEL | {"budget": "adaptive"}), load(PANEL).record()
    before = replace(panel.record(), covers="beta")
    assert panel.with_covers(before).covers == "beta"
    assert panel.with_covers(None).covers == "signed_gap"
    # A full panel settles no pair, so its record says nothing.
    assert panel.with_covers(replace(full, covers="beta")).covers == "signed_gap"
    stated = load(PANEL | {"budget": "adaptive", "covers": "signed_gap"})
    assert stated.with_covers(before).covers == "signed_gap"


def test_what_a_store_remembers_of_a_panel_holds_no_address_and_no_key(load):
    price = {"gpu_hour": 2.0, "gpus": 4}
    record = asdict(load(with_teacher(api_key_env="KEY", license="mit", price=price)).record())
    assert record["teachers"] == [
        {
            "name": "reader",
            "retries": 2,
            "price": {
                "gpu_hour": 2.0, "gpus": 4, "prompt": None, "completion": None, "cached": None,
                "currency": "USD",
            },
            "license": "mit",
        }
    ]  # fmt: skip
    assert "KEY" not in str(record)
    assert "http" not in str(record)


def test_a_rubric_file_counts_from_the_panel(load, tmp_path):
    packaged = load(PANEL).rubric.as_mapping()
    mine = packaged | {"name": "mine", "variants": {"solo": "Judge."}}
    (tmp_path / "rubrics").mkdir()
    (tmp_path / "rubrics" / "mine.yaml").write_text(yaml.safe_dump(mine))
    panel = load(PANEL | {"rubric": "rubrics/mine.yaml", "variants": ["solo"]})
    assert (panel.rubric.name, panel.variants) == ("mine", ("solo",))


def test_teachers_may_share_their_sampling_by_a_yaml_anchor(load):
    panel = load(
        "rubric: semantic-gap\nvariants: [direct]\nteachers:\n"
        "  - &first\n    name: a\n    model: m\n    revision: null\n"
        "    base_url: https://h/v1\n    sampling: {temperature: 0, max_tokens: 9}\n"
        "  - {<<: *first, name: b}\n"
    )
    assert [teacher.name for teacher in panel.teachers] == ["a", "b"]
    assert panel.teachers[1].sampling == {"temperature": 0, "max_tokens": 9}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (PANEL | {"teacher": []}, "unknown key 'teacher', did you mean 'teachers'?"),
        ({"rubric": "semantic-gap"}, "missing key 'variants'\nmissing key 'teachers'"),
        (PANEL | {"rubric": None}, "rubric: must be text, not None"),
        (PANEL | {"rubric": "semantic_gap"}, "rubric: no packaged rubric is called 'semantic_gap'"),
        (PANEL | {"rubric": ""}, "rubric: no packaged rubric is called ''"),
        (PANEL | {"teachers": []}, "teachers: is empty"),
        (PANEL | {"teachers": TEACHER}, "teachers: must be a list"),
        (
            PANEL | {"teachers": ["reader"]},
            "teachers[0]: must be keys and values, not 'reader'",
        ),
        (PANEL | {"teachers": [TEACHER, TEACHER]}, "two teachers are called 'reader'"),
        (PANEL | {"variants": "direct"}, "variants: must be a list, not 'direct'"),
        (PANEL | {"variants": []}, "variants: must name at least one variant, each once"),
        (PANEL | {"variants": ["direct", "direct"]}, "variants: must name at least one variant"),
        (PANEL | {"variants": ["direkt"]}, "has no variant 'direkt', did you mean 'direct'?"),
        (PANEL | {"variants": [False]}, "variants[0]: must be text, not False"),
        (PANEL | {"variants": [["direct"]]}, "variants[0]: must be text, not ['direct']"),
        (PANEL | {"variants": [None]}, "variants[0]: must be text, not None"),
    ],
)
def test_a_wrong_panel_is_named(error_of, content, expected):
    assert expected in error_of(content)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"modle": "x"}, "unknown key 'modle', did you mean 'model'?"),
        ({"api_key": "secret"}, "unknown key 'api_key', did you mean 'api_key_env'?"),
        ({"name": 7}, "name: must be text of one line, without spaces around it, not 7"),
        ({"name": " "}, "name: must be text of one line, without spaces around it, not ' '"),
        ({"model": None}, "model: must be text of one line, without spaces around it, not None"),
        ({"revision": 123}, "revision: must be text or nothing, not 123"),
        ({"base_url": "127.0.0.1:8000"}, "base_url: '127.0.0.1:8000' must start with http(s)://"),
        ({"base_url": "ftp://x"}, "base_url: 'ftp://x' must start with http(s)://"),
        ({"max_in_flight": 0}, "max_in_flight: must be a whole number of at least 1, not 0"),
        ({"max_in_flight": -3}, "max_in_flight: must be a whole number of at least 1, not -3"),
        ({"max_in_flight": 1.5}, "max_in_flight: must be a whole number of at least 1, not 1.5"),
        ({"max_in_flight": True}, "max_in_flight: must be a whole number of at least 1, not True"),
        ({"max_in_flight": None}, "max_in_flight: must be a whole number of at least 1, not None"),
        ({"timeout": "300"}, "timeout: must be a number above 0, not '300'"),
        ({"timeout": 0}, "timeout: must be a number above 0, not 0"),
        ({"timeout": float("inf")}, "timeout: must be a number above 0, not inf"),
        ({"timeout": float("nan")}, "timeout: must be a number above 0, not nan"),
        ({"api_key_env": 3}, "api_key_env: must be text or nothing, not 3"),
        ({"sampling": []}, "sampling: must be keys and values, not []"),
        ({"sampling": {"temperature": 0}}, "sampling: missing key 'max_tokens'"),
    ],
)
def test_a_wrong_teacher_is_named_by_number_key_and_value(error_of, change, expected):
    error = error_of(with_teacher(**change))
    assert error.startswith("teachers[0]")
    assert expected in error


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"temprature": 1}, "sampling: unknown key 'temprature', did you mean 'temperature'?"),
        ({"temperature": "0.7"}, "sampling.temperature: must be a finite number, not '0.7'"),
        ({"temperature": False}, "sampling.temperature: must be a finite number, not False"),
        ({"temperature": None}, "sampling.temperature: must be a finite number, not None"),
        ({"temperature": float("nan")}, "sampling.temperature: must be a finite number, not nan"),
        ({"top_p": float("inf")}, "sampling.top_p: must be a finite number, not inf"),
        ({"max_tokens": 0}, "sampling.max_tokens: must be a whole number of at least 1, not 0"),
        (
            {"max_tokens": 300.0},
            "sampling.max_tokens: must be a whole number of at least 1, not 300.0",
        ),
        (
            {"max_tokens": True},
            "sampling.max_tokens: must be a whole number of at least 1, not True",
        ),
        ({"seed": "1"}, "sampling.seed: must be a whole number, not '1'"),
        (
            {"chat_template_kwargs": "x"},
            "sampling.chat_template_kwargs: must be keys and values that JSON can hold, not 'x'",
        ),
    ],
)
def test_wrong_sampling_is_named_by_key_and_value(error_of, change, expected):
    assert expected in error_of(with_sampling(**change))


def test_a_date_among_the_templates_settings_is_no_json(error_of):
    text = yaml.safe_dump(with_sampling(chat_template_kwargs={"today": "DAY"}))
    assert "chat_template_kwargs: must be keys and values that JSON can hold" in error_of(
        text.replace("DAY", "2026-01-01")
    )


def test_all_sampling_that_servers_know_passes_as_it_stands(load):
    sampling = {
        "temperature": 1,
        "max_tokens": 1,
        "top_p": 0.9,
        "top_k": -1,
        "min_p": 0,
        "seed": 0,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.1,
        "repetition_penalty": 1.1,
        "reasoning_effort": "low",
        "chat_template_kwargs": {"enable_thinking": False},
    }
    (teacher,) = load(with_teacher(sampling=sampling)).teachers
    assert teacher.sampling == sampling


def test_the_second_teacher_is_the_one_that_is_named(error_of):
    bad = TEACHER | {"name": "other", "timeout": -1}
    assert error_of(PANEL | {"teachers": [TEACHER, bad]}).startswith(
        "teachers[1].timeout: must be a number above 0, not -1"
    )


def test_a_wrong_rubric_file_is_named_with_the_panel_that_names_it(error_of, load, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(load(PANEL).rubric.as_mapping() | {"rationale_length": 0}))
    lines = path.read_text().splitlines()
    line = lines.index("rationale_length: 0") + 1
    error = error_of(PANEL | {"rubric": "mine.yaml"})
    assert error == (
        f"rubric: {path}:{line}: rationale_length: must be a whole number of at least 1, not 0"
    )


def test_a_missing_rubric_file_is_missing(load, tmp_path):
    with pytest.raises(FileNotFoundError) as missing:
        load(PANEL | {"rubric": "gone.yaml"})
    assert missing.value.filename == str(tmp_path / "gone.yaml")


def test_the_api_key_comes_from_the_environment_or_is_missed(load, monkeypatch):
    (keyless,) = load(PANEL).teachers
    (keyed,) = load(with_teacher(api_key_env="SP2DPO_TEST_KEY")).teachers
    assert keyless.api_key() is None
    monkeypatch.setenv("SP2DPO_TEST_KEY", "k-1")
    assert keyed.api_key() == "k-1"
    for absent in ("", None):
        if absent is None:
            monkeypatch.delenv("SP2DPO_TEST_KEY")
        else:
            monkeypatch.setenv("SP2DPO_TEST_KEY", absent)
        with pytest.raises(
            ValueError, match="teacher reader: the environment variable SP2DPO_TEST"
        ):
            keyed.api_key()


def test_all_problems_of_a_panel_are_one_message_with_their_lines(tmp_path):
    path = tmp_path / "panel.yaml"
    path.write_text(
        "rubric: semantic-gap\n"
        "variants: [direct, critc]\n"
        "tolerance: 0.1\n"
        "teachers:\n"
        "  - name: a\n"
        "    model: m\n"
        "    revison: null\n"
        "    base_url: 127.0.0.1\n"
        "    sampling:\n"
        "      temperature: '1'\n"
        "      max_token: 9\n"
        "    price: {gpu_hour: -1, gpus: 2, curency: EUR}\n"
        "  - name: b\n"
        "    model: m\n"
        "    revision: null\n"
        "    serve:\n"
        "      environment: vllm\n"
        "      gpus: [0, 1, 2]\n"
        "      replicas: 2\n"
        "      args: [--port=1]\n"
        "    sampling: {temperature: 1, max_tokens: 9}\n"
    )
    with pytest.raises(ValueError, match="revison") as refused:
        load_panel(path)
    assert str(refused.value).replace(f"{path}:", "").split("\n") == [
        "2: variants: rubric semantic-gap has no variant 'critc', did you mean 'critic'? "
        "(known: direct, critic, reader)",
        "3: tolerance: tolerance requires `budget: adaptive`",
        "5: teachers[0]: missing key 'revision'",
        "7: teachers[0]: unknown key 'revison', did you mean 'revision'?",
        "8: teachers[0].base_url: '127.0.0.1' must start with http(s)://",
        "9: teachers[0].sampling: missing key 'max_tokens'",
        "10: teachers[0].sampling.temperature: must be a finite number, not '1'",
        "11: teachers[0].sampling: unknown key 'max_token', did you mean 'max_tokens'?",
        "12: teachers[0].price.gpu_hour: must be a number of at least 0, not -1",
        "12: teachers[0].price: unknown key 'curency', did you mean 'currency'?",
        "19: teachers[1].serve.replicas: 3 gpus cannot be shared evenly by 2 replicas",
        "20: teachers[1].serve.args: must not hold --port: write it as the key port",
    ]
