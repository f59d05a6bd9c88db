"""`--columns` and `--pairs-from` on the command line, and what the commands say of a source."""

import json

import pytest

import sp2dpo
from sp2dpo.store.store import Store
from support.harness import fail, run, succeed, write_panel
from support.shapes import SHAPES, write_shape

COMMANDS = ("annotate", "export-requests", "pilot")


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def panel(tmp_path):
    """A panel of a teacher that is never asked."""
    return write_panel(tmp_path / "panel.yaml", "http://127.0.0.1:9/v1")


@pytest.fixture
def odd(tmp_path):
    """Pairs whose prompt is in a column that no shape has."""
    return write(
        tmp_path / "odd.jsonl",
        *(
            {"Question": f"Which is {n}?", "good": f"Sure! {n}.", "bad": f"Sure! Not {n}."}
            for n in range(3)
        ),
    )


NAMED = "prompt=Question,chosen=good,rejected=bad"


def command(name, panel, tmp_path, *options):
    """A command that sends no request."""
    more = {
        "annotate": ("--dry-run",),
        "export-requests": ("--out", tmp_path / "requests.jsonl"),
        "pilot": ("--patience", 0),
    }[name]
    store = tmp_path / f"{name}.sqlite"
    return (name, "--panel", panel, "--store", store, *more, *options)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_takes_pairs_says_what_to_name(name, panel, odd, tmp_path):
    error = fail(*command(name, panel, tmp_path, "--pairs", odd))
    assert "no row holds a preference pair: missing column chosen" in error
    assert "Its columns are 'Question', 'good', 'bad'" in error
    half = ("--pairs", odd, "--columns", "chosen=good,rejected=bad")
    error = fail(*command(name, panel, tmp_path, *half))
    assert "--columns prompt=Question" in error
    error = fail(*command(name, panel, tmp_path, "--pairs", odd, "--columns", "prompt=question"))
    assert "no column 'question' for prompt, did you mean 'Question'?" in error
    wrong = ("--pairs", odd, "--columns", "promt=Question")
    error = fail(*command(name, panel, tmp_path, *wrong), code=2)
    assert "unknown role 'promt', did you mean 'prompt'?" in error


@pytest.mark.parametrize("name", COMMANDS[:2])
def test_named_columns_are_read_and_said(name, panel, odd, tmp_path):
    output = succeed(*command(name, panel, tmp_path, "--pairs", odd, "--columns", NAMED))
    assert "3 rows = 3 usable + 0 set aside; 3 distinct pairs" in output
    assert f"read with --columns {NAMED}" in output
    parts = [part for item in NAMED.split(",") for part in ("--columns", item)]
    again = succeed(*command(name, panel, tmp_path, "--pairs", odd, *parts))
    assert f"read with --columns {NAMED}" in again
    twice = fail(*command(name, panel, tmp_path, "--pairs", odd, *parts, *parts[:2]), code=2)
    assert "--columns names prompt twice" in twice
    error = fail(*command(name, panel, tmp_path, "--columns", NAMED), code=2)
    assert "give --pairs" in error


def test_a_pilot_reads_named_columns(panel, odd, tmp_path):
    options = ("--pairs", odd, "--columns", NAMED, "--n", 2)
    result = run(*command("pilot", panel, tmp_path, *options))
    assert "127.0.0.1:9" in result.stderr  # the pairs are read, and the teacher is away
    with Store(tmp_path / "pilot.sqlite") as store:
        assert len(store.corpus.pair_ids()) == 2
        assert dict(store.corpus.reading().columns)["prompt"] == "Question"


def test_a_store_remembers_the_columns(panel, odd, tmp_path):
    first = command("export-requests", panel, tmp_path, "--pairs", odd, "--columns", NAMED)
    output = succeed(*first)
    assert succeed(*first) == output
    # The mapping is a part of the store, and not of each command.
    again = command("export-requests", panel, tmp_path, "--pairs", odd)
    assert succeed(*again) == output
    assert succeed(*command("export-requests", panel, tmp_path)) == output
    other = NAMED.replace("good", "bad").replace("rejected=bad", "rejected=good")
    error = fail(*again, "--columns", other)
    assert f"was created with --columns {NAMED}, now the options are --columns {other}" in error
    assert "give the same or none, or use another --store" in error
    with Store(tmp_path / "export-requests.sqlite") as store:
        assert len(store.corpus.pair_ids()) == 3


def test_a_store_without_named_columns_gets_none_later(panel, tmp_path):
    pairs = write_shape(tmp_path / "p.jsonl", "orca", 2)
    first = command("export-requests", panel, tmp_path, "--pairs", pairs)
    assert "read as orca: system, question, chosen, rejected (2 rows)" in succeed(*first)
    error = fail(*first, "--columns", "prompt=question,system=")
    assert "was created with no --columns" in error


@pytest.mark.parametrize(("rule", "pairs"), [(None, 4), ("best-rest", 4), ("all", 6)])
def test_several_responses_give_pairs_by_a_stated_rule(panel, tmp_path, rule, pairs):
    source = write_shape(tmp_path / "p.jsonl", "ultrafeedback", 2)
    options = ("--pairs-from", rule) if rule else ()
    output = succeed(*command("annotate", panel, tmp_path, "--pairs", source, *options))
    assert f"{pairs} rows = {pairs} usable + 0 set aside" in output
    stated = "all pairs of" if rule == "all" else "the best response against each worse one"
    assert stated in output


def test_an_implicit_prompt_that_repeats_is_a_warning(panel, tmp_path):
    rows = [{"chosen": f"Sure! It is {n}.", "rejected": f"Sure! No {n}."} for n in range(4)]
    pairs = write(tmp_path / "p.jsonl", *rows)
    output = succeed(*command("annotate", panel, tmp_path, "--pairs", pairs))
    assert "4 implicit prompts" in output
    assert "WARNING: 1 of them repeats over different pairs, most often 'Sure!' (4 pairs)" in output


def test_an_empty_file_has_no_pair(panel, tmp_path):
    pairs = write(tmp_path / "p.jsonl")
    error = fail(*command("annotate", panel, tmp_path, "--pairs", pairs, "--columns", "prompt=q"))
    assert "no row holds a preference pair: it has no rows" in error


@pytest.mark.parametrize("name", SHAPES)
def test_requests_about_every_shape_hold_its_texts(panel, tmp_path, name):
    pairs = write_shape(tmp_path / "p.jsonl", name, 2)
    result = sp2dpo.export_requests(pairs, panel, tmp_path / "s.sqlite", tmp_path / "r.jsonl")
    assert result.teachers[0].all % 2 == 0
    text = (tmp_path / "r.jsonl").read_text()
    assert "Write one line about the moon, number 1." in text
    assert "I will not write about the moon, 1." in text


def test_python_takes_columns_where_it_takes_pairs(panel, odd, tmp_path):
    columns = {"prompt": "Question", "chosen": "good", "rejected": "bad"}
    for pairs in (odd, sp2dpo.open_source(str(odd))):
        store = tmp_path / f"{type(pairs).__name__}.sqlite"
        out = tmp_path / f"{type(pairs).__name__}.jsonl"
        sp2dpo.export_requests(pairs, panel, store, out, columns=columns)
        assert len(out.read_text().splitlines()) == 9
    with pytest.raises(ValueError, match="unknown role 'promt'"):
        sp2dpo.open_source(str(odd), columns={"promt": "Question"})
    with pytest.raises(ValueError, match="give the pairs too"):
        sp2dpo.export_requests(None, panel, store, out, columns=columns)
