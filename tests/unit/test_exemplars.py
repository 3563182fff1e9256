"""Each process keeps its newest exemplars, and who serves the metrics of all shows the newest of all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.samples import Exemplar

from proxy import exemplars
from proxy.clock import uuid7
from proxy.exemplars import Collector, drop_dead, keeper, labels_of, newest

#: A worker process. A line is `metric amount call`, or `spin N`: N steps of one bucket, value and call the same number.
WORKER = """
import asyncio, sys
from uuid import UUID
from proxy import exemplars, tally

TIMES = tally.Histogram("times", "t", ["who"], buckets=(0.1, 1.0))
COUNT = tally.Counter("count", "c")

async def main():
    running = asyncio.create_task(tally.run(exemplars.keeper(sys.argv[1])))
    await asyncio.sleep(0)
    for line in sys.stdin:
        what, amount, *call = line.split()
        if what == "spin":
            print("begun", flush=True)
            for number in range(1, int(amount) + 1):
                COUNT.inc(number, UUID(int=number))
                tally.flush()
        elif what == "times":
            TIMES.labels("a").observe(float(amount), UUID(call[0]) if call else None)
        else:
            COUNT.inc(float(amount), UUID(call[0]) if call else None)
        tally.flush()
        print("done", flush=True)

asyncio.run(main())
"""


class Worker:
    def __init__(self, directory: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(directory)],
            env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(directory)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, *words: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def step(self, metric: str, amount: float, call: UUID | None = None) -> None:
        self.tell(metric, amount, *([call] if call else []))
        assert self.hear() == "done"

    def end(self) -> None:
        self.process.communicate()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Worker]]:
    workers: list[Worker] = []

    def begin() -> Worker:
        workers.append(Worker(tmp_path))
        return workers[-1]

    yield begin
    for worker in workers:
        if worker.process.poll() is None:
            worker.end()


def registry(directory: Path) -> CollectorRegistry:
    made = CollectorRegistry()
    made.register(Collector(str(directory)))
    return made


def told(directory: Path) -> dict[str, tuple[float, Exemplar | None]]:
    """Value and exemplar of every sample in the OpenMetrics format, by its name and `le`."""
    text = exposition.generate_latest(registry(directory)).decode()
    return {
        f"{sample.name} {sample.labels.get('le', '')}".strip(): (sample.value, sample.exemplar)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def names(found: tuple[float, Exemplar | None]) -> tuple[float, UUID, float]:
    """(the sample's value, the call, the exemplar's value)."""
    value, exemplar = found
    assert exemplar is not None
    assert set(exemplar.labels) == {"call_id"}
    return value, UUID(exemplar.labels["call_id"]), exemplar.value


def test_the_newest_of_all_processes_is_shown_in_its_bucket(
    start: Callable[[], Worker], tmp_path: Path
) -> None:
    first, second = start(), start()
    a, b, c, d = (uuid7() for _ in range(4))
    first.step("times", 0.05, a)
    second.step("times", 0.0625, b)
    first.step("times", 0.5, c)
    second.step("count", 7, d)
    second.step("count", 2)
    shown = told(tmp_path)
    assert names(shown["times_bucket 0.1"]) == (2, b, 0.0625)
    assert names(shown["times_bucket 1.0"]) == (3, c, 0.5)
    assert shown["times_bucket +Inf"] == (3, None)
    assert shown["times_sum"] == (0.6125, None)
    assert names(shown["count_total"]) == (9, d, 7), "a step that names nobody leaves what is there"
    first.step("times", 0.1, a)
    assert names(told(tmp_path)["times_bucket 0.1"]) == (3, a, 0.1), "the older file may have the newer"


def test_the_plain_text_shows_none_and_the_same_values(start: Callable[[], Worker], tmp_path: Path) -> None:
    worker = start()
    worker.step("times", 0.05, uuid7())
    worker.step("count", 1, uuid7())
    plain = generate_latest(registry(tmp_path)).decode()
    assert "call_id" not in plain
    values = {line.rpartition(" ")[0] for line in plain.splitlines() if not line.startswith("#")}
    assert "count_total" in values
    assert 'times_bucket{le="0.1",who="a"}' in values
    marked = exposition.generate_latest(registry(tmp_path)).decode()
    lines = {line.partition(" # ")[0] for line in marked.splitlines() if not line.startswith("#")}
    assert lines == {line for line in plain.splitlines() if not line.startswith("#")}


def test_what_a_process_named_goes_with_it_and_its_counts_stay(
    start: Callable[[], Worker], tmp_path: Path
) -> None:
    stays, goes = start(), start()
    a, b = uuid7(), uuid7()
    stays.step("times", 0.05, a)
    goes.step("times", 0.06, b)
    goes.step("count", 1, b)
    drop_dead(str(tmp_path))
    assert names(told(tmp_path)["times_bucket 0.1"])[1] == b, "both run"
    goes.end()
    drop_dead(str(tmp_path))
    shown = told(tmp_path)
    assert names(shown["times_bucket 0.1"]) == (2, a, 0.05)
    assert shown["count_total"] == (1, None)


def test_a_process_begins_with_an_empty_file_whatever_had_its_number(tmp_path: Path) -> None:
    series = value_of("count_total")
    keep = kept_in(tmp_path)
    keep(series, uuid7(), 1.0, 1.0)
    assert newest(str(tmp_path))
    kept_in(tmp_path)
    assert not newest(str(tmp_path))


def test_nothing_that_is_half_written_is_shown(start: Callable[[], Worker], tmp_path: Path) -> None:
    """Value and call are one number, so that a mixture of two would show."""
    worker = start()
    worker.tell("spin", 100_000)
    assert worker.hear() == "begun"
    seen = set()
    for _ in range(10_000):
        for exemplar in newest(str(tmp_path)).values():
            assert UUID(exemplar.labels["call_id"]).int == exemplar.value
            seen.add(exemplar.value)
    assert len(seen) > 10, "it was written while it was read"
    assert worker.hear() == "done"


def test_a_slot_that_fails_its_checksum_is_left_out_alone(tmp_path: Path) -> None:
    keep = kept_in(tmp_path)
    call = uuid7()
    for name, which in (("a_total", uuid7()), ("b_total", call), ("c_total", uuid7())):
        keep(value_of(name), which, 1.0, 1.0)
    [path] = tmp_path.iterdir()
    table = bytearray(path.read_bytes())
    table[table.index(call.bytes)] ^= 1
    path.write_bytes(table)
    assert {name for name, _ in newest(str(tmp_path))} == {"a_total", "c_total"}
    path.write_bytes(table[: table.index(b"c_total")])
    assert {name for name, _ in newest(str(tmp_path))} == {"a_total"}, "a file that is cut off"
    path.write_bytes(b"")
    assert newest(str(tmp_path)) == {}


def test_a_file_does_not_grow_beyond_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exemplars, "FILE_BYTES", 4096)
    keep = kept_in(tmp_path)
    for number in range(100):
        keep(value_of(f"n{number}_total"), uuid7(), 1.0, 1.0)
    [path] = tmp_path.iterdir()
    assert path.stat().st_size == 4096
    found = {name for name, _ in newest(str(tmp_path))}
    assert 10 < len(found) < 60
    assert found == {f"n{number}_total" for number in range(len(found))}, "the first ones have room"


def test_without_room_for_the_file_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert keeper(str(tmp_path)) is None
    assert "No space left" in caplog.text


def test_what_an_exemplar_says_is_short_enough() -> None:
    assert sum(len(name + said) for name, said in labels_of(uuid7()).items()) <= 128


def kept_in(directory: Path) -> exemplars.Keep:
    keep = keeper(str(directory))
    assert keep is not None
    return keep


def value_of(name: str) -> Any:
    """What stands for one of the library's values."""
    return SimpleNamespace(_key=f'["{name.removesuffix("_total")}", "{name}", {{}}, "help"]')
