"""YAML that people write: what is wrong is named with file, key and value."""

import re
from typing import Annotated, Any

import pytest
from pydantic import Field

from sp2dpo.betas.arms import load_arm
from sp2dpo.evaluation.models import load_judge, load_student
from sp2dpo.inference.endpoint import SamplingConfig
from sp2dpo.panel.panel import load_panel
from sp2dpo.replacement import atomic_write
from sp2dpo.settings import (
    NAME,
    AsWritten,
    Settings,
    check_keys,
    check_type,
    did_you_mean,
    json_schema,
    number,
    one_of,
    validate,
)
from sp2dpo.yaml_files import read_yaml, read_yaml_file


@pytest.fixture
def written(tmp_path):
    """Writes a YAML file."""

    def write(text):
        path = tmp_path / "panel.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def error_of(path):
    with pytest.raises(ValueError, match=r"panel\.yaml: ") as refused:
        read_yaml(path)
    message = str(refused.value)
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_a_mapping_is_read_as_yaml_reads_it(written):
    path = written("a: 1\nb: [x, é]\nc: {d: null, e: 5e-7}\n# comment\nf: 2.0e-7\n")
    assert read_yaml(path) == {"a": 1, "b": ["x", "é"], "c": {"d": None, "e": "5e-7"}, "f": 2e-7}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "nothing"),
        ("- a\n", "a list"),
        ("word", "text"),
        ("# only this", "nothing"),
        ("7", "a whole number"),
        ("0.5", "a number"),
        ("yes", "true or false"),
    ],
)
def test_a_file_that_holds_no_mapping_is_refused(written, text, kind):
    assert error_of(written(text)) == f"expected keys and values, not {kind}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1, 2\nb: 3\n", "not valid YAML (line 2, column 2)"),
        ("a: b: c\n", "not valid YAML (line 1, column 5)"),
        ("a: 1\n---\nb: 2\n", "not valid YAML (line 2, column 1)"),
        ("a: *gone\n", "not valid YAML (line 1, column 4)"),
        ("a: !!python/object/apply:os.getcwd []\n", "not valid YAML (line 1, column 4)"),
        ("? [1, 2]\n: 3\n", "not valid YAML (line 1, column 3)"),
        ("\ta: 1\n", "not valid YAML (line 1, column 1)"),
        ("a: \x00\n", "not valid YAML: "),
        (b"a: \xff\n", "not valid YAML: "),
        ("a: 2026-13-45\n", "not valid YAML: month must be in 1..12"),
        (
            "a: " + "9" * 5000,
            "not valid YAML (line 1, column 4): a number of more than 100 characters",
        ),
    ],
)
def test_what_is_not_yaml_is_named_with_its_place(written, text, expected):
    assert error_of(written(text)).startswith(expected)


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "a"),
        ("x:\n  a: 1\n  a: 1\n", 3, "a"),
        ("x: [{a: 1, a: 2}]\n", 1, "a"),
        ("a: 1\n'a': 2\n", 2, "a"),
        ("no: 1\nfalse: 2\n", 2, "False"),
        ("1: a\n0x1: b\n", 2, "1"),
    ],
)
def test_a_key_that_stands_twice_is_refused_at_its_second_place(written, text, line, key):
    error = error_of(written(text))
    assert error.startswith(f"not valid YAML (line {line}, ")
    assert error.endswith(f"key {key} is written twice")


def test_one_key_may_stand_in_two_mappings(written):
    assert read_yaml(written("a: {b: 1}\nc: {b: 2}\n")) == {"a": {"b": 1}, "c": {"b": 2}}


def test_merged_keys_give_way_to_what_is_written_beside_them(written):
    path = written("base: &base {a: 1, b: 2}\nmine:\n  <<: *base\n  b: 3\n")
    assert read_yaml(path)["mine"] == {"a": 1, "b": 3}
    error = error_of(written("base: &base {a: 1}\nmine:\n  <<: *base\n  b: 3\n  b: 4\n"))
    assert error == "not valid YAML (line 5, column 3): key b is written twice"


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_yaml(tmp_path / "panel.yaml")


def test_all_wrong_keys_are_named_at_once_with_what_was_meant():
    mapping = {"teachrs": [], "variants": [], "rubik": "x", 7: 0, False: 1}
    with pytest.raises(ValueError, match=r"^p\.yaml: ") as refused:
        check_keys(
            "p.yaml", mapping, required=("rubric", "variants", "teachers"), optional=("note",)
        )
    assert str(refused.value) == (
        "p.yaml: unknown key 'teachrs', did you mean 'teachers'?; "
        "unknown key 'rubik', did you mean 'rubric'?; unknown key 7; unknown key False; "
        "missing key 'rubric'; missing key 'teachers' (known: rubric, variants, teachers, note)"
    )


