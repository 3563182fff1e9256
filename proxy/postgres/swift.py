"""The common case of a batch as columns of `bank_settle_and_admit_swiftly`, and its one row back.

`plain` says whether a batch may be tried that way; the SQL decides whether it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any
from uuid import UUID

from proxy.domain.ledger import Admission, Attempt, Outcome, Settled, Settlement, State, Verdict
from proxy.postgres.wire import Held, Move, count, request_id, value

_SETTLEMENT = (
    *("lock", "attempt", "state", "why", "cost", "upstream", "input", "output", "cache_read", "write_5m"),
    *("write_1h", "images", "guardrail", "exact", "price", "request", "status", "latency", "first_byte"),
)
_CALLER = ("tenant", "project", "key", "credential", "model")
_FOUND = ("version", "until_us", "caller", "account")
_ATTEMPT = ("caller", "attempt", "call", "recorder", "operation", "target", "price", "ceiling", "tags")
_HALVES = {
    (settles, admits): value(
        "bank_settle_and_admit_swiftly",
        [
            *(f"s_{name}" for name in _SETTLEMENT if settles),
            *(f"c_{name}" for name in _CALLER if admits),
            *(f"a_{name}" for name in _ATTEMPT if admits),
            *(f"h_{name}" for name in _FOUND if admits),
        ],
    )
    for settles in (False, True)
    for admits in (False, True)
}
_order = attrgetter("attempt.int")
_SETTLED = {
    state: Settled(outcome=Outcome.SETTLED, state=state, overrun=0, budgets=())
    for state in (State.POST, State.VOID, State.CEILING)
}
_Caller = tuple[int, int, int, int, int]
_CALLERS_MAX = 10_000


def plain(moves: Sequence[Move]) -> bool:
    """Nothing speaks against it: every settlement is by whoever admitted, without doubt."""
    for move in moves:
        settlement = move.settlement
        if settlement is not None and (
            move.releases is None or settlement.recorder is not None or settlement.state not in _SETTLED
        ):
            return False
    return True


class Callers:
    """What the bank found out about callers, for as long as the directory is at one version.

    The bank uses it only at that very version; so what is too old here costs a look-up, never a mistake.
    """

    def __init__(self) -> None:
        self.version = 0
        #: by identity; the attempt keeps the objects of its key alive
        self._found: dict[_Caller, tuple[Attempt, Held, int]] = {}

    def all_of(self, attempts: Sequence[Attempt]) -> tuple[list[Held], int] | None:
        """What these callers' attempts hold, and until when, unix microseconds; None: one is not known."""
        found = [self._found.get(_identity(a)) for a in attempts]
        held = [one[1] for one in found if one is not None]
        if len(held) < len(found):
            return None
        return held, min(one[2] for one in found if one is not None)

    def learn(self, version: int, until_us: int, attempts: Sequence[Attempt], held: Sequence[Held]) -> None:
        if version != self.version or len(self._found) >= _CALLERS_MAX:
            self._found.clear()
            self.version = version
        for attempt, one in zip(attempts, held, strict=True):
            self._found[_identity(attempt)] = (attempt, one, until_us)


