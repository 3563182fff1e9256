"""A collector of traces: an HTTP server that takes OTLP as a real one does, and shows what it got."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Message
from opentelemetry.proto.trace.v1.trace_pb2 import Status


@dataclass(frozen=True)
class Span:
    """One span as it came over the wire; ids in hex, times in unix nanoseconds."""

    trace: str
    id: str
    parent: str
    name: str
    kind: str
    began: int
    ended: int
    failed: bool
    attributes: dict[str, Any]
    events: dict[str, int]
    resource: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.attributes.get(name)


@dataclass
class Trace:
    """The spans of one call: its root, and the root's children as they began."""

    root: Span
    children: list[Span]

    def named(self, name: str) -> list[Span]:
        return [span for span in self.children if span.name == name]

    @property
    def sendings(self) -> list[Span]:
        return [span for span in self.children if span.kind == "client"]


def _plain(attributes: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in attributes}


def _span(message: Message, resource: dict[str, Any]) -> Span:
    return Span(
        trace=message.trace_id.hex(), id=message.span_id.hex(), parent=message.parent_span_id.hex(), name=message.name,
        kind=Message.SpanKind.Name(message.kind).removeprefix("SPAN_KIND_").lower(),
        began=message.start_time_unix_nano, ended=message.end_time_unix_nano,
        failed=message.status.code == Status.STATUS_CODE_ERROR, attributes=_plain(message.attributes),
        events={event.name: event.time_unix_nano for event in message.events}, resource=resource,
    )  # fmt: skip


@dataclass
class Collector:
    """`status` is what it answers, after `delay` seconds."""

    url: str = ""
    status: int = 200
    delay: float = 0.0
    #: bodies and headers of every request, whatever was answered
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    @property
    def spans(self) -> list[Span]:
        found = []
        for body in list(self.bodies):
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                told = _plain(resource.resource.attributes)
                for scope in resource.scope_spans:
                    assert scope.scope.name == "tollhouse"
                    found += [_span(message, told) for message in scope.spans]
        return found

    @property
    def calls(self) -> list[str]:
        """Ids of the calls that came, in order."""
        return [str(s["tollhouse.call.id"]) for s in self.spans if s.kind == "server"]

    def trace(self, call: str, seconds: float = 10.0) -> Trace:
        """Of the call with this id, once it has arrived."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            spans = self.spans
            for root in spans:
                if root.kind == "server" and root["tollhouse.call.id"] == call:
                    children = [s for s in spans if s.trace == root.trace and s.parent == root.id]
                    return Trace(root, sorted(children, key=lambda span: span.began))
            time.sleep(0.05)
        raise AssertionError(f"no trace of call {call} within {seconds} s; {self.calls}")


def _handler(collector: Collector) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            time.sleep(collector.delay)
            collector.paths.append(self.path)
            collector.headers.append({name.lower(): value for name, value in self.headers.items()})
            collector.bodies.append(body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(collector.status)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A proxy that was killed breaks its connection off."""


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a port of its own, gone at the end."""
    collector = Collector()
    server = _Server(("127.0.0.1", 0), _handler(collector))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    collector.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
