"""The simulator as stock boto3 meets it: the four operations, and a bill done by hand."""

import json
import math
import socket
import subprocess
import sys
import threading
import time
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from proxy.simulator.launch import Simulator, start

LLAMA = "meta.llama3-1-405b-instruct-v1:0"
CLAUDE = "anthropic.claude-sonnet-4-5-20250929-v1:0"
ACCOUNT = "arn:aws:bedrock:us-east-1:123456789012"
#: USD per million tokens, read off the public price list.
RATES = {LLAMA: ("2.4", "2.4"), f"us.{LLAMA}": ("2.4", "2.4"), CLAUDE: ("3.3", "16.5")}


def connect(url: str, secret: str = "secret", region: str = "us-east-1", **config):
    return boto3.client(
        "bedrock-runtime",
        endpoint_url=url,
        region_name=region,
        aws_access_key_id="AKIAIOSFODNN7EXAMPLE",
        aws_secret_access_key=secret,
        config=Config(retries={"total_max_attempts": 1}, **config),
    )


@pytest.fixture
def bedrock(simulator: Simulator):
    return connect(simulator.url)


def native(model: str, text: str, limit: int = 50) -> str:
    if model == CLAUDE:
        message = {"role": "user", "content": text}
        return json.dumps({"anthropic_version": "x", "max_tokens": limit, "messages": [message]})
    return json.dumps({"prompt": text, "max_gen_len": limit})


def talk(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"text": text}]}]


def by_hand(model: str, tokens_in: int, tokens_out: int) -> Decimal:
    before, after = (Decimal(rate) for rate in RATES[model])
    return Decimal(math.ceil((tokens_in * before + tokens_out * after) * 1_000)) / 10**9


def last_call(simulator: Simulator) -> Any:
    [call] = simulator.bill()["calls"]
    return call


def agrees(simulator: Simulator, model: str, tokens_in: int, tokens_out: int, answer: dict[str, Any]) -> None:
    call = last_call(simulator)
    assert (call["input_tokens"], call["output_tokens"]) == (tokens_in, tokens_out)
    assert Decimal(call["cost_usd"]) == by_hand(model, tokens_in, tokens_out) > 0
    assert Decimal(simulator.bill()["total_usd"]) == Decimal(call["cost_usd"])
    assert call["request_id"] == answer["ResponseMetadata"]["RequestId"]
    assert (call["model"], call["completed"]) == (model, True)


@pytest.mark.parametrize("model", [LLAMA, CLAUDE])
def test_invoke_model(simulator, bedrock, model):
    answer = bedrock.invoke_model(modelId=model, body=native(model, "Say hello. [[tokens=12]]"))
    body = json.loads(answer["body"].read())
    headers = answer["ResponseMetadata"]["HTTPHeaders"]
    tokens_in = int(headers["x-amzn-bedrock-input-token-count"])
    assert headers["x-amzn-bedrock-output-token-count"] == "12"
    assert int(headers["x-amzn-bedrock-invocation-latency"]) >= 1
    assert headers["date"]
    if model == LLAMA:
        assert (body["prompt_token_count"], body["generation_token_count"]) == (tokens_in, 12)
        assert body["stop_reason"] == "stop"
        assert len(body["generation"].split()) == 12
    else:
        assert (body["usage"]["input_tokens"], body["usage"]["output_tokens"]) == (tokens_in, 12)
        assert body["stop_reason"] == "end_turn"
    agrees(simulator, model, tokens_in, 12, answer)


