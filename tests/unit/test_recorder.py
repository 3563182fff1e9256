"""What a flight recorder proves after a crash, and what it must not pretend to prove."""

import os
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest

from proxy import recorder
from proxy.clock import uuid7
from proxy.domain.ledger import Settlement, State, Why
from proxy.domain.usage import Usage
from proxy.recorder import FlightRecorder


@pytest.fixture(autouse=True, params=[True, False], ids=["mapped", "written"])
def mapped(request, monkeypatch):
    """Both ways of recording; what is promised is the same."""
    monkeypatch.setattr(recorder, "_reserves", lambda _: request.param)
    return request.param


def crash(flight: FlightRecorder) -> Path:
    """The process is gone: its descriptors close, its file stays."""
    path = flight._file.path
    flight._file.release()
    return path


def only(directory: Path) -> recorder.Wreck:
    [(path, _)] = recorder.orphans(directory)
    return recorder.read(path)


def post(attempt: UUID) -> Settlement:
    usage = Usage(input_tokens=7, output_tokens=11, cache_read_tokens=3, cache_write_1h_tokens=2)
    return Settlement(
        attempt=attempt,
        state=State.POST,
        why=Why.USAGE,
        cost=123,
        upstream_cost=120,
        usage=usage,
        price=4,
        upstream_request_id="r-1",
        status=200,
        latency_ms=9,
        first_byte_ms=5,
    )


def test_each_attempt_resolves_by_its_last_record(tmp_path):
    flight = FlightRecorder(tmp_path)
    unsent, sent, done, ended = (uuid7() for _ in range(4))
    for attempt in (unsent, sent, done, ended):
        flight.opened(attempt)
    flight.sent(sent)
    flight.sent(done)
    flight.done(post(done))
    flight.sent(ended)
    flight.done(post(ended))
    flight.closed(ended)
    crash(flight)

    settled = {s.attempt: s for s in recorder.resolve(only(tmp_path))}

    assert settled.keys() == {unsent, sent, done}
    assert (settled[unsent].state, settled[unsent].recorder) == (State.VOID, flight.id)
    assert settled[sent].state is State.CEILING
    assert settled[done] == post(done)


def test_a_torn_record_forbids_voiding_by_absence(tmp_path):
    flight = FlightRecorder(tmp_path)
    attempt = uuid7()
    flight.opened(attempt)
    path = crash(flight)
    with path.open("ab") as file:
        file.write(b"\x02half a record")

    wreck = only(tmp_path)

    assert wreck.torn
    assert [s.state for s in recorder.resolve(wreck)] == [State.CEILING]


def test_another_boot_forbids_voiding_by_absence(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "boot_id", lambda: "an earlier boot")
    flight = FlightRecorder(tmp_path)
    flight.opened(uuid7())
    crash(flight)
    monkeypatch.setattr(recorder, "boot_id", lambda: "this boot")

    assert [s.state for s in recorder.resolve(only(tmp_path))] == [State.CEILING]


def test_an_unknown_boot_forbids_voiding_by_absence(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "boot_id", lambda: "")
    flight = FlightRecorder(tmp_path)
    flight.opened(uuid7())
    crash(flight)

    assert [s.state for s in recorder.resolve(only(tmp_path))] == [State.CEILING]


@pytest.mark.parametrize("zeros", [0, 22])
@pytest.mark.parametrize("cut", range(1, 23))
def test_a_cut_at_any_byte_of_the_last_record_never_voids_a_sent_attempt(tmp_path, cut, zeros):
    flight = FlightRecorder(tmp_path)
    attempt = uuid7()
    flight.opened(attempt)
    flight.sent(attempt)
    end = flight._file.size
    path = crash(flight)
    path.write_bytes(path.read_bytes()[: end - cut] + bytes(zeros))

    [settlement] = recorder.resolve(only(tmp_path))

    assert settlement.state is State.CEILING


