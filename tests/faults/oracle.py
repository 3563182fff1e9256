"""What must be true after a round, worked out from the raw rows and the simulator's own bill.

Nothing of the proxy's arithmetic is used. The words: a request is what the simulator received, a row
what the ledger says about one attempt. They are joined by the attempt id that the proxy stamps into
the request's metadata, and by the request id that the simulator answered with.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import UUID

from tests.faults.load import Crowd
from tests.faults.processes import Death
from tests.faults.world import World

OPEN, POST, VOID, CEILING, HIT = 0, 1, 2, 3, 4
NAMES = {OPEN: "OPEN", POST: "POST", VOID: "VOID", CEILING: "CEILING", HIT: "HIT"}
REFUND, ADJUST, OVERRUN = 5, 6, 7
CUT = 3  # the reason of an entry

_ATTEMPTS = """SELECT attempt, call, ceiling, state, coalesce(cost, 0) AS cost, coalesce(upstream_cost, 0) AS upstream,
 holds, upstream_request_id, admitted_at, finished_at, extra_entries, why FROM attempts WHERE tenant = ANY ($1)"""
_ENTRIES = """SELECT e.attempt, e.slot, e.kind, e.amount, e.upstream_amount, e.evidence FROM entries e
 JOIN attempts t USING (attempt) WHERE t.tenant = ANY ($1)"""
_ACCOUNTS = """SELECT a.id, a.budget, a.limit_target, a.limit_effective, a.reserved, a.settled, a.overrun,
 a.starts_at, a.ends_at, (SELECT coalesce(sum(x), 0) FROM unnest(a.boost_amounts) AS x)::bigint AS boost
 FROM accounts a WHERE a.budget = ANY ($1)"""


@dataclass
class Verdict:
    """The findings of one round."""

    violations: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def wrong(self, what: str) -> None:
        self.violations.append(what)

    def add(self, other: Verdict) -> None:
        self.violations += other.violations
        self.counts += other.counts


@dataclass
class Evidence:
    """What is known about attempts from outside: which may be at their ceiling, and which must be what."""

    #: attempts whose worker died between SENT and DONE, or whose answer the harness itself broke
    sent: set[UUID] = field(default_factory=set)
    #: attempts with a recorded settlement: (state, cost)
    done: dict[UUID, tuple[str, int]] = field(default_factory=dict)
    #: attempts that were opened and never sent
    opened: set[UUID] = field(default_factory=set)
    #: attempts that reached a fail point and died there: (attempt, point)
    reached: list[tuple[UUID, str]] = field(default_factory=list)
    #: a process died unseen, or the network was cut: a ceiling needs no explanation
    blind: bool = False
    #: records were refused by a full disk: a worker that lived on may have settled what was not recorded
    full: bool = False
    #: the recorders were destroyed: what was open is charged its ceiling, whatever it was
    lost: bool = False

    def learn(self, deaths: list[Death], since_ms: int) -> None:
        """From the dead, about attempts minted since then: a recovering worker holds older files too."""
        for death in deaths:
            if death.remains is None:
                self.blind = True
                continue
            for remains in death.remains:
                if remains.attempt.int >> 80 < since_ms:
                    continue
                if remains.last == "sent":
                    self.sent.add(remains.attempt)
                elif remains.last == "opened":
                    self.opened.add(remains.attempt)
                elif remains.last == "done" and remains.done is not None:
                    self.done[remains.attempt] = remains.done


@dataclass
class Books:
    """Both sides of one round."""

    rows: dict[UUID, Any]
    entries: dict[UUID, list[Any]]
    accounts: list[Any]
    bill: dict[UUID, Any]
    refused: dict[UUID, Any]
    requests: list[Any]
    twice: list[str]
    apart: set[UUID] = field(default_factory=set)


async def books(world: World, crowd: Crowd) -> Books:
    """Reads both sides. The simulator's side since the last time."""
    rows = await world.rows(_ATTEMPTS, crowd.tenants)
    entries: dict[UUID, list[Any]] = defaultdict(list)
    for entry in await world.rows(_ENTRIES, crowd.tenants):
        entries[entry["attempt"]].append(entry)
    accounts = await world.rows(_ACCOUNTS, crowd.budgets)
    answer = await world.control("GET", f"/_bill?since={world.billed}&refused_since=999999999")
    world.billed = answer["next"]
    seen = await world.control("GET", f"/_requests?since={world.requested}")
    world.requested = seen["next"]
    requests = [r for r in seen["requests"] if r["path"].startswith("/model/")]
    twice = [
        a for a, n in Counter(r["metadata"].get("tollhouse-attempt", "") for r in requests).items() if n > 1
    ]
    apart = await world.rows("SELECT attempt FROM attempts WHERE tenant = ANY ($1)", crowd.apart)
    return Books(
        apart={r["attempt"] for r in apart},
        rows={r["attempt"]: r for r in rows},
        entries=entries,
        accounts=accounts,
        bill={UUID(c["metadata"]["tollhouse-attempt"]): c for c in answer["calls"]},
        refused={
            UUID(r["metadata"]["tollhouse-attempt"]): r
            for r in requests
            if r["error"] and "tollhouse-attempt" in r["metadata"]
        },
        requests=requests,
        twice=twice + ([] if len(rows) == len({r["attempt"] for r in rows}) else ["a row stands twice"]),
    )


