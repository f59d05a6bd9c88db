"""Rows that cannot be trained on: the first of them, the rule and the way out, in one line."""

import gzip
import json
import logging
import math
import re
import shutil

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from sp2dpo.training.batch import check_finite
from sp2dpo.training.chat_templates import check_template
from sp2dpo.training.config import PairDPOConfig
from sp2dpo.training.model_files import context_length
from sp2dpo.training.provenance import display_name, read_split, trace_rows
from sp2dpo.training.rows import ROW, check_rows, name_row, number_rows
from support.harness import ROOT, fail, recipe
from support.training import BETAS, CHAT_TEMPLATE, conversations, launch, make, pairs, settings

pytestmark = [
    # TRL still uses the names that transformers 5.2x deprecates.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
]
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + CHAT_TEMPLATE
)
ALTERNATES = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% endfor %}"
    + CHAT_TEMPLATE
)
NO_TOOLS = "{% if tools %}{{ raise_exception('no tools here') }}{% endif %}" + CHAT_TEMPLATE
SHOWS_TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}" + CHAT_TEMPLATE
TOOLS = [{"type": "function", "function": {"name": "sky", "parameters": {"type": "object"}}}]
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "sky", "arguments": "{}"}}],
}


def turns(*messages):
    return [{"role": role, "content": content} for role, content in messages]


def row(number, **columns):
    return {
        "pair_id": f"pair-{number}",
        "prompt": turns(("user", f"say {number}")),
        "chosen": turns(("assistant", f"{number}")),
        "rejected": turns(("assistant", "no")),
    } | columns


def data(*rows):
    return Dataset.from_list(list(rows))


@pytest.fixture
def tokenizer(model_dir):
    """A tokenizer with another chat template."""

    def load(template):
        tokenizer = AutoTokenizer.from_pretrained(model_dir)
        tokenizer.chat_template = template
        return tokenizer

    return load


