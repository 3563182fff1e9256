"""Traces: what a collector is told of every kind of call."""

from __future__ import annotations

import http.client
import json
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

from proxy import policyfile
from tests.support.collector import Collector, Trace, collecting
from tests.support.stack import CLAUDE, LLAMA, Key, Proxy, nano, running
from tests.support.traced import INVOKE, PARENT, STREAM, ask, body

SMALL = "meta.llama3-1-8b-instruct-v1:0"
ROUTES = f"""
routes:
  with-stand-in:
    model: {LLAMA}
    targets: [{{region: us-west-2}}]
    fallbacks: [{SMALL}]
"""
TOKEN = "collector-token-5d1c"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as started:
        yield started


@pytest.fixture(scope="module")
def served(
    module_database_url: str, session_redis_url: str, simulator_server: Any, collector: Collector,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Proxy]:  # fmt: skip
    """Two workers that trace every call."""
    folder = tmp_path_factory.mktemp("traces")
    shutil.copytree(policyfile.directory(), folder / "policies")
    (folder / "policies" / "routes" / "own.yaml").write_text(ROUTES)
    settings = {
        "TOLLHOUSE_POLICIES_DIR": str(folder / "policies"), "TOLLHOUSE_WORKERS": "2", "TOLLHOUSE_TRACE_SAMPLE": "1",
        "TOLLHOUSE_OTLP_ENDPOINT": collector.url, "TOLLHOUSE_OTLP_HEADERS": f"authorization=Bearer%20{TOKEN}",
    }  # fmt: skip
    proxy = Proxy(module_database_url, session_redis_url, simulator_server.url, folder / "state", settings)
    with running(proxy) as started:
        yield started


@pytest.fixture
def proxy(served: Proxy, simulator: Any) -> Proxy:
    del simulator  # it was reset
    return served


@pytest.fixture(scope="module")
def key(served: Proxy) -> Key:
    tenant = served.tenant()
    served.admin("POST", f"/tenants/{tenant}/projects", {"id": "web", "name": "Web"}, expect=201)
    served.admin("POST", "/limits", {"scope": f"tenant:{tenant}", "requests_per_minute": 100_000}, expect=201)
    return served.key(tenant, project="web")


def row_of(proxy: Proxy, headers: dict[str, str]) -> dict[str, Any]:
    [row] = [i for i in proxy.settled_calls() if i["id"] == headers["x-tollhouse-call-id"]]
    return row


def in_order(trace: Trace) -> None:
    """Every span lies within the call."""
    assert trace.root.kind == "server" and trace.root.ended > trace.root.began
    for span in trace.children:
        assert trace.root.began <= span.began <= span.ended <= trace.root.ended, span.name
        assert span.trace == trace.root.trace


def test_a_whole_answer(proxy: Proxy, key: Key, collector: Collector) -> None:
    status, headers, answer = ask(proxy, key, INVOKE, body("whole"))
    assert status == 200
    row = row_of(proxy, headers)
    trace = collector.trace(headers["x-tollhouse-call-id"])
    in_order(trace)
    root = trace.root
    assert (root.name, root.failed, root.parent) == ("InvokeModel", False, "")
    assert UUID(root.trace) == UUID(headers["x-tollhouse-call-id"]), "a call id leads to its trace"
    assert (root["tollhouse.tenant"], root["tollhouse.key.id"]) == (key.tenant, key.id)
    assert (root["tollhouse.project"], root["tollhouse.model"]) == ("web", LLAMA)
    assert (root["tollhouse.outcome"], root["tollhouse.stream"]) == ("POST", False)
    assert root["tollhouse.cost.nanodollars"] == nano(row["cost_usd"])
    assert root["tollhouse.ceiling.nanodollars"] == nano(row["ceiling_usd"])
    assert root.resource["service.name"] == "tollhouse"
    assert [span.name for span in trace.children] == [
        "limit", "cache", "admit", f"text_completion {LLAMA}", "settle",
    ]  # fmt: skip
    assert trace.named("limit")[0]["tollhouse.limit.result"] == "allowed"
    assert trace.named("admit")[0]["tollhouse.admit.result"] == "ok"
    assert trace.named("settle")[0]["tollhouse.settle.result"] == "POST"
    [sending] = trace.sendings
    assert sending.attributes.items() >= {
        "gen_ai.operation.name": "text_completion", "gen_ai.provider.name": "aws.bedrock",
        "gen_ai.request.model": LLAMA, "gen_ai.response.model": LLAMA, "gen_ai.request.max_tokens": 64,
        "gen_ai.usage.input_tokens": answer["prompt_token_count"],
        "gen_ai.usage.output_tokens": answer["generation_token_count"],
        "server.address": "127.0.0.1", "http.response.status_code": 200,
        "aws.request_id": row["upstream_request_id"], "tollhouse.attempt.id": row["attempt"],
        "tollhouse.cost.nanodollars": nano(row["cost_usd"]),
    }.items()  # fmt: skip
    assert sending.began < sending.events["first_byte"] <= sending.ended
    assert "gen_ai.request.stream" not in sending.attributes