def test_a_record_without_its_kind_was_never_made(tmp_path):
    flight = FlightRecorder(tmp_path)
    attempt = uuid7()
    flight.opened(attempt)
    end = flight._file.size
    path = crash(flight)
    path.write_bytes(path.read_bytes()[:end] + b"\0" + attempt.bytes + bytes(4000))

    wreck = only(tmp_path)

    assert (wreck.torn, set(wreck.sent), set(wreck.unsent)) == (False, set(), {attempt})


def test_what_lies_beyond_the_end_is_damage(tmp_path):
    flight = FlightRecorder(tmp_path)
    attempt = uuid7()
    flight.opened(attempt)
    end = flight._file.size
    path = crash(flight)
    path.write_bytes(path.read_bytes()[:end] + bytes(4000) + b"a page that was kept")

    wreck = only(tmp_path)

    assert wreck.torn
    assert [s.state for s in recorder.resolve(wreck)] == [State.CEILING]


def test_a_file_that_only_has_records_reads_the_same(tmp_path):
    """As it was left by versions that reserved nothing."""
    flight = FlightRecorder(tmp_path)
    attempt, other = uuid7(), uuid7()
    flight.opened(attempt)
    flight.opened(other)
    flight.sent(other)
    end = flight._file.size
    path = crash(flight)
    path.write_bytes(path.read_bytes()[:end])

    wreck = only(tmp_path)

    assert (wreck.torn, set(wreck.sent), set(wreck.unsent)) == (False, {other}, {attempt})


_WITNESS = """
import os, sys
from pathlib import Path
from proxy import recorder
from proxy.clock import uuid7
recorder._reserves = lambda _: sys.argv[2] == "True"
flight = recorder.FlightRecorder(Path(sys.argv[1]))
while True:
    attempt = uuid7()
    flight.opened(attempt)
    flight.sent(attempt)
    os.write(1, attempt.bytes)
"""


def test_sigkill_loses_nothing_and_tears_nothing(tmp_path, mapped):
    child = subprocess.Popen(
        [sys.executable, "-c", _WITNESS, str(tmp_path), str(mapped)], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    said = child.stdout.read(16 * 3000)
    child.kill()
    said += child.stdout.read()
    child.wait()
    child.stdout.close()

    wreck = only(tmp_path)

    assert not wreck.torn
    assert {UUID(bytes=said[at : at + 16]) for at in range(0, len(said), 16)} <= wreck.sent.keys()


def test_a_living_owner_keeps_its_file(tmp_path):
    flight = FlightRecorder(tmp_path)
    flight.opened(uuid7())

    assert recorder.orphans(tmp_path) == []


def test_leaving_deletes_a_file_in_which_nothing_is_open(tmp_path):
    flight = FlightRecorder(tmp_path)
    attempt = uuid7()
    flight.opened(attempt)
    flight.closed(attempt)
    flight.shut()

    assert list(tmp_path.iterdir()) == []


def test_leaving_keeps_a_file_in_which_something_is_open(tmp_path):
    flight = FlightRecorder(tmp_path)
    attempt = uuid7()
    flight.opened(attempt)
    flight.sent(attempt)
    flight.shut()

    assert [s.attempt for s in recorder.resolve(only(tmp_path))] == [attempt]


def test_a_large_file_is_followed_by_another_and_goes_when_it_is_done(tmp_path):
    flight = FlightRecorder(tmp_path, rotate_bytes=200)
    first = uuid7()
    home = flight.opened(first)
    others = [uuid7() for _ in range(10)]
    homes = {flight.opened(a) for a in others}
    assert homes - {home}, "a second file was begun"

    for attempt in (first, *others):
        flight.closed(attempt)

    assert [p.stem for p in tmp_path.iterdir()] == [str(flight.id)]


def test_a_settlement_survives_the_recorder_exactly():
    settlement = post(uuid7())
    assert recorder.decode(settlement.attempt, recorder.encode(settlement)) == settlement


def test_a_file_is_invisible_until_it_is_locked_and_whole(tmp_path, monkeypatch):
    seen = []
    real = os.fsync

    def peek(descriptor):
        seen.append(recorder.orphans(tmp_path))
        return real(descriptor)

    monkeypatch.setattr(os, "fsync", peek)
    FlightRecorder(tmp_path)
    assert seen
    assert seen[0] == []


def test_a_file_of_another_format_is_not_guessed_at(tmp_path):
    flight = FlightRecorder(tmp_path)
    flight.opened(uuid7())
    path = crash(flight)
    path.write_bytes(path.read_bytes().replace(b'"format": 1', b'"format": 2'))
    with pytest.raises(ValueError, match="format"):
        recorder.read(path)


def test_a_short_write_is_taken_back_so_that_what_follows_is_readable(tmp_path, monkeypatch, mapped):
    if mapped:
        pytest.skip("nothing is written")
    flight = FlightRecorder(tmp_path)
    first, second = uuid7(), uuid7()
    flight.opened(first)
    real = os.write
    monkeypatch.setattr(os, "write", lambda d, b: real(d, b[:7]))
    with pytest.raises(OSError, match="short write"):
        flight.sent(first)
    monkeypatch.setattr(os, "write", real)
    flight.opened(second)
    flight.sent(second)
    crash(flight)

    wreck = only(tmp_path)

    assert (wreck.torn, set(wreck.sent), set(wreck.unsent)) == (False, {second}, {first})


def fill(flight, monkeypatch):
    """The disk is full, and so is what the file has reserved. Returns what was recorded."""

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "write", full)
    monkeypatch.setattr(os, "posix_fallocate", full)
    recorded = set()
    with pytest.raises(OSError, match="no space"):
        while True:
            attempt = uuid7()
            flight.opened(attempt)
            recorded.add(attempt)
    return recorded