@pytest.mark.parametrize(
    ("template", "bad", "reason"),
    [
        (
            NO_SYSTEM,
            {"prompt": turns(("system", "Be brief."), ("user", "hi"))},
            r"with the roles system, user, assistant: System role not supported",
        ),
        (
            ALTERNATES,
            {"prompt": turns(("user", "hi"), ("user", "are you there?"))},
            "with the roles user, user, assistant: Conversation roles must alternate",
        ),
        (
            "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('tool?') }}"
            "{% endif %}" + "{{ m.content }}{% endfor %}",
            {"prompt": turns(("user", "hi"), ("tool", "42"))},
            "roles user, tool, assistant: tool[?]",
        ),
        (CHAT_TEMPLATE, {"chosen": [CALL]}, "UndefinedError: 'dict object' has no attribute"),
        (
            "{% for m in messages %}{{ m.role + m.get('content') }}{% endfor %}",
            {"chosen": [CALL]},
            "TypeError: can only concatenate str",
        ),
        (
            "{% for m in messages %}{{ m.role + m.content }}{% endfor %}",
            {"prompt": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
            "TypeError: can only concatenate str",
        ),
        (NO_TOOLS, {"tools": json.dumps(TOOLS)}, "no tools here"),
        (
            "{% for m in messages %}{{ 10 // (m.content | length) }}{% endfor %}",
            {"chosen": turns(("assistant", ""))},
            "ZeroDivisionError",
        ),
    ],
)
def test_a_template_that_refuses_a_row_names_it_and_the_reason(tokenizer, template, bad, reason):
    # Each row by itself: Arrow would give all of them the types of the bad one.
    good = [row(0), row(1)]
    rows = Rows([*good, row(2, **bad), row(3, **bad)])
    with pytest.raises(ValueError, match=reason) as refused:
        check_template(tokenizer(template), rows, "train", "org/model")
    text = str(refused.value)
    assert "of org/model refuses 2 of 4 rows of the train data set" in text
    assert "the first is row 2 (pair_id pair-2)" in text
    assert "set template_errors: drop to leave these rows out, or train a model whose" in text
    assert check_template(tokenizer(template), Rows(good), "train", "org/model") == 0


class Rows(list):
    """Rows as a data set gives them."""

    @property
    def column_names(self):
        return list(dict.fromkeys(key for row in self for key in row))

    def select_columns(self, names):
        return Rows({key: row[key] for key in names if key in row} for row in self)

    def with_format(self, kind):
        return self

    def iter(self, size):
        """One row at a time, as a batch of its columns."""
        for row in self:
            yield {key: [row.get(key)] for key in self.column_names}


def test_a_template_with_an_error_of_syntax_and_a_missing_one_are_said(tokenizer):
    rows = data(row(0))
    with pytest.raises(ValueError, match="line 1 of the template: "):
        check_template(tokenizer("{% for m in messages %}{{ m "), rows, "train", "org/model")
    with pytest.raises(ValueError, match="tokenizer of org/model has no chat template"):
        check_template(tokenizer(None), rows, "train", "org/model")
    plain = data({"prompt": "a", "chosen": "b", "rejected": "c"})
    assert check_template(tokenizer(None), plain, "train", "org/model") == 0
    no_end = tokenizer(None)
    no_end.eos_token = None
    with pytest.raises(ValueError, match="org/model has no end-of-sequence token"):
        check_template(no_end, plain, "train", "org/model")


def test_a_template_is_rendered_once_for_rows_that_are_alike(tokenizer):
    rendered = []

    class Counting:
        chat_template, eos_token = CHAT_TEMPLATE, "<eos>"

        def apply_chat_template(self, chat, **options):
            rendered.append(chat)
            return ""

    rows = data(*(row(number) for number in range(50)), row(50, prompt=turns(("system", "x"))))
    check_template(Counting(), rows, "train", "org/model")
    assert len(rendered) == 2 * 3


def test_tools_that_a_template_ignores_are_counted_and_those_it_shows_are_not(tokenizer):
    rows = check_rows(
        data(row(0, tools=json.dumps(TOOLS)), row(1, tools="[]"), row(2, tools=json.dumps(TOOLS))),
        "train",
    )
    assert check_template(tokenizer(CHAT_TEMPLATE), rows, "train", "org/model") == 2
    assert check_template(tokenizer(SHOWS_TOOLS), rows, "train", "org/model") == 0


@pytest.mark.parametrize("none", ["", "[]", None])
def test_tools_as_text_and_as_a_list_are_the_same_text(none):
    other = [{"type": "function", "function": {"name": "sea", "strict": True}}]
    as_text = check_rows(
        data(row(0, tools=json.dumps(TOOLS)), row(1, tools=none), row(2, tools=json.dumps(other))),
        "train",
    )
    as_list = check_rows(data(row(0, tools=TOOLS), row(1, tools=[]), row(2, tools=other)), "train")
    assert as_text["tools"][:] == as_list["tools"][:]
    assert [text and json.loads(text) for text in as_text["tools"]] == [TOOLS, None, other]


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ("[{", r"the tools of row 0 \(pair_id pair-0\) of the train data set are not JSON"),
        ('{"name": "sky"}', "are not a list of objects"),
        ('["sky"]', "are not a list of objects"),
        ("7", "are not a list of objects"),
    ],
)
def test_tools_that_are_no_list_of_objects_are_refused(tools, message):
    with pytest.raises(ValueError, match=message):
        check_rows(data(row(0, tools=tools)), "train")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(0), row(1, rejected=None)], r"1 of 2 rows .* \(rejected is empty\), .* row 1 "),
        ([row(0, prompt=[])], "prompt is empty"),
        ([row(0, prompt="hi")], "prompt is text, chosen is a conversation"),
        (
            [row(0, chosen=[{"from": "gpt", "value": "x"}])],
            "chosen is neither text nor a list of messages with a role",
        ),
        (
            [row(0, chosen=[*row(0)["prompt"], *row(0)["chosen"]],
                 rejected=[*row(0)["prompt"], *row(0)["rejected"]])],
            "chosen and rejected repeat the prompt",
        ),
        (
            [{"prompt": "a b", "chosen": "a b c", "rejected": "a b d"}],
            "chosen and rejected repeat the prompt",
        ),
        ([row(0, images=[]), row(1, images=["https://x/y.png"])], "1 of 2 rows .* have images"),
        ([row(0, video="x.mp4")], "have video, the first is row 0"),
        (
            [row(0, prompt=[{"role": "user", "content": [{"type": "image_url", "url": "x"}]}])],
            "prompt holds images or videos",
        ),
        ([{"prompt": "a", "response_0": "b", "response_1": "c"}], "has no column chosen"),
    ],
)  # fmt: skip
def test_texts_that_cannot_be_trained_on_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        check_rows(data(*rows), "train")