def test_a_streamed_answer(proxy: Proxy, key: Key, collector: Collector) -> None:
    said = {"messages": [{"role": "user", "content": [{"text": "[[tokens=20]] stream"}]}]}
    status, headers, _ = ask(proxy, key, f"/model/{CLAUDE}/converse-stream", said)
    assert status == 200
    trace = collector.trace(headers["x-tollhouse-call-id"])
    in_order(trace)
    [sending] = trace.sendings
    assert (trace.root.name, trace.root["tollhouse.stream"]) == ("ConverseStream", True)
    assert (sending.name, sending["gen_ai.request.stream"]) == (f"chat {CLAUDE}", True)
    assert sending["gen_ai.usage.output_tokens"] == 20
    first = (sending.events["first_byte"] - sending.began) / 1e9
    assert sending["gen_ai.response.time_to_first_chunk"] == pytest.approx(first, abs=1e-6)
    assert 0 < first < (sending.ended - sending.began) / 1e9


def test_a_limited_call_waits_for_the_limiter(proxy: Proxy, collector: Collector) -> None:
    own = proxy.key()
    proxy.admin("POST", "/limits", {"scope": f"key:{own.id}", "requests_per_minute": 1}, expect=201)
    for number in range(200):  # until both workers know of the limit
        status, headers, _ = ask(proxy, own, INVOKE, body(f"limited {number}"))
        if status == 429:
            break
        time.sleep(0.02)
    assert status == 429
    trace = collector.trace(headers["x-tollhouse-call-id"])
    in_order(trace)
    root = trace.root
    assert root.failed and root["error.type"] == root["tollhouse.refusal.reason"] == "requests_per_minute"
    assert (root["tollhouse.outcome"], root["tollhouse.model"]) == ("REFUSED", LLAMA)
    assert [(span.name, span["tollhouse.limit.result"]) for span in trace.children] == [("limit", "limited")]


def test_a_spent_budget(proxy: Proxy, collector: Collector) -> None:
    own = proxy.key()
    proxy.budget(f"tenant:{own.tenant}", "0.000001")
    status, headers, _ = ask(proxy, own, INVOKE, body("too dear"))
    assert status == 400
    trace = collector.trace(headers["x-tollhouse-call-id"])
    in_order(trace)
    assert trace.root.failed and trace.root["error.type"] == "budget_spent"
    assert trace.root["tollhouse.tenant"] == own.tenant
    assert {span["tollhouse.admit.result"] for span in trace.named("admit")} == {"denied"}
    assert trace.sendings == [] and "tollhouse.cost.nanodollars" not in trace.root.attributes


def test_a_key_that_proves_nothing(proxy: Proxy, collector: Collector) -> None:
    stranger = f"bedrock-api-key-{secrets.token_hex(16)}"
    status, headers, _ = proxy.request("POST", INVOKE, body("who"), key=stranger)
    assert status == 403
    trace = collector.trace(headers["x-tollhouse-call-id"])
    assert trace.root.failed and trace.root["error.type"] == "unauthenticated"
    assert (trace.root["tollhouse.outcome"], trace.children) == ("REFUSED", [])
    assert not any(name.startswith("tollhouse.tenant") for name in trace.root.attributes)
    assert not any(stranger.encode() in sent for sent in collector.bodies)


