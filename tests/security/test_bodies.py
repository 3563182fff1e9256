"""Bodies that are too large, too deep, compressed, lying, or ask for more than can be bounded.

Every one is refused in the words of its route; nothing is sent and nothing is reserved.
"""

from __future__ import annotations

import base64
import gzip
import socket
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.security.raw import BODY, INVOKE, connect, hear, post, say
from tests.support.stack import CLAUDE, LLAMA, Key, Proxy

SETTINGS = {"TOLLHOUSE_BODY_SECONDS": "2"}
CHAT = "/openai/v1/chat/completions"
MESSAGES = "/anthropic/v1/messages"
MIB = 1 << 20


@pytest.fixture(scope="module")
def key(module_stack: Proxy) -> Key:
    return module_stack.key()


def memory(stack: Proxy) -> int:
    """Resident bytes of every process of the proxy."""
    total = 0
    for process in stack.processes:
        group = str(process.pid)
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = status.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[2] == group:  # process group: the stack starts each in a session of its own
                total += int(fields[21]) * 4096
    return total


def refused(
    stack: Proxy, simulator: Any, key: Key, path: str, body: Any, *statuses: int, **headers: str
) -> str:
    status, _, answer = stack.request("POST", path, body, key=key.bearer_token, headers=headers)
    assert status in (statuses or (400,)), answer
    assert simulator.requests() == []
    return str(answer)


BOMB = gzip.compress(b" " * (10 * MIB) + BODY)


@pytest.mark.parametrize(
    "coding", ["gzip", "br", "zstd", "deflate", "gzip, gzip", "identity, gzip", "GZIP", "x-gzip"]
)
def test_nothing_is_ever_decompressed(stack: Proxy, simulator: Any, key: Key, coding: str) -> None:
    before = memory(stack)
    for path in (INVOKE, CHAT, MESSAGES):
        for body in (BOMB, gzip.compress(BOMB)):
            told = refused(stack, simulator, key, path, body, **{"Content-Encoding": coding})
            assert "compressed" in told
    status = stack.request("POST", "/admin/v1/keys", BOMB, headers={"Content-Encoding": coding})[0]
    assert status == 400
    assert memory(stack) - before < 32 * MIB


def test_a_body_over_the_limit_is_told_before_it_is_kept(stack: Proxy, simulator: Any, key: Key) -> None:
    before = memory(stack)
    declared = post(key.bearer_token, b"Content-Length: 25000001\r\n", body=b"")
    with connect(stack.port) as opened:
        opened.sendall(declared + b"x" * 1000)
        opened.shutdown(1)
        assert hear(opened, 0.3).statuses == [413]
    parts = [b"%x\r\n" % MIB + b" " * MIB + b"\r\n"] * 26
    framing = b"Transfer-Encoding: chunked\r\n"
    heard = say(stack.port, post(key.bearer_token, framing, body=b"".join(parts) + b"0\r\n\r\n"), 2)
    assert heard.statuses == [413], heard.data[:300]
    assert memory(stack) - before < 96 * MIB
    assert simulator.requests() == []


def test_a_length_that_lies(stack: Proxy, simulator: Any, key: Key) -> None:
    """Too short: the rest is no request. Too long: what is missing is not waited for past the deadline."""
    short = post(key.bearer_token, b"Content-Length: 10\r\n", body=BODY)
    heard = say(stack.port, short)
    assert set(heard.statuses) == {400}
    assert heard.closed
    long = post(key.bearer_token, b"Content-Length: 1000\r\n", body=BODY)
    with connect(stack.port) as opened:
        opened.sendall(long)
        heard = hear(opened, 0.3, first=6)
    assert heard.statuses == [400]
    assert 1.5 < heard.seconds < 5
    assert b"did not arrive" in heard.data
    assert simulator.requests() == []


def _many_keys(count: int) -> bytes:
    return b'{"prompt": "x", ' + b", ".join(b'"k%d": 1' % i for i in range(count)) + b"}"


