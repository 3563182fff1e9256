"""Traces on their way to a collector, by OpenTelemetry's own batching and exporter.

The only module that imports OpenTelemetry, and itself imported only where traces are switched on. A batch
leaves from a thread of the library's; what waits for it is bounded, and what does not fit or does not
arrive is counted and gone. Nothing here waits for a collector but `close`, which is bounded.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import threading
import time
from collections.abc import Sequence
from uuid import uuid4

from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from proxy import __version__, telemetry
from proxy.tracing.collector import Collector
from proxy.tracing.spans import Span, Trace

#: spans that wait at most; a span is about a kilobyte
QUEUE_SPANS = 2048
#: spans in one request. Encoding them, 40 µs each, keeps the interpreter from the event loop, so not many;
#: a request costs 2 ms by itself, so not few
BATCH_SPANS = 100
#: longest time a span waits for others
DELAY_MS = 1000
#: longest time one request may take, its repetitions included, seconds
EXPORT_SECONDS = 5.0
#: longest time that leaving waits for what has not been sent, seconds
CLOSE_SECONDS = 3.0
_POLL_SECONDS = 0.02
_LOG_SECONDS = 60.0

_KINDS = {"server": SpanKind.SERVER, "client": SpanKind.CLIENT, "internal": SpanKind.INTERNAL}
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_UNSET = Status(StatusCode.UNSET)
_ERROR = Status(StatusCode.ERROR)


class Exporter:
    """One per worker, made in its process: threads do not survive a fork. `take` belongs to one thread."""

    def __init__(self, collector: Collector) -> None:
        self._out = _Counted(_exporter(collector))
        self._taken = 0
        self._processor = BatchSpanProcessor(
            self._out,
            max_queue_size=QUEUE_SPANS * 2,  # `take` keeps to the half, so that nothing is dropped uncounted
            schedule_delay_millis=DELAY_MS,
            max_export_batch_size=BATCH_SPANS,
        )
        self._scope = InstrumentationScope("tollhouse", __version__)
        self._resource = Resource.create(
            {
                "service.name": "tollhouse",
                "service.version": __version__,
                "service.instance.id": str(uuid4()),
                "host.name": socket.gethostname(),
                "process.pid": os.getpid(),
            }
        )

    def take(self, trace: Trace) -> None:
        """Hand a trace over, whole or not at all. Neither waits nor raises."""
        spans = 1 + len(trace.children)
        if self._taken - self._out.seen + spans > QUEUE_SPANS:
            telemetry.TRACE_SPANS.labels("queue_full").inc(spans)
            return
        self._taken += spans
        remote = trace.origin.parent
        above = _context(trace.origin.trace, remote, remote=True) if remote else None
        root = _context(trace.origin.trace)
        self._processor.on_end(self._readable(trace.root, root, above))
        for span in trace.children:
            self._processor.on_end(self._readable(span, _context(trace.origin.trace), root))

    def _readable(self, span: Span, context: SpanContext, parent: SpanContext | None) -> ReadableSpan:
        """Made directly: a tracer's way of starting and ending five spans takes 140 µs of the event loop,
        this 17.
        """
        attributes = span.attributes
        if span.error:
            attributes["error.type"] = span.error
        return ReadableSpan(
            name=span.name,
            context=context,
            parent=parent,
            resource=self._resource,
            attributes=attributes,
            events=[Event(name, timestamp=at) for name, at in span.events],
            kind=_KINDS[span.kind],
            status=_ERROR if span.error else _UNSET,
            start_time=span.began,
            end_time=span.ended,
            instrumentation_scope=self._scope,
        )

    async def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Send what waits, for at most so long."""
        closing = threading.Thread(target=self._processor.shutdown, name="traces leave", daemon=True)
        closing.start()
        deadline = time.monotonic() + seconds
        while closing.is_alive() and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_SECONDS)


def _exporter(collector: Collector) -> SpanExporter:
    """A collector that is away is said once a minute, not once a batch."""
    logging.getLogger(OTLPSpanExporter.__module__).addFilter(_OnceAMinute())
    return OTLPSpanExporter(
        endpoint=collector.url,
        headers=dict(collector.headers),
        timeout=EXPORT_SECONDS,
        compression=Compression.NoCompression,
    )


def _context(trace: int, span: int = 0, *, remote: bool = False) -> SpanContext:
    return SpanContext(trace, span or random.getrandbits(64) or 1, remote, _SAMPLED)


class _Counted(SpanExporter):
    """Counts what became of every span. `seen` is written by the exporting thread only."""

    def __init__(self, inner: SpanExporter) -> None:
        self._inner = inner
        self.seen = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._inner.export(spans)
        finally:
            self.seen += len(spans)
            arrived = result is SpanExportResult.SUCCESS
            telemetry.TRACE_SPANS.labels("exported" if arrived else "export_failed").inc(len(spans))
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)


class _OnceAMinute(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self._quiet_until = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if record.levelno < logging.ERROR or now < self._quiet_until:
            return False
        self._quiet_until = now + _LOG_SECONDS
        return True
