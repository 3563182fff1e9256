"""Counters and histograms that add up in plain numbers and are brought to where they are scraped later.

prometheus-client pays a lock, a look at the process id and a store into a mapped file for every step, which
is too much for what every call counts. While `run` runs, steps are held back, at most a tenth of a second; a
worker that is killed takes those with it (the ledger has every call). Otherwise they are the library's own.

This reads three of the library's private attributes: the lock file pins its version, and a test compares.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left

import prometheus_client

FLUSH_SECONDS = 0.1

#: metrics with figures of their own that are to be flushed; None while nothing is held back
_behind: list[Counter | Histogram] | None = None


class Counter(prometheus_client.Counter):
    """While `run` runs, belongs to its event loop."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._held: float = 0

    def inc(self, amount: float = 1, exemplar: dict[str, str] | None = None) -> None:
        behind = _behind
        if behind is None or amount < 0:
            super().inc(amount, exemplar)
            return
        if not amount:
            return
        if not self._held:
            behind.append(self)
        self._held += amount

    def flush(self) -> None:
        held, self._held = self._held, 0
        super().inc(held)


class Histogram(prometheus_client.Histogram):
    """While `run` runs, belongs to its event loop."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._held = 0
        self._total = 0.0
        self._counts = [0] * len(self._buckets)

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        behind = _behind
        if behind is None:
            super().observe(amount, exemplar)
            return
        if not self._held:
            behind.append(self)
        self._held += 1
        self._total += amount
        self._counts[bisect_left(self._upper_bounds, amount)] += 1

    def flush(self) -> None:
        counts, self._counts = self._counts, [0] * len(self._counts)
        self._sum.inc(self._total)
        self._held, self._total = 0, 0.0
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)


def flush() -> None:
    """Bring everything that was counted to where it is scraped."""
    global _behind
    if _behind:
        late, _behind = _behind, []
        for metric in late:
            metric.flush()


async def run() -> None:
    """Hold counts back and flush them ten times a second, until cancelled. One at a time in a process."""
    global _behind
    _behind = []
    try:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            flush()
    finally:
        flush()
        _behind = None
