"""Several data sets as one, columns of other names, and streams: on real files, without a model."""

import itertools
import json
from collections import Counter

import pytest
from datasets import ClassLabel, Dataset, Features

from sp2dpo.training.config import PairDPOConfig
from sp2dpo.training.data import DataConfig, load_data
from sp2dpo.training.rows import SOURCE
from sp2dpo.training.sources import SourceConfig, map_columns, mixture_sizes
from support.training import PAIRS


@pytest.fixture(autouse=True)
def state():
    """The state of accelerate, which its logger needs."""
    PairDPOConfig(output_dir="unused", bf16=False)


@pytest.fixture
def write(tmp_path):
    """Writes the rows of a data set to a folder or a Parquet file; its path."""

    def write(name, rows, **columns):
        features = (
            {"category": ClassLabel(names=columns.pop("names"))} if "names" in columns else {}
        )
        path = tmp_path / name
        data = Dataset.from_dict(rows | columns)
        data = data.cast(Features(data.features | features)) if features else data
        if path.suffix != ".parquet":
            path.mkdir()
        data.to_parquet(path if path.suffix == ".parquet" else path / "train.parquet")
        return str(path)

    return write


def numbered(count, start=0, **names):
    """So many pairs, their columns under other names."""
    texts = [str(number) for number in range(start, start + count)]
    return {
        names.get("prompt", "prompt"): [f"question {text}" for text in texts],
        names.get("chosen", "chosen"): [f"good {text}" for text in texts],
        names.get("rejected", "rejected"): [f"bad {text}" for text in texts],
    }


def mixture(*entries, **settings):
    return load_data(DataConfig(datasets=list(entries), **settings))


def test_shares_are_exact_and_no_row_is_repeated():
    # 100 rows at a share of 3/4 allow 133 rows in all, and 33 of the other 1000.
    assert mixture_sizes([100, 1000], [3, 1]) == [100, 33]
    assert mixture_sizes([10, 10, 10], [0.5, 0.25, 0.25]) == [10, 5, 5]
    assert mixture_sizes([1, 100000], [0.001, 0.999]) == [1, 999]
    assert mixture_sizes([5, 100], [1000, 1]) == [5, 1]


def test_each_data_set_of_a_mixture_has_its_own_columns_and_constants(write):
    names = {"prompt": "question", "chosen": "better", "rejected": "worse"}
    first = write("first", numbered(4), beta=[0.1, 0.2, 0.3, 0.4], other=[1] * 4)
    second = write("second", numbered(2, 10, **names), strength=[1, 2])
    third = write("third", numbered(3, 20))
    rows = mixture(
        first,
        {"path": second, "columns": names | {"beta": "strength"}},
        {"path": third, "constants": {"beta": 0.5}},
    )
    assert rows.train["beta"][:] == [0.1, 0.2, 0.3, 0.4, 1.0, 2.0, 0.5, 0.5, 0.5]
    assert rows.train["prompt"][4:6] == ["question 10", "question 11"]
    assert rows.train[SOURCE][:] == ["first"] * 4 + ["second"] * 2 + ["third"] * 3
    assert "other" not in rows.train.column_names
    assert rows.available == 9


def test_weights_choose_the_same_random_rows_every_time(write):
    paths = [write("a", numbered(40)), write("b", numbered(100, 100))]
    entries = [{"path": paths[0], "weight": 1}, {"path": paths[1], "fraction": 1}]
    first, again = mixture(*entries), mixture(*entries)
    assert Counter(first.train[SOURCE]) == {"a": 40, "b": 40}
    assert first.train["prompt"][:] == again.train["prompt"][:]
    assert first.train["prompt"][40:] != [f"question {n}" for n in range(100, 140)]
    other = mixture(*entries, mixture_seed=1)
    assert other.train["prompt"][:] != first.train["prompt"][:]
    assert [(part.available, part.train) for part in first.sources] == [(40, 40), (100, 40)]


