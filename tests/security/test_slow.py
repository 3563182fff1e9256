"""Clients that take their time: heads, bodies and readers at a byte a second, and crowds of them.

The short forms run with every change; `CROWDS=1 pytest tests/security/test_slow.py` adds the crowds of a
thousand and ten thousand, which want a machine for themselves.
"""

from __future__ import annotations

import os
import resource
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import APPLICATION
from tests.security.raw import BODY, INVOKE, STREAM, connect, hear, post
from tests.security.test_bodies import memory
from tests.support.stack import Key, Proxy, running

HEADER_SECONDS = 10
BODY_SECONDS = 3
SETTINGS = {"TOLLHOUSE_BODY_SECONDS": str(BODY_SECONDS), "TOLLHOUSE_MAX_CALLS": "40"}
MIB = 1 << 20
crowds = pytest.mark.skipif(
    not os.environ.get("CROWDS"), reason="the large forms want a quiet machine: CROWDS=1"
)


@pytest.fixture(scope="module")
def key(module_stack: Proxy) -> Key:
    return module_stack.key()


@pytest.fixture(scope="module", autouse=True)
def many_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65_536)), hard))


@contextmanager
def dripping(port: int, count: int, start: bytes) -> Iterator[list[socket.socket]]:
    """`count` connections that begin with `start` and then send a byte a second each."""
    opened = [connect(port) for _ in range(count)]
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(1.0):
            for one in opened:
                try:
                    one.send(b"x")
                except OSError:
                    pass

    for one in opened:
        one.sendall(start)
    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    try:
        yield opened
    finally:
        stop.set()
        thread.join()
        for one in opened:
            one.close()


def good_calls(stack: Proxy, key: Key, seconds: float) -> list[float]:
    """How long each of a stream of ordinary calls took, in seconds; all of them are answered."""
    taken = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.monotonic()
        assert (
            stack.request("POST", INVOKE, BODY, key=key.bearer_token, headers={"Cache-Control": "no-store"})[
                0
            ]
            == 200
        )
        taken.append(time.monotonic() - began)
    return taken


def p95(taken: list[float]) -> float:
    return statistics.quantiles(taken, n=20)[-1]


def gone(opened: list[socket.socket]) -> int:
    """How many of them the server has closed."""
    closed = 0
    for one in opened:
        one.setblocking(False)
        try:
            while one.recv(65536):
                pass
            closed += 1
        except BlockingIOError:
            pass
        except OSError:
            closed += 1
    return closed


def slowloris(stack: Proxy, key: Key, count: int, seconds: float) -> tuple[float, float]:
    """95th percentiles of good calls before and during; asserts that every slow head and body is cut."""
    before = good_calls(stack, key, seconds)
    head = b"POST " + INVOKE.encode() + b" HTTP/1.1\r\nHost: proxy\r\nX-Slow: "
    body = post(key.bearer_token, b"Content-Length: 1000\r\n", body=b"{")
    with dripping(stack.port, count, head) as heads, dripping(stack.port, 20, body) as bodies:
        began = time.monotonic()
        during = good_calls(stack, key, seconds)
        assert gone(heads) == 0 or time.monotonic() - began > HEADER_SECONDS - 1
        while gone(heads) + gone(bodies) < count + 20 and time.monotonic() - began < HEADER_SECONDS + 10:
            time.sleep(0.2)
        assert (gone(heads), gone(bodies)) == (count, 20)
        assert HEADER_SECONDS - 2 < time.monotonic() - began < HEADER_SECONDS + 8
    return p95(before), p95(during)


def test_two_hundred_slow_heads_and_good_traffic(stack: Proxy, key: Key) -> None:
    before, during = slowloris(stack, key, 200, 3.0)
    assert during < max(2 * before, before + 0.05)  # the machine's other work is in both


def test_an_answered_connection_is_kept_for_the_time_of_a_head(
    module_owner_url: str,
    as_role: Callable[[str, str], str],
    session_redis_url: str,
    simulator_server: Any,
    tmp_path: Path,
) -> None:
    """Both are one deadline, which a load balancer that keeps its connections longer needs raised."""
    settings = {"TOLLHOUSE_HEAD_SECONDS": "3"}
    database = as_role(module_owner_url, APPLICATION)
    with running(
        Proxy(database, session_redis_url, simulator_server.url, tmp_path / "state", settings)
    ) as short:
        slow, idle = connect(short.port), connect(short.port)
        began = time.monotonic()
        slow.sendall(b"POST / HTTP/1.1\r\nHost: proxy\r\nX-Slow: ")
        idle.sendall(b"GET /health/live HTTP/1.1\r\nHost: proxy\r\n\r\n")
        assert idle.recv(4096).startswith(b"HTTP/1.1 200")
        for one in (slow, idle):
            one.settimeout(10.0)
            while one.recv(4096):
                pass
            assert 2.5 < time.monotonic() - began < 5.0
            one.close()


@pytest.mark.slow
@crowds
def test_a_thousand_slow_heads_and_good_traffic(stack: Proxy, key: Key) -> None:
    before, during = slowloris(stack, key, 1000, 8.0)
    assert during < max(1.2 * before, before + 0.005)


def test_a_slow_body_is_cut_at_its_deadline(stack: Proxy, simulator: Any, key: Key) -> None:
    for path in (INVOKE, "/openai/v1/chat/completions"):
        request = post(key.bearer_token, b"Content-Length: 1000\r\n", body=b"{", path=path)
        with dripping(stack.port, 1, request) as (one,):
            heard = hear(one, 0.3, first=BODY_SECONDS + 5)
        assert heard.statuses == [400]
        assert BODY_SECONDS - 1 < heard.seconds < BODY_SECONDS + 3
    assert simulator.requests() == []