class Swift:
    """One batch: `query` and `columns` to ask with, and what the row that comes back says."""

    def __init__(self, moves: Sequence[Move], callers: Callers) -> None:
        self._moves = moves
        self._known = callers
        settlements = [m.settlement for m in moves if m.settlement is not None]
        attempts = [m.attempt for m in moves if m.attempt is not None]
        self.query = _HALVES[bool(settlements), bool(attempts)]
        self.columns: list[Any] = []
        if settlements:
            released = {id(m.releases): m.releases for m in moves if m.releases is not None}
            self.columns.append(list({account for held in released.values() for account in held.accounts}))
            self.columns += _settlement_columns(sorted(settlements, key=_order))
        self._places, self._callers = _callers_of(attempts)
        self._held: list[Held] = []
        if attempts:
            self.columns += _attempt_columns(attempts, self._places, self._callers)
            self._hand_in()

    def answers(self, row: Mapping[str, Any] | None) -> list[Settled | Admission] | None:
        """One answer a move, in order; admitted moves learn what they hold. None: nothing was done. `row` is
        what the function answered, a `swift_answer`.
        """
        if row is None or row["at_us"] is None:
            return None
        if row["version"] is not None:
            self._held = _held(len(self._callers), row)
            self._known.learn(row["version"], row["until_us"], self._callers, self._held)
        places = iter(self._places)
        admitted = Admission(verdict=Verdict.OK, state=State.OPEN, admitted_at_us=row["at_us"])
        answers: list[Settled | Admission] = []
        for move in self._moves:
            if move.attempt is not None:
                move.holds = self._held[next(places) - 1]
                answers.append(admitted)
            elif move.settlement is not None:
                answers.append(_settled(move.settlement.state, move.releases))
        return answers

    def _hand_in(self) -> None:
        found = self._known.all_of(self._callers)
        if found is None:
            self.columns += (0, 0, (), ())
            return
        self._held, until_us = found
        pairs = [(n, account) for n, held in enumerate(self._held, 1) for account in held.accounts]
        self.columns += (self._known.version, until_us, [n for n, _ in pairs], [a for _, a in pairs])


def _settlement_columns(some: list[Settlement]) -> list[list[Any]]:
    usages = [s.usage for s in some]
    post = State.POST
    return [
        [s.attempt for s in some],
        [s.state for s in some],
        [s.why for s in some],
        [s.cost for s in some],
        [s.upstream_cost for s in some],
        [count(u.input_tokens) for u in usages],
        [count(u.output_tokens) for u in usages],
        [count(u.cache_read_tokens) for u in usages],
        [count(u.cache_write_5m_tokens) for u in usages],
        [count(u.cache_write_1h_tokens) for u in usages],
        [count(u.images) for u in usages],
        [count(u.guardrail_units) for u in usages],
        [s.usage.exact and s.state is post for s in some],
        [s.price for s in some],
        [request_id(s.upstream_request_id) for s in some],
        [count(s.status) for s in some],
        [count(s.latency_ms) for s in some],
        [count(s.first_byte_ms) for s in some],
    ]


def _identity(a: Attempt) -> _Caller:
    """Ids of one caller are mostly the very same objects; two groups of one caller do no harm."""
    return id(a.tenant), id(a.project), id(a.key), id(a.credential), a.model


def _callers_of(attempts: Sequence[Attempt]) -> tuple[list[int], list[Attempt]]:
    """For each attempt the number, from 1, of its caller; an attempt of each caller."""
    numbers: dict[_Caller, int] = {}
    firsts: list[Attempt] = []
    places: list[int] = []
    for attempt in attempts:
        key = _identity(attempt)
        number = numbers.get(key)
        if number is None:
            firsts.append(attempt)
            number = numbers[key] = len(firsts)
        places.append(number)
    return places, firsts


def _attempt_columns(some: list[Attempt], places: list[int], callers: list[Attempt]) -> list[list[Any]]:
    return [
        [a.tenant for a in callers],
        [a.project for a in callers],
        [a.key for a in callers],
        [a.credential for a in callers],
        [a.model for a in callers],
        places,
        [a.attempt for a in some],
        [a.call for a in some],
        [a.recorder for a in some],
        [a.operation for a in some],
        [a.target for a in some],
        [a.price for a in some],
        [a.ceiling for a in some],
        [a.tags for a in some],
    ]


def _settled(state: State, held: Held | None) -> Settled:
    budgets = held.budgets if held is not None else ()
    if not budgets:
        return _SETTLED[state]
    return Settled(outcome=Outcome.SETTLED, state=state, overrun=0, budgets=budgets)


def _held(callers: int, row: Mapping[str, Any]) -> list[Held]:
    accounts: list[list[int]] = [[] for _ in range(callers)]
    budgets: list[list[UUID]] = [[] for _ in range(callers)]
    for caller, account, budget in zip(row["callers"], row["accounts"], row["budgets"], strict=True):
        accounts[caller - 1].append(account)
        budgets[caller - 1].append(budget)
    return [Held(tuple(a), tuple(b)) for a, b in zip(accounts, budgets, strict=True)]
