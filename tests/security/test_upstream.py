"""What goes up and what comes down: nothing of a client's but what is on the list, and nothing of an
upstream that lies, breaks or says too much. The upstream is a server that answers what a test tells it."""

from __future__ import annotations

import base64
import json
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from zlib import crc32

import pytest

from proxy.bedrock.eventstream import encode, event_frame
from tests.conftest import APPLICATION
from tests.security.raw import BODY, INVOKE, STREAM, free_port, post, say
from tests.support.stack import Key, Proxy, running

ACCOUNT = "123456789012"
SETTINGS = {
    "TOLLHOUSE_IDLE_SECONDS": "3",
    "TOLLHOUSE_BREAKER_FAULTS": "100000",
    "TOLLHOUSE_BREAKER_CEILINGS": "100000",
}


class Upstream(ThreadingHTTPServer):
    """Keeps what it heard; says `answer`: status, headers, pieces of a body."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.heard: list[tuple[str, dict[str, str], bytes]] = []
        self.answer: tuple[int, dict[str, str], list[bytes]] = (200, {}, [])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Upstream

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.server.heard.append((self.path, {n.lower(): v for n, v in self.headers.items()}, body))
        status, headers, pieces = self.server.answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in pieces:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def module_upstream() -> Iterator[Upstream]:
    server = Upstream()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def module_stack(
    module_upstream: Upstream,
    module_owner_url: str,
    as_role: Callable[[str, str], str],
    session_redis_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Proxy]:
    state = tmp_path_factory.mktemp("proxy") / "state"
    url = f"http://127.0.0.1:{module_upstream.server_address[1]}"
    settings = SETTINGS | {"TOLLHOUSE_METRICS_PORT": str(free_port())}
    database = as_role(module_owner_url, APPLICATION)
    with running(Proxy(database, session_redis_url, url, state, settings)) as started:
        yield started


@pytest.fixture
def stack(module_stack: Proxy) -> Proxy:
    return module_stack


@pytest.fixture
def upstream(module_upstream: Upstream) -> Upstream:
    module_upstream.heard.clear()
    module_upstream.answer = (200, GOOD, [json.dumps(ANSWER).encode()])
    return module_upstream


ANSWER = {"generation": "hi", "prompt_token_count": 5, "generation_token_count": 7, "stop_reason": "stop"}
GOOD = {
    "Content-Type": "application/json",
    "x-amzn-RequestId": "5d8f2c1e-0000-0000-0000-000000000000",
    "X-Amzn-Bedrock-Input-Token-Count": "5",
    "X-Amzn-Bedrock-Output-Token-Count": "7",
}
FRESH = {"Cache-Control": "no-store"}


def invoke(stack: Proxy, key: Key, path: str = INVOKE, **headers: str) -> tuple[int, dict[str, str], Any]:
    return stack.request("POST", path, BODY, key=key.bearer_token, headers=FRESH | headers)


#: may reach Bedrock; everything else is dropped
PASSED = {
    "accept", "authorization", "content-length", "content-type", "host", "x-amz-date", "x-amz-security-token",
    "x-amzn-bedrock-request-metadata", "x-amzn-bedrock-trace",
}  # fmt: skip


def test_only_what_is_on_the_list_goes_up(stack: Proxy, key: Key, upstream: Upstream) -> None:
    client = {
        "Cookie": "session=canary", "Proxy-Authorization": "Basic canary", "Proxy-Connection": "keep-alive",
        "X-Internal-Tenant": "canary", "X-Amz-Security-Token": "canary", "X-Amz-Target": "canary",
        "X-Amz-Date": "20200101T000000Z", "X-Amzn-Trace-Id": "canary", "Connection": "x-api-key, keep-alive, close",
        "X-Forwarded-For": "10.0.0.1", "Forwarded": "for=canary", "User-Agent": "canary", "Referer": "canary",
        "Expect": "canary", "TE": "trailers", "Range": "bytes=0-1", "Accept-Encoding": "gzip", "Via": "1.1 canary",
        "X-Tollhouse-Call-Id": "canary", "anthropic-beta": "canary", "Transfer-Encoding-X": "canary",
        "X-Amzn-Bedrock-Trace": "ENABLED", "Accept": "application/json",
    }  # fmt: skip
    assert invoke(stack, key, **client)[0] == 200
    ((path, heard, body),) = upstream.heard
    assert set(heard) <= PASSED, set(heard) - PASSED
    assert "canary" not in str(heard)
    assert body == BODY
    assert key.bearer_token not in str(heard)
    assert heard["authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/")
    assert "%3A" in path
    signed = heard["authorization"].split("SignedHeaders=")[1].split(",")[0].split(";")
    assert {name for name in heard if name.startswith("x-amz")} <= set(signed)


def test_x_api_key_and_signatures_of_clients_stay_here(stack: Proxy, key: Key, upstream: Upstream) -> None:
    assert (
        stack.request("POST", INVOKE, BODY, key=None, headers=FRESH | {"x-api-key": key.bearer_token})[0]
        == 200
    )
    stack.boto3(key).invoke_model(modelId="meta.llama3-1-405b-instruct-v1:0", body=BODY)
    for _, heard, _ in upstream.heard:
        assert "x-api-key" not in heard
        assert key.aws_access_key_id not in heard["authorization"]


def test_only_what_is_on_the_list_comes_down(stack: Proxy, key: Key, upstream: Upstream) -> None:
    more = {
        "Set-Cookie": "canary=1", "X-Internal": "canary", "Server": "canary", "Via": "canary", "Location": "http://canary/",
        "WWW-Authenticate": "canary", "Access-Control-Allow-Origin": "*", "x-amz-id-2": "canary", "X-Powered-By": "canary",
        "Connection": "canary", "Keep-Alive": "canary", "Trailer": "canary", "Strict-Transport-Security": "canary",
    }  # fmt: skip
    for status in (200, 400, 500):
        upstream.answer = (
            status,
            GOOD | more | {"x-amzn-ErrorType": "ValidationException"},
            [json.dumps(ANSWER).encode()],
        )
        _, headers, _ = invoke(stack, key)
        assert "canary" not in str(headers), headers
        assert "set-cookie" not in headers and "access-control-allow-origin" not in headers


def test_a_redirect_is_not_followed(stack: Proxy, key: Key, upstream: Upstream) -> None:
    upstream.answer = (307, {"Location": "http://169.254.169.254/latest/meta-data"}, [])
    status, headers, _ = invoke(stack, key)
    assert status >= 500
    assert "location" not in headers
    assert len(upstream.heard) == 1


ERRORS = {
    "ARN": f"User: arn:aws:sts::{ACCOUNT}:assumed-role/BedrockRole/i-0abc is not authorized to perform bedrock:InvokeModel",
    "account": f"Account {ACCOUNT} has no access to this model",
    "HTML": "<html><body>Traceback (most recent call last)</body></html>",
}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("status", [400, 403, 404, 429, 500, 503])
def test_an_error_of_bedrocks_is_mapped_and_masked(
    stack: Proxy, key: Key, upstream: Upstream, name: str, status: int
) -> None:
    kind = {400: "ValidationException", 403: "AccessDeniedException", 429: "ThrottlingException"}.get(
        status, "Other"
    )
    text = ERRORS[name]
    body = text.encode() if name == "HTML" else json.dumps({"message": text}).encode()
    headers = GOOD | {"x-amzn-ErrorType": f"{kind}:http://internal.amazon.com/coral"}
    upstream.answer = (status, headers if name != "HTML" else {"Content-Type": "text/html"}, [body])
    for path in (INVOKE, STREAM):
        got, heard, told = invoke(stack, key, path)
        assert got >= 400
        assert got != 429 or status == 429
        assert ACCOUNT not in str(told) + str(heard)
        assert "internal.amazon.com" not in str(told) + str(heard)
        assert "Traceback" not in str(told)
        assert heard["content-type"].startswith("application/json")
    assert stack.log is not None
    assert ACCOUNT not in stack.log.read_text()


def chunk(answer: dict[str, Any]) -> bytes:
    inner = base64.b64encode(json.dumps(answer).encode()).decode()
    return event_frame("chunk", json.dumps({"bytes": inner}).encode())


METRICS = {"amazon-bedrock-invocationMetrics": {"inputTokenCount": 5, "outputTokenCount": 7}}
DELTA = chunk(
    {"generation": "hello ", "prompt_token_count": None, "generation_token_count": 1, "stop_reason": None}
)
LAST = chunk({"generation": "", "stop_reason": "stop", **METRICS})
EVENTS = {"Content-Type": "application/vnd.amazon.eventstream", "x-amzn-RequestId": "r"}


def _huge_frame(total: int) -> bytes:
    lengths = struct.pack(">II", total, 0)
    return lengths + struct.pack(">I", crc32(lengths))


FRAMES: dict[str, list[bytes]] = {
    "bad checksum": [DELTA, DELTA[:-1] + bytes([DELTA[-1] ^ 1]), LAST],
    "bad prelude": [DELTA, DELTA[:8] + b"\0\0\0\0" + DELTA[12:]],
    "a frame of 17 MB": [DELTA, _huge_frame(17 << 20), b"x" * 1000],
    "headers longer than the frame": [DELTA, struct.pack(">II", 20, 1000) + struct.pack(">I", crc32(struct.pack(">II", 20, 1000)))],
    "headers of 64 KB and more": [DELTA, encode([("x" * 200, "y" * 60_000)] * 3, b"{}")],
    "an exception in the middle": [DELTA, encode([(":exception-type", "modelStreamErrorException"),
        (":content-type", "application/json"), (":message-type", "exception")], b'{"message": "account 123456789012"}')],
    "an error in the middle": [DELTA, encode([(":error-code", "Broken"), (":error-message", f"at {ACCOUNT}"),
        (":message-type", "error")], b"")],
    "garbage": [DELTA, b"HTTP/1.1 200 OK\r\n\r\n" * 10],
    "an end inside a frame": [DELTA, LAST[:-10]],
    "no end": [DELTA, DELTA],
    "nothing": [b""],
    "JSON that is cut": [DELTA, event_frame("chunk", b'{"bytes": "e30')],
}  # fmt: skip


@pytest.mark.parametrize("name", FRAMES)
def test_a_broken_stream_is_told_and_charged_at_its_ceiling(
    stack: Proxy, upstream: Upstream, name: str
) -> None:
    own = stack.key()
    upstream.answer = (200, EVENTS, [piece for piece in FRAMES[name] if piece])
    heard = say(stack.port, post(own.bearer_token, path=STREAM), 0.4)
    (call,) = stack.settled_calls(tenant=own.tenant)
    assert call["outcome"] == "CEILING", call
    assert call["cost_usd"] == call["ceiling_usd"]
    assert len(heard.statuses) == 1
    assert (
        b"xception" in heard.data or heard.closed
    )  # an exception frame, or a cut that nobody takes for an end
    assert ACCOUNT.encode() not in heard.data
    assert b"invocationMetrics" not in heard.data


def test_frames_in_pieces_of_one_byte_and_split_characters(stack: Proxy, upstream: Upstream) -> None:
    own = stack.key()
    text = chunk({"generation": "ä\u20ac\U0001f600", "stop_reason": None})
    upstream.answer = (200, EVENTS, [bytes([byte]) for byte in text + LAST])
    heard = say(stack.port, post(own.bearer_token, path=STREAM), 0.4)
    (call,) = stack.settled_calls(tenant=own.tenant)
    assert (call["outcome"], call["usage"]["output_tokens"]) == ("POST", 7)
    assert b":event-type" in heard.data


USAGES: dict[str, tuple[Any, Any]] = {
    "negative": (-5, -7), "huge": (10**18, 10**18), "fraction": (1.5, 2), "text": ("5", "7"), "true": (True, True),
    "null": (None, None), "beyond 64 bits": (2**70, 1), "infinite": (float("inf"), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", USAGES)
def test_a_usage_that_cannot_be_is_the_ceiling(stack: Proxy, upstream: Upstream, name: str) -> None:
    own = stack.key()
    stack.budget(f"tenant:{own.tenant}", "5")
    counts = dict(zip(("inputTokenCount", "outputTokenCount"), USAGES[name], strict=True))
    upstream.answer = (
        200,
        EVENTS,
        [DELTA, chunk({"generation": "", "amazon-bedrock-invocationMetrics": counts})],
    )
    say(stack.port, post(own.bearer_token, path=STREAM), 0.4)
    told = {
        "generation": "x",
        "prompt_token_count": USAGES[name][0],
        "generation_token_count": USAGES[name][1],
    }
    bare = {n: v for n, v in GOOD.items() if not n.startswith("X-Amzn")}
    upstream.answer = (200, bare, [json.dumps(told).encode()])
    invoke(stack, own)
    calls = stack.settled_calls(tenant=own.tenant)
    assert len(calls) == 2
    for call in calls:
        assert call["outcome"] in ("CEILING", "POST")
        assert 0 <= float(call["cost_usd"]) <= float(call["ceiling_usd"])
    budget = stack.admin("GET", f"/budgets?tenant={own.tenant}")["items"][0]
    assert float(budget["settled_usd"]) + float(budget["reserved_usd"]) <= 5


def test_a_usage_told_twice_counts_once(stack: Proxy, upstream: Upstream) -> None:
    own = stack.key()
    less = chunk(
        {"generation": "", "amazon-bedrock-invocationMetrics": {"inputTokenCount": 1, "outputTokenCount": 1}}
    )
    for number, frames in enumerate(([DELTA, LAST, LAST], [DELTA, LAST, less], [DELTA, LAST, DELTA, DELTA])):
        upstream.answer = (200, EVENTS, frames)
        body = b'{"prompt": "%d", "max_gen_len": 16}' % number
        say(stack.port, post(own.bearer_token, path=STREAM, body=body), 0.4)
    calls = stack.settled_calls(tenant=own.tenant)
    assert [call["outcome"] for call in calls] == ["POST"] * 3
    assert all(call["usage"]["output_tokens"] in (1, 7) for call in calls)


def test_an_answer_without_an_end_is_bounded(stack: Proxy, upstream: Upstream) -> None:
    """64 MB of a whole answer are the most that is kept of one; a silent upstream is left."""
    own = stack.key()
    upstream.answer = (200, GOOD, [b" " * (1 << 20)] * 70)
    began = time.monotonic()
    status, _, _ = invoke(stack, own)
    assert status >= 400
    assert time.monotonic() - began < 20
    (call,) = stack.settled_calls(tenant=own.tenant)
    assert call["outcome"] == "CEILING"