def test_the_right_keys_pass_with_and_without_the_optional_ones():
    for mapping in ({"a": 1}, {"a": None, "b": 2}):
        check_keys("x", mapping, required=("a",), optional=("b",))
    with pytest.raises(ValueError, match="missing key 'a'"):
        check_keys("x", {"b": 2}, required=("a",), optional=("b",))


def test_a_key_that_is_required_of_some_and_optional_to_others_is_listed_once():
    with pytest.raises(ValueError, match=r"\(known: a, b\)$"):
        check_keys("x", {"c": 1}, required=("a",), optional=("a", "b"))


def test_a_hint_is_given_only_where_a_word_is_near():
    assert did_you_mean("temprature", ["temperature", "top_p"]) == ", did you mean 'temperature'?"
    assert did_you_mean("banana", ["temperature", "top_p"]) == ""
    assert did_you_mean(None, ["temperature"]) == ""


@pytest.mark.parametrize(
    ("value", "kind", "names"),
    [
        ("3", int, "a whole number"),
        (True, int, "a whole number"),
        (False, (int, float), "a number"),
        (3.0, int, "a whole number"),
        (None, str, "text"),
        (1, bool, "true or false"),
        ([], dict, "keys and values"),
        ("a", list, "a list"),
        ("5e-7", (int, float), "a number"),
        (7, (str, type(None)), "text or nothing"),
        ("x", (int, float, type(None)), "a number or nothing"),
    ],
)
def test_a_value_of_another_type_is_refused_as_it_stands(value, kind, names):
    with pytest.raises(ValueError, match=r"^p\.yaml: ") as refused:
        check_type("p.yaml", "seed", value, kind)
    assert str(refused.value) == f"p.yaml: seed must be {names}, not {value!r}"


@pytest.mark.parametrize(
    ("value", "kind"), [(3, int), (3, (int, float)), (True, bool), (None, (str, type(None)))]
)
def test_a_value_of_its_type_passes(value, kind):
    assert check_type("p.yaml", "seed", value, kind) is None


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "out.txt"
    with atomic_write(path) as unfinished:
        unfinished.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"

    def break_off():
        with atomic_write(path) as unfinished:
            unfinished.write_text("half of")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert path.read_text() == "first"
    assert [file.name for file in tmp_path.iterdir()] == ["out.txt"]


def test_a_file_in_no_folder_is_refused_before_anything_is_written(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match="there is no folder"),
        atomic_write(tmp_path / "a" / "b"),
    ):
        pass


def test_what_cannot_be_written_is_named_with_its_folder_and_not_as_a_temporary_file(tmp_path):
    path = tmp_path / ("x" * 256)
    with pytest.raises(OSError, match="too long") as refused, atomic_write(path) as unfinished:
        unfinished.write_text("never")
    assert refused.value.filename == str(path)
    assert refused.value.strerror == f"File name too long (in the folder {tmp_path})"
    assert "unfinished" not in str(refused.value)


def test_an_error_about_another_file_is_left_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError) as refused, atomic_write(tmp_path / "out.txt"):
        (tmp_path / "input.txt").read_text()
    assert refused.value.filename == str(tmp_path / "input.txt")
    assert list(tmp_path.iterdir()) == []


class Oven(Settings):
    """An oven."""

    heat: Annotated[float, number(above=0, most=300)]
    """Degrees."""
    fan: bool = False
    note: str | None = None


class Kitchen(Settings):
    """A kitchen."""

    name: Annotated[str, NAME]
    size: Annotated[str, one_of(("small", "large"))] = "small"
    ovens: list[Oven] = Field(default_factory=list)
    by_room: dict[Annotated[str, NAME], Oven] = Field(default_factory=dict)
    spare: Annotated[dict[str, Any], AsWritten(Oven)] = Field(default_factory=dict)


def kitchen(path):
    source = read_yaml_file(path)
    return validate(Kitchen, source.values, where=str(path), source=source)


def test_a_valid_file_is_read_without_converting_a_value(written):
    oven = kitchen(written("name: x\novens: [{heat: 200}, {heat: 200.0, fan: true}]\n")).ovens
    assert [repr(item.heat) for item in oven] == ["200", "200.0"]
    spare = kitchen(written("name: x\nspare: {fan: true, heat: 7}\n")).spare
    assert list(spare.items()) == [("fan", True), ("heat", 7)]


