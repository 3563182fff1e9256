"""Charges at the ceiling go down to what Bedrock's invocation log proves, and no further."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.support import moto
from tests.support.stack import LLAMA, Key, Proxy, get_json, nano, running

GROUP, BUCKET, PREFIX = "/aws/bedrock/invocations", "invocations", "company/bedrock"
SONNET = "anthropic.claude-sonnet-4-20250514-v1:0"

#: the first run installs a server
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def aws() -> Iterator[str]:
    with moto.serving() as url:
        moto.client("s3", url).create_bucket(Bucket=BUCKET)
        moto.put_log(url, GROUP, [(int(time.time() * 1000), "not json")])
        yield url


@pytest.fixture(scope="module")
def stack(
    module_database_url: str,
    session_redis_url: str,
    simulator_server: Any,
    aws: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Proxy]:
    proxy = Proxy(
        module_database_url, session_redis_url, simulator_server.url, tmp_path_factory.mktemp("proxy") / "state",
        settings={
            "TOLLHOUSE_EVIDENCE_LOG_GROUP": GROUP,
            "TOLLHOUSE_EVIDENCE_S3": f"{BUCKET}/{PREFIX}",
            "TOLLHOUSE_EVIDENCE_ENDPOINT_URL": aws,
            "TOLLHOUSE_EVIDENCE_SECONDS": "1",
            "TOLLHOUSE_EVIDENCE_DAYS": "1",
            "TOLLHOUSE_BREAKER_FAULTS": "0",
            "TOLLHOUSE_BREAKER_CEILINGS": "0",
        },
    )  # fmt: skip
    with running(proxy, worker=True) as started:
        yield started


def cut(
    stack: Proxy, key: Key, simulator: Any, text: str, model: str = LLAMA, **headers: str
) -> dict[str, Any]:
    """A streamed call that breaks off in the middle: the item of the ledger it leaves."""
    before = {i["attempt"] for i in stack.calls(tenant=key.tenant)}
    simulator.fault({"fault": "close:2", "times": 1})
    body = {
        "messages": [{"role": "user", "content": [{"text": f"[[tokens=20]] {text}"}]}],
        "inferenceConfig": {"maxTokens": 400},
    }
    stack.request("POST", f"/model/{model}/converse-stream", body, key=key.bearer_token, headers=headers)
    simulator.call("DELETE", "/_control")
    [item] = [i for i in stack.settled_calls(tenant=key.tenant) if i["attempt"] not in before]
    assert (item["outcome"], item["cost_usd"]) == ("CEILING", item["ceiling_usd"])
    return item


def records(simulator: Any) -> list[dict[str, Any]]:
    """What the invocation log would hold of everything the simulator served."""
    found: list[dict[str, Any]] = get_json(f"{simulator.url}/_log")["records"]
    return found


def to_logs(aws: str, some: list[dict[str, Any]]) -> None:
    now = int(time.time() * 1000)
    moto.put_log(aws, GROUP, [(now, json.dumps(record)) for record in some])


def to_s3(aws: str, some: list[dict[str, Any]], name: str) -> None:
    folder = f"{PREFIX}/AWSLogs/{some[0]['accountId']}/BedrockModelInvocationLogs/{some[0]['region']}"
    key = f"{folder}/{datetime.now(UTC):%Y/%m/%d/%H}/{name}.json.gz"
    body = gzip.compress("\n".join(json.dumps(record) for record in some).encode())
    moto.client("s3", aws).put_object(Bucket=BUCKET, Key=key, Body=body)


def bill_of(simulator: Any, item: dict[str, Any]) -> dict[str, Any]:
    one: dict[str, Any]
    [one] = [
        c for c in get_json(f"{simulator.url}/_bill")["calls"]
        if c["metadata"].get("tollhouse-attempt") == item["attempt"]
    ]  # fmt: skip
    return one


def awaited(read: Callable[[], Any], seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := read()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def detail(stack: Proxy, item: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = stack.admin("GET", f"/calls/{item['attempt']}")
    assert nano(found["cost_usd"]) == sum(nano(entry["amount_usd"]) for entry in found["entries"])
    return found


def refunded(stack: Proxy, item: dict[str, Any]) -> dict[str, Any]:
    """The attempt once it has a refund."""

    def look() -> dict[str, Any] | None:
        found = detail(stack, item)
        return found if len(found["entries"]) > 1 else None

    found = awaited(look)
    assert found, f"no refund:\n{stack.log.read_text()[-3000:] if stack.log else ''}"
    return dict(found)


@pytest.mark.parametrize("place", ["logs", "s3"])
def test_a_cut_call_comes_down_to_what_its_line_says(
    stack: Proxy, simulator: Any, aws: str, place: str
) -> None:
    key = stack.key()
    budget = stack.budget(f"tenant:{key.tenant}", "1.00")["id"]
    item = cut(stack, key, simulator, f"first {place}")
    billed = bill_of(simulator, item)
    if place == "logs":
        to_logs(aws, records(simulator))
    else:
        to_s3(aws, records(simulator), item["attempt"])
    found = refunded(stack, item)

    assert (found["outcome"], nano(found["cost_usd"])) == ("CEILING", nano(billed["cost_usd"]))
    ceiling, refund = found["entries"]
    assert (ceiling["kind"], ceiling["amount_usd"]) == ("CEILING", item["ceiling_usd"])
    assert (refund["kind"], refund["why"]) == ("REFUND", "LOG")
    assert nano(refund["amount_usd"]) == nano(billed["cost_usd"]) - nano(item["ceiling_usd"])
    used = found["usage"]
    assert (used["input_tokens"], used["output_tokens"]) == (billed["input_tokens"], billed["output_tokens"])
    assert found["upstream_request_id"] == billed["request_id"]
    read = stack.admin("GET", f"/budgets/{budget}")
    assert (nano(read["settled_usd"]), nano(read["reserved_usd"])) == (nano(billed["cost_usd"]), 0)
    [act] = stack.admin("GET", f"/audit?object=call:{item['attempt']}")["items"]
    assert (act["actor"], act["action"]) == ("worker", "call.refund")
    assert act["after"]["evidence"] == [f"log:{billed['request_id']}"]
    assert nano(act["before"]["charged_usd"]) == nano(item["ceiling_usd"])
    assert nano(act["after"]["charged_usd"]) == nano(billed["cost_usd"])


def test_the_same_line_counts_once_wherever_it_is_read_and_however_often(
    stack: Proxy, simulator: Any, aws: str
) -> None:
    key = stack.key()
    item = cut(stack, key, simulator, "twice")
    some = records(simulator)
    to_logs(aws, some * 2)
    to_s3(aws, some, f"again-{item['attempt']}")
    found = refunded(stack, item)
    time.sleep(2.5)  # more rounds
    assert detail(stack, item)["entries"] == found["entries"]
    assert len(stack.admin("GET", f"/audit?object=call:{item['attempt']}")["items"]) == 1
    assert nano(found["cost_usd"]) == nano(bill_of(simulator, item)["cost_usd"])


def test_a_missing_line_proves_nothing_and_neither_does_one_that_says_too_little(
    stack: Proxy, simulator: Any, aws: str
) -> None:
    key = stack.key()
    silent = cut(stack, key, simulator, "never logged")
    halved = cut(stack, key, simulator, "no output count")
    failed = cut(stack, key, simulator, "failed")
    strange = cut(stack, key, simulator, "another attempt's")
    told = cut(stack, key, simulator, "told")
    lines = {r["requestMetadata"]["tollhouse-attempt"]: r for r in records(simulator)}
    del lines[halved["attempt"]]["output"]["outputTokenCount"]
    lines[failed["attempt"]]["errorCode"] = "ModelStreamErrorException"
    lines[strange["attempt"]]["requestMetadata"]["tollhouse-attempt"] = silent["attempt"][:-1] + "x"
    lines[strange["attempt"]]["requestId"] = "another"
    del lines[silent["attempt"]]
    to_logs(aws, list(lines.values()))
    refunded(stack, told)  # a round has seen them all
    for item in (silent, halved, failed, strange):
        assert len(detail(stack, item)["entries"]) == 1
        assert detail(stack, item)["cost_usd"] == item["ceiling_usd"]


def test_a_line_without_metadata_is_found_by_its_request_id(stack: Proxy, simulator: Any, aws: str) -> None:
    key = stack.key()
    item = cut(stack, key, simulator, "by request id")
    [line] = [r for r in records(simulator) if r["requestMetadata"]["tollhouse-attempt"] == item["attempt"]]
    assert item["upstream_request_id"] == line["requestId"]
    del line["requestMetadata"]
    to_logs(aws, [line])
    found = refunded(stack, item)
    # nothing tells the tier it was asked for, so it costs what it would at the dearest
    assert nano(bill_of(simulator, item)["cost_usd"]) <= nano(found["cost_usd"]) < nano(item["ceiling_usd"])


def test_cached_tokens_are_priced_as_such(stack: Proxy, simulator: Any, aws: str) -> None:
    key = stack.key()
    item = cut(stack, key, simulator, "[[cached=9]] " + "toll keeper " * 40, model=SONNET)
    billed = bill_of(simulator, item)
    assert billed["cache_read_tokens"] > 0
    to_logs(aws, [r for r in records(simulator) if r["requestId"] == billed["request_id"]])
    found = refunded(stack, item)
    assert nano(found["cost_usd"]) == nano(billed["cost_usd"])
    assert found["usage"]["cache_read_tokens"] == billed["cache_read_tokens"]


def test_a_lost_worker_s_call_is_refunded_too(stack: Proxy, simulator: Any, aws: str) -> None:
    """Nobody saw its answer: the ledger has no request id, only the attempt id in the metadata."""
    key = stack.key()
    simulator.fault({"fault": "reset", "times": 1})
    body = {"prompt": "[[tokens=20]] lost", "max_gen_len": 100}
    stack.request("POST", f"/model/{LLAMA}/invoke", body, key=key.bearer_token)
    simulator.call("DELETE", "/_control")
    [item] = stack.settled_calls(tenant=key.tenant)
    assert (item["outcome"], item["upstream_request_id"]) == ("CEILING", None)
    to_logs(aws, records(simulator))
    found = refunded(stack, item)
    assert nano(found["cost_usd"]) == nano(bill_of(simulator, item)["cost_usd"])