def test_held_out_prompts_are_mixed_with_the_same_shares(write):
    paths = [write("a", numbered(200)), write("b", numbered(400, 1000))]
    rows = mixture(*({"path": path, "weight": 1} for path in paths), held_out=0.25)
    train, test = (Counter(part[SOURCE]) for part in (rows.train, rows.test))
    assert train["a"] == train["b"]
    assert abs(test["a"] - test["b"]) < 0.25 * test["a"]
    assert not set(rows.train["prompt"]) & set(rows.test["prompt"])
    whole = load_data(DataConfig(dataset=paths[1], held_out=0.25))
    assert set(rows.test["prompt"]) - set(whole.test["prompt"]) <= {
        f"question {n}" for n in range(200)
    }


def test_a_small_data_set_of_a_mixture_may_have_no_prompt_that_is_held_out(write):
    small, large = write("small", numbered(1)), write("large", numbered(100, 1000))
    rows = mixture(small, large, held_out=0.1)
    assert Counter(rows.train[SOURCE])["small"] == 1
    assert set(rows.test[SOURCE]) == {"large"}
    with pytest.raises(ValueError, match="holds out no pair"):
        mixture(small, small, held_out=0.0001)


def test_marks_act_before_weights_are_applied(write):
    first = write("a", numbered(10), beta=[0.1] * 10, keep=[True] * 6 + [False] * 4)
    second = write("b", numbered(10, 100), beta=[0.1] * 10)
    rows = mixture({"path": first, "weight": 1}, {"path": second, "weight": 1})
    assert Counter(rows.train[SOURCE]) == {"a": 6, "b": 6}
    assert rows.marks.left_out == 4


def test_messages_with_other_keys_and_categories_with_other_names_fit_together(write):
    def turns(*keys):
        turn = {"role": "user", "content": "x", "name": "me"}
        turns = [[{key: turn[key] for key in keys}]]
        return dict.fromkeys(("prompt", "chosen", "rejected"), turns)

    first = write("a.parquet", turns("role", "content"), category=[0], names=["math", "code"])
    second = write(
        "b.parquet", turns("content", "role", "name"), category=[1], names=["chat", "math"]
    )
    rows = mixture(first, second).train
    assert rows["prompt"][0] == [{"role": "user", "content": "x", "name": None}]
    category = rows.features["category"]
    assert [category.int2str(number) for number in rows["category"]] == ["math", "math"]
    stream = mixture(
        *({"path": path, "weight": 1} for path in (first, second)), streaming=True
    ).train
    assert stream.features["category"] == category
    assert next(iter(stream))["category"] == 0


