"""Every fault, seen from outside: by boto3, or on a raw socket."""

import contextlib
import json
import socket
import struct
import time
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config
from botocore.eventstream import ChecksumMismatch
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    EventStreamError,
    ReadTimeoutError,
    ResponseStreamingError,
)
from urllib3.exceptions import ProtocolError

from proxy.simulator.launch import Simulator

LLAMA = "meta.llama3-1-405b-instruct-v1:0"


def connect(url: str, attempts: int = 1, **config):
    return boto3.client(
        "bedrock-runtime",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="AKIAIOSFODNN7EXAMPLE",
        aws_secret_access_key="secret",
        config=Config(retries={"total_max_attempts": attempts, "mode": "standard"}, **config),
    )


@pytest.fixture
def bedrock(simulator: Simulator):
    return connect(simulator.url)


def talk(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"text": text}]}]


def converse(client, fault: str):
    return client.converse(modelId=LLAMA, messages=talk(f"x [[tokens=10]] [[fault={fault}]]"))


def stream(client, fault: str):
    return client.converse_stream(modelId=LLAMA, messages=talk(f"x [[tokens=10]] [[fault={fault}]]"))[
        "stream"
    ]


def raw(simulator: Simulator, path: str, body: bytes, timeout: float = 5.0) -> socket.socket:
    """A connection on which one request was sent."""
    address = urlsplit(simulator.url)
    connection = socket.create_connection((str(address.hostname), int(address.port or 0)), timeout)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer x\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    return connection


def read_all(connection: socket.socket) -> bytes:
    """Everything until the peer ends. Raises ConnectionResetError on RST."""
    received = b""
    with connection:
        while data := connection.recv(65_536):
            received += data
    return received


def converse_body(fault: str) -> bytes:
    return json.dumps({"messages": talk(f"x [[tokens=10]] [[fault={fault}]]")}).encode()


def owed(simulator: Simulator, *, completed: bool) -> None:
    """One call, at its full cost, whatever happened to its answer."""
    [call] = simulator.bill()["calls"]
    assert call["output_tokens"] == 10
    assert Decimal(call["cost_usd"]) == Decimal("2.4") * (call["input_tokens"] + 10) / 10**6
    assert call["completed"] is completed


def test_throttle_so_often(simulator):
    answer = converse(connect(simulator.url, attempts=3), "throttle:2")
    assert answer["ResponseMetadata"]["RetryAttempts"] == 2
    bill = simulator.bill()
    assert [refused["error"] for refused in bill["refused"]] == ["ThrottlingException"] * 2
    assert bill["count"] == 1


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("AccessDeniedException", 403),
        ("ResourceNotFoundException", 404),
        ("ThrottlingException", 429),
        ("ModelNotReadyException", 429),
        ("ServiceQuotaExceededException", 400),
        ("ModelTimeoutException", 408),
        ("ModelErrorException", 424),
        ("InternalServerException", 500),
        ("ServiceUnavailableException", 503),
        ("ValidationException", 400),
    ],
)
def test_modelled_errors(simulator, bedrock, name, status):
    with pytest.raises(getattr(bedrock.exceptions, name)) as caught:
        converse(bedrock, f"error:{name}")
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    kind = caught.value.response["ResponseMetadata"]["HTTPHeaders"]["x-amzn-errortype"]
    assert kind == f"{name}:http://internal.amazon.com/coral/com.amazon.bedrock/"
    assert simulator.bill()["count"] == 0


def test_errors_by_status(bedrock):
    with pytest.raises(bedrock.exceptions.ServiceUnavailableException):
        converse(bedrock, "error:503")


def test_an_html_page(simulator, bedrock):
    with pytest.raises(ClientError) as caught:
        converse(bedrock, "html502")
    assert caught.value.response["Error"]["Code"] == "502"
    assert simulator.bill()["refused_count"] == 1


def test_reset_before_any_byte(simulator, bedrock):
    with pytest.raises(ConnectionClosedError):
        converse(bedrock, "reset")
    with pytest.raises(ConnectionResetError):
        read_all(raw(simulator, f"/model/{LLAMA}/converse", converse_body("reset")))
    assert [call["completed"] for call in simulator.bill()["calls"]] == [False, False]


def test_close_before_any_byte(simulator):
    assert read_all(raw(simulator, f"/model/{LLAMA}/converse", converse_body("close"))) == b""
    owed(simulator, completed=False)


def test_reset_in_mid_stream(simulator, bedrock):
    seen = []
    with pytest.raises(ProtocolError):
        for event in stream(bedrock, "reset:3"):
            seen.append(event)
    assert len(seen) == 3
    owed(simulator, completed=False)


def test_close_in_mid_stream_lacks_the_last_http_chunk(simulator, bedrock):
    with pytest.raises(ProtocolError):
        list(stream(bedrock, "close:3"))
    owed(simulator, completed=False)


def test_reset_in_the_middle_of_a_whole_body(simulator, bedrock):
    with pytest.raises((ResponseStreamingError, ConnectionClosedError, ProtocolError)):
        converse(bedrock, "reset:1")
    with pytest.raises(ConnectionResetError):
        read_all(raw(simulator, f"/model/{LLAMA}/converse", converse_body("reset:1")))