BROKEN: dict[str, bytes] = {
    "100,000 brackets": b"[" * 100_000,
    "100,000 objects": b'{"a":' * 100_000,
    "65 levels": b'{"prompt": ' + b"[" * 65 + b"]" * 65 + b"}",
    "a million keys": _many_keys(1_000_000),
    "a number of a million digits": b'{"prompt": "x", "max_gen_len": ' + b"9" * 1_000_000 + b"}",
    "a fraction of a million digits": b'{"prompt": "x", "temperature": 0.' + b"1" * 1_000_000 + b"e999999}",
    "NaN": b'{"prompt": "x", "temperature": NaN}',
    "Infinity": b'{"prompt": "x", "temperature": Infinity}',
    "1e999": b'{"prompt": "x", "max_gen_len": 1e999}',
    "-0 as a limit": b'{"prompt": "x", "max_gen_len": -0}',
    "a limit twice": b'{"prompt": "x", "max_gen_len": 1, "max_gen_len": 2000}',
    "a limit twice, once escaped": b'{"prompt": "x", "max_gen_len": 1, "max_gen\\u005flen": 2000}',
    "a limit twice, hidden by a colon": b'{"prompt": "\\u003a", "max_gen_len": 1, "max_gen_len": 2000}',
    "byte order mark": b"\xef\xbb\xbf" + BODY,
    "UTF-16": BODY.decode().encode("utf-16"),
    "UTF-32": BODY.decode().encode("utf-32-le"),
    "lone surrogate": b'{"prompt": "\\ud800", "max_gen_len": 1}',
    "overlong UTF-8": b'{"prompt": "\xc0\xaf", "max_gen_len": 1}',
    "control character": b'{"prompt": "a\nb", "max_gen_len": 1}',
    "comment": b'{"prompt": "x" /* hi */}',
    "trailing comma": b'{"prompt": "x",}',
    "two documents": BODY + BODY,
    "NUL after it": BODY + b"\x00",
    "form": b"prompt=x&max_gen_len=1",
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_json_that_two_parsers_read_differently(stack: Proxy, simulator: Any, key: Key, name: str) -> None:
    before = memory(stack)
    refused(stack, simulator, key, INVOKE, BROKEN[name])
    for path in (CHAT, MESSAGES):
        refused(stack, simulator, key, path, BROKEN[name].replace(b"max_gen_len", b"max_tokens"))
    status = 413 if len(BROKEN[name]) > 262_144 else 400
    try:
        assert stack.request("POST", "/admin/v1/keys", BROKEN[name])[0] in (400, status)
    except ConnectionError:
        assert status == 413  # told while the rest was still on its way
    assert memory(stack) - before < 200 * MIB


WRONG_LIMITS = ["-1", "0", "1e18", "1000000000000000000", "1.5", '"10"', "true", "[]", "{}", "1e2"]


@pytest.mark.parametrize("text", WRONG_LIMITS)
def test_an_output_limit_is_a_positive_whole_number(
    stack: Proxy, simulator: Any, key: Key, text: str
) -> None:
    user = '"messages": [{"role": "user", "content": "x"}]'
    bodies = {
        INVOKE: f'{{"prompt": "x", "max_gen_len": {text}}}',
        f"/model/{CLAUDE}/invoke": f'{{"anthropic_version": "bedrock-2023-05-31", {user}, "max_tokens": {text}}}',
        f"/model/{CLAUDE}/converse": '{"messages": [{"role": "user", "content": [{"text": "x"}]}], '
        f'"inferenceConfig": {{"maxTokens": {text}}}}}',
        CHAT: f'{{"model": "{CLAUDE}", {user}, "max_tokens": {text}}}',
        MESSAGES: f'{{"model": "{CLAUDE}", {user}, "max_tokens": {text}}}',
    }
    for path, body in bodies.items():
        refused(stack, simulator, key, path, body.encode())
    assert stack.calls(tenant=key.tenant) == []


def test_an_absent_limit_is_the_plans_and_the_ceiling_is_of_what_is_sent(
    stack: Proxy, simulator: Any, key: Key
) -> None:
    own = stack.key()
    stack.request("POST", INVOKE, {"prompt": "x"}, key=own.bearer_token)
    stack.request("POST", INVOKE, {"prompt": "x", "max_gen_len": 512}, key=own.bearer_token,
                  headers={"Cache-Control": "no-cache"})  # fmt: skip
    assert len(simulator.requests()) == 2
    ceilings = {call["ceiling_usd"] for call in stack.settled_calls(tenant=own.tenant)}
    assert len(ceilings) == 1


def _claude(**more: Any) -> dict[str, Any]:
    user = {"role": "user", "content": "x"}
    return {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 16, "messages": [user], **more}


MULTIPLIED: dict[str, tuple[str, Any]] = {
    "best_of": (INVOKE, {"prompt": "x", "best_of": 50}),
    "n of a native body": (INVOKE, {"prompt": "x", "n": 50}),
    "num_return_sequences": (INVOKE, {"prompt": "x", "num_return_sequences": 5}),
    "n that is huge": (CHAT, {"model": CLAUDE, "messages": [{"role": "user", "content": "x"}], "n": 10**9}),
    "unknown field": (f"/model/{CLAUDE}/invoke", _claude(beam_width=4)),
    "unknown beta": (f"/model/{CLAUDE}/invoke", _claude(anthropic_beta=["more-of-everything-2099"])),
    "server-side tool": (f"/model/{CLAUDE}/invoke",
                         _claude(tools=[{"type": "web_search_20250305", "name": "web_search"}])),
    "cache for ever": (f"/model/{CLAUDE}/invoke", _claude(messages=[
        {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": "1y"}}]}
    ])),
    "additional fields": (f"/model/{CLAUDE}/converse", {
        "messages": [{"role": "user", "content": [{"text": "x"}]}],
        "additionalModelRequestFields": {"n": 50, "best_of": 50},
    }),
    "stored state": (CHAT, {"model": CLAUDE, "messages": [{"role": "user", "content": "x"}], "store": True}),
    "web search": (CHAT, {"model": CLAUDE, "messages": [{"role": "user", "content": "x"}], "web_search_options": {}}),
}  # fmt: skip


@pytest.mark.parametrize("name", MULTIPLIED)
def test_what_multiplies_cost_is_priced_or_refused(stack: Proxy, simulator: Any, key: Key, name: str) -> None:
    path, body = MULTIPLIED[name]
    refused(stack, simulator, key, path, body)
    assert stack.calls(tenant=key.tenant) == []


def _png(width: int, height: int) -> str:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    raw = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )
    return base64.b64encode(raw).decode()


def _pages(count: int) -> str:
    kids = b" ".join(b"3 0 R" for _ in range(count))
    raw = b"%%PDF-1.4\n1 0 obj<</Type/Pages/Count %d/Kids[%s]>>endobj\n%%%%EOF" % (count, kids)
    return base64.b64encode(raw).decode()


def test_pictures_and_papers_count_as_the_largest_context_whatever_they_say(
    stack: Proxy, simulator: Any, key: Key
) -> None:
    """A size written in a file is believed by nobody: the ceiling is that of the model's whole context."""
    own = stack.key()
    blocks: list[dict[str, Any]] = [
        {"image": {"format": "png", "source": {"bytes": _png(1, 1)}}},
        {"image": {"format": "png", "source": {"bytes": _png(100_000, 100_000)}}},
        {"document": {"format": "pdf", "name": "many", "source": {"bytes": _pages(10_000)}}},
    ]
    for block in blocks:
        body = {
            "messages": [{"role": "user", "content": [{"text": "x"}, block]}],
            "inferenceConfig": {"maxTokens": 9},
        }
        status, _, answer = stack.request("POST", f"/model/{CLAUDE}/converse", body, key=own.bearer_token,
                                          headers={"Cache-Control": "no-store"})  # fmt: skip
        assert status in (200, 400), answer
    ceilings = {call["ceiling_usd"] for call in stack.settled_calls(tenant=own.tenant)}
    assert len(ceilings) == 1
    assert all(float(ceiling) > 0.04 for ceiling in ceilings)  # 200,000 tokens of Claude 3 Haiku


def test_a_thinking_budget_and_choices_count_in_the_ceiling(stack: Proxy, simulator: Any) -> None:
    """What is not refused is reserved: a budget of a billion tokens fits no budget of a hundred dollars."""
    own = stack.key()
    stack.budget(f"tenant:{own.tenant}", "100")
    thinking = _claude(thinking={"type": "enabled", "budget_tokens": 10**9})
    for path, body in (
        (f"/model/{CLAUDE}/invoke", thinking),
        (f"/model/{CLAUDE}/converse", {
            "messages": [{"role": "user", "content": [{"text": "x"}]}],
            "additionalModelRequestFields": {"thinking": thinking["thinking"]},
        }),
    ):  # fmt: skip
        status, headers, answer = stack.request("POST", path, body, key=own.bearer_token)
        assert (status, headers["x-amzn-errortype"]) == (400, "ServiceQuotaExceededException"), answer
    assert simulator.requests() == []


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A server that nobody may call."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        yield server


def test_the_proxy_fetches_nothing_that_a_request_names(
    stack: Proxy, simulator: Any, listener: socket.socket
) -> None:
    """Objects in S3 need the tenant's allow-list; a URL is refused, or passed on as text that only Bedrock
    may refuse, at the ceiling of a whole context."""
    own = stack.key()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/picture.png"
    picture = {"type": "image", "source": {"type": "url", "url": url}}
    asked: list[tuple[str, Any]] = [
        (CHAT, {"model": CLAUDE, "messages": _user([{"type": "image_url", "image_url": {"url": url}}])}),
        (MESSAGES, {"model": CLAUDE, "max_tokens": 9, "messages": _user([picture])}),
        (f"/model/{CLAUDE}/invoke", _claude(messages=_user([picture]))),
    ]
    sources: list[dict[str, Any]] = [
        {"s3Location": {"uri": "s3://other/picture.png", "bucketOwner": "111122223333"}},
        {"s3Location": {"uri": url}},
        {"url": url},
    ]
    for source in sources:
        blocks = [{"image": {"format": "png", "source": source}}]
        asked.append(
            (f"/model/{CLAUDE}/converse", {"messages": _user(blocks), "inferenceConfig": {"maxTokens": 9}})
        )
        if "s3Location" in source:
            status, headers, _ = stack.request("POST", *asked[-1], key=own.bearer_token)
            assert (status, headers["x-amzn-errortype"]) == (403, "AccessDeniedException")
    for path, body in asked:
        assert stack.request("POST", path, body, key=own.bearer_token)[0] in (200, 400, 403)
    for call in stack.settled_calls(tenant=own.tenant):
        assert float(call["ceiling_usd"]) > 0.04
    with pytest.raises(TimeoutError):
        listener.accept()


def _user(content: list[Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


NAMES = {
    "../../other": (400,),
    "..%2f..%2fother": (400,),
    f"{LLAMA}%2f..%2fother": (400,),
    "arn:aws:bedrock:us-east-1:999999999999:application-inference-profile%2Fother": (400, 403),
    "arn:aws:bedrock:us-east-1:999999999999:provisioned-model%2Fother": (400, 403),
    "arn:aws:bedrock:us-east-1:123456789012:prompt%2FABCDEFGHIJ": (400, 403),
    "arn:aws:iam::123456789012:role%2Fadmin": (400, 403),
    "eu.meta.llama3-1-405b-instruct-v1:0": (400, 403),
    "{{7*7}}": (400,),
    "%7B%25import%20os%25%7D": (400,),
    "a%00": (400,),
    "x" * 2100: (400,),
    "' OR 1=1 --".replace(" ", "%20"): (400,),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_one_of_the_catalogue_and_of_the_keys_allow_list(
    stack: Proxy, simulator: Any, key: Key, name: str
) -> None:
    for operation in ("invoke", "converse-stream"):
        path = f"/model/{name}/{operation}"
        if "/" in name:
            assert stack.request("POST", path, BODY, key=key.bearer_token)[0] == 404
            continue
        status, _, answer = stack.request("POST", path, BODY, key=key.bearer_token)
        assert status in NAMES[name], answer
        assert "49" not in str(answer) or "999999999999" in name
    assert simulator.requests() == []