def test_an_end_that_cannot_be_written_keeps_the_file(tmp_path, monkeypatch):
    flight = FlightRecorder(tmp_path)
    attempt = uuid7()
    flight.opened(attempt)
    flight.sent(attempt)
    fill(flight, monkeypatch)
    flight.closed(attempt)
    monkeypatch.undo()
    flight.shut()
    assert set(only(tmp_path).sent) == {attempt}


def test_a_full_disk_loses_nothing_and_what_follows_is_readable(tmp_path, monkeypatch, mapped):
    flight = FlightRecorder(tmp_path)
    before = fill(flight, monkeypatch)
    assert bool(before) is mapped
    monkeypatch.undo()
    after = {uuid7() for _ in range(3000)}  # more than one step
    for attempt in after:
        flight.opened(attempt)
        flight.sent(attempt)
    crash(flight)

    wreck = only(tmp_path)

    assert (wreck.torn, set(wreck.sent), set(wreck.unsent)) == (False, after, before)


def test_where_nothing_can_be_reserved_records_are_written(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError("operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", refused)
    flight = FlightRecorder(tmp_path)
    attempt = uuid7()
    flight.opened(attempt)
    flight.sent(attempt)
    size = flight._file.size
    path = crash(flight)

    assert path.stat().st_size == size
    assert set(only(tmp_path).sent) == {attempt}
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_no_room_for_a_new_file_leaves_nothing_behind(tmp_path, monkeypatch):
    flight = FlightRecorder(tmp_path, rotate_bytes=200)
    attempts = [uuid7() for _ in range(9)]

    def full(*_):
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"), monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for attempt in attempts:
            flight.opened(attempt)
    assert [path.stem for path in tmp_path.iterdir()] == [str(flight.id)]
    assert flight.opened(attempts[-1]) == flight.id


def test_a_file_in_which_nothing_is_open_does_not_outlive_its_turn(tmp_path):
    flight = FlightRecorder(tmp_path, rotate_bytes=200)
    for _ in range(20):
        attempt = uuid7()
        flight.opened(attempt)
        flight.closed(attempt)
    assert [path.stem for path in tmp_path.iterdir()] == [str(flight.id)]


def test_after_leaving_nothing_is_written_into_a_strangers_file(tmp_path):
    flight = FlightRecorder(tmp_path)
    attempt = uuid7()
    flight.opened(attempt)
    flight.shut()
    with pytest.raises(OSError):
        flight.sent(attempt)
