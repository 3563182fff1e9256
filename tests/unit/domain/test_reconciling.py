"""Ledger against CloudWatch: which differences have a reason."""

from __future__ import annotations

import datetime as dt

from proxy.domain.reconciling import Booked, Metered, age_of, by_age, compare
from proxy.worker.reconciliation import as_json, as_table

TODAY = dt.date(2026, 11, 24)
MODEL, REGION = "m", "us-east-1"


def day(back: int) -> dt.date:
    return TODAY - dt.timedelta(days=back)


def booked(back: int, tokens: int, unknown: int = 0) -> Booked:
    return Booked(
        region=REGION, model_id=MODEL, day=day(back), attempts=1, unknown=unknown, unknown_ceiling=unknown,
        input=tokens, output=0, cache_read=0, cache_write=0,
    )  # fmt: skip


def metered(back: int, tokens: int, kind: str = "input") -> Metered:
    return Metered(region=REGION, model_id=MODEL, day=day(back), kind=kind, tokens=tokens)


def verdicts(*given: Booked | Metered) -> dict[int, tuple[str, int]]:
    lines = compare(
        [one for one in given if isinstance(one, Booked)],
        [one for one in given if isinstance(one, Metered)],
        TODAY,
    )
    return {line.age_days: (line.verdict, line.unexplained) for line in lines if line.kind == "input"}


def test_equal_sums_are_even_however_they_are_split():
    assert verdicts(booked(1, 60), booked(1, 40), metered(1, 70), metered(1, 30)) == {1: ("even", 0)}


def test_calls_across_midnight_belong_to_two_days():
    found = verdicts(booked(2, 100), booked(1, 50), metered(2, 90), metered(1, 60))
    assert found == {2: ("midnight", 0), 1: ("midnight", 0)}


def test_time_does_not_run_backwards():
    found = verdicts(booked(2, 90), booked(1, 60), metered(2, 100), metered(1, 50))
    assert found == {2: ("unexplained", 10), 1: ("unexplained", -10)}


def test_what_nobody_measured_may_be_what_cloudwatch_has_more():
    assert verdicts(booked(1, 100, unknown=1), metered(1, 130)) == {1: ("ceilings", 0)}
    assert verdicts(booked(1, 100, unknown=1), metered(1, 90)) == {1: ("unexplained", -10)}


def test_either_side_alone_is_told():
    assert verdicts(metered(3, 5)) == {3: ("unexplained", 5)}
    assert verdicts(booked(3, 5)) == {3: ("unexplained", -5)}


def test_unexplained_tokens_are_summed_by_age():
    lines = compare([], [metered(1, 5), metered(5, 7), metered(6, 1), metered(40, 2, "output")], TODAY)
    sums = by_age(lines)
    assert {age: kinds["input"] for age, kinds in sums.items()} == {
        "1 day": 5, "2-7 days": 8, "8-30 days": 0, "older": 0,
    }  # fmt: skip
    assert sums["older"]["output"] == 2
    assert [age_of(n) for n in (0, 1, 2, 7, 8, 31)] == [
        "1 day", "1 day", "2-7 days", "2-7 days", "8-30 days", "older",
    ]  # fmt: skip


def test_the_report_is_a_table_or_json():
    import json

    lines = compare([booked(1, 1_000)], [metered(1, 1_500)], TODAY)
    table = as_table(lines)
    assert "1,000" in table
    assert "+500" in table
    assert "unexplained" in table
    parsed = json.loads(as_json(lines))
    assert parsed["lines"][0]["difference"] == 500
    assert parsed["unexplained_by_age"]["1 day"]["input"] == 500
