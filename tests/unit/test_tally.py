"""Counts that are held back say the same as the library's own, a little later."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from proxy import exemplars, tally
from proxy.clock import uuid7

BUCKETS = (0.001, 0.01, 0.1, 1.0)


@pytest.fixture
async def held() -> AsyncIterator[None]:
    """Nothing reaches the library until `flush`, and nobody wants exemplars."""
    async with held_back(None):
        yield


@asynccontextmanager
async def held_back(keep: exemplars.Keep | None) -> AsyncIterator[None]:
    running = asyncio.create_task(tally.run(keep))
    await asyncio.sleep(0)
    yield
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def named(*metrics: Iterable[Any]) -> dict[str, tuple[dict[str, str], float]]:
    """Labels and value of every exemplar of these metrics, by the sample's name and `le`."""
    return {
        f"{sample.name} {sample.labels.get('le', '')}".strip(): (
            sample.exemplar.labels,
            sample.exemplar.value,
        )
        for metric in metrics
        for family in metric
        for sample in family.samples
        if sample.exemplar
    }


def told(registry: CollectorRegistry) -> str:
    lines = generate_latest(registry).decode().splitlines()
    return "\n".join(line for line in lines if "_created" not in line)


async def test_they_agree_with_the_librarys_own(held: None) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    counts = tally.Counter("c", "c", ["who"], registry=ours)
    other_counts = prometheus_client.Counter("c", "c", ["who"], registry=theirs)
    times = tally.Histogram("h", "h", ["who"], registry=ours, buckets=BUCKETS)
    other_times = prometheus_client.Histogram("h", "h", ["who"], registry=theirs, buckets=BUCKETS)
    rng = random.Random(7)
    for _ in range(500):
        who, step = rng.choice("ab"), rng.choice((0, 1, 7))
        amount = rng.choice((0.0, 0.001, 0.0025, 0.01, 0.5, 1.0, 3.0))
        counts.labels(who).inc(step)
        other_counts.labels(who).inc(step)
        times.labels(who).observe(amount)
        other_times.labels(who).observe(amount)
    assert told(ours) != told(theirs)

    tally.flush()
    first = told(ours)
    tally.flush()

    assert first == told(theirs)
    assert told(ours) == first, "nothing is brought twice"


async def test_they_are_brought_soon_without_being_asked(held: None) -> None:
    registry = CollectorRegistry()
    count = tally.Counter("c", "c", registry=registry)
    count.inc()
    for _ in range(200):
        if registry.get_sample_value("c_total") == 1:
            return
        await asyncio.sleep(0.01)
    pytest.fail("it was never flushed")


async def test_the_end_brings_what_is_left_and_then_nothing_is_held_back() -> None:
    registry = CollectorRegistry()
    count = tally.Counter("c", "c", registry=registry)
    running = asyncio.create_task(tally.run())
    await asyncio.sleep(0)
    count.inc(2)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert registry.get_sample_value("c_total") == 2
    count.inc(3)
    assert registry.get_sample_value("c_total") == 5


async def test_a_step_back_is_refused(held: None) -> None:
    count = tally.Counter("c", "c", registry=CollectorRegistry())
    with pytest.raises(ValueError, match="non-negative"):
        count.inc(-1)


def test_without_a_run_they_are_the_librarys_own() -> None:
    registry = CollectorRegistry()
    times = tally.Histogram("h", "h", registry=registry, buckets=BUCKETS)
    times.observe(0.05)
    assert registry.get_sample_value("h_bucket", {"le": "0.1"}) == 1
    assert registry.get_sample_value("h_sum") == 0.05


async def test_the_last_call_of_those_held_back_is_named_once() -> None:
    count = tally.Counter("c", "c", registry=None)
    times = tally.Histogram("h", "h", registry=None, buckets=BUCKETS)
    calls = [uuid7() for _ in range(3)]
    a, b, c = ({"call_id": str(call)} for call in calls)
    kept: list[tuple[dict[str, str], float]] = []
    library = exemplars.keeper(None) or pytest.fail("the library keeps them")

    def keep(series: Any, call: UUID, value: float, at: float) -> None:
        kept.append((exemplars.labels_of(call), value))
        library(series, call, value, at)

    async with held_back(keep):
        times.observe(0.002, calls[0])
        times.observe(0.003, calls[1])
        times.observe(0.004)
        times.observe(5.0, calls[2])
        count.inc(3, calls[0])
        count.inc(2, calls[1])
        assert not kept, "nothing is done before the flush"
        tally.flush()
        assert sorted(kept, key=str) == sorted([(b, 0.003), (c, 5.0), (b, 2)], key=str)
        times.observe(0.002)
        count.inc()
        tally.flush()
        assert len(kept) == 3, "a step that names nobody names nobody"
        times.observe(0.01, calls[0])
        tally.flush()
    found = named(times.collect(), count.collect())
    assert found == {"h_bucket 0.01": (a, 0.01), "h_bucket +Inf": (c, 5.0), "c_total": (b, 2)}


async def test_none_are_kept_while_nobody_wants_them(held: None) -> None:
    count = tally.Counter("c", "c", registry=None)
    times = tally.Histogram("h", "h", registry=None, buckets=BUCKETS)
    times.observe(0.002, uuid7())
    count.inc(1, uuid7())
    tally.flush()
    assert named(times.collect(), count.collect()) == {}


def test_without_a_run_exemplars_are_the_librarys_own_too() -> None:
    count = tally.Counter("c", "c", registry=None)
    times = tally.Histogram("h", "h", registry=None, buckets=BUCKETS)
    call = uuid7()
    times.observe(0.05, call)
    count.inc(4, call)
    labels = {"call_id": str(call)}
    assert named(times.collect(), count.collect()) == {"h_bucket 0.1": (labels, 0.05), "c_total": (labels, 4)}