def test_every_sending_of_a_call_that_fails_over(
    proxy: Proxy, key: Key, collector: Collector, simulator: Any
) -> None:
    simulator.fault({"fault": "error:InternalServerException", "model": LLAMA, "times": 1})
    status, headers, _ = ask(proxy, key, "/model/with-stand-in/invoke", body("fails over"))
    assert (status, headers["x-tollhouse-model"]) == (200, SMALL)
    trace = collector.trace(headers["x-tollhouse-call-id"])
    in_order(trace)
    first, second = trace.sendings
    assert first.failed and first["error.type"] == "InternalServerException"
    assert (first["tollhouse.outcome"], first["http.response.status_code"]) == ("VOID", 500)
    assert (first["gen_ai.request.model"], first["cloud.region"]) == (LLAMA, "us-west-2")
    assert not second.failed and second["gen_ai.response.model"] == SMALL
    assert first.ended <= second.began and first["tollhouse.attempt.id"] != second["tollhouse.attempt.id"]
    assert not trace.root.failed and trace.root["tollhouse.outcome"] == "POST"
    assert trace.root["tollhouse.cost.nanodollars"] == second["tollhouse.cost.nanodollars"]
    assert len(trace.named("admit")) == 2


def test_an_error_of_bedrock_that_the_client_hears(
    proxy: Proxy, key: Key, collector: Collector, simulator: Any
) -> None:
    simulator.fault({"fault": "error:ValidationException", "model": LLAMA, "times": 1})
    status, headers, _ = ask(proxy, key, INVOKE, body("refused upstream"))
    assert status == 400
    trace = collector.trace(headers["x-tollhouse-call-id"])
    assert trace.root.failed and trace.root["error.type"] == "upstream_error"
    assert trace.sendings[0]["error.type"] == "ValidationException"
    assert trace.root["tollhouse.outcome"] == "VOID"


def test_an_answer_from_the_cache(proxy: Proxy, key: Key, collector: Collector) -> None:
    said = {**body(f"again {secrets.token_hex(4)}"), "temperature": 0}
    for result in ("miss", "hit"):
        status, headers, _ = proxy.request("POST", INVOKE, said, key=key.bearer_token)
        assert (status, headers["x-tollhouse-cache"]) == (200, result)
        trace = collector.trace(headers["x-tollhouse-call-id"])
        in_order(trace)
        assert trace.root["tollhouse.cache.result"] == result
    assert [span.name for span in trace.children] == ["limit", "cache"]
    assert (trace.root["tollhouse.outcome"], trace.root.failed) == ("HIT", False)


