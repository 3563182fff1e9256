"""Every refusal in every dialect: status, type, retry headers."""

import json

import pytest

from proxy import errors
from proxy.web.problems import SHAPES, render

TABLE = [
    (errors.Unauthenticated("x"), (403, "UnrecognizedClientException"), 401, 401),
    (errors.Forbidden("x"), (403, "AccessDeniedException"), 403, 403),
    (errors.Invalid("x"), (400, "ValidationException"), 400, 400),
    (errors.UnboundedCost("x"), (400, "ValidationException"), 400, 400),
    (errors.UnknownModel("x"), (400, "ValidationException"), 404, 404),
    (errors.TooLarge("x"), (413, "ValidationException"), 413, 413),
    (errors.NotServed("x"), (404, "UnknownOperationException"), 404, 404),
    (errors.RateLimited("x"), (429, "ThrottlingException"), 429, 429),
    (errors.BudgetHeld("x"), (429, "ThrottlingException"), 429, 429),
    (errors.BudgetSpent("x"), (400, "ServiceQuotaExceededException"), 402, 402),
    (errors.UpstreamUnavailable("x"), (503, "ServiceUnavailableException"), 503, 503),
    (errors.Unavailable("x"), (503, "ServiceUnavailableException"), 503, 503),
]


def test_every_kind_of_refusal_has_a_row():
    assert {type(refusal) for refusal, *_ in TABLE} == {kind for kind, _ in SHAPES}


@pytest.mark.parametrize(("refusal", "bedrock", "openai", "anthropic"), TABLE, ids=lambda v: type(v).__name__)
def test_statuses_and_types(refusal, bedrock, openai, anthropic):
    status, headers, body = render("bedrock", refusal)
    assert (status, dict(headers)[b"x-amzn-errortype"].decode()) == bedrock
    assert json.loads(body) == {"message": "x"}

    status, headers, body = render("openai", refusal)
    assert status == openai
    assert json.loads(body)["error"]["message"] == "x"

    status, headers, body = render("anthropic", refusal)
    assert status == anthropic
    assert json.loads(body)["error"]["message"] == "x"
    assert int(dict(headers)[b"content-length"]) == len(body)


def test_what_passes_by_itself_carries_both_retry_headers():
    _, headers, _ = render("bedrock", errors.RateLimited("x", retry_after_ms=1500))
    assert (dict(headers)[b"retry-after"], dict(headers)[b"x-amz-retry-after"]) == (b"2", b"1500")


def test_a_spent_budget_is_never_retried():
    for wire in ("bedrock", "openai", "anthropic"):
        status, headers, _ = render(wire, errors.BudgetSpent("x"))
        assert status in {400, 402}
        assert dict(headers)[b"x-should-retry"] == b"false"
        assert b"retry-after" not in dict(headers)


def test_a_reused_idempotency_key_has_a_status_of_its_own_where_the_dialect_has_one():
    refusal = errors.Invalid("x", reason="idempotency_key_reused")
    assert [render(wire, refusal)[0] for wire in ("bedrock", "openai", "anthropic")] == [400, 422, 422]
