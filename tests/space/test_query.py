"""One table of queries, and two readers of them: query.py and query.js."""

import json
import sys

import numpy as np
import pytest

from support.browser import INSPECTOR, bare
from support.harness import TESTS

sys.path.insert(0, str(INSPECTOR))
import query as query_language

TABLE = json.loads((TESTS / "space" / "query_cases.json").read_text())
CASES = TABLE["cases"]
KINDS = {"number": np.float32, "level": np.int8, "flag": np.int8, "set": np.uint32}
COUNT = len(TABLE["texts"])

IN_THE_PAGE = (TESTS / "space" / "query_cases.js").read_text()


def fields():
    found = {}
    for name, said in TABLE["fields"].items():
        values = said["values"]
        if said["kind"] in KINDS:
            values = np.array([np.nan if one is None else one for one in values])
            values = values.astype(KINDS[said["kind"]])
        found[name] = query_language.Field(said["kind"], values, said.get("levels", ()))
    return found


def search(text):
    return np.array([text.lower() in one.lower() for one in TABLE["texts"]])


def told(query):
    """What query.py makes of a query."""
    try:
        found = query_language.select_pairs(
            query_language.parse_query(query), fields(), COUNT, search
        )
    except query_language.BadRequest as error:
        return {"error": str(error)}
    return {"places": found.tolist()}


@pytest.fixture(scope="module")
def page(browser):
    with bare(browser, "lib/query") as page:
        yield page


@pytest.mark.parametrize("case", CASES, ids=[case["query"] for case in CASES])
def test_python_reads_a_query(case):
    assert told(case["query"]) == {key: case[key] for key in case if key != "query"}


def test_javascript_reads_every_query_alike_and_what_it_writes(page):
    found = page.evaluate(IN_THE_PAGE, [TABLE, [case["query"] for case in CASES]])
    for case, one in zip(CASES, found, strict=True):
        again = one.pop("again", None)
        assert one == {key: case[key] for key in case if key != "query"}, case["query"]
        assert again == one.get("places"), case["query"]


def test_both_read_whatever_somebody_types_alike(page):
    rng = np.random.default_rng(0)
    words = 'beta category safety missing sort id 0.1..0.2 >= moon ü none - : , . " \\ < > = 0 1 e'
    parts = [*words.split(), " ", "\t"]
    queries = ["".join(rng.choice(parts, rng.integers(1, 9))) for _ in range(3000)]
    theirs = page.evaluate(IN_THE_PAGE, [TABLE, queries])
    for query, one in zip(queries, theirs, strict=True):
        one.pop("again", None)
        assert one == told(query), query


def test_a_query_has_bounds(page):
    long, many = "a" * 1001, "a " * 51
    for query in (long, many):
        said = told(query)
        assert "at most" in said["error"]
        assert page.evaluate(IN_THE_PAGE, [TABLE, [query]]) == [said]
