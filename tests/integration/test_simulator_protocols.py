"""HTTP/1.1 in its corners, HTTP/2 with and without TLS, and the OpenAI and Anthropic dialects by their SDKs."""

import json
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anthropic
import boto3
import h2.config
import h2.connection
import h2.events
import openai
import pytest
from botocore.config import Config
from botocore.eventstream import EventStreamBuffer

from proxy.simulator.launch import Simulator, start

LLAMA = "meta.llama3-1-405b-instruct-v1:0"
HAIKU = "anthropic.claude-haiku-4-5-20251001-v1:0"
GPT = "openai.gpt-oss-120b-1:0"


def address(simulator: Simulator) -> tuple[str, int]:
    parts = urlsplit(simulator.url)
    return str(parts.hostname), int(parts.port or 0)


def body_of(text: str) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": [{"text": text}]}]}).encode()


def read_answers(connection: socket.socket, amount: int) -> list[bytes]:
    """Bodies of so many answers with a Content-Length on one connection."""
    received, bodies = b"", list[bytes]()
    while len(bodies) < amount:
        head, separator, rest = received.partition(b"\r\n\r\n")
        length = [
            int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")
        ]
        if separator and length and len(rest) >= length[0]:
            bodies.append(rest[: length[0]])
            received = rest[length[0] :]
            continue
        data = connection.recv(65_536)
        assert data, received
        received += data
    return bodies


def test_pipelined_requests_and_bodies_in_pieces(simulator):
    one = body_of("a [[tokens=1]] [[delay_ms=30]]")
    two = body_of("b [[tokens=2]]")
    head = f"POST /model/{LLAMA}/converse HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer x\r\n"
    first = head.encode() + b"Content-Length: %d\r\n\r\n" % len(one) + one
    chunks = b"5\r\n%b\r\n%x;ext=1\r\n%b\r\n0\r\n\r\n" % (two[:5], len(two) - 5, two[5:])
    second = head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunks
    with socket.create_connection(address(simulator), 5) as connection:
        sent = first + second
        for place in range(0, len(sent), 37):
            connection.sendall(sent[place : place + 37])
        bodies = read_answers(connection, 2)
    assert [json.loads(body)["usage"]["outputTokens"] for body in bodies] == [1, 2]


def test_expect_100_continue(simulator):
    body = body_of("x")
    head = f"POST /model/{LLAMA}/converse HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer x\r\nExpect: 100-continue\r\n"
    with socket.create_connection(address(simulator), 5) as connection:
        connection.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body))
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert json.loads(read_answers(connection, 1)[0])["stopReason"] == "end_turn"


