"""HTTP/2 by prior knowledge, spoken by hand: heads that are not to be, floods of streams and resets."""

from __future__ import annotations

import time
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import pytest

from tests.security.raw import BODY, INVOKE, connect
from tests.security.test_bodies import memory
from tests.support.stack import Key, Proxy

Headers = list[tuple[str, str]]


@pytest.fixture(scope="module")
def key(module_stack: Proxy) -> Key:
    return module_stack.key()


class Spoken:
    """One connection that sends whatever it is told to."""

    def __init__(self, port: int) -> None:
        config = h2.config.H2Configuration(
            validate_outbound_headers=False, normalize_outbound_headers=False, header_encoding="utf-8"
        )
        self.h2 = h2.connection.H2Connection(config)
        self.socket = connect(port)
        self.h2.initiate_connection()
        self.flush()
        self.statuses: dict[int, int] = {}
        self.resets: set[int] = set()
        self.closed = False

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def ask(self, headers: Headers, body: bytes | None = BODY) -> int:
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, headers, end_stream=body is None)
        if body is not None:
            self.h2.send_data(stream, body, end_stream=True)
        self.flush()
        return stream

    def hear(self, until: int, seconds: float = 5.0) -> None:
        """Until so many streams have ended, or the connection has."""
        deadline = time.monotonic() + seconds
        ended: set[int] = set()
        while len(ended | self.resets) < until and time.monotonic() < deadline and not self.closed:
            self.socket.settimeout(max(0.05, deadline - time.monotonic()))
            try:
                data = self.socket.recv(1 << 16)
            except OSError:
                break
            if not data:
                self.closed = True
                break
            for event in self.h2.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    told: dict[Any, Any] = dict(event.headers)
                    self.statuses[event.stream_id] = int(told.get(":status") or told[b":status"])
                elif isinstance(event, h2.events.StreamEnded):
                    ended.add(event.stream_id)
                elif isinstance(event, h2.events.StreamReset):
                    self.resets.add(event.stream_id)
                elif isinstance(event, h2.events.ConnectionTerminated):
                    self.closed = True
                elif isinstance(event, h2.events.DataReceived):
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            self.flush_quietly()

    def flush_quietly(self) -> None:
        try:
            self.flush()
        except OSError:
            self.closed = True


def head(
    token: str, *more: tuple[str, str], authority: str | None = "proxy:8080", path: str = INVOKE
) -> Headers:
    first = [(":method", "POST"), (":scheme", "http"), (":path", path)]
    middle = [(":authority", authority)] if authority is not None else []
    return [
        *first,
        *middle,
        ("authorization", f"Bearer {token}"),
        ("content-type", "application/json"),
        *more,
    ]


def status(stack: Proxy, headers: Headers) -> int | str:
    """The status, or how the stream ended without one."""
    spoken = Spoken(stack.port)
    stream = spoken.ask(headers)
    spoken.hear(1, 3)
    if stream in spoken.statuses:
        return spoken.statuses[stream]
    return "reset" if stream in spoken.resets else "closed" if spoken.closed else "silence"


def test_a_good_request_is_served(stack: Proxy, key: Key) -> None:
    assert status(stack, head(key.bearer_token)) == 200
    assert status(stack, head("x")) == 403


@pytest.mark.parametrize("authority", ["x:4000/#@evil", "user@proxy", "", "a b", "a,b", None])
def test_a_bad_authority_is_refused(stack: Proxy, simulator: Any, key: Key, authority: str | None) -> None:
    assert status(stack, head(key.bearer_token, authority=authority)) in (400, "reset", "closed")
    assert simulator.requests() == []


@pytest.mark.parametrize(
    "more",
    [
        ("transfer-encoding", "chunked"), ("connection", "close"), ("Upper-Case", "x"), ("x-lf", "a\nb: c"), ("x-nul", "a\x00b"),
        ("content-length", "5"), ("content-length", "1000"), ("content-length", "-1"), ("host", "a b"), (":path", "/admin/v1/keys"),
        ("te", "chunked"), ("upgrade", "h2c"), ("", "x"), ("x:y", "z"),
    ],
)  # fmt: skip
def test_a_head_that_a_http1_hop_would_read_otherwise(
    stack: Proxy, simulator: Any, key: Key, more: tuple[str, str]
) -> None:
    """Refused, or served as what it is: nothing of it goes on."""
    got = status(stack, head(key.bearer_token, more))
    assert got in (200, 400, "reset", "closed"), got
    if more[0] not in ("te", "upgrade", "host"):
        assert got != 200
    sent = simulator.requests()
    assert len(sent) <= 1
    for seen in sent:
        names = {name.lower() for name in dict(seen["headers"])}
        assert not names & {"te", "upgrade", "connection", "transfer-encoding"}


def test_odd_paths_are_other_paths_here_too(stack: Proxy, simulator: Any, key: Key) -> None:
    for path in ("/" + INVOKE, "/%2e%2e" + INVOKE, INVOKE + ";a=b", "/%61dmin/v1/keys", "//admin/v1/keys"):
        assert status(stack, head(key.bearer_token, path=path)) == 404
    for path in ("*", "http://evil" + INVOKE, "model", ""):
        assert status(stack, head(key.bearer_token, path=path)) in (400, 404, "reset", "closed")
    assert simulator.requests() == []


def test_streams_that_are_opened_and_reset_cost_nothing(stack: Proxy, simulator: Any, key: Key) -> None:
    """Two thousand in a row; the connection may be ended for it, other clients are served meanwhile."""
    before = memory(stack)
    spoken = Spoken(stack.port)
    began = time.monotonic()
    try:
        for _ in range(2000):
            stream = spoken.h2.get_next_available_stream_id()
            spoken.h2.send_headers(stream, head(key.bearer_token))
            spoken.h2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
            spoken.flush()
    except OSError:
        pass  # cut: that is an answer, too
    assert (
        stack.request("POST", INVOKE, BODY, key=key.bearer_token, headers={"Cache-Control": "no-store"})[0]
        == 200
    )
    assert time.monotonic() - began < 20
    assert memory(stack) - before < 64 << 20
    assert len(simulator.requests()) == 1


def test_one_connection_has_no_more_streams_than_it_is_told(stack: Proxy, key: Key) -> None:
    spoken = Spoken(stack.port)
    spoken.hear(1, 0.3)
    assert spoken.h2.remote_settings.max_concurrent_streams <= 1000
    headers = head(key.bearer_token, ("x-a", "y" * 70_000))
    try:
        stream = spoken.ask(headers)
        spoken.hear(1, 3)
    except (OSError, h2.exceptions.ProtocolError):
        return
    assert spoken.statuses.get(stream) in (None, 400, 431)