def test_close_in_the_middle_of_a_whole_body_is_shorter_than_it_said(simulator):
    received = read_all(raw(simulator, f"/model/{LLAMA}/converse", converse_body("close:1")))
    head, _, body = received.partition(b"\r\n\r\n")
    [length] = [int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")]
    assert 0 < len(body) < length
    owed(simulator, completed=False)


def test_clean_truncation_looks_complete_to_boto3(simulator, bedrock):
    kinds = [next(iter(event)) for event in stream(bedrock, "truncate:4")]
    assert kinds == ["messageStart", *["contentBlockDelta"] * 3]
    owed(simulator, completed=False)


def test_a_truncated_whole_body_has_a_true_length(simulator):
    connection = raw(simulator, f"/model/{LLAMA}/converse", converse_body("truncate"))
    connection.settimeout(0.3)
    received = b""
    with connection, contextlib.suppress(TimeoutError):
        while data := connection.recv(65_536):
            received += data
    head, _, body = received.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    with pytest.raises(ValueError):
        json.loads(body)


def test_exception_frame(simulator, bedrock):
    seen = []
    with pytest.raises(EventStreamError, match="throttlingException") as caught:
        for event in stream(bedrock, "exception:throttlingException:5"):
            seen.append(event)
    assert len(seen) == 5
    assert caught.value.response["Error"]["Code"] == "throttlingException"
    owed(simulator, completed=False)


def test_exception_on_a_whole_answer_is_an_http_error(simulator, bedrock):
    with pytest.raises(bedrock.exceptions.ModelErrorException):
        converse(bedrock, "exception:modelErrorException")
    assert simulator.bill()["count"] == 0


def test_unmodelled_error_frame(bedrock):
    with pytest.raises(EventStreamError, match="SimulatedError"):
        list(stream(bedrock, "unmodelled:2"))


def test_bad_checksum(bedrock):
    with pytest.raises(ChecksumMismatch):
        list(stream(bedrock, "badcrc:2"))


def test_garbage_between_frames(bedrock):
    with pytest.raises(Exception, match=r"Checksum|Payload|Header"):
        list(stream(bedrock, "garbage:2"))


def test_silence(simulator):
    impatient = connect(simulator.url, read_timeout=0.3)
    with pytest.raises(ReadTimeoutError):
        converse(impatient, "silence")
    owed(simulator, completed=False)


def test_silence_in_mid_stream(simulator):
    connection = raw(simulator, f"/model/{LLAMA}/converse-stream", converse_body("silence:2"), timeout=0.3)
    received = b""
    with pytest.raises(TimeoutError), connection:
        while data := connection.recv(65_536):
            received += data
    assert received.count(b":event-type") == 2
    owed(simulator, completed=False)


@pytest.mark.parametrize("order", ["[[fault=delay:200]]", "[[delay_ms=200]]"])
def test_slow_first_byte(bedrock, order):
    begun = time.monotonic()
    bedrock.converse(modelId=LLAMA, messages=talk(f"x {order}"))
    assert time.monotonic() - begun >= 0.2


def test_missing_usage(simulator, bedrock):
    events = list(stream(bedrock, "nousage"))
    assert "usage" not in events[-1]["metadata"]
    body = json.dumps({"prompt": "x [[tokens=10]] [[fault=nousage]]"})
    answer = bedrock.invoke_model(modelId=LLAMA, body=body)
    assert "x-amzn-bedrock-input-token-count" not in answer["ResponseMetadata"]["HTTPHeaders"]
    assert "generation_token_count" not in json.loads(answer["body"].read())
    assert [call["output_tokens"] for call in simulator.bill()["calls"]] == [10, 10]


def test_wrong_usage_does_not_touch_the_bill(simulator, bedrock):
    assert list(stream(bedrock, "usage:negative"))[-1]["metadata"]["usage"]["outputTokens"] == -10
    assert list(stream(bedrock, "usage:huge"))[-1]["metadata"]["usage"]["outputTokens"] == 2**62
    twice = list(stream(bedrock, "usage:twice"))
    assert [next(iter(event)) for event in twice].count("metadata") == 2
    reports = [
        event["metadata"]["usage"] for event in stream(bedrock, "usage:decreasing") if "metadata" in event
    ]
    assert [report["outputTokens"] for report in reports] == [10, 5]
    assert [call["output_tokens"] for call in simulator.bill()["calls"]] == [10, 10, 10, 10]


def test_downgrade_is_echoed_and_priced(simulator, bedrock):
    answer = bedrock.converse(
        modelId="qwen.qwen3-32b-v1:0",
        messages=talk("x [[fault=downgrade]]"),
        serviceTier={"type": "priority"},
    )
    assert answer["serviceTier"]["type"] == "default"
    assert simulator.bill()["calls"][0]["service_tier"] == "default"


def test_rules_match_strike_and_are_used_up(simulator, bedrock):
    simulator.fault(
        {"fault": "error:ModelErrorException", "times": 1, "tenant": "acme", "operation": "Converse"},
        {"fault": "reset", "model": "no-such-model"},
    )
    ask = {"modelId": LLAMA, "messages": talk("x")}
    bedrock.converse(**ask)
    with pytest.raises(bedrock.exceptions.ModelErrorException):
        bedrock.converse(**ask, requestMetadata={"who": "acme"})
    bedrock.converse(**ask, requestMetadata={"who": "acme"})
    assert [rule["left"] for rule in simulator.call("GET", "/_control")["rules"]] == [0, None]
    assert simulator.call("DELETE", "/_control") == {"rules": []}


def test_a_client_that_leaves_is_billed_in_full(simulator):
    connection = raw(simulator, f"/model/{LLAMA}/converse-stream", converse_body("delay:150"))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    time.sleep(0.05)
    connection.close()
    time.sleep(0.25)
    owed(simulator, completed=False)


def test_orders_that_make_no_sense_are_refused(simulator):
    import urllib.error

    with pytest.raises(urllib.error.HTTPError, match="400"):
        simulator.fault({"fault": "explode"})