@pytest.mark.parametrize("value", [True, "0.1"])
def test_a_column_that_is_no_number_is_refused_in_a_mixture_as_alone(write, value):
    first = write("a", {"prompt": ["x"], "chosen": ["y"], "rejected": ["z"]}, beta=[0.1])
    second = write("b", {"prompt": ["x"], "chosen": ["y"], "rejected": ["z"]}, beta=[value])
    with pytest.raises(ValueError, match=r"the column beta of b has the type (bool|text), which"):
        mixture(first, second)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"path": "a", "colums": {}}], "unknown key colums of a, did you mean 'columns'?"),
        ([{"columns": {}}], "an entry has no path"),
        ([{"path": "a", "weight": 0}], "weight must be a number above 0, not 0"),
        ([{"path": "a", "weight": 1}, {"path": "b"}], "a weight for every data set, or for none"),
        ([{"path": "a", "columns": {"promt": "x"}}], "uses no promt, did you mean 'prompt'?"),
        ([{"path": "a", "columns": {"question": "prompt"}}], "did you mean prompt: question?"),
        ([{"path": "a", "columns": {"chosen": "x", "rejected": "x"}}], "columns names x twice"),
        ([{"path": "a", "constants": {"beta": -1}}], "the constant beta is -1, not of the finite"),
        ([{"path": "a", "constants": {"bta": 1}}], "did you mean 'beta'?"),
        ([{"path": "a", "weight": 1, "fraction": 1}], "weight and fraction are the same setting"),
    ],
)
def test_a_wrong_mixture_is_refused_before_anything_is_read(entries, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        DataConfig(datasets=entries)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": "a", "datasets": ["b"]}, "dataset and datasets exclude each other"),
        ({"datasets": ["b"], "columns": "prompt=x"}, "columns belongs to dataset"),
        ({"dataset": "a", "streaming": True, "held_out": 0.1}, "held_out needs all rows"),
        ({"datasets": ["a", "b"], "streaming": True}, "needs a weight for every data set"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**settings)


def test_a_column_that_does_not_exist_is_named_with_those_that_do(write):
    folder = write("a", numbered(2, prompt="question"))
    with pytest.raises(ValueError, match=r"a has no column queston \(it has question, chosen,"):
        load_data(DataConfig(dataset=folder, columns={"prompt": "queston"}))
    other = write("b", numbered(2))
    with pytest.raises(ValueError, match=r"a has no column prompt .* map one to it by columns"):
        mixture(folder, other)
    third = write("c", numbered(2), beta=[0.1, 0.1])
    with pytest.raises(ValueError, match=r"b has no column beta .* constants: {beta: \.\.\.}"):
        load_data(DataConfig(datasets=[third, other]), needed=["beta"])


def test_columns_replace_those_of_the_same_name_and_may_exchange_theirs():
    rows = Dataset.from_dict(
        {"prompt": ["p"], "question": ["q"], "chosen": ["c"], "rejected": ["r"]}
    )
    mapped = map_columns(rows, {"prompt": "question"}, "x")
    assert mapped.to_dict() == {"prompt": ["q"], "chosen": ["c"], "rejected": ["r"]}
    turned = map_columns(rows, {"chosen": "rejected", "rejected": "chosen"}, "x")
    assert (turned["chosen"][0], turned["rejected"][0]) == ("r", "c")
    assert map_columns(rows, ["prompt", "chosen"], "x").column_names == ["prompt", "chosen"]


def test_columns_of_the_command_line_and_of_trl_are_read():
    config = DataConfig(dataset="a", columns="prompt=question,beta=my beta")
    assert config.columns == {"prompt": "question", "beta": "my beta"}
    assert SourceConfig.parse({"path": "a", "columns": ["prompt"]}).columns == ["prompt"]


@pytest.mark.parametrize("form", ["jsonl", "parquet", "folder"])
def test_a_stream_has_the_rows_of_the_file_in_its_order_without_a_buffer(
    tmp_path, write, form, monkeypatch
):
    # The stream of a folder of Parquet files sleeps so many seconds at its end.
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1, raising=False)
    rows = PAIRS | {"beta": [0.1] * 8, "keep": [True] * 7 + [False], "flip": [True] + [False] * 7}
    path = tmp_path / f"pairs.{form}"
    if form == "jsonl":
        lines = [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    elif form == "parquet":
        Dataset.from_dict(rows).to_parquet(path)
    else:
        path = write("folder", rows)
    config = {"dataset": str(path), "columns": {"prompt": "prompt"}, "streaming": True}
    stream = load_data(DataConfig(**config, shuffle_buffer=0)).train
    read = list(stream)
    assert [row["prompt"] for row in read] == PAIRS["prompt"][:7]
    assert (read[0]["chosen"], read[0]["rejected"]) == ("x", "one two")
    assert "keep" not in read[0]
    shuffled = load_data(DataConfig(**config)).train
    assert sorted(row["prompt"] for row in shuffled) == sorted(PAIRS["prompt"][:7])


def test_a_mixed_stream_has_the_weights_and_ends_with_the_first_data_set(write):
    # Files, because the stream of a folder of Parquet files sleeps 5 seconds at its end.
    first = write("a.parquet", numbered(300), beta=[1] * 300)
    paths = [first, write("b.parquet", numbered(3000, 1000))]
    entries = [
        {"path": paths[0], "weight": 1},
        {"path": paths[1], "weight": 3, "constants": {"beta": 0.2}},
    ]
    stream = mixture(*entries, streaming=True)
    assert (stream.available, stream.marks) == (None, None)
    read = list(stream.train)
    counts = Counter(row[SOURCE] for row in read)
    assert counts["a.parquet"] == 300
    assert counts["b.parquet"] / len(read) == pytest.approx(0.75, abs=0.05)
    assert {row["beta"] for row in read if row[SOURCE] == "b.parquet"} == {0.2}
    again = mixture(*entries, streaming=True).train
    assert [row["prompt"] for row in itertools.islice(again, 50)] == [
        row["prompt"] for row in read[:50]
    ]
