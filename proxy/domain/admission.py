"""How the bank decides, told as plain Python over a book in memory.

This is the readable twin of `postgres/sql/bank.sql`: the same contract tests and the same random
histories run over both, and both must answer alike. Nothing here waits or looks at a clock; times
are unix microseconds and money is integer nano-dollars.

The rules, in the order in which they are asked:

1. Was this attempt here before? Then that is the answer, whatever else is true.
2. Is its id's time within five minutes of now? May its credential spend?
3. Every live budget that applies must have an account for now; one that has none admits nothing.
4. Its ceiling must fit under every account's limit next to what is reserved, settled and overrun.
   Then it is reserved in all of them; else in none, and the blame goes to a budget that is spent
   before one that is merely held, then to the one with the least left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from proxy.domain.ledger import (
    Admission,
    Attempt,
    EntryKind,
    Outcome,
    Settled,
    Settlement,
    State,
    Verdict,
    Why,
)
from proxy.domain.usage import NOTHING, Usage

STALE_US = 5 * 60 * 1_000_000
_SECOND_US = 1_000_000


@dataclass(slots=True, kw_only=True)
class Spender:
    """A credential with the key, project and tenant it belongs to, and since when it may not spend."""

    tenant: UUID
    project: UUID | None
    key: UUID
    expires_at_us: int | None = None
    active: bool = True


@dataclass(slots=True, kw_only=True)
class Budget:
    id: UUID
    scope: str  #: tenant, project or key
    subject: UUID
    limit: int
    models: frozenset[int] | None = None
    live: bool = True

    def applies(self, attempt: Attempt) -> bool:
        subject = {"tenant": attempt.tenant, "project": attempt.project, "key": attempt.key}[self.scope]
        return self.live and self.subject == subject and (self.models is None or attempt.model in self.models)


@dataclass(slots=True, kw_only=True)
class Account:
    """One budget in one period. `ends_at_us` is None for a period without an end."""

    id: int
    budget: UUID
    starts_at_us: int
    ends_at_us: int | None
    target: int
    boosts: list[tuple[int, int]] = field(default_factory=list)  #: (amount, until)
    limit_effective: int = 0
    reserved: int = 0
    settled: int = 0
    overrun: int = 0

    def covers(self, now_us: int) -> bool:
        return self.starts_at_us <= now_us and (self.ends_at_us is None or now_us < self.ends_at_us)

    def limit(self, now_us: int) -> int:
        """The limit in force, top-ups that have ended left out."""
        if not self.boosts:
            return self.target
        return max(0, self.target + sum(amount for amount, until in self.boosts if until > now_us))

    def left(self, now_us: int) -> int:
        return self.limit(now_us) - self.reserved - self.settled - self.overrun

    def move(self, now_us: int, *, reserved: int = 0, settled: int = 0, overrun: int = 0) -> None:
        """The only way money moves. A limit below what is committed gives way, and falls with it."""
        self.reserved += reserved
        self.settled += settled
        self.overrun += overrun
        self.limit_effective = max(self.limit(now_us), self.reserved + self.settled)


@dataclass(frozen=True, slots=True)
class Entry:
    slot: int
    kind: EntryKind
    amount: int
    upstream_amount: int
    why: Why
    evidence: str | None = None


@dataclass(slots=True, kw_only=True)
class Row:
    """An attempt as the bank keeps it."""

    attempt: Attempt
    holds: tuple[int, ...]
    admitted_at_us: int
    state: State = State.OPEN
    cost: int | None = None
    upstream_cost: int | None = None
    saved: int = 0
    usage: Usage = NOTHING
    entries: list[Entry] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Amendment:
    """A correction after the fact. `evidence` names what proves it; the same evidence counts once per
    attempt and kind. REFUND lowers a CEILING (amount < 0), ADJUST corrects either way.
    """

    attempt: UUID
    kind: EntryKind
    amount: int
    upstream_amount: int
    why: Why
    evidence: str


@dataclass(slots=True)
class Book:
    """Everything the bank knows."""

    spenders: dict[UUID, Spender] = field(default_factory=dict)
    budgets: dict[UUID, Budget] = field(default_factory=dict)
    accounts: dict[int, Account] = field(default_factory=dict)
    rows: dict[UUID, Row] = field(default_factory=dict)

    def may_spend(self, attempt: Attempt, now_us: int) -> bool:
        spender = self.spenders.get(attempt.credential)
        return (
            spender is not None
            and (spender.tenant, spender.project, spender.key)
            == (attempt.tenant, attempt.project, attempt.key)
            and spender.active
            and (spender.expires_at_us is None or spender.expires_at_us > now_us)
        )

    def holds(self, attempt: Attempt, now_us: int) -> list[Account] | None:
        """The accounts an attempt must reserve in, by id; None when a budget has none for now."""
        found = []
        for budget in self.budgets.values():
            if budget.applies(attempt):
                current = [a for a in self.accounts.values() if a.budget == budget.id and a.covers(now_us)]
                if not current:
                    return None
                found.append(max(current, key=lambda a: a.starts_at_us))
        return sorted(found, key=lambda a: a.id)


# ---- admit -----------------------------------------------------------------------------------


def admit(book: Book, attempt: Attempt, now_us: int) -> Admission | None:
    """None: a budget has no account for now; nobody may spend on it unseen."""
    early = _known_or_refused(book, attempt, now_us)
    if early is not None:
        return early
    accounts = book.holds(attempt, now_us)
    if accounts is None:
        return None
    short = [a for a in accounts if attempt.ceiling > a.left(now_us)]
    if short:
        return _denied(attempt, short, now_us)
    for account in accounts:
        account.move(now_us, reserved=attempt.ceiling)
    book.rows[attempt.attempt] = Row(
        attempt=attempt, holds=tuple(a.id for a in accounts), admitted_at_us=now_us
    )
    return Admission(verdict=Verdict.OK, admitted_at_us=now_us)


def record_hit(book: Book, attempt: Attempt, usage: Usage, saved: int, now_us: int) -> Admission:
    """An answer out of the cache: terminal from birth, costs nothing, shows the original's usage."""
    early = _known_or_refused(book, attempt, now_us)
    if early is not None:
        return early
    row = Row(attempt=attempt, holds=(), admitted_at_us=now_us, state=State.HIT, usage=usage, saved=saved)
    row.cost = row.upstream_cost = 0
    row.entries.append(Entry(0, EntryKind.HIT, 0, 0, Why.CACHE))
    book.rows[attempt.attempt] = row
    return Admission(verdict=Verdict.OK, state=State.HIT, admitted_at_us=now_us)


