"""The oracle says nothing of good books, and sees each way in which books can be wrong."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from tests.faults.client import Shot
from tests.scale.oracle import CEILING, POST, problems

SENT, CUT, CALL = UUID(int=1), UUID(int=2), UUID(int=9)


def world() -> dict[str, list[Any]]:
    shot = Shot("InvokeModel", call=str(CALL), status=200, complete=True)
    row = {"call": CALL, "tenant": "t", "ceiling": 90}
    return {
        "rows": [
            {**row, "attempt": SENT, "state": POST, "upstream": 40},
            {**row, "attempt": CUT, "state": CEILING, "upstream": 0, "call": UUID(int=8)},
        ],
        "accounts": [{"tenant": "t", "cap": 200, "reserved": 0, "settled": 130, "overrun": 0}],
        "bill": [
            {"metadata": {"tollhouse-attempt": str(attempt)}, "cost_usd": cost}
            for attempt, cost in ((SENT, "0.00000004"), (CUT, "0.00000007"))
        ],
        "requests": [{"metadata": {"tollhouse-attempt": str(attempt)}} for attempt in (SENT, CUT)],
        "shots": [shot],
    }


def test_good_books() -> None:
    assert problems(**world()) == []


def _without_a_row(books: dict[str, list[Any]]) -> None:
    del books["rows"][1]


def _billed_more_than_charged(books: dict[str, list[Any]]) -> None:
    books["bill"][0]["cost_usd"] = "0.00000005"


def _billed_above_the_ceiling(books: dict[str, list[Any]]) -> None:
    books["bill"][1]["cost_usd"] = "0.000000091"


def _overspent(books: dict[str, list[Any]]) -> None:
    books["accounts"][0]["cap"] = 129


def _not_in_the_budget(books: dict[str, list[Any]]) -> None:
    books["accounts"][0]["settled"] = 109


def _sent_twice(books: dict[str, list[Any]]) -> None:
    books["requests"].append(books["requests"][0])


def _answered_and_forgotten(books: dict[str, list[Any]]) -> None:
    books["shots"][0].call = str(UUID(int=7))


@pytest.mark.parametrize(
    "spoil",
    [
        _without_a_row, _billed_more_than_charged, _billed_above_the_ceiling, _overspent, _not_in_the_budget,
        _sent_twice, _answered_and_forgotten,
    ],
)  # fmt: skip
def test_spoilt_books(spoil: Any) -> None:
    books = world()
    spoil(books)
    assert problems(**books)