def test_all_problems_of_a_file_are_one_error_with_their_lines_and_keys(written):
    path = written(
        "# a comment\n"
        "name: 7\n"
        "sise: large\n"
        "size: huge\n"
        "ovens:\n"
        "  - heat: '200'\n"
        "    fan: 1\n"
        "  - {fan: no,\n"
        "     note: 5}\n"
        "  - hot\n"
        "by_room:\n"
        "  hall: {heat: true, heta: 1}\n"
        "  no: {heat: 9}\n"
        "  4: {heat: 9}\n"
        "spare: {heat: .inf}\n"
    )
    with pytest.raises(ValueError, match="name: ") as refused:
        kitchen(path)
    assert str(refused.value).replace(f"{path}:", "").split("\n") == [
        "2: name: must be text of one line, without spaces around it, not 7",
        "3: unknown key 'sise', did you mean 'size'?",
        "4: size: 'huge' is not known (known: small, large)",
        "6: ovens[0].heat: must be a number above 0, at most 300, not '200'",
        "7: ovens[0].fan: must be true or false, not 1",
        "8: ovens[1]: missing key 'heat'",
        "9: ovens[1].note: must be text or nothing, not 5",
        "10: ovens[2]: must be keys and values, not 'hot'",
        "12: by_room.hall.heat: must be a number above 0, at most 300, not True",
        "12: by_room.hall: unknown key 'heta', did you mean 'heat'?",
        "13: by_room: the name False must be text of one line: put it in quotes",
        "14: by_room: the name 4 must be text of one line: put it in quotes",
        "15: spare.heat: must be a number above 0, at most 300, not inf",
    ]


def test_a_merged_key_is_reported_where_it_is_written(written):
    path = written("name: x\novens:\n  - &first\n    heat: -1\n  - {<<: *first, fan: 2}\n")
    with pytest.raises(ValueError, match=r"4: ovens\[0\]\.heat: ") as refused:
        kitchen(path)
    assert f"{path}:4: ovens[1].heat: " in str(refused.value)
    assert f"{path}:5: ovens[1].fan: " in str(refused.value)


def test_what_does_not_come_from_a_file_is_reported_without_lines():
    with pytest.raises(ValueError, match="here") as refused:
        validate(Kitchen, {"name": "x", "ovens": [{}]}, where="here")
    assert str(refused.value) == "here: ovens[0]: missing key 'heat'"


def test_a_schema_says_what_keys_mean_and_suggests_no_null():
    schema = json_schema(Kitchen)
    heat = schema["$defs"]["Oven"]["properties"]["heat"]
    assert heat | {"title": ""} == {
        "type": "number", "exclusiveMinimum": 0, "maximum": 300, "description": "Degrees.",
        "title": "",
    }  # fmt: skip
    assert schema["properties"]["size"]["enum"] == ["small", "large"]
    assert schema["additionalProperties"] is False
    assert "default" not in schema["$defs"]["Oven"]["properties"]["note"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"heat: 20\n---\nheat: 21\n", "expected a single document in the stream, but found"),
        (b"heat: \xff\n", "file.yaml: not valid YAML: not UTF-8 (line 1, column 7)"),
        (b"heat: '" + b"x" * 1_000_000 + b"'", "file.yaml: larger than 1 MB: not a settings file"),
    ],
)
def test_a_file_that_is_not_one_yaml_document_is_refused(tmp_path, content, message):
    path = tmp_path / "file.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_yaml(path)


def test_a_number_that_yaml_reads_as_text_is_explained():
    class Rate(Settings):
        rate: Annotated[float, number(above=0)]

    with pytest.raises(ValueError, match=r"not '5e-7', which YAML reads as text: write it like 5"):
        validate(Rate, {"rate": "5e-7"}, where="file.yaml")


_NO_SERVER = "write either base_url, the address of its server, or serve, how to start one"
_LOGPROBS = "write logprobs: true and top_logprobs"
_ENDPOINT = "name: a\nmodel: m\nrevision: null\nretires: 1\n"
_PANEL = "rubric: semantic-gap\nvariants: [direct]\nbudgett: full\nteachers:\n"
_TEACHER = "- {name: a, model: m, revision: null, base_url: 'http://a/v1', retires: 1, sampling: "