def test_connection_close_and_bad_requests_end_the_connection(simulator):
    with socket.create_connection(address(simulator), 5) as connection:
        connection.sendall(b"GET /_health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert json.loads(read_answers(connection, 1)[0]) == {"status": "ok"}
        assert connection.recv(100) == b""
    with socket.create_connection(address(simulator), 5) as connection:
        connection.sendall(b"NONSENSE\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("path", "status"),
    [("/model/x/frobnicate", 404), ("/_nothing", 404), ("/knowledgebases", 404), ("/model//invoke", 404)],
)
def test_unknown_paths(simulator, path, status):
    with socket.create_connection(address(simulator), 5) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer x\r\n\r\n".encode())
        assert connection.recv(1_000).startswith(f"HTTP/1.1 {status} ".encode())


def test_no_credentials(simulator):
    body = body_of("x")
    with socket.create_connection(address(simulator), 5) as connection:
        head = f"POST /model/{LLAMA}/converse HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        answer = connection.recv(4_000)
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b'{"Message":"Missing Authentication Token"}' in answer
    assert simulator.bill()["count"] == 0


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += [
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=IP:127.0.0.1,DNS:localhost",
    ]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


@pytest.fixture(scope="module")
def tls_simulator(certificate) -> Iterator[Simulator]:
    simulator = start(tls_certificate=str(certificate[0]), tls_key=str(certificate[1]))
    yield simulator
    simulator.stop()


def curl(*arguments: object) -> bytes:
    command = ["curl", "-sS", "--max-time", "10", "-w", "%{stderr}%{http_version}"]
    done = subprocess.run([*command, *map(str, arguments)], check=True, capture_output=True)
    assert done.stderr == b"2", done.stderr
    return done.stdout


@pytest.mark.parametrize("operation", ["converse", "converse-stream"])
def test_h2c_by_prior_knowledge(simulator, operation):
    url = f"{simulator.url}/model/meta.llama3-1-405b-instruct-v1%3A0/{operation}"
    arguments = (
        "--http2-prior-knowledge",
        "-H",
        "authorization: Bearer x",
        "-d",
        body_of("x [[tokens=3]]").decode(),
    )
    answer = curl(*arguments, url)
    if operation == "converse":
        assert json.loads(answer)["usage"]["outputTokens"] == 3
    else:
        buffer = EventStreamBuffer()
        buffer.add_data(answer)
        last: Any = list(buffer)[-1]
        assert last.headers[":event-type"] == "metadata"
    [seen] = simulator.requests()
    assert seen["path"].endswith(f"/model/meta.llama3-1-405b-instruct-v1%3A0/{operation}")
    assert simulator.bill()["calls"][0]["completed"] is True


def test_tls_with_h2_by_alpn_and_boto3_over_http1(tls_simulator, certificate):
    url = f"{tls_simulator.url}/model/{LLAMA}/converse"
    answer = curl(
        "--http2",
        "--cacert",
        certificate[0],
        "-H",
        "authorization: Bearer x",
        "-d",
        body_of("x").decode(),
        url,
    )
    assert json.loads(answer)["stopReason"] == "end_turn"
    client = boto3.client(
        "bedrock-runtime",
        endpoint_url=tls_simulator.url,
        region_name="us-east-1",
        aws_access_key_id="AKIAIOSFODNN7EXAMPLE",
        aws_secret_access_key="secret",
        verify=str(certificate[0]),
    )
    assert (
        client.converse(modelId=LLAMA, messages=json.loads(body_of("x"))["messages"])["stopReason"]
        == "end_turn"
    )


class H2:
    """One request on one HTTP/2 connection, events in order."""

    def __init__(self, simulator: Simulator, path: str, body: bytes) -> None:
        self.socket = socket.create_connection(address(simulator), 3)
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.connection.initiate_connection()
        headers = [
            (":method", "POST"),
            (":path", path),
            (":scheme", "http"),
            (":authority", "x"),
            ("authorization", "Bearer x"),
        ]
        self.connection.send_headers(1, headers)
        self.connection.send_data(1, body, end_stream=True)
        self.socket.sendall(self.connection.data_to_send())

    def events(self) -> Iterator[h2.events.Event]:
        with self.socket:
            while data := self.socket.recv(65_536):
                for event in self.connection.receive_data(data):
                    yield event
                    if isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                        return
                self.socket.sendall(self.connection.data_to_send())


def test_reset_over_http2_is_a_reset_of_the_stream(simulator):
    request = H2(simulator, f"/model/{LLAMA}/converse-stream", body_of("x [[tokens=9]] [[fault=reset:3]]"))
    events = list(request.events())
    data = b"".join(event.data for event in events if isinstance(event, h2.events.DataReceived))
    assert data.count(b":event-type") == 3
    assert isinstance(events[-1], h2.events.StreamReset)
    assert simulator.bill()["calls"][0]["completed"] is False


def test_reset_before_any_byte_over_http2_cuts_the_connection(simulator):
    request = H2(simulator, f"/model/{LLAMA}/converse", body_of("x [[fault=reset]]"))
    seen: list[h2.events.Event] = []
    try:
        seen.extend(request.events())
    except ConnectionResetError:
        pass
    assert not any(isinstance(event, h2.events.ResponseReceived) for event in seen)


def test_a_client_that_leaves_over_http2_is_noticed(simulator):
    request = H2(simulator, f"/model/{LLAMA}/converse", body_of("x [[delay_ms=150]]"))
    request.connection.receive_data(request.socket.recv(65_536))
    request.connection.reset_stream(1)
    request.socket.sendall(request.connection.data_to_send())
    subprocess.run(["sleep", "0.3"], check=True)
    request.socket.close()
    assert simulator.bill()["calls"][0]["completed"] is False


@pytest.fixture
def chat(simulator: Simulator) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{simulator.url}/openai/v1", api_key="x", max_retries=0) as client:
        yield client


def test_chat_completions(simulator, chat):
    answer = chat.chat.completions.create(
        model=GPT, messages=[{"role": "user", "content": "x [[tokens=5]]"}], n=2, max_completion_tokens=20
    )
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "stop"]
    [call] = simulator.bill()["calls"]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (call["input_tokens"], 10)
    assert (call["output_tokens"], call["operation"]) == (10, "ChatCompletions")
    assert answer._request_id == call["request_id"]