@pytest.mark.parametrize("model", [LLAMA, CLAUDE])
def test_invoke_model_with_response_stream(simulator, bedrock, model):
    answer = bedrock.invoke_model_with_response_stream(
        modelId=model, body=native(model, "Go [[tokens=9]]", 5)
    )
    assert answer["contentType"] == "application/json"
    chunks = [json.loads(event["chunk"]["bytes"]) for event in answer["body"]]
    metrics = chunks[-1].pop("amazon-bedrock-invocationMetrics")
    assert all("amazon-bedrock-invocationMetrics" not in chunk for chunk in chunks)
    assert metrics["outputTokenCount"] == 5
    if model == LLAMA:
        assert [chunk["prompt_token_count"] for chunk in chunks] == [metrics["inputTokenCount"]] + [None] * 5
        assert [chunk["generation_token_count"] for chunk in chunks] == [1, 2, 3, 4, 5, 5]
        assert [chunk["stop_reason"] for chunk in chunks] == [None] * 5 + ["length"]
    else:
        kinds = [chunk["type"] for chunk in chunks]
        assert kinds[:2] == ["message_start", "content_block_start"]
        assert kinds[2:7] == ["content_block_delta"] * 5
        assert kinds[7:] == ["content_block_stop", "message_delta", "message_stop"]
        assert chunks[0]["message"]["usage"]["input_tokens"] == metrics["inputTokenCount"]
        assert chunks[8]["delta"]["stop_reason"] == "max_tokens"
        assert chunks[8]["usage"]["output_tokens"] == 5
    agrees(simulator, model, metrics["inputTokenCount"], 5, answer)


@pytest.mark.parametrize("model", [f"us.{LLAMA}", CLAUDE])
def test_converse(simulator, bedrock, model):
    answer = bedrock.converse(
        modelId=model,
        messages=talk("Say hello. [[tokens=30]]"),
        system=[{"text": "Be brief."}],
        inferenceConfig={"maxTokens": 10},
    )
    assert answer["stopReason"] == "max_tokens"
    assert len(answer["output"]["message"]["content"][0]["text"].split()) == 10
    usage = answer["usage"]
    assert usage["totalTokens"] == usage["inputTokens"] + 10
    assert answer["metrics"]["latencyMs"] >= 1
    agrees(simulator, model, usage["inputTokens"], 10, answer)


@pytest.mark.parametrize("model", [LLAMA, CLAUDE])
def test_converse_stream(simulator, bedrock, model):
    answer = bedrock.converse_stream(modelId=model, messages=talk("Say hello. [[tokens=4]]"))
    events = list(answer["stream"])
    kinds = [next(iter(event)) for event in events]
    expected = ["messageStart", *["contentBlockDelta"] * 4, "contentBlockStop", "messageStop", "metadata"]
    assert kinds == expected
    assert events[-2]["messageStop"]["stopReason"] == "end_turn"
    agrees(simulator, model, events[-1]["metadata"]["usage"]["inputTokens"], 4, answer)


def test_the_same_prompt_gets_the_same_answer_in_every_operation_of_a_dialect(bedrock):
    whole = json.loads(bedrock.invoke_model(modelId=LLAMA, body=native(LLAMA, "same"))["body"].read())
    stream = bedrock.invoke_model_with_response_stream(modelId=LLAMA, body=native(LLAMA, "same"))
    pieces = [json.loads(event["chunk"]["bytes"])["generation"] for event in stream["body"]]
    assert "".join(pieces) == whole["generation"]


@pytest.mark.parametrize(
    ("model", "cost"),
    [
        (f"arn:aws:bedrock:us-east-1::foundation-model/{LLAMA}", True),
        (f"{ACCOUNT}:inference-profile/us.{LLAMA}", True),
        (f"{ACCOUNT}:application-inference-profile/llama405bapp", True),
        (f"{ACCOUNT}:provisioned-model/llama31405b0", False),
    ],
)
def test_arns(simulator, bedrock, model, cost):
    bedrock.converse(modelId=model, messages=talk("x [[tokens=1]]"))
    bedrock.invoke_model(modelId=model, body=native(LLAMA, "x [[tokens=1]]"))
    calls = simulator.bill()["calls"]
    assert [call["model"] for call in calls] == [model, model]
    assert all(call["base_model"] == LLAMA and (Decimal(call["cost_usd"]) > 0) is cost for call in calls)