def nanos(usd: str) -> int:
    value = Decimal(usd) * 1_000_000_000
    assert value == value.to_integral_value()
    return int(value)


def judge(found: Books, crowd: Crowd, evidence: Evidence) -> Verdict:
    """Every rule, over everything of the round. Call it when nothing is under way any more."""
    verdict = Verdict()
    _requests(found, verdict)
    for attempt, row in found.rows.items():
        _row(attempt, row, found, evidence, verdict)
    _dead(found, evidence, verdict)
    _entries(found, verdict)
    _accounts(found, verdict)
    _clients(found, crowd, evidence, verdict)
    if verdict.counts["ceiling never arrived"] > max(3, len(found.rows) // 100):
        verdict.wrong(
            f"{verdict.counts['ceiling never arrived']} attempts were cut before they reached Bedrock"
        )
    verdict.counts["calls"] = len(crowd.shots)
    verdict.counts["answered"] = crowd.answered
    verdict.counts["attempts"] = len(found.rows)
    verdict.counts["requests"] = len(found.requests)
    for row in found.rows.values():
        verdict.counts[NAMES[row["state"]]] += 1
    return verdict


def _requests(found: Books, verdict: Verdict) -> None:
    """I5: every request the simulator got belongs to exactly one row."""
    for text in found.twice:
        verdict.wrong(f"I5: {text or 'a request without an attempt'} was sent more than once")
    for request in found.requests:
        attempt = request["metadata"].get("tollhouse-attempt")
        if attempt is None:
            if request["error"] == "" or request["status"] == 200:
                verdict.wrong(f"I5: request {request['request_id']} names no attempt")
        elif UUID(attempt) not in found.rows and UUID(attempt) not in found.apart:
            verdict.wrong(f"missing row: request {request['request_id']} of attempt {attempt}")
    for attempt, call in found.bill.items():
        row = found.rows.get(attempt)
        if row is not None and row["upstream_request_id"] not in {None, call["request_id"]}:
            verdict.wrong(
                f"attempt {attempt} has request id {row['upstream_request_id']}, not {call['request_id']}"
            )


def _row(attempt: UUID, row: Any, found: Books, evidence: Evidence, verdict: Verdict) -> None:
    state, name = row["state"], NAMES[row["state"]]
    call = found.bill.get(attempt)
    billed = nanos(call["cost_usd"]) if call else 0
    if state == OPEN:
        verdict.wrong(f"attempt {attempt} is still open (billed {billed})")
    elif state == POST and (row["cost"] != billed or row["upstream"] != billed or call is None):
        verdict.wrong(f"attempt {attempt} is charged {row['cost']}, billed {billed}")
    elif state == VOID and call is not None:
        verdict.wrong(f"overspent: attempt {attempt} is void and was billed {billed}")
    elif state == CEILING:
        if row["cost"] < billed:
            verdict.wrong(f"overspent: attempt {attempt} was billed {billed} and is charged {row['cost']}")
        explained = attempt in evidence.sent or evidence.blind or evidence.lost
        if call is None and row["why"] == CUT and not explained:
            verdict.counts["ceiling never arrived"] += 1  # written to a connection that was just being closed
        elif not explained and (call is None or call["completed"]):
            verdict.wrong(
                f"not exact: attempt {attempt} is at its ceiling without a reason (billed {billed}, {name})"
            )
        verdict.counts["ceiling explained" if attempt in evidence.sent else "ceiling cut"] += 1
    elif state == VOID and attempt not in found.refused:
        verdict.counts["void unsent"] += 1


def _dead(found: Books, evidence: Evidence, verdict: Verdict) -> None:
    """What the flight recorders of the dead said must have come true."""
    if evidence.lost:
        return
    for attempt in evidence.opened:
        row = found.rows.get(attempt)
        if row is not None and row["state"] != VOID:
            verdict.wrong(f"attempt {attempt} was never sent and ends as {NAMES[row['state']]}")
    for attempt, (state, cost) in evidence.done.items():
        row = found.rows.get(attempt)
        if row is None:
            verdict.wrong(f"missing row: attempt {attempt} was done")
        elif NAMES[row["state"]] != state or (state == "POST" and row["cost"] != cost):
            verdict.wrong(
                f"attempt {attempt} was done as {state} {cost} and is {NAMES[row['state']]} {row['cost']}"
            )
    for attempt in evidence.sent:
        row = found.rows.get(attempt)
        if row is None:
            verdict.wrong(f"missing row: attempt {attempt} was sent")
        elif row["state"] != CEILING and not (evidence.full and row["state"] in {POST, VOID}):
            verdict.wrong(f"attempt {attempt} was sent, its end unknown, and is {NAMES[row['state']]}")
    verdict.counts["dead opened"] += len(evidence.opened)
    verdict.counts["dead sent"] += len(evidence.sent)
    verdict.counts["dead done"] += len(evidence.done)


def _entries(found: Books, verdict: Verdict) -> None:
    """I4: one terminal entry, and the row says what its entries say."""
    for attempt, row in found.rows.items():
        entries = found.entries.get(attempt, [])
        terminal = [e for e in entries if e["slot"] == 0]
        if len(terminal) != (row["state"] != OPEN):
            verdict.wrong(
                f"I4: attempt {attempt} in state {NAMES[row['state']]} has {len(terminal)} terminal entries"
            )
        elif terminal and terminal[0]["kind"] != row["state"]:
            verdict.wrong(
                f"I4: attempt {attempt} is {NAMES[row['state']]}, its entry is of kind {terminal[0]['kind']}"
            )
        if (
            sum(e["amount"] for e in entries) != row["cost"]
            or len(entries) - len(terminal) != row["extra_entries"]
        ):
            verdict.wrong(
                f"I4: attempt {attempt} costs {row['cost']}, its entries {[dict(e) for e in entries]}"
            )
        if any(e["kind"] == OVERRUN for e in entries):
            verdict.wrong(f"overrun: attempt {attempt}")


def _accounts(found: Books, verdict: Verdict) -> None:
    """I1 to I3, the bill of every budget, and its limit as it was set (it is never lowered in a round)."""
    reserved: Counter[int] = Counter()
    settled: Counter[int] = Counter()
    billed: Counter[int] = Counter()
    for attempt, row in found.rows.items():
        for account in row["holds"]:
            if row["state"] == OPEN:
                reserved[account] += row["ceiling"]
            settled[account] += sum(
                e["amount"] for e in found.entries.get(attempt, []) if e["kind"] != OVERRUN
            )
            if attempt in found.bill:
                billed[account] += nanos(found.bill[attempt]["cost_usd"])
    for a in found.accounts:
        place, committed = f"account {a['id']}", a["reserved"] + a["settled"]
        if committed > a["limit_target"] + a["boost"] or committed > a["limit_effective"]:
            verdict.wrong(f"I1 overspent: {place} has {committed} of {a['limit_target']} + {a['boost']}")
        if a["reserved"] != reserved[a["id"]] or a["reserved"] < 0:
            verdict.wrong(f"I2: {place} has reserved {a['reserved']}, open attempts hold {reserved[a['id']]}")
        if a["settled"] != settled[a["id"]]:
            verdict.wrong(f"I3: {place} has settled {a['settled']}, entries say {settled[a['id']]}")
        if billed[a["id"]] > committed:
            verdict.wrong(f"overspent: {place} was billed {billed[a['id']]}, committed are {committed}")


def _clients(found: Books, crowd: Crowd, evidence: Evidence, verdict: Verdict) -> None:
    """Who saw a whole answer finds its row at its exact cost."""
    by_call: dict[UUID, list[Any]] = defaultdict(list)
    for row in found.rows.values():
        by_call[row["call"]].append(row)
    for shot in crowd.shots:
        if shot.complete and not shot.spoilt:
            rows = by_call.get(UUID(shot.call), [])
            if not any(row["state"] == POST for row in rows):
                told = [NAMES[row["state"]] for row in rows]
                verdict.wrong(f"call {shot.call} was answered in full and its rows are {told}")
        verdict.counts[f"status {shot.status}" if shot.status else f"no answer: {shot.error}"] += 1