def test_the_admins_bodies_have_a_deadline_too(stack: Proxy) -> None:
    line = b"POST /admin/v1/tenants HTTP/1.1\r\n"
    request = post(stack.admin_key, b"Content-Length: 1000\r\n", body=b"{", line=line)
    with dripping(stack.port, 1, request) as (one,):
        heard = hear(one, 0.3, first=BODY_SECONDS + 5)
    assert heard.statuses in ([400], [408]), heard.data[:300]
    assert heard.seconds < BODY_SECONDS + 3


def test_who_does_not_read_fills_no_memory(stack: Proxy, simulator: Any) -> None:
    """Twenty streams of a thousand events to clients that read nothing: what is kept is bounded by socket
    buffers, and the calls are settled all the same."""
    own = stack.key()
    before = memory(stack)
    readers = []
    for i in range(20):
        body = b'{"prompt": "[[tokens=1000]] %d %s", "max_gen_len": 1000}' % (i, b"x" * 100)
        one = connect(stack.port, receive_buffer=2048)
        one.sendall(post(own.bearer_token, path=STREAM, body=body))
        readers.append(one)
    peak = before
    until = time.monotonic() + 4
    while time.monotonic() < until:
        peak = max(peak, memory(stack))
        time.sleep(0.1)
    for one in readers:
        one.close()
    assert peak - before < 64 * MIB
    calls = stack.settled_calls(tenant=own.tenant, seconds=20)
    assert len(calls) == 20
    assert {call["outcome"] for call in calls} == {"POST"}


def idle(stack: Proxy, key: Key, count: int) -> None:
    """Connections that never say a byte are kept by the server, at a few kilobytes each."""
    before = memory(stack)
    opened = []
    try:
        for _ in range(count):
            opened.append(connect(stack.port))
        assert len(good_calls(stack, key, 1.0)) > 3
        assert memory(stack) - before < 16 * MIB + count * 24 * 1024
    finally:
        for one in opened:
            one.close()


def test_five_hundred_idle_connections(stack: Proxy, key: Key) -> None:
    idle(stack, key, 500)


@pytest.mark.slow
@crowds
def test_ten_thousand_idle_connections(stack: Proxy, key: Key) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 11_000:
        pytest.skip("this machine lets a process open too few files")
    idle(stack, key, 10_000)


def test_one_client_has_as_many_streams_as_its_key_may(stack: Proxy, simulator: Any) -> None:
    """Above the key's concurrency 429, above the worker's calls 503; both with a time to come back."""
    bounded, free = stack.key(), stack.key()
    stack.admin("POST", "/limits", {"scope": f"key:{bounded.id}", "concurrency": 4}, expect=201)
    time.sleep(0.6)
    simulator.hold(hold=True)

    def one(key: Key, number: int) -> tuple[int, dict[str, str]]:
        body = {"prompt": f"held {number}", "max_gen_len": 16}
        status, headers, _ = stack.request("POST", INVOKE, body, key=key.bearer_token)
        return status, headers

    def settle(futures: list[Any], count: int) -> None:
        """Until each of `count` calls is either answered or held upstream."""
        deadline = time.monotonic() + 20
        while sum(f.done() for f in futures) + simulator.waiting() < count and time.monotonic() < deadline:
            time.sleep(0.05)

    with ThreadPoolExecutor(70) as pool:
        few = [pool.submit(one, bounded, i) for i in range(12)]
        settle(few, 12)
        many = [pool.submit(one, free, 100 + i) for i in range(50)]
        settle(few + many, 62)
        simulator.hold(hold=False)
        limited, shed = [f.result(30) for f in few], [f.result(30) for f in many]
    assert sorted(status for status, _ in limited) == [200] * 4 + [429] * 8
    assert {status for status, _ in shed} == {200, 503}
    assert sum(status == 200 for status, _ in shed) == 36
    for status, headers in limited + shed:
        assert status == 200 or int(headers["retry-after"]) >= 1


async def test_bodies_under_way_share_one_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many large bodies at once: what is above the room is told to come back, and the room is given back."""
    import asyncio
    import json

    from proxy.web import inference

    monkeypatch.setattr(inference, "HELD_BYTES", 5_000_000)
    release = asyncio.Event()

    class Holding:
        max_calls = 100

        async def handle(self, request: Any, sink: Any) -> None:
            await request.read(25_000_000)
            await release.wait()
            await sink.answer(200, [], b"")

    async def upload(application: Any) -> int:
        parts = [b"x" * 500_000] * 6
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(0)
            part = parts.pop()
            return {"type": "http.request", "body": part, "more_body": bool(parts)}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "raw_path": INVOKE.encode(), "path": INVOKE, "headers": []}
        await application(scope, receive, send)
        if sent[0]["status"] == 503:
            assert json.loads(sent[1]["body"])["message"] == "the proxy is busy; please retry"
        status: int = sent[0]["status"]
        return status

    application = inference.Inference(Holding(), lambda *_: b"", 5.0)  # type: ignore[arg-type]
    for _ in range(2):
        uploads = [asyncio.ensure_future(upload(application)) for _ in range(4)]
        await asyncio.sleep(0.05)
        release.set()
        assert sorted(await asyncio.gather(*uploads)) in ([200, 503, 503, 503], [200, 200, 503, 503])
        release.clear()
        assert application._held == 0
        assert application._inside == 0