def test_a_column_of_no_images_is_removed_because_trl_would_take_it_for_some():
    assert "images" not in check_rows(data(row(0, images=None), row(1)), "train").column_names


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"question": "Which city is it?"}, "in question: .* prompt=question`"),
        (
            {"system": "You answer in one line.", "question": "Which city is it?"},
            "in system, question: .* prompt=question`",
        ),
        ({"Instruction": "Name it.", "note": "x"}, "in Instruction: "),
        ({"ask": "Which city is it?"}, "in ask: "),
        ({"messages": turns(("user", "Which city is it?"))}, "in messages: "),
    ],
)
def test_no_prompt_is_taken_from_the_responses_where_a_column_may_hold_it(columns, named):
    texts = {"chosen": "Sure! It is 1.", "rejected": "Sure! I cannot say."}
    with pytest.raises(ValueError, match=f"the prompt of 2 of 2 rows .* of row 0 .* {named}"):
        check_rows(data(columns | texts, columns | texts), "train")


def test_conversations_that_begin_with_the_column_have_no_other_prompt(tmp_path):
    PairDPOConfig(**settings(tmp_path))  # accelerate logs once it has a state
    talks = {side: turns(("user", "Why?"), ("assistant", side)) for side in ("chosen", "rejected")}
    agrees = data({"instruction": "Why?", "messages": talks["chosen"]} | talks)
    assert check_rows(agrees, "train") is agrees
    with pytest.raises(ValueError, match=r"may be in another column, of row 0 .* in instruction:"):
        check_rows(data({"instruction": "Who?"} | talks), "train")
    with pytest.raises(ValueError, match=r"chosen and rejected of row 0 .* share no beginning"):
        check_rows(data({"chosen": "a b", "rejected": "c d"}), "train")


def test_prompts_that_nobody_wrote_are_counted_where_they_repeat(tmp_path, caplog):
    PairDPOConfig(**settings(tmp_path))  # accelerate logs once it has a state
    texts = [{"chosen": f"Sure! It is {n}.", "rejected": f"Sure! No, {n}."} for n in "abc"]
    with caplog.at_level(logging.WARNING):
        check_rows(data(*texts), "train")
    assert "is the prompt of 3 rows; it is 'Sure!' in 3 of them" in caplog.text


def test_a_shared_beginning_is_the_prompt_where_nothing_else_can_be(model_dir, tmp_path):
    both = [*turns(("user", "Why?"))]
    talks = {"chosen": [*both, *turns(("assistant", "so"))],
             "rejected": [*both, *turns(("assistant", "no"))]}  # fmt: skip
    trainer = make(model_dir, tmp_path, data(talks), pair_columns=[])
    assert trainer.train_dataset["prompt"][0] == both


def test_a_row_is_named_by_its_number_before_a_selection_its_id_or_its_text():
    rows = number_rows(data(*(row(number) for number in range(9)))).select([7])
    assert name_row(rows[0], 0) == "row 7 (pair_id pair-7)"
    assert name_row({ROW: 3, "prompt": turns(("system", "x"), ("user", "say\n3"))}, 0) == (
        'row 3 ("say 3")'
    )
    assert name_row({"prompt": "p" * 99}, 5) == f'row 5 ("{"p" * 40}...")'
    assert name_row({"chosen": None}, 5) == "row 5"


def test_a_limit_of_the_length_that_leaves_nothing_is_said(model_dir, tmp_path, caplog):
    rows = Dataset.from_dict(conversations(beta=BETAS))
    with pytest.raises(ValueError, match=r"no row of the train data set is left, .* max_length 16"):
        make(model_dir, tmp_path, rows, max_length=16)
    with pytest.raises(ValueError, match="no row of the eval data set is left"):
        make(model_dir, tmp_path, rows, max_length=48, eval_dataset=Dataset.from_dict({
            name: [long * 9 if name == "prompt" else long for long in rows[name][:]]
            for name in rows.column_names
        }))  # fmt: skip
    with caplog.at_level(logging.WARNING):
        longer = [*rows["prompt"][:7], turns(("user", "x" * 99))]
        some = Dataset.from_dict(conversations(beta=BETAS) | {"prompt": longer})
        assert len(make(model_dir, tmp_path, some, max_length=64).train_dataset) == 7
    assert (
        "max_length 64 cuts 1 of 8 pairs at their end (12.5 %), of which 1 are dropped"
        in caplog.text
    )


def test_a_sequence_longer_than_the_context_is_named(model_dir, tmp_path):
    rows = data(row(0), row(1, chosen=turns(("assistant", "x" * 300))))
    with pytest.raises(ValueError, match=r"row 1 \(pair_id pair-1\) .* has 3\d\d tokens") as error:
        make(model_dir, tmp_path, rows, pair_columns=[], max_length=None)
    assert "context has 256: set max_length to 256 or less" in str(error.value)
    assert len(make(model_dir, tmp_path, rows, pair_columns=[], max_length=256).train_dataset) == 2