def test_chat_completions_stream(simulator, chat):
    events = list(
        chat.chat.completions.create(
            model=LLAMA,
            messages=[{"role": "user", "content": "x [[tokens=5]]"}],
            max_completion_tokens=3,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert events[-1].usage.completion_tokens == 3
    assert events[-2].choices[0].finish_reason == "length"
    plain = chat.chat.completions.create(model=GPT, messages=[{"role": "user", "content": "x"}], stream=True)
    assert all(event.usage is None for event in plain)
    assert simulator.bill()["count"] == 2


def test_chat_completions_cached_tokens_are_part_of_the_prompt(simulator, chat):
    text = "abcd " * 100 + "[[cached=40]] [[cache_write=20]]"
    usage = chat.chat.completions.create(
        model="us.openai.gpt-5.6-sol", messages=[{"role": "user", "content": text}]
    ).usage
    [call] = simulator.bill()["calls"]
    assert (call["cache_read_tokens"], call["cache_write_tokens"]) == (40, 20)
    assert usage.prompt_tokens == call["input_tokens"] + 60
    assert usage.prompt_tokens_details.cached_tokens == 40


def test_chat_errors(chat, simulator):
    with pytest.raises(openai.BadRequestError, match="identifier is invalid"):
        chat.chat.completions.create(model="nothing", messages=[{"role": "user", "content": "x"}])
    with pytest.raises(openai.RateLimitError):
        chat.chat.completions.create(model=GPT, messages=[{"role": "user", "content": "[[fault=throttle]]"}])
    with pytest.raises(openai.APIError, match="mid-stream"):
        text = "[[fault=exception:internalServerException:2]]"
        list(
            chat.chat.completions.create(model=GPT, messages=[{"role": "user", "content": text}], stream=True)
        )
    assert simulator.bill()["refused_count"] == 2


def test_responses(simulator, chat):
    whole = chat.responses.create(model=GPT, input="x [[tokens=5]]", instructions="Be brief.", store=False)
    assert whole.status == "completed"
    assert len(whole.output_text.split()) == 5
    events = list(chat.responses.create(model=GPT, input="x [[tokens=5]]", max_output_tokens=2, stream=True))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.usage.output_tokens == 2
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta")
    first, second = simulator.bill()["calls"]
    assert (first["input_tokens"], first["output_tokens"]) == (whole.usage.input_tokens, 5)
    assert second["output_tokens"] == 2
    with pytest.raises(openai.NotFoundError):
        chat.responses.create(model=GPT, input="x", previous_response_id="resp_1")


def test_messages(simulator):
    with anthropic.Anthropic(base_url=f"{simulator.url}/anthropic", api_key="x", max_retries=0) as client:
        ask: dict[str, Any] = {
            "model": HAIKU,
            "max_tokens": 50,
            "messages": [{"role": "user", "content": "x [[tokens=5]]"}],
        }
        whole = client.messages.create(**ask)
        assert (whole.stop_reason, whole.usage.output_tokens) == ("end_turn", 5)
        with client.messages.stream(**ask) as stream:
            assert stream.get_final_message().usage.output_tokens == 5
        counted = client.messages.count_tokens(model=HAIKU, messages=ask["messages"])
        assert counted.input_tokens == whole.usage.input_tokens
        with pytest.raises(anthropic.BadRequestError, match="not greater or equal to 1"):
            client.messages.create(**{**ask, "max_tokens": 0})
        tool: Any = {"name": "save", "input_schema": {"type": "object", "properties": {}}}
        forced = client.messages.create(**ask, tools=[tool], tool_choice={"type": "tool", "name": "save"})
        assert forced.stop_reason == "tool_use"
    assert simulator.bill()["count"] == 3


def test_a_big_stream_to_a_slow_reader_arrives_whole(simulator):
    body = body_of("x [[tokens=4000]]")
    with socket.create_connection(address(simulator), 5) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        head = f"POST /model/{LLAMA}/converse-stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer x\r\n"
        connection.sendall(
            head.encode() + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        received = b""
        while data := connection.recv(30_000):
            received += data
    assert received.endswith(b"0\r\n\r\n")
    assert received.count(b"contentBlockDelta") == 4_000


def test_tls_refuses_plain_text(tls_simulator):
    with socket.create_connection(address(tls_simulator), 3) as connection:
        connection.sendall(b"GET /_health HTTP/1.1\r\n\r\n")
        assert not connection.recv(100).startswith(b"HTTP/1.1")
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection(address(tls_simulator), 3) as connection,
        context.wrap_socket(connection) as tls,
    ):
        tls.sendall(b"GET /_health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert tls.recv(100).startswith(b"HTTP/1.1 200")


def test_unused_config_is_an_error():
    with pytest.raises(Exception, match="did not start"):
        start(no_such_setting=1)


def test_retries_are_seen_as_attempts(simulator):
    client = boto3.client(
        "bedrock-runtime",
        endpoint_url=simulator.url,
        region_name="us-east-1",
        aws_access_key_id="AKIAIOSFODNN7EXAMPLE",
        aws_secret_access_key="secret",
        config=Config(retries={"total_max_attempts": 3, "mode": "standard"}),
    )
    client.converse(modelId=LLAMA, messages=json.loads(body_of("x [[fault=error:503:1]]"))["messages"])
    first, second = (dict(seen["headers"]) for seen in simulator.requests())
    assert first["amz-sdk-invocation-id"] == second["amz-sdk-invocation-id"]
    assert [seen["status"] for seen in simulator.requests()] == [503, 200]
