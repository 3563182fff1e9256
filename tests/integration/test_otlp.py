"""The exporter on a real socket: what is bounded, what is counted, what waits for whom."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client import REGISTRY

from proxy.clock import uuid7
from proxy.tracing import otlp
from proxy.tracing.collector import collector
from proxy.tracing.sampling import Origin
from proxy.tracing.spans import Span, Trace
from tests.support.collector import Collector, collecting


def trace(children: int = 0, **attributes: Any) -> Trace:
    call, now = uuid7(), time.time_ns()
    root = Span(name="Converse", kind="server", began=now, ended=now + 5,
                attributes={"tollhouse.call.id": str(call), **attributes})  # fmt: skip
    spans = [Span(name=f"step {n}", began=now + n, ended=now + n + 1, attributes={}) for n in range(children)]
    return Trace(Origin(call.int), root, spans)


def exporter(to: Collector) -> otlp.Exporter:
    named = collector(to.url)
    assert named is not None
    return otlp.Exporter(named)


def counted(result: str) -> float:
    return REGISTRY.get_sample_value("tollhouse_trace_spans_total", {"result": result}) or 0.0


async def test_spans_arrive_as_they_were_and_are_counted() -> None:
    before = counted("exported")
    with collecting() as there:
        out, told = exporter(there), trace(2, share=0.5, whole=True, number=1 << 40)
        told.children[1].error = "cut"
        out.take(told)
        await out.close()
        got = there.trace(str(told.root.attributes["tollhouse.call.id"]), seconds=1)
    assert (got.root.began, got.root.ended, got.root.kind) == (told.root.began, told.root.ended, "server")
    assert (got.root["share"], got.root["whole"], got.root["number"]) == (0.5, True, 1 << 40)
    assert [(s.name, s.failed, s["error.type"]) for s in got.children] == [
        ("step 0", False, None), ("step 1", True, "cut"),
    ]  # fmt: skip
    assert len({span.id for span in there.spans}) == 3
    assert counted("exported") - before == 3


async def test_what_waits_is_bounded_whole_traces_are_dropped_and_counted() -> None:
    before, most = counted("queue_full"), otlp.QUEUE_SPANS
    with collecting() as there:
        there.delay = 1.0
        out, began = exporter(there), time.monotonic()
        for _ in range(most):  # twice as many spans as may wait
            out.take(trace(1))
        assert time.monotonic() - began < 1.0, "nobody waited for the collector"
        there.delay = 0.0
        await out.close(10)
        spans = there.spans
    dropped = counted("queue_full") - before
    assert dropped >= most - otlp.BATCH_SPANS
    assert len(spans) + dropped == 2 * most
    assert len(there.calls) * 2 == len(spans), "no trace came in part"


async def test_leaving_is_bounded_though_the_collector_is_not() -> None:
    with collecting() as there:
        there.delay = 20.0
        out = exporter(there)
        out.take(trace())
        began = time.monotonic()
        await out.close(0.5)
        assert 0.4 < time.monotonic() - began < 2