def test_a_response_that_the_template_leaves_out_is_named(model_dir, tmp_path):
    model = shutil.copytree(model_dir, tmp_path / "model")
    only_users = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    (model / "chat_template.jinja").write_text(only_users)
    with pytest.raises(ValueError, match=r"chosen of row 0 \(pair_id pair-0\) .* has no tokens"):
        make(str(model), tmp_path, data(row(0), row(1)), pair_columns=[])


def test_a_context_is_that_after_scaling():
    class Config:
        def __init__(self, **values):
            vars(self).update(values)

        def get_text_config(self):
            return self

    assert context_length(Config()) is None
    assert context_length(Config(max_position_embeddings=2048)) == 2048
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    for rope in ({"rope_scaling": yarn}, {"rope_parameters": yarn}):
        assert context_length(Config(max_position_embeddings=32768, **rope)) == 131072


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_ends_the_run_with_its_step(loss):
    with pytest.raises(FloatingPointError, match="log-probabilities are not finite; lower"):
        check_finite(loss, "of step 3", margin=math.nan, loss_types=["sigmoid"])
    with pytest.raises(FloatingPointError, match=f"of step 3 is {loss}: loss_type ipo, hinge is"):
        check_finite(loss, "of step 3", margin=1.0, loss_types=["ipo", "hinge"])
    check_finite(1e30, "of step 3", margin=1.0, loss_types=["ipo"])


@pytest.mark.parametrize("columns", [[], ["beta"], ["beta", "weight"]])
def test_a_model_that_diverges_is_not_trained_on(model_dir, tmp_path, columns):
    rows = pairs(beta=BETAS, weight=[1.0] * 8)
    trainer = make(model_dir, tmp_path, rows, pair_columns=columns)
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(math.nan)
    with pytest.raises(FloatingPointError, match="the loss of step 1 is nan: the model's log-prob"):
        trainer.train()


def test_a_beta_too_small_for_its_loss_is_named(model_dir, tmp_path):
    tiny = pairs(beta=[1.2e-38, *BETAS[1:]])
    trainer = make(
        model_dir, tmp_path, tiny, loss_type=["ipo"], per_device_train_batch_size=8,
    )  # fmt: skip
    with pytest.raises(FloatingPointError, match="of step 1 is inf: loss_type ipo is out of"):
        trainer.train()


@pytest.fixture(scope="module")
def no_system(model_dir, tmp_path_factory):
    """A model without a system role, and a data set in which one row has a system turn."""
    folder = tmp_path_factory.mktemp("no-system")
    shutil.copytree(model_dir, folder / "model")
    (folder / "model" / "chat_template.jinja").write_text(NO_SYSTEM)
    (folder / "data").mkdir()
    rows = [row(number) for number in range(8)]
    rows[5]["prompt"] = turns(("system", "Be brief."), ("user", "say 5"))
    data(*rows).to_parquet(folder / "data" / "train.parquet")
    return folder


def words(folder, out, **options):
    keys = {
        "model_name_or_path": folder / "model", "dataset": folder / "data", "output_dir": out,
        "use_cpu": "true", "max_steps": 1,
    } | options  # fmt: skip
    return [str(word) for key, value in keys.items() for word in (f"--{key}", value)]


@pytest.mark.parametrize("name", ["train", "reward"])
def test_a_recipe_says_it_in_one_line_before_the_weights_are_read(
    no_system, tmp_path, capsys, name
):
    folder = shutil.copytree(no_system, tmp_path / "copy")
    (folder / "model" / "model.safetensors").unlink()
    config = {"train": "dpo", "reward": "reward"}[name]
    with pytest.raises(SystemExit) as stopped:
        recipe(name).main([
            "--config", str(ROOT / "recipes" / config / "tiny-demo.yaml"),
            *words(folder, tmp_path / "out", eval_strategy="no"),
            *(["--held_out", "0", "--pair_columns"] if name == "train" else []),
        ])  # fmt: skip
    assert stopped.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{name}.py: the chat template of ")
    assert "1 of 8 rows of the train data set, the first is row 5 (pair_id pair-5)" in line
    assert not (tmp_path / "out" / "results.json").exists()


