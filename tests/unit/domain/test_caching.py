"""What a request, its client and its policy let be shared."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.domain.caching import Terms, terms_of
from proxy.domain.ledger import Operation
from proxy.domain.policy import CachePolicy
from proxy.domain.request import Bound

SDK = {"amz-sdk-invocation-id": "id"}


def terms(
    headers: dict[str, str] | None = None,
    operation: Operation = Operation.CONVERSE,
    bound: Bound | None = None,
    **policy: Any,
) -> Terms:
    return terms_of(
        CachePolicy(**policy), operation, bound or Bound(input_tokens=1, output_limit=1), headers or {}
    )


def test_answers_are_shared_by_default():
    assert terms() == Terms(look=True, keep=True)


@pytest.mark.parametrize(
    ("made", "look", "keep"),
    [
        (terms(enabled=False), False, False),
        (terms(operation=Operation.COUNT_TOKENS), False, False),
        (terms(operation=Operation.APPLY_GUARDRAIL), False, False),
        (terms(bound=Bound(input_tokens=1, output_limit=1, tools=True)), False, False),
        (terms(deterministic_only=True), False, False),
        (terms(deterministic_only=True, bound=Bound(input_tokens=1, output_limit=1, deterministic=True)), True, True),
        (terms({"cache-control": "no-store"}), False, False),
        (terms({"cache-control": "no-cache"}), False, True),
        (terms({"cache-control": "No-Cache, max-age=5"}), False, True),
        (terms({"cache-control": "max-age=0"}), False, True),
        (terms({"cache-control": "max-age=many"}), False, True),
        (terms({"cache-control": "max-age=60"}), True, True),
        (terms({"cache-control": 'private, ,x="y"'}), True, True),
    ],
)  # fmt: skip
def test_consent(made, look, keep):
    assert (made.look, made.keep) == (look, keep)


def test_max_age_is_in_seconds():
    assert terms({"cache-control": 'max-age="60"'}).max_age == 60
    assert terms().max_age is None


def test_no_store_is_private_whatever_the_plan_says():
    assert terms({"cache-control": "no-store"}, enabled=False).private


@pytest.mark.parametrize(
    ("headers", "token", "again", "promised"),
    [
        ({}, "", False, False),
        (SDK, "id", False, False),
        (SDK | {"amz-sdk-request": "attempt=1; max=3"}, "id", False, False),
        (SDK | {"amz-sdk-request": "attempt=2; max=3"}, "id", True, False),
        (SDK | {"amz-sdk-request": "ttl=20261124T120000Z; attempt=11; max=11"}, "id", True, False),
        (SDK | {"amz-sdk-request": "attempt=\u0662"}, "id", False, False),
        ({"amz-sdk-request": "attempt=2"}, "", False, False),
        ({"x-stainless-retry-count": "2"}, "", False, False),
        ({"idempotency-key": "order-66"}, "order-66", True, True),
        (SDK | {"idempotency-key": "order-66"}, "order-66", True, True),
        ({"idempotency-key": "x" * 300}, "x" * 300, True, True),
    ],
)
def test_the_tries_of_one_call(headers, token, again, promised):
    for enabled in (True, False):
        made = terms(headers, enabled=enabled)
        assert (made.token, made.again, made.promised) == (token, again, promised)


def test_only_what_may_be_shared_needs_a_fingerprint():
    assert not terms(enabled=False).any
    assert terms().any and terms(SDK, enabled=False).any
