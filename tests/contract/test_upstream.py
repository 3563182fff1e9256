"""Every `Upstream` keeps these promises: the real client against a raw server, and the scripted double."""

import asyncio
import hashlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from proxy.bedrock.client import BedrockUpstream
from proxy.bedrock.credentials import FixedCredentials
from proxy.bedrock.signing import parse_authorization, verify
from proxy.domain.catalogue import Target
from proxy.errors import ConfigurationError, UpstreamFailure
from proxy.ports import Upstream, UpstreamRequest
from proxy.testing_upstream import Scripted, ScriptedUpstream
from tests.support.certificates import certificate, serving

SECRET = "upstream-secret"
TARGET = Target(model="m", model_id="m", region="us-east-1")
PATH = "/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A123456789012%3Aapplication-inference-profile%2Fab/{}"


def request(name: str, **changes: Any) -> UpstreamRequest:
    facts: dict[str, Any] = {
        "target": TARGET,
        "method": "POST",
        "path": PATH.format(name),
        "headers": {"content-type": "application/json", "x-amzn-bedrock-service-tier": "flex"},
        "body": b'{"prompt":"x"}',
        "first_byte_timeout": 5.0,
        "read_timeout": 5.0,
    }
    return UpstreamRequest(**(facts | changes))


#: what is answered by name, for both implementations
SCRIPTS = {
    "whole": Scripted(headers={"X-Amzn-RequestId": "r-1", "Content-Type": "application/json"}, chunks=[b'{"a":1}']),
    "stream": Scripted(headers={"Content-Type": "application/vnd.amazon.eventstream"}, chunks=[b"one", b"two", b"three"], chunk_after=0.02),
    "throttled": Scripted(status=429, headers={"x-amzn-ErrorType": "ThrottlingException"}, chunks=[b"{}"]),
    "redirected": Scripted(status=307, headers={"Location": "/model/x/whole"}, chunks=[b"away"]),
    "compressed": Scripted(headers={"Content-Encoding": "gzip"}, chunks=[b"\x1f\x8bnot really"]),
    "cut": Scripted(chunks=[b"one", b"two"], cut=True),
    "dropped": Scripted(dropped=True),
    "silent": Scripted(first_byte_after=1.0),
    "stalled": Scripted(chunks=[b"one", b"two"], chunk_after=1.0),
    "patient": Scripted(first_byte_after=0.3, chunks=[b"one"]),
    "thoughtful": Scripted(chunks=[b"one", b"two"], chunk_after=0.3),
    "unreachable": Scripted(unreachable=True),
}  # fmt: skip


