"""The harness itself: its reading of flight recorders, its door, its oracle, its plan."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from proxy.clock import uuid7
from proxy.domain.ledger import Settlement, State, Why
from proxy.failpoints import POINTS
from proxy.recorder import FlightRecorder
from tests.faults import mutants, oracle, plan, rounds, wreck
from tests.faults.client import Shot
from tests.faults.door import Door
from tests.faults.load import Crowd
from tests.faults.oracle import Books, Evidence
from tests.faults.processes import Death
from tests.faults.world import REPOSITORY
from tests.faults.wreck import Remains


def test_a_flight_recorder_reads_the_same_to_a_stranger(tmp_path: Path):
    recorder = FlightRecorder(tmp_path)
    opened, sent, done, ended = (uuid7() for _ in range(4))
    for attempt in (opened, sent, done, ended):
        recorder.opened(attempt)
    for attempt in (sent, done, ended):
        recorder.sent(attempt)
    for attempt in (done, ended):
        recorder.done(Settlement(attempt=attempt, state=State.POST, why=Why.USAGE, cost=42))
    recorder.closed(ended)
    (file,) = tmp_path.glob("*.flight")
    found = {remains.attempt: remains for remains in wreck.read(file.read_bytes())}
    assert {a: r.last for a, r in found.items()} == {
        opened: "opened",
        sent: "sent",
        done: "done",
        ended: "end",
    }
    assert found[done].done == ("POST", 42)
    with pytest.raises(ValueError, match="torn"):
        wreck.read(file.read_bytes().rstrip(b"\0")[:-1])


# ---- the door --------------------------------------------------------------------------------


async def _hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readexactly(4)
    writer.write(b"0123456789")
    await writer.drain()
    writer.close()


async def _through(door: Door) -> bytes:
    assert door._server is not None
    reader, writer = await asyncio.open_connection(*door._server.sockets[0].getsockname()[:2])
    try:
        writer.write(b"ping")
        async with asyncio.timeout(0.5):
            return await reader.read()
    except (ConnectionError, TimeoutError) as error:
        return type(error).__name__.encode()
    finally:
        writer.transport.abort()


async def test_a_door_passes_cuts_mutes_and_refuses():
    server = await asyncio.start_server(_hello, "127.0.0.1", 0)
    door = await Door.to(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        assert await _through(door) == b"0123456789"
        door.cut_after, door.cuts = 4, 1
        assert await _through(door) in {
            b"0123",
            b"ConnectionResetError",
        }  # a reset may overtake what was said
        assert await _through(door) == b"0123456789"
        door.mute = True
        assert await _through(door) in {b"TimeoutError", b""}
        door.heal()
        door.refuse = True
        assert await _through(door) in {b"ConnectionResetError", b""}
        door.heal()
        assert await _through(door) == b"0123456789"
    finally:
        await door.close()
        server.close()


# ---- the oracle ------------------------------------------------------------------------------


def _row(attempt: UUID, **changes: Any) -> dict[str, Any]:
    row = {
        "attempt": attempt, "call": uuid4(), "ceiling": 100, "state": oracle.POST, "cost": 60, "upstream": 60,
        "holds": [1], "upstream_request_id": "r1", "admitted_at": None, "finished_at": None, "extra_entries": 0,
        "why": 0,
    }  # fmt: skip
    return row | changes


def _books(attempt: UUID, row: dict[str, Any]) -> Books:
    """One attempt that was billed 60 nano-dollars, on one account."""
    entry = {
        "attempt": attempt,
        "slot": 0,
        "kind": row["state"],
        "amount": row["cost"],
        "upstream_amount": 0,
        "evidence": None,
    }
    account = {
        "id": 1, "budget": uuid4(), "limit_target": 1000, "limit_effective": 1000, "boost": 0, "overrun": 0,
        "reserved": 0, "settled": row["cost"],
    }  # fmt: skip
    metadata = {"tollhouse-attempt": str(attempt)}
    request = {"request_id": "r1", "path": "/model/x", "metadata": metadata, "error": "", "status": 200}
    bill = {attempt: {"request_id": "r1", "cost_usd": "0.000000060", "completed": True}}
    return Books({attempt: row}, {attempt: [entry]}, [account], bill, {}, [request], [])


def _judged(found: Books, evidence: Evidence | None = None, shots: list[Shot] | None = None) -> list[str]:
    crowd = Crowd([], [], [], [], shots or [])
    return oracle.judge(found, crowd, evidence or Evidence()).violations


def test_books_that_agree_are_accepted():
    attempt = uuid7()
    assert _judged(_books(attempt, _row(attempt))) == []


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"cost": 59, "upstream": 59}, "is charged 59, billed 60"),
        ({"state": oracle.VOID, "cost": 0, "upstream": 0}, "is void and was billed"),
        ({"state": oracle.CEILING, "cost": 100}, "at its ceiling without a reason"),
        ({"state": oracle.CEILING, "cost": 50}, "was billed 60 and is charged 50"),
        ({"state": oracle.OPEN, "cost": 0}, "still open"),
        ({"upstream_request_id": "another"}, "has request id another"),
        ({"extra_entries": 1}, "I4"),
    ],
)
def test_a_wrong_row_is_seen(changes, word):
    attempt = uuid7()
    assert word in "\n".join(_judged(_books(attempt, _row(attempt, **changes))))


@pytest.mark.parametrize(
    ("account", "word"),
    [
        ({"limit_target": 50}, "I1"),
        ({"reserved": 1}, "I2"),
        ({"settled": 61}, "I3"),
        ({"settled": 59}, "was billed 60, committed are 59"),
    ],
)
def test_a_wrong_account_is_seen(account, word):
    attempt = uuid7()
    found = _books(attempt, _row(attempt))
    found.accounts[0] |= account
    assert word in "\n".join(_judged(found))


def test_a_missing_row_a_second_sending_and_a_second_end_are_seen():
    attempt = uuid7()
    found = _books(attempt, _row(attempt))
    found.rows.clear()
    assert "missing row" in "\n".join(_judged(found))
    found = _books(attempt, _row(attempt))
    found.twice.append(str(attempt))
    assert "sent more than once" in "\n".join(_judged(found))
    found = _books(attempt, _row(attempt))
    found.entries[attempt] *= 2
    assert "2 terminal entries" in "\n".join(_judged(found))


@pytest.mark.parametrize(
    ("last", "done", "state", "word"),
    [
        ("opened", None, oracle.POST, "was never sent"),
        ("sent", None, oracle.POST, "its end unknown"),
        ("done", ("POST", 61), oracle.POST, "was done as POST 61"),
        ("done", ("VOID", 0), oracle.POST, "was done as VOID"),
    ],
)
def test_what_a_flight_recorder_says_must_come_true(last, done, state, word):
    attempt = uuid7()
    evidence = Evidence()
    evidence.learn([Death(0.0, 1, "worker", [Remains(attempt, last, done)])], 0)
    assert word in "\n".join(_judged(_books(attempt, _row(attempt, state=state)), evidence))


def test_who_saw_a_whole_answer_must_find_its_row():
    attempt = uuid7()
    row = _row(attempt)
    shot = Shot("InvokeModel", call=str(row["call"]), status=200, complete=True)
    assert _judged(_books(attempt, row), shots=[shot]) == []
    shot.call = str(uuid4())
    assert "answered in full" in "\n".join(_judged(_books(attempt, row), shots=[shot]))


# ---- the plan --------------------------------------------------------------------------------


def test_every_fail_point_is_played_in_every_form():
    assert set(rounds.CALL_POINTS) | set(rounds.RECOVERY_POINTS) | {"settle_later"} == set(POINTS)
    assert set(plan.STEPS) | set(plan.MOVES) == set(rounds.CALL_POINTS) <= set(rounds.ENDS)


def test_names_are_unique_because_they_seed_the_schedule():
    for form in plan.FORMS.values():
        names = [job.name for job in form()]
        assert len(names) == len(set(names))


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_still_applies_and_has_a_guard(mutant):
    names = [job.name for job in plan.guards()]
    assert all(any(name.startswith(guard) for name in names) for guard in mutant.guards)
    for name, old, new in mutant.edits:
        text = (REPOSITORY / name).read_text(encoding="utf-8")
        assert old in text
        assert old != new
        if name.endswith(".py"):
            for one, another in ((o, n) for file, o, n in mutant.edits if file == name):
                text = text.replace(one, another)
            compile(text, name, "exec")