def _left(proxy: Proxy, key: Key) -> str:
    """The call of a client that went after the first byte of a long stream."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
    connection.sock = socket.socket()
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # little fits on the way
    connection.sock.settimeout(10)
    connection.sock.connect(("127.0.0.1", proxy.port))
    asked = body(f"[[tokens=2000]] more than fits on the way {secrets.token_hex(4)}") | {"max_gen_len": 2048}
    headers = {"Authorization": f"Bearer {key.bearer_token}", "Cache-Control": "no-store"}
    connection.request("POST", STREAM, json.dumps(asked), headers)
    response = connection.getresponse()
    response.read(1)
    connection.close()
    call = response.headers["x-tollhouse-call-id"]
    assert call is not None
    return call


def test_a_client_that_leaves_is_traced_to_the_end_of_what_it_pays_for(
    proxy: Proxy, key: Key, collector: Collector
) -> None:
    for _ in range(10):  # on a busy machine the answer may be over before its going is seen
        trace = collector.trace(_left(proxy, key))
        in_order(trace)
        assert trace.root["tollhouse.outcome"] == "POST"
        assert trace.sendings[0]["gen_ai.usage.output_tokens"] == 2000
        assert [span.name for span in trace.children][-1] == "settle"
        if trace.root.attributes.get("tollhouse.client.left"):
            return
    pytest.fail("nobody was seen to leave")


def test_a_stream_that_breaks_off_is_charged_its_ceiling_and_says_why(
    proxy: Proxy, key: Key, collector: Collector, simulator: Any
) -> None:
    simulator.fault({"fault": "reset:1", "model": LLAMA, "times": 1})
    status, headers, _ = ask(proxy, key, STREAM, body("[[tokens=30]] cut"))
    assert status == 200
    trace = collector.trace(headers["x-tollhouse-call-id"])
    row = row_of(proxy, headers)
    assert row["outcome"] == trace.root["tollhouse.outcome"] == "CEILING"
    assert trace.root["error.type"] == trace.sendings[0]["error.type"] == "cut"
    assert trace.root["tollhouse.cost.nanodollars"] == nano(row["ceiling_usd"])
    assert "gen_ai.usage.output_tokens" not in trace.sendings[0].attributes


def test_a_clients_trace_goes_on_here_and_no_further(
    proxy: Proxy, key: Key, collector: Collector, simulator: Any
) -> None:
    trace_id, span_id = PARENT
    status, headers, _ = ask(proxy, key, INVOKE, body("child"), traceparent=f"00-{trace_id}-{span_id}-01")
    assert status == 200
    root = collector.trace(headers["x-tollhouse-call-id"]).root
    assert (root.trace, root.parent) == PARENT
    sent = json.dumps(simulator.requests())
    assert LLAMA in sent and trace_id not in sent
    _, quiet, _ = ask(proxy, key, INVOKE, body("not sampled"), traceparent=f"00-{trace_id}-{span_id}-00")
    _, broken, _ = ask(proxy, key, INVOKE, body("broken"), traceparent=f"00-{trace_id}-xyz-00")
    assert collector.trace(broken["x-tollhouse-call-id"]).root.parent == ""
    time.sleep(1.5)  # what waits leaves within a second
    assert quiet["x-tollhouse-call-id"] not in collector.calls


def test_nothing_that_a_client_or_a_model_says_is_in_a_trace(
    proxy: Proxy, key: Key, collector: Collector
) -> None:
    canary = f"canary{secrets.token_hex(8)}"
    said = {"messages": [{"role": "user", "content": [{"text": f"{canary} {canary}"}]}],
            "system": [{"text": canary}], "inferenceConfig": {"stopSequences": [canary]},
            "requestMetadata": {"note": canary}}  # fmt: skip
    extra = {"traceparent": f"00-{PARENT[0]}-{PARENT[1]}-01", "tracestate": f"x={canary}",
             "x-request-id": canary, "user-agent": canary, "baggage": f"k={canary}"}  # fmt: skip
    ids = []
    for path, sent in (
        (f"/model/{CLAUDE}/converse", said), (f"/model/{CLAUDE}/converse-stream", said), (INVOKE, body(canary)),
        (f"/model/{canary}/converse", said), (f"{INVOKE}?q={canary}", body("x")), (INVOKE, {"prompt": [canary]}),
    ):  # fmt: skip
        _, headers, _ = ask(proxy, key, path, sent, **extra)
        ids.append(headers["x-tollhouse-call-id"])
    for call in ids:
        collector.trace(call)
    secret = (canary, key.bearer_token, key.aws_secret_access_key, proxy.master_key, TOKEN)
    told = b"".join(collector.bodies)
    assert key.tenant.encode() in told
    assert [word for word in secret if word.encode() in told] == []


def test_the_collector_is_asked_as_it_wants_to_be(proxy: Proxy, key: Key, collector: Collector) -> None:
    ask(proxy, key, INVOKE, body("once more"))
    time.sleep(1.5)
    assert set(collector.paths) == {"/v1/traces"}
    assert {h["authorization"] for h in collector.headers} == {f"Bearer {TOKEN}"}
    assert proxy.log is not None and TOKEN not in proxy.log.read_text()


def test_every_worker_tells(proxy: Proxy, key: Key, collector: Collector) -> None:
    def instances() -> set[tuple[int, str]]:
        told = [span.resource for span in collector.spans]
        return {(resource["process.pid"], resource["service.instance.id"]) for resource in told}

    for number in range(100):
        ask(proxy, key, INVOKE, body(f"to either {number}"))
        if number % 10 == 9:
            time.sleep(1.2)
            if len(instances()) == 2:
                break
    assert len(instances()) == len({pid for pid, _ in instances()}) == 2
