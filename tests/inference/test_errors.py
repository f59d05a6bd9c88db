"""Errors of servers: missing credit, filters, and keys of a request that a server refuses."""

import json
from dataclasses import replace

import pytest

from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.inference.errors import Declined, EndpointError, Unavailable, status_error

TEACHER = Endpoint(
    name="t", model="m", revision=None, base_urls=("http://127.0.0.1:1/v1",),
    sampling={"temperature": 0, "max_tokens": 100, "top_k": 5}, extra={"min_p": 0.1},
)  # fmt: skip


def error_of(message, status=400, *, endpoint=TEACHER, **fields):
    body = {"error": {"message": message, **fields}}
    return status_error(endpoint, status, json.dumps(body).encode())


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "Your credit balance is too low to access the Anthropic API. Please go to Plans."),
        (403, "Your team has either used all available credits or reached its monthly spending"
              " limit."),
        (429, "Your prepayment credits are depleted."),
        (400, "Insufficient Balance"),
        (401, "This request requires more credits, or fewer max_tokens."),
        (429, "Your account abc is suspended, please check your plan and billing details"),
    ],
)  # fmt: skip
def test_a_provider_that_says_so_in_words_has_no_credit_left(status, message):
    error = error_of(message, status, type="invalid_request_error")
    assert type(error) is EndpointError
    assert "add credit" in str(error)


@pytest.mark.parametrize(
    "message",
    [
        "Bad value. See your plan and billing details.",
        "The prompt 'how is an insufficient balance reported' is invalid",
        "Credits are listed at the billing page.",
    ],
)
def test_words_about_money_alone_do_not_end_a_run(message):
    assert isinstance(error_of(message), Declined)


@pytest.mark.parametrize(
    "code",
    ["content_filter", "content_policy_violation", "data_inspection_failed", "moderation_blocked"],
)
def test_a_filter_that_stops_a_request_is_the_reason(code):
    assert error_of("The response was filtered", code=code).reason == "content-filter"
    assert error_of("content_filter is no setting", code="bad").reason == "http-400"


@pytest.mark.parametrize(
    "message",
    [
        "Unknown name \"maxLength\" at 'generation_config.response_schema': Cannot find field.",
        "For 'integer' type, properties maximum, minimum are not supported",
        "Unsupported keyword 'minimum' in the schema",
    ],
)
def test_a_refused_bound_of_the_schema_is_advised_on(message):
    text = str(error_of(message))
    assert "set structured: json_schema_plain" in text
    assert "give the teacher another name, or use a new --store" in text


def test_an_error_500_about_the_schema_is_advised_on_and_remains_transient():
    error = error_of("response_format json_schema is not supported", 500)
    assert isinstance(error, Unavailable)
    assert "set structured: " in str(error)


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("Unsupported value: 'temperature' does not support 0", "set the temperature that"),
        ("Unknown parameter: 'top_k'", "leave top_k out of sampling"),
        ("top_k: Extra inputs are not permitted", "leave top_k out of sampling"),
        ("Unrecognized request argument supplied: min_p", "leave min_p out of extra"),
    ],
)
def test_a_refused_setting_is_named(message, advice):
    assert advice in str(error_of(message))
    assert "another name" not in str(error_of(message, endpoint=replace(TEACHER, role="judge")))


def test_settings_that_are_only_mentioned_get_no_advice():
    assert str(error_of("top_k must be at least 10")).endswith('10"}}')