@pytest.mark.parametrize(
    ("model", "body", "code", "text"),
    [
        ("meta.llama3-1-405b-instruct-v10", {"prompt": "x"}, "ValidationException", "identifier is invalid"),
        (LLAMA, {}, "ValidationException", "required key [prompt] not found"),
        (
            LLAMA,
            {"prompt": "x", "max_gen_len": "9"},
            "ValidationException",
            "expected type: Integer, found: String",
        ),
        (LLAMA, {"prompt": "x", "max_gen_len": -1}, "ValidationException", "not greater or equal to 1"),
        (LLAMA, {"prompt": "x", "max_gen_len": 1.5}, "ValidationException", "found: Number"),
        (LLAMA, {"prompt": "x", "n": 2}, "ValidationException", "extraneous key [n]"),
        (
            CLAUDE,
            {"messages": [{"role": "user", "content": "x"}]},
            "ValidationException",
            "max_tokens: Field required",
        ),
        (CLAUDE, {"max_tokens": 9, "messages": []}, "ValidationException", "at least one message"),
        (
            CLAUDE,
            {"max_tokens": 10**6, "messages": []},
            "ValidationException",
            "maximum allowed number of output",
        ),
        (f"{ACCOUNT}:provisioned-model/notready0000", {"prompt": "x"}, "ModelNotReadyException", "not ready"),
    ],
)
def test_refusals_cost_nothing(simulator, bedrock, model, body, code, text):
    with pytest.raises(ClientError) as caught:
        bedrock.invoke_model(modelId=model, body=json.dumps(body))
    assert caught.value.response["Error"]["Code"] == code
    assert text in caught.value.response["Error"]["Message"]
    bill = simulator.bill()
    assert bill["calls"] == []
    assert Decimal(bill["total_usd"]) == 0
    [refused] = bill["refused"]
    assert refused["error"] == code
    assert refused["request_id"] == caught.value.response["ResponseMetadata"]["RequestId"]


def test_bodies_that_are_no_json(bedrock):
    with pytest.raises(ClientError, match="Malformed input request"):
        bedrock.invoke_model(modelId=LLAMA, body=b"{")


def test_request_metadata_reaches_bill_and_log(simulator, bedrock):
    bedrock.converse(modelId=LLAMA, messages=talk("x"), requestMetadata={"call": "c-1"})
    bedrock.invoke_model(modelId=LLAMA, body=native(LLAMA, "x"), requestMetadata=json.dumps({"call": "c-2"}))
    assert [call["metadata"] for call in simulator.bill()["calls"]] == [{"call": "c-1"}, {"call": "c-2"}]
    records = simulator.call("GET", "/_log")["records"]
    assert [record["requestMetadata"] for record in records] == [{"call": "c-1"}, {"call": "c-2"}]
    assert records[0]["schemaType"] == "ModelInvocationLog"
    assert [record["operation"] for record in records] == ["Converse", "InvokeModel"]
    bill = simulator.bill()
    assert [record["requestId"] for record in records] == [call["request_id"] for call in bill["calls"]]


def test_requests_show_the_headers_that_came(simulator, bedrock):
    bedrock.converse(modelId=LLAMA, messages=talk("x"))
    [seen] = simulator.requests()
    names = dict(seen["headers"])
    assert names["authorization"].startswith("AWS4-HMAC-SHA256")
    assert names["amz-sdk-invocation-id"]
    assert (seen["status"], seen["operation"], seen["model"]) == (200, "Converse", LLAMA)
    assert seen["path"] == "/model/meta.llama3-1-405b-instruct-v1%3A0/converse"


def test_paging_and_summary_of_the_bill(simulator, bedrock):
    for text in ("a", "b", "c"):
        bedrock.converse(modelId=LLAMA, messages=talk(text))
    page = simulator.bill(since=2)
    assert len(page["calls"]) == 1
    assert page["next"] == 3
    summary = simulator.bill(summary=1)
    assert (summary["count"], summary["completed"]) == (3, 3)
    total = sum(Decimal(call["cost_usd"]) for call in simulator.bill()["calls"])
    assert total == Decimal(summary["total_usd"])
    simulator.call("DELETE", "/_bill")
    assert simulator.bill()["calls"] == []


