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
UNAVAILABLE, BUSY, CLOSED = 5, 6, 7
SETTLEMENT_BUSY = 5
LOCKED = "its budgets are locked"
NO_ACCOUNT = "a budget has no account for this period"


@dataclass(slots=True)
class Held:
    """Where the attempts of one caller hold money: accounts as the rows list them, and their budgets."""

    accounts: tuple[int, ...]
    budgets: tuple[UUID, ...]


@dataclass(slots=True)
class Move:
    """What one caller asks of the bank: a settlement, an admission, or one after the other."""

    settlement: Settlement | None = None
    attempt: Attempt | None = None
    #: of the settled attempt, where its admission told us
    releases: Held | None = None
    #: of the admitted attempt, when its admission was plain: the answer beside the answer
    holds: Held | None = None

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
    """Nothing is known to have been decided; `reason` says why. Asking again is safe.

    `undecided`: the statement was cut off, and may still commit.
    """

    reason: str
    undecided: bool = False


def count(number: int) -> int:
    return number if 0 <= number <= _INT32_MAX else min(max(number, 0), _INT32_MAX)


def request_id(text: str | None) -> str | None:
    if text is None:
        return None
    text = text[:200]
    if text.isascii() and text.isprintable():
        return text
    return "".join(c for c in text if c.isascii() and c.isprintable())


#: parameters of the SQL functions, without their prefix s_ or a_
_SETTLEMENT: dict[str, Callable[[Settlement], Any]] = {
    "attempt": lambda s: s.attempt,
    "state": lambda s: int(s.state),
    "why": lambda s: int(s.why),
    "cost": lambda s: s.cost,
    "upstream": lambda s: s.upstream_cost,
    "input": lambda s: count(s.usage.input_tokens),
    "output": lambda s: count(s.usage.output_tokens),
    "cache_read": lambda s: count(s.usage.cache_read_tokens),
    "write_5m": lambda s: count(s.usage.cache_write_5m_tokens),
    "write_1h": lambda s: count(s.usage.cache_write_1h_tokens),
    "images": lambda s: count(s.usage.images),
    "guardrail": lambda s: count(s.usage.guardrail_units),
    "exact": lambda s: s.usage.exact and s.state is State.POST,
    "price": lambda s: s.price,
    "request": lambda s: request_id(s.upstream_request_id),
    "status": lambda s: count(s.status),
    "latency": lambda s: count(s.latency_ms),
    "first_byte": lambda s: count(s.first_byte_ms),
    "recorder": lambda s: s.recorder,
}
_ATTEMPT: dict[str, Callable[[Attempt], Any]] = {
    "attempt": lambda a: a.attempt,
    "call": lambda a: a.call,
    "tenant": lambda a: a.tenant,
    "project": lambda a: a.project,
    "key": lambda a: a.key,
    "credential": lambda a: a.credential,
    "recorder": lambda a: a.recorder,
    "operation": lambda a: int(a.operation),
    "model": lambda a: a.model,
    "target": lambda a: a.target,
    "price": lambda a: a.price,
    "ceiling": lambda a: a.ceiling,
    "tags": lambda a: a.tags,
    "floor": lambda a: a.floor,
}


def _from_attempt(of: Callable[[Attempt], Any]) -> Callable[[Hit], Any]:
    return lambda hit: of(hit.attempt)


def _from_settlement(of: Callable[[Settlement], Any]) -> Callable[[Hit], Any]:
    return lambda hit: of(hit.settlement)


_HIT: dict[str, Callable[[Hit], Any]] = {
    **{name: _from_attempt(of) for name, of in _ATTEMPT.items() if name not in {"ceiling", "floor"}},
    "saved": lambda h: h.saved,
    **{
        name: _from_settlement(_SETTLEMENT[name])
        for name in _SETTLEMENT
        if name
        in {
            "input",
            "output",
            "cache_read",
            "write_5m",
            "write_1h",
            "images",
            "guardrail",
            "status",
            "latency",
        }
    },
    "exact": lambda h: h.settlement.usage.exact,
}


def call(function: str, names: Sequence[str]) -> str:
    """Rows of a function, called by name: what is left out has its default, and costs nothing to send."""
    return f"SELECT * FROM {function}({_arguments(names)})"  # noqa: S608


def value(function: str, names: Sequence[str]) -> str:
    """What a function answers as one value: without a scan of it, 3 % less of Postgres for a call alone."""
    return f"SELECT {function}({_arguments(names)})"


def _arguments(names: Sequence[str]) -> str:
    return ", ".join(f"{name} => ${n}" for n, name in enumerate(names, 1))


_HALVES = {
    (settles, admits): call(
        "bank_settle_and_admit",
        [
            *(f"s_{name}" for name in _SETTLEMENT if settles),
            *(f"a_{name}" for name in _ATTEMPT if admits),
            "skip_locked",
        ],
    )
    for settles in (False, True)
    for admits in (False, True)
}
RECORD_HITS = call("bank_record_hits", [f"a_{name}" for name in _HIT])


def move_call(moves: Sequence[Move], *, skip_locked: bool) -> tuple[str, list[Any]]:
    """The statement and its parameters for these moves."""
    settlements = [m.settlement for m in moves if m.settlement is not None]
    attempts = [m.attempt for m in moves if m.attempt is not None]
    columns: list[Any] = []
    if settlements:
        columns += ([of(s) for s in settlements] for of in _SETTLEMENT.values())
    if attempts:
        columns += ([of(a) for a in attempts] for of in _ATTEMPT.values())
    return _HALVES[bool(settlements), bool(attempts)], [*columns, skip_locked]


def hit_columns(hits: Sequence[Hit]) -> list[Any]:
    return [[of(h) for h in hits] for of in _HIT.values()]


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
    if row["answer"] == CLOSED:
        return Admission(verdict=Verdict.CLOSED)
    return Admission(
        verdict=Verdict(row["answer"]),
        state=State(row["state"]),
        budget=row["budget"],
        settled=row["settled"],
        reserved=row["reserved"],
        limit=row["limit_nano"],
        resets_at=row["resets_at"],
        clamp_floor=row["clamp_floor"],
        admitted_at_us=row["admitted_at_us"],
    )
