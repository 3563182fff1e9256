"""The ledger's tokens against CloudWatch's, by model and day: what differs, and what explains it.

Two things explain a difference. Attempts whose usage nobody knows (open, or charged their ceiling) may have
used tokens that CloudWatch has and the ledger has not. And a call belongs to the day in which it was
admitted here, but to the day in which it ran there, so what the ledger has more on one day CloudWatch may
have more on the next. What is left is unexplained, and grows suspicious with age: metrics that are late
arrive within hours.
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["even", "midnight", "ceilings", "unexplained"]
KINDS = ("input", "output", "cache_read", "cache_write")
#: name of an age and the most days that have it
AGES: tuple[tuple[str, int], ...] = (("1 day", 1), ("2-7 days", 7), ("8-30 days", 30), ("older", 1 << 30))


@dataclass(frozen=True, slots=True, kw_only=True)
class Metered:
    """Tokens of one kind that CloudWatch counted for one model id on one UTC day."""

    region: str
    model_id: str
    day: dt.date
    kind: str
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Booked:
    """What the ledger has for one target on one UTC day. `unknown`: attempts without known usage, and
    `unknown_ceiling` what they are charged or hold, nano-dollars.
    """

    region: str
    model_id: str
    day: dt.date
    attempts: int
    unknown: int
    unknown_ceiling: int
    input: int
    output: int
    cache_read: int
    cache_write: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One comparison. `difference` is CloudWatch minus ledger, `unexplained` the part of it that is."""

    day: dt.date
    age_days: int
    region: str
    model_id: str
    kind: str
    ledger: int
    cloudwatch: int
    unknown: int
    unexplained: int
    verdict: Verdict

    @property
    def difference(self) -> int:
        return self.cloudwatch - self.ledger


def compare(booked: Sequence[Booked], metered: Iterable[Metered], today: dt.date) -> list[Line]:
    """Every kind of token that either side has, oldest day first."""
    ledger: dict[tuple[str, str, str], dict[dt.date, int]] = defaultdict(lambda: defaultdict(int))
    cloud: dict[tuple[str, str, str], dict[dt.date, int]] = defaultdict(lambda: defaultdict(int))
    unknown: dict[tuple[str, str, dt.date], int] = defaultdict(int)
    for one in booked:
        unknown[one.region, one.model_id, one.day] += one.unknown
        for kind in KINDS:
            ledger[one.region, one.model_id, kind][one.day] += getattr(one, kind)
    for measure in metered:
        cloud[measure.region, measure.model_id, measure.kind][measure.day] += measure.tokens
    lines = []
    for place in sorted(ledger.keys() | cloud.keys()):
        lines += _days(place, ledger[place], cloud[place], unknown, today)
    return sorted(lines, key=lambda line: (line.day, line.region, line.model_id, KINDS.index(line.kind)))


def _days(
    place: tuple[str, str, str],
    ledger: dict[dt.date, int],
    cloud: dict[dt.date, int],
    unknown: dict[tuple[str, str, dt.date], int],
    today: dt.date,
) -> list[Line]:
    region, model_id, kind = place
    days = sorted(day for day in ledger.keys() | cloud.keys() if ledger.get(day) or cloud.get(day))
    left = {day: cloud.get(day, 0) - ledger.get(day, 0) for day in days}
    for day in days:
        following = day + dt.timedelta(days=1)
        moved = min(max(-left[day], 0), max(left.get(following, 0), 0))
        if moved:
            left[day] += moved
            left[following] -= moved
    lines = []
    for day in days:
        open_questions = unknown.get((region, model_id, day), 0)
        verdict, unexplained = _verdict(cloud.get(day, 0) != ledger.get(day, 0), left[day], open_questions)
        lines.append(
            Line(day=day, age_days=(today - day).days, region=region, model_id=model_id, kind=kind,
                 ledger=ledger.get(day, 0), cloudwatch=cloud.get(day, 0), unknown=open_questions,
                 unexplained=unexplained, verdict=verdict)
        )  # fmt: skip
    return lines


def _verdict(differs: bool, left: int, unknown: int) -> tuple[Verdict, int]:
    if not differs:
        return "even", 0
    if left == 0:
        return "midnight", 0
    if left > 0 and unknown:
        return "ceilings", 0
    return "unexplained", left


def age_of(days: int) -> str:
    return next(name for name, most in AGES if days <= most)


def by_age(lines: Iterable[Line]) -> dict[str, dict[str, int]]:
    """Unexplained tokens, both directions added up, by age and kind."""
    sums = {name: dict.fromkeys(KINDS, 0) for name, _ in AGES}
    for line in lines:
        sums[age_of(line.age_days)][line.kind] += abs(line.unexplained)
    return sums