@pytest.mark.parametrize(
    ("load", "content", "expected"),
    [
        (
            load_panel,
            f"{_PANEL}{_TEACHER}{{temperature: 0, max_tokens: 9, logprobs: true}}}}\n",
            [
                (3, "unknown key 'budgett'"),
                (5, f"teachers[0].sampling: {_LOGPROBS}"),
                (5, "teachers[0]: unknown key 'retires'"),
            ],
        ),
        (
            load_panel,
            _PANEL + 2 * f"{_TEACHER}{{temperature: 0, max_tokens: 9}}}}\n",
            [
                (3, "unknown key 'budgett'"),
                (4, "teachers: two teachers are called 'a'"),
                (5, "teachers[0]: unknown key 'retires'"),
                (6, "teachers[1]: unknown key 'retires'"),
            ],
        ),
        (
            load_student,
            f"{_ENDPOINT}sampling: {{temperature: hot, max_tokens: 9, top_logprobs: 5}}\n",
            [
                (1, _NO_SERVER),
                (4, "unknown key 'retires'"),
                (5, f"sampling: {_LOGPROBS}"),
                (5, "sampling.temperature: must be a finite number"),
            ],
        ),
        (
            load_judge,
            f"{_ENDPOINT}sampling: {{temperature: hot, max_tokens: 1}}\n",
            [
                (1, _NO_SERVER),
                (4, "unknown key 'retires'"),
                (5, "sampling: a judge needs `logprobs: true`"),
                (5, "sampling.temperature: must be a finite number"),
            ],
        ),
        (
            load_arm,
            "of: nowhere.yaml\nkeepp: 3\nbeta: constant(-1)\n",
            [
                (2, "unknown key 'keepp'"),
                (3, "beta: 'constant(-1)': beta must be a number above 0"),
            ],
        ),
    ],
    ids=["logprobs", "names", "student", "judge", "arm"],
)
def test_rules_about_several_keys_are_reported_together_with_all_other_problems(
    written, load, content, expected
):
    path = written(content)
    with pytest.raises(ValueError, match="unknown key") as refused:
        load(path)
    lines = str(refused.value).splitlines()
    assert len(lines) == len(expected)
    for line, (place, beginning) in zip(lines, expected, strict=True):
        assert line.startswith(f"{path}:{place}: {beginning}")


def test_a_broken_rule_about_several_keys_alone_is_an_error():
    with pytest.raises(ValueError, match=f"^x: {_LOGPROBS}"):
        validate(SamplingConfig, {"temperature": 0, "max_tokens": 1, "top_logprobs": 5}, where="x")


def nested_aliases(levels, begin="[", end="]"):
    """Lines in which each value stands for nine of the one above it."""
    lines = [f"a0: &a0 {begin}{'<<: {k: v}' if begin == '{' else 'x'}{end}"]
    for level in range(1, levels):
        items = ", ".join([f"*a{level - 1}"] * 9)
        items = f"<<: [{items}]" if begin == "{" else items
        lines.append(f"a{level}: &a{level} {begin}{items}{end}")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (nested_aliases(9), "more than 30,000 keys, values and items"),
        (nested_aliases(9, "{", "}"), "more than 30,000 keys, values and items"),
        ("a: [" + "[]," * 40_000 + "]", "more than 30,000 keys, values and items"),
        ("a: &a {b: [*a]}", "the alias *a stands for content that contains it"),
        ("a: " + "1:" * 10_000 + "1", "a number of more than 100 characters"),
        ("a: 0x" + "f" * 5_000, "a number of more than 100 characters"),
        (f"{2**61 - 1}: 1\n{2 * (2**61 - 1)}: 1", "is too large a number: put it in quotes"),
        ("a: !!timestamp soon", "'soon' is not read as !!timestamp"),
        ("a: !!int ''", "'' is not read as !!int"),
        ("a: !!bool {=: x}", "the tag !!bool is not read"),
        ("a: !!set {x}", "the tag !!set is not read"),
        ("a: " + "[" * 10_000, "nested too deeply"),
        ("{" * 10_000, "nested too deeply"),
    ],
    ids=lambda value: value[:20].strip(),
)
def test_yaml_that_stands_for_too_much_or_fails_in_the_library_is_refused(written, text, problem):
    assert problem in error_of(written(text))


def test_anchors_of_a_person_are_read_and_files_that_come_with_data_have_none(written):
    path = written("a: &a {b: 1}\nc: *a\nd: {<<: *a, e: !!float 1e-3}\n")
    assert read_yaml(path) == {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 0.001}}
    with pytest.raises(ValueError, match="files that come with data hold no aliases"):
        read_yaml_file(path, aliases=False)


def test_a_file_with_thousands_of_problems_names_the_first_of_them(written):
    source = read_yaml_file(written("".join(f"key{n}: 1\n" for n in range(2_000))))
    with pytest.raises(ValueError, match="unknown key 'key0'") as refused:
        validate(SamplingConfig, source.values, where="panel.yaml", source=source)
    lines = str(refused.value).splitlines()
    assert len(lines) == 51
    assert lines[-1].endswith(" more problems")
