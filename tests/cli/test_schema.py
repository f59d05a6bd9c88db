"""`sp2dpo schema` prints what editors need, and it agrees with how the files are read."""

import json
import subprocess
import sys

import jsonschema
import pytest
import yaml

from sp2dpo.cli.schema import _MODELS
from support.harness import ROOT, succeed

RECIPES = ROOT / "recipes"
FILES = {
    "panel": [RECIPES / "demo" / "panel.yaml", *RECIPES.glob("panels/*.yaml")],
    "schedule": [*RECIPES.glob("schedules/*.yaml")],
    "arm": [*RECIPES.glob("schedules/arms/*.yaml")],
    "rubric": [*RECIPES.glob("rubrics/*.yaml"), *ROOT.glob("toolkit/sp2dpo/panel/rubrics/*.yaml")],
    "student": [RECIPES / "evaluate" / "student.yaml", RECIPES / "evaluate" / "local.yaml"],
    "judge": [*RECIPES.glob("evaluate/judge-*.yaml")],
}
WRONG = {
    "panel": {"rubrik": "x", "budget": "fool", "teachers": [], "variants": "direct"},
    "schedule": {"beta_min": "0.03", "quorum": 0, "estimate": "x", "gap": "prodct", "gapp": 1},
    "arm": {"of": 7, "disputed": "flop", "weight": "gaps"},
    "rubric": {"parts": {}, "protocol": "blnd", "rationale_length": 0, "magnitude": 10},
    "student": {"local": {}, "sampling": {}, "system": 5},
    "judge": {"sampling": {"temperature": 1}, "base_url": "127.0.0.1", "price": {"gpus": 1}},
}


@pytest.fixture(scope="module", params=FILES)
def schema(request):
    printed = json.loads(succeed("schema", request.param))
    jsonschema.Draft202012Validator.check_schema(printed)
    return request.param, jsonschema.Draft202012Validator(printed)


def test_there_are_recipes_of_every_kind():
    assert FILES.keys() == WRONG.keys() == _MODELS.keys()
    assert all(FILES.values())


def test_every_recipe_is_valid_under_its_schema(schema):
    kind, validator = schema
    for path in FILES[kind]:
        validator.validate(yaml.safe_load(path.read_text()))


def test_wrong_keys_and_values_are_not(schema):
    kind, validator = schema
    right = yaml.safe_load(FILES[kind][0].read_text())
    for key, value in WRONG[kind].items():
        assert not validator.is_valid(right | {key: value}), key
        assert not validator.is_valid({name: right[name] for name in right if name != key}) or (
            key not in right or key not in validator.schema.get("required", ())
        )


def test_every_key_is_described(schema):
    _, validator = schema
    parts = [validator.schema, *validator.schema.get("$defs", {}).values()]
    assert any(part.get("properties") for part in parts)
    for part in parts:
        assert part["description"]
        for key, value in part.get("properties", {}).items():
            assert value.get("description"), key


def test_neither_the_package_nor_its_help_loads_pydantic():
    code = "import sys, sp2dpo, sp2dpo.cli.main; print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("keys", "is_valid"),
    [
        ({"sampling": {"temperature": 0, "max_tokens": 9}}, True),
        ({"sampling": {"temperature": 0, "max_completion_tokens": 9}}, True),
        ({"sampling": {"temperature": 0}, "extra": {"max_completion_tokens": 9}}, True),
        ({"sampling": {"temperature": 0}, "extra": {"provider": {}}}, False),
        ({"sampling": {"temperature": 0}}, False),
    ],
)
def test_a_judge_needs_a_token_limit_in_one_of_its_places(keys, is_valid):
    validator = jsonschema.Draft202012Validator(json.loads(succeed("schema", "judge")))
    judge = {"name": "j", "model": "m", "revision": None, "base_url": "http://127.0.0.1:1/v1"}
    assert validator.is_valid(judge | keys) == is_valid