def _known_or_refused(book: Book, attempt: Attempt, now_us: int) -> Admission | None:
    row = book.rows.get(attempt.attempt)
    if row is not None:
        return Admission(verdict=Verdict.DUPLICATE, state=row.state, admitted_at_us=row.admitted_at_us)
    if not _floor(now_us - STALE_US) <= attempt.attempt.int < _floor(now_us + STALE_US):
        return Admission(verdict=Verdict.STALE, admitted_at_us=now_us)
    if not book.may_spend(attempt, now_us):
        return Admission(verdict=Verdict.REVOKED, admitted_at_us=now_us)
    return None


def _floor(moment_us: int) -> int:
    """The smallest UUIDv7 of that millisecond, as an integer."""
    return (moment_us // 1000) << 80


def _denied(attempt: Attempt, short: Sequence[Account], now_us: int) -> Admission:
    def spent(account: Account) -> bool:
        return account.settled + account.overrun + attempt.floor > account.limit(now_us)

    blamed = min(short, key=lambda a: (not spent(a), a.left(now_us), a.id))
    return Admission(
        verdict=Verdict.DENIED,
        budget=blamed.budget,
        settled=blamed.settled + blamed.overrun,
        reserved=blamed.reserved,
        limit=blamed.limit(now_us),
        resets_at=0 if blamed.ends_at_us is None else blamed.ends_at_us // _SECOND_US,
        admitted_at_us=now_us,
    )


# ---- settle ----------------------------------------------------------------------------------


def settle(book: Book, settlement: Settlement, now_us: int) -> Settled:
    """The first terminal entry wins; a POST after a CEILING can only lower it."""
    row = book.rows.get(settlement.attempt)
    if row is None:
        return Settled(outcome=Outcome.UNKNOWN)
    if row.state is State.OPEN:
        by_absence = settlement.state is State.VOID and settlement.recorder is not None
        if by_absence and settlement.recorder != row.attempt.recorder:
            return Settled(outcome=Outcome.REFUSED, state=row.state)
        return _resolve(book, row, settlement, now_us)
    if row.state is State.CEILING and settlement.state is State.POST:
        return _late_post(book, row, settlement, now_us)
    return Settled(outcome=Outcome.ALREADY, state=row.state)


def _resolve(book: Book, row: Row, settlement: Settlement, now_us: int) -> Settled:
    ceiling = row.attempt.ceiling
    cost = {State.POST: settlement.cost, State.CEILING: ceiling}.get(settlement.state, 0)
    upstream = {State.POST: settlement.upstream_cost, State.CEILING: ceiling}.get(settlement.state, 0)
    taken, overrun = min(cost, ceiling), max(0, cost - ceiling)
    row.state, row.usage = settlement.state, settlement.usage
    row.cost, row.upstream_cost = cost, upstream
    row.entries.append(Entry(0, EntryKind(int(settlement.state)), taken, upstream, settlement.why))
    if overrun:
        row.entries.append(Entry(1, EntryKind.OVERRUN, overrun, 0, settlement.why, "usage"))
    budgets = _move(book, row, now_us, reserved=-ceiling, settled=taken, overrun=overrun)
    return Settled(outcome=Outcome.SETTLED, state=row.state, overrun=overrun, budgets=budgets)


def _late_post(book: Book, row: Row, settlement: Settlement, now_us: int) -> Settled:
    ceiling, charged, cost = row.attempt.ceiling, row.cost or 0, settlement.cost
    # A report lowers and overruns once each, whatever has been corrected since: it is one evidence.
    told = {entry.kind for entry in row.entries if entry.slot > 0 and entry.evidence == "usage"}
    refund = min(0, min(cost, ceiling) - min(charged, ceiling)) * (EntryKind.REFUND not in told)
    overrun = max(0, max(0, cost - ceiling) - max(0, charged - ceiling)) * (EntryKind.OVERRUN not in told)
    if not refund and not overrun:
        return Settled(outcome=Outcome.ALREADY, state=row.state)
    upstream = settlement.upstream_cost - (row.upstream_cost or 0)
    if refund:
        row.entries.append(
            Entry(len(row.entries), EntryKind.REFUND, refund, upstream, settlement.why, "usage")
        )
    if overrun:
        rest = 0 if refund else upstream
        row.entries.append(Entry(len(row.entries), EntryKind.OVERRUN, overrun, rest, settlement.why, "usage"))
    row.cost, row.upstream_cost = charged + refund + overrun, settlement.upstream_cost
    row.usage = settlement.usage
    budgets = _move(book, row, now_us, settled=refund, overrun=overrun)
    return Settled(outcome=Outcome.REFUNDED, state=row.state, overrun=overrun, budgets=budgets)


def _move(
    book: Book, row: Row, now_us: int, *, reserved: int = 0, settled: int = 0, overrun: int = 0
) -> tuple[UUID, ...]:
    for hold in row.holds:
        book.accounts[hold].move(now_us, reserved=reserved, settled=settled, overrun=overrun)
    return tuple(book.accounts[hold].budget for hold in row.holds)


def amend(book: Book, amendment: Amendment, now_us: int) -> Outcome:
    """SETTLED when done; ALREADY for evidence seen before; UNKNOWN; REFUSED for an attempt still open or
    never charged by sending, a REFUND of anything but a CEILING, or less than nothing.
    """
    row = book.rows.get(amendment.attempt)
    if row is None:
        return Outcome.UNKNOWN
    seen = {(e.kind, e.evidence) for e in row.entries if e.slot > 0}
    if (amendment.kind, amendment.evidence) in seen:
        return Outcome.ALREADY
    charged = sum(e.amount for e in row.entries if e.kind is not EntryKind.OVERRUN)
    refund = amendment.kind is EntryKind.REFUND
    if (
        row.state in {State.OPEN, State.HIT}
        or amendment.kind not in {EntryKind.REFUND, EntryKind.ADJUST}
        or (refund and (row.state is not State.CEILING or amendment.amount >= 0))
        or charged + amendment.amount < 0
        or (row.upstream_cost or 0) + amendment.upstream_amount < 0
    ):
        return Outcome.REFUSED
    row.entries.append(
        Entry(
            len(row.entries), amendment.kind, amendment.amount, amendment.upstream_amount, amendment.why,
            amendment.evidence,
        )
    )  # fmt: skip
    row.cost = (row.cost or 0) + amendment.amount
    row.upstream_cost = (row.upstream_cost or 0) + amendment.upstream_amount
    _move(book, row, now_us, settled=amendment.amount)
    return Outcome.SETTLED


def sweep(book: Book, deadline_us: int, now_us: int) -> int:
    """Charge the ceiling of attempts open for longer than twice the deadline; returns how many."""
    late = [
        r for r in book.rows.values() if r.state is State.OPEN and r.admitted_at_us < now_us - 2 * deadline_us
    ]
    for row in late:
        settle(book, Settlement(attempt=row.attempt.attempt, state=State.CEILING, why=Why.SWEPT), now_us)
    return len(late)


# ---- limits ----------------------------------------------------------------------------------


def set_limit(book: Book, budget: UUID, limit: int, now_us: int) -> None:
    """Usage stays; a limit below what is committed is reached as reservations fall."""
    change, book.budgets[budget].limit = limit - book.budgets[budget].limit, limit
    if not change:
        return
    for account in _coming(book, budget, now_us):
        account.target = max(0, account.target + change)
        account.move(now_us)


def top_up(book: Book, budget: UUID, amount: int, until_us: int | None, now_us: int) -> None:
    """Without an end: the current period only. With one: every period it touches until then."""
    for account in _coming(book, budget, now_us):
        if until_us is None and account.covers(now_us):
            account.target = max(0, account.target + amount)
        elif until_us is not None and account.starts_at_us < until_us:
            account.boosts = [(a, until) for a, until in account.boosts if until > now_us]
            account.boosts.append((amount, until_us))
        account.move(now_us)


def _coming(book: Book, budget: UUID, now_us: int) -> Iterable[Account]:
    return (
        a
        for a in book.accounts.values()
        if a.budget == budget and (a.ends_at_us is None or a.ends_at_us > now_us)
    )


# ---- invariants ------------------------------------------------------------------------------


def faults(book: Book) -> list[str]:
    """What is wrong with the book; empty when I1 to I4 hold."""
    wrong = []
    for a in book.accounts.values():
        rows = [r for r in book.rows.values() if a.id in r.holds]
        entries = [e for r in rows for e in r.entries]
        held = sum(r.attempt.ceiling for r in rows if r.state is State.OPEN)
        if a.reserved + a.settled > a.limit_effective or min(a.reserved, a.settled, a.overrun) < 0:
            wrong.append(f"I1 account {a.id}")
        if a.reserved != held:
            wrong.append(f"I2 account {a.id}: {a.reserved} reserved, {held} held")
        if a.settled != sum(e.amount for e in entries if e.kind is not EntryKind.OVERRUN):
            wrong.append(f"I3 account {a.id}")
        if a.overrun != sum(e.amount for e in entries if e.kind is EntryKind.OVERRUN):
            wrong.append(f"I3 account {a.id}, overruns")
    for row in book.rows.values():
        terminal = [e.kind for e in row.entries if e.slot == 0]
        if terminal != ([] if row.state is State.OPEN else [EntryKind(int(row.state))]):
            wrong.append(f"I4 attempt {row.attempt.attempt}: {row.state.name} with {terminal}")
        if (row.cost or 0) != sum(e.amount for e in row.entries):
            wrong.append(f"I4 attempt {row.attempt.attempt}: cost {row.cost}")
    return wrong
