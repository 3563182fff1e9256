"""Attempts, settlements and answers as columns of the bank's SQL functions.

Bedrock's words are bounded here: counts are clamped into their columns (a bogus count must not hold
up the batch it travels in), the request id to 200 printable characters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from proxy.domain.ledger import Admission, Attempt, Outcome, Settled, Settlement, State, Verdict

_INT32_MAX = 2**31 - 1

#: answers of the SQL functions that are no verdict: ask again
UNAVAILABLE, BUSY = 5, 6
SETTLEMENT_BUSY = 5
LOCKED = "its budgets are locked"
NO_ACCOUNT = "a budget has no account for this period"


@dataclass(frozen=True, slots=True)
class Move:
    """What one caller asks of the bank: a settlement, an admission, or one after the other."""

    settlement: Settlement | None = None
    attempt: Attempt | None = None

    @property
    def ids(self) -> tuple[UUID, ...]:
        ids = [self.settlement.attempt] if self.settlement is not None else []
        return (*ids, self.attempt.attempt) if self.attempt is not None else tuple(ids)


@dataclass(frozen=True, slots=True)
class Hit:
    """An answer out of the cache. `settlement.usage` is the original's, `saved` its price, nano-dollars."""

    attempt: Attempt
    settlement: Settlement
    saved: int

    @property
    def ids(self) -> tuple[UUID, ...]:
        return (self.attempt.attempt,)


@dataclass(frozen=True, slots=True)
class Again:
    """Nothing was decided; `reason` says why. Asking again is safe."""

    reason: str


def _count(number: int) -> int:
    return min(max(number, 0), _INT32_MAX)


def _request_id(text: str | None) -> str | None:
    if text is None:
        return None
    return "".join(c for c in text[:200] if c.isascii() and c.isprintable())


#: in the order of the functions' parameters
_SETTLEMENT: tuple[Callable[[Settlement], Any], ...] = (
    lambda s: s.attempt,
    lambda s: int(s.state),
    lambda s: int(s.why),
    lambda s: s.cost,
    lambda s: s.upstream_cost,
    lambda s: _count(s.usage.input_tokens),
    lambda s: _count(s.usage.output_tokens),
    lambda s: _count(s.usage.cache_read_tokens),
    lambda s: _count(s.usage.cache_write_5m_tokens),
    lambda s: _count(s.usage.cache_write_1h_tokens),
    lambda s: _count(s.usage.images),
    lambda s: _count(s.usage.guardrail_units),
    lambda s: s.usage.exact and s.state is State.POST,
    lambda s: s.price,
    lambda s: _request_id(s.upstream_request_id),
    lambda s: _count(s.status),
    lambda s: _count(s.latency_ms),
    lambda s: _count(s.first_byte_ms),
    lambda s: s.recorder,
)
_CALLER: tuple[Callable[[Attempt], Any], ...] = (
    lambda a: a.attempt,
    lambda a: a.call,
    lambda a: a.tenant,
    lambda a: a.project,
    lambda a: a.key,
    lambda a: a.credential,
    lambda a: a.recorder,
    lambda a: int(a.operation),
    lambda a: a.model,
    lambda a: a.target,
    lambda a: a.price,
)
_ATTEMPT: tuple[Callable[[Attempt], Any], ...] = (
    *_CALLER,
    lambda a: a.ceiling,
    lambda a: a.tags,
    lambda a: a.floor,
)
_HIT: tuple[Callable[[Hit], Any], ...] = (
    *((lambda h, f=f: f(h.attempt)) for f in (*_CALLER, lambda a: a.tags)),
    lambda h: h.saved,
    *((lambda h, f=f: f(h.settlement)) for f in _SETTLEMENT[5:12]),
    lambda h: h.settlement.usage.exact,
    lambda h: _count(h.settlement.status),
    lambda h: _count(h.settlement.latency_ms),
)


def _call(function: str, parameters: int) -> str:
    return f"SELECT * FROM {function}({', '.join(f'${n}' for n in range(1, parameters + 1))})"  # noqa: S608


SETTLE_AND_ADMIT = _call("bank_settle_and_admit", len(_SETTLEMENT) + len(_ATTEMPT) + 1)
RECORD_HITS = _call("bank_record_hits", len(_HIT))


def move_columns(moves: Sequence[Move], *, skip_locked: bool) -> list[Any]:
    settlements = [m.settlement for m in moves if m.settlement is not None]
    attempts = [m.attempt for m in moves if m.attempt is not None]
    return [
        *([of(s) for s in settlements] for of in _SETTLEMENT),
        *([of(a) for a in attempts] for of in _ATTEMPT),
        skip_locked,
    ]


def hit_columns(hits: Sequence[Hit]) -> list[Any]:
    return [[of(h) for h in hits] for of in _HIT]


def move_answers(
    moves: Sequence[Move], rows: Sequence[Mapping[str, Any]]
) -> list[Settled | Admission | Again]:
    """One answer a move, in order: the admission's where there is one."""
    parts: dict[tuple[str, int], Mapping[str, Any]] = {(row["part"], row["ord"]): row for row in rows}
    answers: list[Settled | Admission | Again] = []
    settled = admitted = 0
    for move in moves:
        answer: Settled | Admission | Again = Again("nothing was asked")
        if move.settlement is not None:
            settled += 1
            answer = _settled(parts["s", settled])
        if move.attempt is not None:
            admitted += 1
            admission = _admission(parts["a", admitted])
            answer = answer if isinstance(answer, Again) and move.settlement is not None else admission
        answers.append(answer)
    return answers


def hit_answers(hits: Sequence[Hit], rows: Sequence[Mapping[str, Any]]) -> list[Admission]:
    by_place = {row["ord"]: row for row in rows}
    return [
        Admission(
            verdict=Verdict(row["answer"]), state=State(row["state"]), admitted_at_us=row["admitted_at_us"]
        )
        for row in (by_place[place] for place in range(1, len(hits) + 1))
    ]


def _settled(row: Mapping[str, Any]) -> Settled | Again:
    if row["answer"] == SETTLEMENT_BUSY:
        return Again(LOCKED)
    return Settled(
        outcome=Outcome(row["answer"]),
        state=State(row["state"]),
        overrun=row["overrun"],
        budgets=tuple(row["budgets"]),
    )


def _admission(row: Mapping[str, Any]) -> Admission | Again:
    if row["answer"] == BUSY:
        return Again(LOCKED)
    if row["answer"] == UNAVAILABLE:
        return Again(NO_ACCOUNT)
    return Admission(
        verdict=Verdict(row["answer"]),
        state=State(row["state"]),
        budget=row["budget"],
        settled=row["settled"],
        reserved=row["reserved"],
        limit=row["limit_nano"],
        resets_at=row["resets_at"],
        admitted_at_us=row["admitted_at_us"],
    )
