"""Counters and histograms that add up in plain numbers and are brought to where they are scraped later.

prometheus-client pays a lock, a look at the process id and a store into a mapped file for every step, which
is too much for what every call counts. While `run` runs, steps are held back, at most a tenth of a second; a
worker that is killed takes those with it (the ledger has every call). Otherwise they are the library's own.

A step may name the call it is of, as the exemplar of its bucket or counter: of those held back only the last one is
kept, with its value and, since a step reads no clock, the time of the flush.

This reads four of the library's private attributes: the lock file pins its version, and a test compares.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from uuid import UUID

import prometheus_client

from proxy.exemplars import Keep, labels_of

FLUSH_SECONDS = 0.1

#: metrics with figures of their own that are to be flushed; None while nothing is held back
_behind: list[Counter | Histogram] | None = None
#: where exemplars go; None while nobody wants any
_keep: Keep | None = None


class Counter(prometheus_client.Counter):
    """While `run` runs, belongs to its event loop."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._held: float = 0
        self._call: UUID | None = None
        self._call_value = 0.0

    def inc(self, amount: float = 1, exemplar: UUID | None = None) -> None:  # type: ignore[override]
        behind = _behind
        if behind is None or amount < 0:
            super().inc(amount, None if exemplar is None else labels_of(exemplar))
            return
        if not amount:
            return
        if not self._held:
            behind.append(self)
        self._held += amount
        if exemplar is not None and _keep is not None:
            self._call, self._call_value = exemplar, amount

    def flush(self, at: float) -> None:
        """`at`: unix seconds."""
        held, self._held = self._held, 0
        super().inc(held)
        call = self._call
        if call is not None and _keep is not None:
            self._call = None
            _keep(self._value, call, self._call_value, at)


class Histogram(prometheus_client.Histogram):
    """While `run` runs, belongs to its event loop."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._held = 0
        self._total = 0.0
        self._counts = [0] * len(self._buckets)
        self._calls: list[UUID | None] = [None] * len(self._buckets)
        self._call_values = [0.0] * len(self._buckets)

    def observe(self, amount: float, exemplar: UUID | None = None) -> None:  # type: ignore[override]
        behind = _behind
        if behind is None:
            super().observe(amount, None if exemplar is None else labels_of(exemplar))
            return
        if not self._held:
            behind.append(self)
        self._held += 1
        self._total += amount
        at = bisect_left(self._upper_bounds, amount)
        self._counts[at] += 1
        if exemplar is not None and _keep is not None:
            self._calls[at] = exemplar
            self._call_values[at] = amount

    def flush(self, at: float) -> None:
        """`at`: unix seconds."""
        counts, self._counts = self._counts, [0] * len(self._counts)
        self._sum.inc(self._total)
        self._held, self._total = 0, 0.0
        for number, count in enumerate(counts):
            if count:
                bucket, call = self._buckets[number], self._calls[number]
                bucket.inc(count)
                if call is not None and _keep is not None:
                    self._calls[number] = None
                    _keep(bucket, call, self._call_values[number], at)


def flush() -> None:
    """Bring everything that was counted to where it is scraped."""
    global _behind
    if _behind:
        late, _behind = _behind, []
        at = time.time()
        for metric in late:
            metric.flush(at)


async def run(keep: Keep | None = None) -> None:
    """Hold counts back and flush them ten times a second, until cancelled. One at a time in a process.

    `keep` gets at most one exemplar of a series and flush; None: nobody wants any.
    """
    global _behind, _keep
    _behind, _keep = [], keep
    try:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            flush()
    finally:
        flush()
        _behind, _keep = None, None