def test_tools_are_called_when_forced(bedrock):
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    config = {
        "tools": [{"toolSpec": {"name": "weather", "inputSchema": {"json": schema}}}],
        "toolChoice": {"any": {}},
    }
    whole = bedrock.converse(modelId=CLAUDE, messages=talk("x"), toolConfig=config)
    assert whole["stopReason"] == "tool_use"
    use = whole["output"]["message"]["content"][0]["toolUse"]
    assert use["name"] == "weather"
    assert isinstance(use["input"]["city"], str)
    events = list(bedrock.converse_stream(modelId=CLAUDE, messages=talk("x"), toolConfig=config)["stream"])
    pieces = [
        event["contentBlockDelta"]["delta"]["toolUse"]["input"]
        for event in events
        if "contentBlockDelta" in event
    ]
    assert json.loads("".join(pieces)) == use["input"]


def test_the_barrier_holds_every_answer(simulator, bedrock):
    simulator.hold(hold=True)
    answers: list[dict[str, Any]] = []
    callers = [
        threading.Thread(target=lambda: answers.append(bedrock.converse(modelId=LLAMA, messages=talk("x"))))
        for _ in range(3)
    ]
    for caller in callers:
        caller.start()
    deadline = time.monotonic() + 5
    while simulator.waiting() < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert simulator.waiting() == 3
    assert answers == []
    # They reached the model, so they are owed.
    assert [call["completed"] for call in simulator.bill()["calls"]] == [False] * 3
    simulator.hold(hold=False)
    for caller in callers:
        caller.join(5)
    assert len(answers) == 3
    assert all(call["completed"] for call in simulator.bill()["calls"])


def test_a_process_with_pace_quotas_and_verified_signatures():
    simulator = start(
        verify_secret="right",
        tokens_per_second=100,
        first_byte_ms=30,
        quotas={LLAMA: {"requests_per_minute": 2}},
    )
    try:
        with pytest.raises(ClientError, match="InvalidSignatureException"):
            connect(simulator.url, "wrong").converse(modelId=LLAMA, messages=talk("x"))
        bedrock = connect(simulator.url, "right")
        begun = time.monotonic()
        times = []
        answer = bedrock.converse_stream(modelId=LLAMA, messages=talk("x [[tokens=20]]"))
        for _ in answer["stream"]:
            times.append(time.monotonic() - begun)
        assert times[0] >= 0.03
        assert times[-1] - times[0] >= 0.12
        bedrock.invoke_model(modelId=LLAMA, body=native(LLAMA, "x [[tokens=1]]"), requestMetadata='{"a":"b"}')
        with pytest.raises(ClientError, match="Too many requests") as caught:
            bedrock.converse(modelId=LLAMA, messages=talk("x"))
        assert caught.value.response["Error"]["Code"] == "ThrottlingException"
        assert simulator.bill()["count"] == 2
    finally:
        simulator.stop()
        simulator.stop()


def test_a_simulator_ends_with_the_process_that_started_it():
    code = "from proxy.simulator.launch import start; print(start().url, flush=True); input()"
    command = [sys.executable, "-c", code]
    starter = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with starter:
        assert starter.stdout is not None
        url = urlsplit(starter.stdout.readline().strip())
        address = str(url.hostname), int(url.port or 0)
        socket.create_connection(address, 2).close()
        starter.kill()
    deadline = time.monotonic() + 5
    with pytest.raises(ConnectionRefusedError):
        while time.monotonic() < deadline:
            socket.create_connection(address, 2).close()
            time.sleep(0.02)


def test_a_killed_simulator_is_gone():
    simulator = start()
    simulator.kill()
    with pytest.raises(OSError):
        simulator.bill()


def test_quotas_set_while_running_and_taken_back(simulator, bedrock):
    simulator.call("POST", "/_quotas", {LLAMA: {"tokens_per_minute": 100}})
    with pytest.raises(ClientError, match="Too many tokens"):
        bedrock.converse(modelId=LLAMA, messages=talk("x"), inferenceConfig={"maxTokens": 100})
    bedrock.converse(modelId=LLAMA, messages=talk("x [[tokens=1]]"), inferenceConfig={"maxTokens": 50})
    simulator.call("DELETE", "/_control")
    bedrock.converse(modelId=LLAMA, messages=talk("x"), inferenceConfig={"maxTokens": 100})
    assert simulator.bill(summary=1)["count"] == 2
