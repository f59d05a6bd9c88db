"""One table of queries, and two readers of them: query.py and query.js."""

import json
import sys

import numpy as np
import pytest

from support.browser import INSPECTOR, bare
from support.harness import TESTS

sys.path.insert(0, str(INSPECTOR))
import errors
import query as query_language

TABLE = json.loads((TESTS / "space" / "query_cases.json").read_text())
CASES = TABLE["cases"]
KINDS = {"number": np.float32, "level": np.int8, "flag": np.int8, "set": np.uint32}
COUNT = len(TABLE["texts"])

IN_THE_PAGE = (TESTS / "space" / "query_cases.js").read_text()


def fields():
    by_name = {}
    for name, field in TABLE["fields"].items():
        values = field["values"]
        if field["kind"] in KINDS:
            values = np.array([np.nan if value is None else value for value in values])
            values = values.astype(KINDS[field["kind"]])
        by_name[name] = query_language.Field(field["kind"], values, field.get("levels", ()))
    return by_name


def search(text):
    return np.array([text.lower() in pair_text.lower() for pair_text in TABLE["texts"]])


def match_ids(start):
    ids = TABLE["fields"]["id"]["values"]
    return np.array([pair_id.startswith(start.lower()) for pair_id in ids])


def select_in_python(query):
    """What query.py makes of a query."""
    try:
        selected = query_language.select_pairs(
            query_language.parse_query(query), fields(), COUNT, search, match_ids
        )
    except errors.BadRequest as error:
        return {"error": str(error)}
    return {"places": selected.tolist()}


@pytest.fixture(scope="module")
def page(browser):
    with bare(browser, "lib/query") as page:
        yield page


@pytest.mark.parametrize("case", CASES, ids=[case["query"] for case in CASES])
def test_python_reads_a_query(case):
    assert select_in_python(case["query"]) == {key: case[key] for key in case if key != "query"}


def test_javascript_reads_every_query_alike_and_what_it_writes(page):
    results = page.evaluate(IN_THE_PAGE, [TABLE, [case["query"] for case in CASES]])
    for case, result in zip(CASES, results, strict=True):
        again = result.pop("again", None)
        assert result == {key: case[key] for key in case if key != "query"}, case["query"]
        assert again == result.get("places"), case["query"]


def test_both_read_whatever_somebody_types_alike(page):
    rng = np.random.default_rng(0)
    words = 'beta category safety missing sort id 0.1..0.2 >= moon ü none - : , . " \\ < > = 0 1 e'
    parts = [*words.split(), " ", "\t"]
    queries = ["".join(rng.choice(parts, rng.integers(1, 9))) for _ in range(3000)]
    theirs = page.evaluate(IN_THE_PAGE, [TABLE, queries])
    for query, result in zip(queries, theirs, strict=True):
        result.pop("again", None)
        assert result == select_in_python(query), query


def test_a_query_has_bounds(page):
    long, many = "a" * 1001, "a " * 51
    for query in (long, many):
        result = select_in_python(query)
        assert "at most" in result["error"]
        assert page.evaluate(IN_THE_PAGE, [TABLE, [query]]) == [result]