@dataclass
class RawServer:
    """Speaks HTTP by hand, so that it can break it. Keeps every request head and body it got."""

    seen: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *rest = head.decode().split("\r\n")
                headers = {k.lower(): v.strip() for k, _, v in (item.partition(":") for item in rest if item)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.seen.append((line, headers, body))
                if not await self._answer(SCRIPTS[line.split(" ")[1].rsplit("/", 1)[1]], writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, answer: Scripted, writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(answer.first_byte_after)
        if answer.dropped:
            return False
        lines = [f"HTTP/1.1 {answer.status} X", "Transfer-Encoding: chunked"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        for chunk in answer.chunks:
            await asyncio.sleep(answer.chunk_after)
            writer.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
            await writer.drain()
        if answer.cut:
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


@dataclass
class Bench:
    upstream: Upstream
    #: requests that really went out
    sent: Callable[[], int]


@asynccontextmanager
async def raw_server(tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[RawServer, str]]:
    raw = RawServer()
    server = await asyncio.start_server(raw.serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield raw, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Split:
    """The real client, sending "unreachable" to a port where nobody listens."""

    def __init__(self, there: Upstream, nowhere: Upstream) -> None:
        self._there, self._nowhere = there, nowhere

    async def send(self, request: UpstreamRequest) -> Any:
        unreachable = request.path.endswith("/unreachable")
        return await (self._nowhere if unreachable else self._there).send(request)


@pytest.fixture(params=["real", "scripted"])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    if request.param == "scripted":
        double = ScriptedUpstream(lambda sent: SCRIPTS[sent.path.rsplit("/", 1)[1]])
        yield Bench(double, lambda: len(double.requests))
        return
    credentials = FixedCredentials("AKIDUPSTREAM", SECRET)
    async with (
        raw_server() as (raw, url),
        BedrockUpstream(credentials, endpoint_url=url) as there,
        BedrockUpstream(credentials, endpoint_url=f"http://127.0.0.1:{free_port()}") as nowhere,
    ):
        yield Bench(Split(there, nowhere), lambda: len(raw.seen))


async def test_a_whole_answer_is_read_once(bench: Bench) -> None:
    response = await bench.upstream.send(request("whole"))
    assert response.status == 200
    assert response.headers["x-amzn-requestid"] == "r-1"
    assert await response.read() == b'{"a":1}'
    assert await response.read() == b""
    response.close()
    assert bench.sent() == 1


async def test_a_stream_arrives_as_it_is_sent(bench: Bench) -> None:
    response = await bench.upstream.send(request("stream"))
    chunks = [chunk async for chunk in response.chunks()]
    assert len(chunks) > 1 and b"".join(chunks) == b"onetwothree"
    response.close()


@pytest.mark.parametrize(
    ("name", "status", "body"), [("throttled", 429, b"{}"), ("redirected", 307, b"away")]
)
async def test_errors_and_redirects_are_answers_and_nothing_is_sent_again(
    bench: Bench, name, status, body
) -> None:
    response = await bench.upstream.send(request(name))
    assert (response.status, await response.read()) == (status, body)
    response.close()
    assert bench.sent() == 1


async def test_bytes_are_never_decoded(bench: Bench) -> None:
    response = await bench.upstream.send(request("compressed"))
    assert await response.read() == b"\x1f\x8bnot really"
    response.close()


@pytest.mark.parametrize("whole", [True, False])
async def test_an_answer_that_breaks_off_fails(bench: Bench, whole: bool) -> None:
    response = await bench.upstream.send(request("cut"))
    got = b""
    with pytest.raises(UpstreamFailure) as failure:
        if whole:
            await response.read()
        else:
            async for chunk in response.chunks():
                got += chunk
    assert failure.value.sent
    assert whole or got == b"onetwo"
    response.close()


@pytest.mark.parametrize("name", ["dropped", "silent"])
async def test_a_request_without_an_answer_was_sent_exactly_once(bench: Bench, name: str) -> None:
    with pytest.raises(UpstreamFailure) as failure:
        await bench.upstream.send(request(name, first_byte_timeout=0.1))
    assert failure.value.sent
    assert bench.sent() == 1


async def test_an_unreachable_place_was_sent_nothing(bench: Bench) -> None:
    with pytest.raises(UpstreamFailure) as failure:
        await bench.upstream.send(request("unreachable"))
    assert not failure.value.sent
    assert bench.sent() == 0


async def test_silence_between_chunks_is_bounded(bench: Bench) -> None:
    response = await bench.upstream.send(request("stalled", read_timeout=0.1))
    with pytest.raises(UpstreamFailure) as failure:
        await response.read()
    assert failure.value.sent
    response.close()


async def test_the_two_time_limits_do_not_mix(bench: Bench) -> None:
    response = await bench.upstream.send(request("patient", first_byte_timeout=2.0, read_timeout=0.1))
    assert await response.read() == b"one"
    response.close()
    response = await bench.upstream.send(request("thoughtful", first_byte_timeout=0.1, read_timeout=2.0))
    assert await response.read() == b"onetwo"
    response.close()


# ---- what only the real client can break ---------------------------------------------------------


async def test_the_wire_carries_the_raw_path_the_given_headers_and_a_true_signature() -> None:
    async with raw_server() as (raw, url):
        credentials = FixedCredentials("AKIDUPSTREAM", SECRET, "session+token/=")
        async with BedrockUpstream(
            credentials, endpoint_url=f"{url}/gateway/", now=lambda: 1_795_000_000.0
        ) as upstream:
            (await upstream.send(request("whole"))).close()
    line, headers, body = raw.seen[0]
    path = "/gateway" + PATH.format("whole")
    assert line == f"POST {path} HTTP/1.1"
    assert headers.keys() == {
        "host", "content-type", "content-length", "x-amzn-bedrock-service-tier", "x-amz-date", "x-amz-security-token",
        "authorization",
    }  # fmt: skip
    authorization = parse_authorization(headers["authorization"])
    assert authorization.signed == (
        "content-type", "host", "x-amz-date", "x-amz-security-token", "x-amzn-bedrock-service-tier",
    )  # fmt: skip
    body_hash = hashlib.sha256(body).hexdigest()
    verify(SECRET, authorization, "POST", path, "", headers, body_hash, 1_795_000_000.0)


async def test_a_connection_is_used_again_after_a_whole_answer_and_dropped_after_a_part() -> None:
    async with (
        raw_server() as (raw, url),
        BedrockUpstream(FixedCredentials("A", "s"), endpoint_url=url) as upstream,
    ):
        for _ in range(3):
            response = await upstream.send(request("whole"))
            await response.read()
            response.close()
        assert raw.connections == 1
        response = await upstream.send(request("stalled"))
        response.close()
        (await upstream.send(request("whole"))).close()
        assert raw.connections == 2


async def test_no_free_connection_in_time_was_sent_nothing() -> None:
    async with (
        raw_server() as (raw, url),
        BedrockUpstream(
            FixedCredentials("A", "s"), endpoint_url=url, connections_max=1, connect_timeout=0.1
        ) as upstream,
    ):
        first = await upstream.send(request("stalled"))
        with pytest.raises(UpstreamFailure) as failure:
            await upstream.send(request("whole"))
        first.close()
        assert not failure.value.sent
        assert len(raw.seen) == 1


async def test_a_failed_tls_handshake_was_sent_nothing(tmp_path: Path) -> None:
    async with raw_server(serving(certificate(tmp_path))) as (raw, url):
        secure = url.replace("http:", "https:")
        async with BedrockUpstream(FixedCredentials("A", "s"), endpoint_url=secure) as upstream:
            with pytest.raises(UpstreamFailure) as failure:
                await upstream.send(request("whole"))
    assert not failure.value.sent
    assert raw.seen == []


async def test_silent_connections_are_probed() -> None:
    async with (
        raw_server() as (_, url),
        BedrockUpstream(FixedCredentials("A", "s"), endpoint_url=url) as upstream,
    ):
        response = await upstream.send(request("stalled"))
        transport = response._connection._transport  # type: ignore[attr-defined]
        sock = transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        if hasattr(socket, "TCP_KEEPIDLE"):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 45
        response.close()


# ---- credentials ---------------------------------------------------------------------------------


@pytest.fixture
def aws_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> pytest.MonkeyPatch:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return monkeypatch


@pytest.mark.parametrize("own", ["th_live_abc", "THAKABCDEFGHIJKLMNOP"])
async def test_tollhouse_never_signs_with_its_own_keys(
    aws_environment: pytest.MonkeyPatch, own: str, caplog: Any
) -> None:
    aws_environment.setenv("AWS_ACCESS_KEY_ID", own)
    aws_environment.setenv("AWS_SECRET_ACCESS_KEY", "x")
    aws_environment.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", "http://127.0.0.1:9")
    with pytest.raises(ConfigurationError, match="call itself"):
        await BedrockUpstream().start()
    with pytest.raises(ConfigurationError):
        FixedCredentials(own, "x")
    async with raw_server() as (raw, url):
        with caplog.at_level(logging.WARNING):
            async with BedrockUpstream(endpoint_url=url) as upstream:
                (await upstream.send(request("whole"))).close()
        assert own not in raw.seen[0][1]["authorization"]


async def test_no_credentials_is_an_error_on_aws_and_dummies_elsewhere(
    aws_environment: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigurationError, match="No AWS credentials"):
        await BedrockUpstream().start()
    async with raw_server() as (raw, url), BedrockUpstream(endpoint_url=url) as upstream:
        (await upstream.send(request("whole"))).close()
        assert len(raw.seen) == 1


async def test_a_client_that_was_not_started_sent_nothing() -> None:
    with pytest.raises(UpstreamFailure) as failure:
        await BedrockUpstream(FixedCredentials("A", "s")).send(request("whole"))
    assert not failure.value.sent