def test_rows_that_the_template_refuses_are_dropped_where_a_setting_says_so(
    no_system, tmp_path, caplog
):
    words_of_run = words(no_system, tmp_path / "out", eval_strategy="no", template_errors="drop")
    recipe("train").main([
        "--config", str(ROOT / "recipes" / "dpo" / "tiny-demo.yaml"), *words_of_run,
        "--held_out", "0", "--max_length", "128", "--pair_columns",
    ])  # fmt: skip
    counts = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]["train"]
    assert (counts["available"], counts["refused"], counts["used"]) == (8, 1, 7)
    assert "1 of 8 rows are dropped, which the chat template of" in caplog.text
    assert "row 5 (pair_id pair-5), with the roles system, user, assistant" in caplog.text


def test_rows_that_the_template_refuses_can_not_all_be_dropped(model_dir, tmp_path):
    model = shutil.copytree(model_dir, tmp_path / "model")
    (model / "chat_template.jinja").write_text("{{ raise_exception('never') }}")
    with pytest.raises(ValueError, match=r"refuses all 2 rows of the train data set, .* never; "):
        make(
            str(model), tmp_path, data(row(0), row(1)), pair_columns=[], template_errors="drop"
        )  # fmt: skip
    with pytest.raises(ValueError, match="template_errors: 'skip' is not one of error, drop"):
        PairDPOConfig(**settings(tmp_path, template_errors="skip"))


def test_held_out_rows_keep_their_numbers(no_system, tmp_path, capsys):
    with pytest.raises(SystemExit):
        recipe("train").main([
            "--config", str(ROOT / "recipes" / "dpo" / "tiny-demo.yaml"),
            *words(no_system, tmp_path / "out", held_out=0.5), "--pair_columns",
        ])  # fmt: skip
    assert "row 5 (pair_id pair-5)" in capsys.readouterr().err


def test_score_says_it_in_one_line(no_system, tmp_path):
    error = fail(
        "score", "--data", no_system / "data", "--model", no_system / "model", "--max-length", 128,
        "--device", "cpu", "--out", tmp_path / "scores.parquet",
    )  # fmt: skip
    (line,) = error.strip().splitlines()
    assert "refuses 1 of 8 rows of the data data set, the first is row 5 (pair_id pair-5)" in line
    assert "System role not supported" in line


@pytest.mark.slow
def test_two_processes_end_with_one_message(no_system, tmp_path):
    result = launch(
        "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        ROOT / "recipes" / "train.py", "--config", ROOT / "recipes" / "dpo" / "tiny-demo.yaml",
        *words(no_system, tmp_path / "out", held_out=0, eval_strategy="no"), "--pair_columns",
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.count("System role not supported") == 1
    # The launcher adds its own traceback after the message.
    assert "Traceback" not in result.stderr.split("train.py: the chat template")[0]


@pytest.mark.parametrize("name", ["a.jsonl", "[v1] 100% ä.jsonl", "b.jsonl.gz", "c.parquet"])
def test_rows_of_a_file_are_those_of_a_folder(tmp_path, name):
    rows = [row(number, beta=0.1 + number) for number in range(3)] + [row(3, beta=None, more="x")]
    path = tmp_path / name
    text = "".join(json.dumps(each) + "\n" for each in rows).encode()
    if name.endswith(".parquet"):
        data(*[{"more": None} | each for each in rows]).to_parquet(path)
    else:
        path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    read = read_split(str(path), "train", None)
    assert read["beta"][:] == [0.1, 1.1, 2.1, None]
    assert read["more"][:] == [None, None, None, "x"]
    assert read["chosen"][0] == rows[0]["chosen"]
    origin = trace_rows(str(path), "main", read, ["beta"])
    assert (origin.dataset, origin.revision, origin.schedule) == (name, None, None)
    assert display_name(str(path)) == name
    with pytest.raises(ValueError, match="its only split is train, not test"):
        read_split(str(path), "test", None)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"a": 1}\n{"a"\n', "line 2 is not JSON"),
        ("a.jsonl", '{"a": 1}\n{"a": {"b": 2}}\n', "no common type"),
        ("a.jsonl", '{"a": 1, "a": 2}\n', "has the key 'a' twice"),
        ("a.csv", "a,b\n1,2\n", "rows are read from .jsonl, .jsonl.gz and .parquet files"),
        ("a.parquet", "no Parquet", "a.parquet cannot be read"),
    ],
)
def test_a_file_that_is_not_readable_is_one_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_split(str(tmp_path / name), "train", None)


def test_an_empty_data_set_is_refused_whether_it_is_a_file_or_a_folder(tmp_path):
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(ValueError, match="has no rows: choose another data set or split"):
        read_split(str(tmp_path), "train", None)
    empty = read_split(str(tmp_path / "train.jsonl"), "train", None)
    with pytest.raises(ValueError, match="the train data set has no rows: choose another"):
        check_rows(empty, "train")
