"""Money as text, and bodies that are decoded strictly."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.web import schemas
from proxy.web.admin.problems import Problem
from proxy.web.admin.request import decode


@given(st.integers(min_value=-(10**19), max_value=10**19))
def test_money_survives_as_text(nano_dollars: int) -> None:
    text = schemas.usd(nano_dollars)
    assert schemas.nanos(text) == nano_dollars
    assert len(text.rpartition(".")[2]) >= 2
    assert not text.startswith("-0.00") or nano_dollars


@pytest.mark.parametrize(
    ("nano_dollars", "text"),
    [
        (0, "0.00"),
        (1, "0.000000001"),
        (10**9, "1.00"),
        (12_500_000_000, "12.50"),
        (-50_000_000, "-0.05"),
        (123_456_789, "0.123456789"),
        (10**18, "1000000000.00"),
    ],
)
def test_money_as_people_write_it(nano_dollars: int, text: str) -> None:
    assert schemas.usd(nano_dollars) == text


@given(st.text(max_size=30))
def test_money_is_refused_or_exact(text: str) -> None:
    try:
        value = msgspec.convert(text, schemas.Usd)
    except msgspec.ValidationError:
        return
    assert schemas.nanos(value) >= 0 and text.isascii() and text == text.strip()


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"scope":"tenant:a","requests_per_minute":"60"}', "requests_per_minute"),
        (b'{"scope":"tenant:a","requests_per_minute":1.5}', "requests_per_minute"),
        (b'{"scope":"tenant:a","requests_per_minute":true}', "requests_per_minute"),
        (b'{"scope":"tenant:a","models":["ok",5]}', "models[1]"),
        (b'{"scope":"tenant:a","nothing":1}', "nothing"),
        (b"{}", ""),
        (b"5", ""),
    ],
)
def test_a_wrong_field_is_named(body: bytes, field: str) -> None:
    with pytest.raises(Problem) as caught:
        decode(body, schemas.LimitIn)
    assert caught.value.status == 400
    assert caught.value.errors[0].field == field


@given(st.binary(max_size=60))
def test_no_bytes_make_decoding_fail_otherwise(body: bytes) -> None:
    try:
        decode(body, schemas.BudgetIn)
    except Problem as problem:
        assert problem.status == 400


def test_scopes_and_slugs_end_where_they_seem_to() -> None:
    for kind, good in (
        (schemas.Slug, "acme"),
        (schemas.Scope, "tenant:acme"),
        (schemas.PlanName, "default"),
        (schemas.Usd, "1.5"),
    ):
        assert msgspec.convert(good, kind) == good
        for wrong in (good + "\n", good + " ", "\n" + good, good + "\u0000"):
            with pytest.raises(msgspec.ValidationError):
                msgspec.convert(wrong, kind)
