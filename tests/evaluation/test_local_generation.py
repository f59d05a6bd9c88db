"""Students that transformers runs here: a tiny random model, greedy, sampled, stopped."""

import json
import shutil

import pytest
import yaml

from sp2dpo.evaluation.prompts import Output
from sp2dpo.evaluation.temperatures import score_outputs
from support.harness import fail, succeed

COUNT = 10


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [{"instruction": f"Tell me about number {n}, please."} for n in range(COUNT)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def student(tmp_path, tiny_student):
    def write(name="student.yaml", *, temperature=0.9, **settings):
        mapping = {
            "name": "tiny",
            "model": str(tiny_student),
            "revision": None,
            "sampling": {"temperature": temperature, "max_tokens": 12, "seed": 3},
            "local": {"batch_size": 4},
        } | settings
        path = tmp_path / name
        path.write_text(yaml.safe_dump(mapping))
        return path

    return write


def outputs(folder):
    return [row["output"] for row in json.loads((folder / "outputs.json").read_text())]


def generate(prompts, student, out, *options):
    return succeed(
        "evaluate", "generate", "--prompts", prompts, "--student", student, "--out", out, *options
    )


def test_a_local_model_answers_every_prompt(prompts, student, tmp_path):
    output = generate(prompts, student(), tmp_path / "a")
    assert f"tiny: {COUNT} outputs" in output
    record = json.loads((tmp_path / "a" / "generation.json").read_text())
    assert record["sampling"]["temperature"] == 0.9
    assert sum(record["ended"].values()) == COUNT
    assert len(outputs(tmp_path / "a")) == COUNT


def test_a_run_that_was_stopped_ends_like_an_unbroken_one(prompts, student, tmp_path):
    generate(prompts, student(), tmp_path / "a")
    broken = tmp_path / "b"
    broken.mkdir()
    lines = (tmp_path / "a" / "replies.jsonl").read_text().splitlines(keepends=True)
    # The head and five replies: the second batch broke off in the middle, and so did a line.
    (broken / "replies.jsonl").write_text("".join(lines[:6]) + lines[6][:20])
    generate(prompts, student(), broken)
    assert outputs(broken) == outputs(tmp_path / "a")


def test_greedy_outputs_depend_on_no_seed_and_sampled_ones_do(prompts, student, tmp_path):
    for name, heat, seed in (
        ("g0", 0, 0), ("g1", 0, 1), ("s0", 1.5, 0), ("s1", 1.5, 1), ("s2", 1.5, 1),
    ):  # fmt: skip
        options = ("--temperature", heat, "--seed", seed)
        generate(prompts, student(), tmp_path / name, *options)
    assert outputs(tmp_path / "g0") == outputs(tmp_path / "g1")
    assert outputs(tmp_path / "s0") != outputs(tmp_path / "s1")
    assert outputs(tmp_path / "s1") == outputs(tmp_path / "s2")


def test_a_sweep_tells_the_reward_models_score(prompts, student, tiny_student, tmp_path):
    import torch
    from transformers import AutoTokenizer, LlamaForSequenceClassification

    torch.manual_seed(0)
    reward = tmp_path / "reward"
    LlamaForSequenceClassification.from_pretrained(tiny_student, num_labels=1).save_pretrained(
        reward
    )
    AutoTokenizer.from_pretrained(tiny_student).save_pretrained(reward)
    words = (
        "evaluate", "sweep", "--prompts", prompts, "--student", student(), "--reward", reward,
        "--temperature", 0, "--temperature", 1, "--out", tmp_path / "s", "--draws", 100,
        "--picture", tmp_path / "sweep.svg",
    )  # fmt: skip
    output = succeed(*words)
    temperatures = json.loads((tmp_path / "s" / "sweep.json").read_text())["temperatures"]
    assert [row["temperature"] for row in temperatures] == [0, 1]
    for row in temperatures:
        reward_of = row["reward"]
        assert reward_of["low"] <= reward_of["value"] <= reward_of["high"]
        assert row["win_rate"] is None
    assert output.split("temperature  reward")[1] == succeed(*words).split("temperature  reward")[1]
    assert (tmp_path / "sweep.svg").exists()
    path = tmp_path / "rewards.json"
    first, second = (
        [Output(instruction="Say it.", output=text, generator="g")]
        for text in ("Yes.", "No, never.")
    )
    scores = score_outputs(str(reward), None, first, path)
    assert score_outputs(str(reward), None, first, path) == scores
    assert score_outputs(str(reward), None, second, path) != scores


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"local": {"batchsize": 4}}, "unknown key 'batchsize', did you mean 'batch_size'?"),
        (
            {"local": {"batch_size": 0}},
            "local.batch_size: must be a whole number of at least 1, not 0",
        ),
        ({"model": "/nowhere"}, "the model /nowhere cannot be read"),
        ({"sampling": {"temperature": 0, "max_tokens": 5, "min_p": 0.1}}, "unknown key 'min_p'"),
        ({"system": 3}, "system: must be text or nothing, not 3"),
    ],
)
def test_a_bad_student_is_one_line(prompts, student, tmp_path, settings, message):
    error = fail(
        "evaluate", "generate", "--prompts", prompts, "--student", student(**settings),
        "--out", tmp_path / "a",
    )  # fmt: skip
    assert message in error


NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}{{ m.role + m.content }}{% endfor %}"
)


@pytest.fixture
def other(tiny_student, tmp_path):
    """A copy of the tiny student with other files; without its weights where they are not read."""

    def copy(*, weights=True, template=None, **files):
        folder = shutil.copytree(tiny_student, tmp_path / f"model-{len(list(tmp_path.iterdir()))}")
        if not weights:
            (folder / "model.safetensors").unlink()
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
        for name, changes in files.items():
            path = folder / f"{name}.json"
            content = json.loads(path.read_text()) | changes
            path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
        return str(folder)

    return copy


@pytest.mark.parametrize(
    ("template", "system", "message"),
    [
        (NO_SYSTEM, "Be brief.", "with the roles system, user: System role not supported"),
        ("{{ messages[0].content + none }}", None, "TypeError: can only concatenate str"),
        ("{{ messages[1].content }}", None, "UndefinedError: list object has no element 1"),
        ("{% for m in messages %}", None, "line 1 of the template: Unexpected end of template"),
    ],
)
def test_a_template_that_refuses_a_prompt_is_one_line_before_the_weights_are_read(
    prompts, student, other, tmp_path, template, system, message
):
    error = fail(
        "evaluate", "generate", "--prompts", prompts, "--out", tmp_path / "a",
        "--student", student(model=other(weights=False, template=template), system=system),
    )  # fmt: skip
    (line,) = error.strip().splitlines()
    assert f"refuses prompt 1 of {COUNT}" in line
    assert message in line
    assert "choose another model" in line


def test_a_prompt_longer_than_the_context_is_named(student, other, tmp_path):
    path = tmp_path / "prompts.json"
    texts = ["short", "Tell me about it, please. " * 20, "short too"]
    path.write_text(json.dumps([{"instruction": text} for text in texts]))
    model = other(weights=False, config={"max_position_embeddings": 64})
    error = fail(
        "evaluate", "generate", "--prompts", path, "--student", student(model=model),
        "--out", tmp_path / "a",
    )  # fmt: skip
    (line,) = error.strip().splitlines()
    assert "prompt 2 of 3 has " in line
    assert "max_tokens is 12: together more than the context" in line
    assert "64 tokens; lower max_tokens or leave the prompt out" in line


@pytest.mark.parametrize("temperature", [0, 0.9])
def test_what_a_model_says_of_its_own_sampling_does_not_change_it(
    prompts, student, other, tmp_path, temperature
):
    own = {
        "do_sample": True, "repetition_penalty": 3.0, "top_k": 1, "min_p": 0.9,
        "no_repeat_ngram_size": 1, "min_new_tokens": 12, "suppress_tokens": [10, 11, 12, 40, 50],
    }  # fmt: skip
    plain = student("plain.yaml", temperature=temperature)
    changed = student(
        "changed.yaml", temperature=temperature, model=other(generation_config=own)
    )  # fmt: skip
    generate(prompts, plain, tmp_path / "a")
    generate(prompts, changed, tmp_path / "b")
    assert outputs(tmp_path / "a") == outputs(tmp_path / "b")
    sampling = {"temperature": temperature, "max_tokens": 12, "seed": 3, "repetition_penalty": 3.0}
    generate(prompts, student("penalty.yaml", sampling=sampling), tmp_path / "c")
    assert outputs(tmp_path / "c") != outputs(tmp_path / "a")
    record = json.loads((tmp_path / "c" / "generation.json").read_text())
    assert record["sampling"]["repetition_penalty"] == 3.0


@pytest.mark.parametrize("token", ["pad_token", "eos_token", "both"])
def test_a_model_without_a_token_of_padding_or_end_answers_as_with_it(
    prompts, student, other, tmp_path, token
):
    names = ["pad_token", "eos_token"] if token == "both" else [token]
    ids = {f"{name}_id": None for name in names}
    template = "{% for m in messages %}{{ m.role + m.content }}{% endfor %}"
    with_it = other(template=template)
    without = other(
        template=template, tokenizer_config=dict.fromkeys(names), config=ids, generation_config=ids
    )  # fmt: skip
    generate(prompts, student("a.yaml", model=with_it, temperature=0), tmp_path / "a")
    generate(prompts, student("b.yaml", model=without, temperature=0), tmp_path / "b")
    ended = json.loads((tmp_path / "b" / "generation.json").read_text())["ended"]
    if token == "pad_token":
        assert outputs(tmp_path / "a") == outputs(tmp_path / "b")
    else:
        assert ended == {"length": COUNT}
