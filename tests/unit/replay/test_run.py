"""The whole command over loopback, with real SDK requests, against a stand-in that answers like a proxy.

The stand-in can be told to err; every way to err must be seen and must decide the exit code.
"""

import _thread
import base64
import json
import threading
import uuid
import zlib
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from struct import pack
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from proxy import replay
from proxy.errors import ConfigurationError
from proxy.replay import run as run_module

PAGE = 3


def frame(kind, event, payload):
    headers = b""
    for name, value in (
        (":message-type", kind),
        (":event-type", event),
        (":content-type", "application/json"),
    ):
        headers += pack(">B", len(name)) + name.encode() + b"\x07" + pack(">H", len(value)) + value.encode()
    body = json.dumps(payload).encode()
    head = pack(">II", 16 + len(headers) + len(body), len(headers))
    message = head + pack(">I", zlib.crc32(head)) + headers + body
    return message + pack(">I", zlib.crc32(message))


class StandIn(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.lock = threading.Lock()
        self.tenants: dict[str, str] = {}  # access key id -> tenant
        self.revoked: set[str] = set()
        self.ledger: list[dict[str, Any]] = []
        self.bill: list[dict[str, Any]] = []
        self.refused: Counter[tuple[str, str]] = Counter()
        self.operations: Counter[tuple[str, str]] = Counter()
        self.err = ""

    def serve_call(self, access_key_id, model, operation):
        """Books one call as the proxy and as Bedrock; returns the ids that the answer carries."""
        with self.lock:
            number = self.operations.total()
            request, call, attempt = (str(uuid.uuid4()) for _ in range(3))
            self.operations[model, operation] += 1
            usage = {
                "input_tokens": 10 + number,
                "output_tokens": 5,
                "cache_read_tokens": 0,
                "cache_write_tokens": 0,
            }
            cost = f"0.{100 + number:09d}"
            row = {"id": call, "attempt": attempt, "tenant": self.tenants[access_key_id], "outcome": "POST",
                   "usage": usage, "cost_usd": cost, "upstream_request_id": request}  # fmt: skip
            billed = {"request_id": request, "metadata": {"tollhouse-call": call, "tollhouse-attempt": attempt},
                      "model": model, "input_tokens": 10 + number, "output_tokens": 5, "cost_usd": cost}  # fmt: skip
            if number == 2:
                self.spoil(row, billed)
            if not (number == 2 and self.err == "no row"):
                self.ledger.append(row)
            if not (number == 2 and self.err == "no bill"):
                self.bill.append(billed)
            return request, call, usage

    def spoil(self, row, billed):
        if self.err == "cost":
            row["cost_usd"] = "0.000000001"
        if self.err == "tokens":
            billed["output_tokens"] += 1
        if self.err == "open":
            row |= {"outcome": "OPEN", "cost_usd": None, "upstream_request_id": None}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: StandIn

    def log_message(self, *_):
        pass

    def answer(self, status, payload, headers=()):
        body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self.send_response(status)
        for name, value in (
            ("content-type", "application/json"),
            *headers,
            ("content-length", str(len(body))),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        server, tenant = self.server, query.get("tenant", [None])[0]
        if path == "/me":
            self.answer(200, {})
        elif path == "/_bill":
            since = int(query["since"][0])
            self.answer(200, {"next": len(server.bill), "calls": server.bill[since:]})
        elif path == "/admin/v1/calls":
            outcome = query.get("outcome", [None])[0]
            rows = [
                r for r in server.ledger if tenant in {None, r["tenant"]} and outcome in {None, r["outcome"]}
            ]
            at = int(query.get("cursor", ["0"])[0])
            more = at + PAGE if at + PAGE < len(rows) else None
            self.answer(200, {"items": rows[at : at + PAGE], "next": more})
        elif path == "/admin/v1/refusals":
            self.answer(200, {"items": [{"reason": r, "count": n} for (t, r), n in server.refused.items() if t == tenant],
                              "next": None})  # fmt: skip

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path.startswith("/model/"):
            self.model(body)
        elif self.headers["authorization"] != "Bearer admin":
            self.answer(401, {"detail": "no such admin key"})
        elif self.path == "/admin/v1/keys":
            name = f"TH{len(self.server.tenants):014d}"
            self.server.tenants[name] = json.loads(body)["tenant"]
            self.answer(
                201,
                {"id": name, "bearer_token": "t", "aws_access_key_id": name, "aws_secret_access_key": "s"},
            )
        elif self.path.endswith("/revoke"):
            self.server.revoked.add(self.path.split("/")[-2])
            self.answer(200, {})
        else:
            self.answer(201, json.loads(body))

    def model(self, body):
        _, _, name, operation = self.path.split("/")
        key = self.headers["authorization"].split("Credential=")[1].split("/")[0]
        assert self.headers["amz-sdk-request"] == "attempt=1; max=1"
        if self.server.err == "throttle":
            with self.server.lock:
                self.server.refused[self.server.tenants[key], "rate_limited"] += 1
            return self.answer(429, {"message": "no"}, [("x-amzn-ErrorType", "ThrottlingException")])
        request, call, usage = self.server.serve_call(key, unquote(name), operation)
        ids = [("x-amzn-RequestId", request), ("x-tollhouse-call-id", call)]
        counts = {"inputTokens": usage["input_tokens"], "outputTokens": 5, "totalTokens": 0}
        if operation == "converse":
            message = {"role": "assistant", "content": [{"text": "x"}]}
            return self.answer(200, {"output": {"message": message}, "usage": counts}, ids)
        if operation == "invoke":
            return self.answer(200, {"generation": "x"}, ids)
        ids.append(("content-type", "application/vnd.amazon.eventstream"))
        if operation == "converse-stream":
            stream = frame("event", "messageStop", {"stopReason": "end_turn"})
            if self.server.err != "cut":
                stream += frame("event", "metadata", {"usage": counts, "metrics": {"latencyMs": 1}})
        else:
            metrics = b'{"amazon-bedrock-invocationMetrics":{}}'
            stream = frame("event", "chunk", {"bytes": base64.b64encode(metrics).decode()})
        return self.answer(200, stream, ids)


@pytest.fixture
def stand_in():
    server = StandIn()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("t_s,input_tokens,output_tokens\n" + "".join(f"{n / 10},40,5\n" for n in range(16)))
    return path


def replayed(server, trace, **changed):
    lines: list[str] = []
    given = {
        "proxy_url": server.url, "admin_key": "admin", "simulator_url": server.url, "tenants": 2, "speed": 50.0,
        "limit": None, "concurrency": 4, "models": [], "output": lines.append,
    }  # fmt: skip
    return replay.main(trace, **(given | changed)), "\n".join(lines)


def test_zero_difference(stand_in, trace):
    code, said = replayed(stand_in, trace)
    assert code == 0, said
    assert "zero difference: 16 calls" in said
    assert [line.split()[:3] for line in said.splitlines() if line.startswith("all")] == [["all", "16", "16"]]
    assert len(stand_in.operations) == 8, "both models by all four operations"
    assert stand_in.revoked == set(stand_in.tenants)
    assert {row["tenant"] for row in stand_in.ledger} == set(stand_in.tenants.values())


def test_traffic_before_and_beside_the_run_is_left_out(stand_in, trace):
    stand_in.tenants["other"] = "somebody"
    for _ in range(4):
        stand_in.serve_call("other", "m", "converse")
    stand_in.ledger.clear()  # billed before the run: nobody asks where it is
    original, calls = stand_in.serve_call, iter([True])

    def beside(*arguments):
        if next(calls, False):
            original("other", "m", "converse")
        return original(*arguments)

    stand_in.serve_call = beside
    code, said = replayed(stand_in, trace)
    assert code == 0, said
    assert "zero difference: 16 calls" in said


@pytest.mark.parametrize(
    ("err", "said_so"),
    [
        ("cost", "1 different cost"),
        ("tokens", "1 different tokens"),
        ("no row", "1 billed, not in the ledger"),
        ("no row", "1 answered, not in the ledger"),
        ("no bill", "1 in the ledger, not billed"),
        ("open", "1 still open"),
    ],
)
def test_every_error_is_seen(stand_in, trace, monkeypatch, err, said_so):
    monkeypatch.setattr(run_module, "_SETTLED_SECONDS", 0.1)
    stand_in.err = err
    code, said = replayed(stand_in, trace)
    assert code == 1
    assert said_so in said


def test_refusals_by_code_and_by_reason_and_nothing_compared(stand_in, trace):
    stand_in.err = "throttle"
    code, said = replayed(stand_in, trace)
    assert code == 1, "a run that compared nothing proves nothing"
    assert "16 refused: ThrottlingException" in said
    assert "16 by the proxy's reason: rate_limited" in said


def test_a_stream_cut_short_is_no_answer(stand_in, trace):
    stand_in.err = "cut"
    code, said = replayed(stand_in, trace)
    assert code == 0, "the money is right"
    assert "4 failed: Cut" in said


def test_without_a_simulator_only_the_ledger_is_shown(stand_in, trace):
    code, said = replayed(stand_in, trace, simulator_url=None, limit=8)
    assert code == 0
    assert "bill USD" not in said
    assert "compared with no bill" in said


def test_falling_behind_is_said(stand_in, trace, monkeypatch):
    monkeypatch.setattr(run_module, "LATE_S", 0.0)
    _, said = replayed(stand_in, trace, concurrency=1, speed=1e6)
    assert "fell behind" in said


def test_ctrl_c_stops_sending_and_still_ends_with_the_table(stand_in, trace):
    original, calls = stand_in.serve_call, iter(range(100))

    def interrupting(*arguments):
        if next(calls) == 3:
            _thread.interrupt_main()
        return original(*arguments)

    stand_in.serve_call = interrupting
    code, said = replayed(stand_in, trace, speed=1.0, concurrency=1)
    assert code == 0, said
    assert "interrupted" in said
    assert 4 <= len(stand_in.ledger) < 16
    assert f"zero difference: {len(stand_in.ledger)} calls" in said


@pytest.mark.parametrize(
    "wrong", [{"tenants": 0}, {"speed": 0.0}, {"speed": float("nan")}, {"concurrency": 0}]
)
def test_arguments_without_sense(stand_in, trace, wrong):
    with pytest.raises(ConfigurationError):
        replayed(stand_in, trace, **wrong)


def test_a_wrong_admin_key_and_a_server_that_is_away(stand_in, trace):
    with pytest.raises(ConfigurationError, match="no such admin key"):
        replayed(stand_in, trace, admin_key="wrong")
    with pytest.raises(ConfigurationError, match="cannot be reached"):
        replayed(stand_in, trace, simulator_url="http://127.0.0.1:9")
