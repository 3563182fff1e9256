"""Unique strings sent through everything a client can say, then looked for in everything the process
writes: its log, its metrics, every table of Postgres, every key of Redis, and what others are told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import redis

from proxy.keys import TOKEN_PATTERN
from tests.conftest import run_async
from tests.security.raw import BODY, INVOKE, STREAM, post, say
from tests.support.stack import CLAUDE, LLAMA, Key, Proxy

MESSAGES = [{"role": "user", "content": "PROMPT"}]
CONVERSE = [{"role": "user", "content": [{"text": "PROMPT"}]}]


async def _tables(url: str) -> dict[str, str]:
    """Every row of every table of ours, as Postgres writes it, with bytes in hex and as text."""
    db = await asyncpg.connect(url.replace("postgresql+asyncpg://", "postgresql://", 1))
    try:
        names = await db.fetch(
            "SELECT quote_ident(schemaname) || '.' || quote_ident(tablename) FROM pg_tables "
            "WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        )
        return {
            name: "\n".join(row[0] for row in await db.fetch(f"SELECT t::text FROM {name} t"))
            for (name,) in names
        }
    finally:
        await db.close()


def _redis(url: str) -> str:
    with redis.Redis.from_url(url) as client:
        kept = []
        for name in client.scan_iter(count=1000):
            try:
                kept.append(name + b" = " + (client.dump(name) or b""))
            except redis.ResponseError:
                kept.append(name)
        return b"\n".join(kept).decode("latin-1")


class Everything:
    """All that was written, by where."""

    def __init__(self, stack: Proxy, owner_url: str) -> None:
        assert stack.log is not None
        metrics = stack.settings["TOLLHOUSE_METRICS_PORT"]
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=10) as answer:
            shown = answer.read().decode()
        self.places = {
            "log": stack.log.read_text(errors="replace"),
            "metrics": shown,
            "redis": _redis(stack.redis_url),
            **run_async(_tables(owner_url)),
        }

    def hits(self, canary: str) -> list[str]:
        forms = {canary, canary.encode().hex(), json.dumps(canary)[1:-1]}
        return [where for where, text in self.places.items() if any(form in text for form in forms)]


@pytest.fixture
def everything(stack: Proxy, module_owner_url: str) -> Callable[[], Everything]:
    def look() -> Everything:
        time.sleep(2.6)  # refusals are written every two seconds
        return Everything(stack, module_owner_url)

    return look


def _speak(stack: Proxy, key: Key, canary: str) -> None:
    """The canary as prompt, system text, tool, answer, in every dialect; whole, streamed, cut, refused."""
    fill = {"PROMPT": canary}

    def send(path: str, body: Any, **headers: str) -> int:
        text = json.dumps(body).replace("PROMPT", fill["PROMPT"])
        return stack.request("POST", path, text.encode(), key=key.bearer_token, headers=headers)[0]

    assert send(INVOKE, {"prompt": "PROMPT", "max_gen_len": 16}) == 200
    assert send(STREAM, {"prompt": "PROMPT", "max_gen_len": 16}) == 200
    for fault in ("error:ModelErrorException", "error:ValidationException", "reset", "badcrc:1", "throttle"):
        send(STREAM, {"prompt": f"PROMPT [[fault={fault}]]", "max_gen_len": 16})
    for operation in ("converse", "converse-stream"):
        body = {"messages": CONVERSE, "system": [{"text": "PROMPT"}], "inferenceConfig": {"maxTokens": 16}}
        assert send(f"/model/{CLAUDE}/{operation}", body) == 200
    chat = {"model": CLAUDE, "max_tokens": 16, "messages": MESSAGES, "user": "PROMPT"}
    assert send("/openai/v1/chat/completions", chat) == 200
    assert send("/openai/v1/chat/completions", {**chat, "stream": True}) == 200
    send("/anthropic/v1/messages", {"model": CLAUDE, "max_tokens": 16, "messages": MESSAGES})
    for broken in (
        {"prompt": "PROMPT", "max_gen_len": 10**9},
        {"prompt": "PROMPT", "PROMPT": 1},
        {"prompt": "PROMPT", "temperature": "PROMPT"},
        {"prompt": ["PROMPT"], "max_gen_len": 1},
    ):
        assert send(INVOKE, broken) == 400
    send(f"/model/{CLAUDE}/converse", {"messages": [{"role": "PROMPT", "content": [{"PROMPT": {}}]}]})
    send("/openai/v1/chat/completions", {**chat, "tools": [{"type": "PROMPT"}]})
    truncated = json.dumps({"prompt": canary}).encode()[:-2]
    assert stack.request("POST", INVOKE, truncated, key=key.bearer_token)[0] == 400


def test_a_prompt_is_written_nowhere(stack: Proxy, key: Key, everything: Callable[[], Everything]) -> None:
    canary = f"prompt-{secrets.token_hex(12)}"
    _speak(stack, key, canary)
    assert everything().hits(canary) == []


def _misplace(stack: Proxy, key: Key, secret: str) -> None:
    """A secret wherever a careless client may put it, beside a good key and instead of it."""
    token = key.bearer_token
    for path in (
        f"{INVOKE}?key={secret}",
        f"/model/{secret}/invoke",
        f"/{secret}",
        f"/v1/models?api_key={secret}",
        f"/admin/v1/keys?key={secret}",
        f"/admin/v1/tenants/{secret}",
        f"/guardrail/{secret}/version/1/apply",
        f"/model/arn:aws:bedrock:us-east-1:123456789012:prompt%2F{secret}/converse",
    ):
        for method in ("GET", "POST"):
            stack.request(method, path, BODY if method == "POST" else None, key=token)
    for wrong in (secret[:-1], secret + "x", secret.upper(), f"Basic {secret}"):
        stack.request("POST", INVOKE, BODY, key=wrong)
    chat = {"model": CLAUDE, "max_tokens": 16, "messages": [{"role": "user", "content": secret}]}
    bodies: list[dict[str, Any]] = [
        {**chat, "user": secret}, {**chat, "model": secret}, {**chat, "metadata": {"k": secret}},
        {**chat, secret: 1}, {**chat, "tool_choice": secret}, {**chat, "service_tier": secret},
    ]  # fmt: skip
    for body in bodies:
        stack.request("POST", "/openai/v1/chat/completions", body, key=token)
    converse = {
        "messages": [{"role": "user", "content": [{"text": "x"}]}],
        "inferenceConfig": {"maxTokens": 9},
    }
    for more in ({"requestMetadata": {"token": secret}}, {"serviceTier": {"type": secret}},
                 {"guardrailConfig": {"guardrailIdentifier": secret, "guardrailVersion": "1"}}):  # fmt: skip
        stack.request("POST", f"/model/{CLAUDE}/converse", converse | more, key=token)
    for name in ("X-Amzn-Bedrock-Request-Metadata", "X-Amzn-Bedrock-Trace", "Cookie", "User-Agent", "X-Request-Id",
                 "Idempotency-Key", "amz-sdk-invocation-id", "traceparent", "X-Amzn-Bedrock-GuardrailIdentifier"):  # fmt: skip
        value = json.dumps({"token": secret}) if name.endswith("Metadata") else secret
        stack.request("POST", INVOKE, BODY, key=token, headers={name: value})
    framing = b"Content-Length: x" + secret.encode() + b"\r\n"
    say(stack.port, post(token, framing, body=BODY))
    stack.request("POST", "/admin/v1/keys", {"tenant": key.tenant, "name": "x", secret: 1})
    stack.request(
        "POST", "/admin/v1/budgets", {"scope": f"tenant:{secret.lower()}", "period": "day", "limit_usd": "1"}
    )
    stack.request("POST", "/admin/v1/admins", {"name": "x", "role": secret})


def test_no_secret_is_written_anywhere(stack: Proxy, key: Key, everything: Callable[[], Everything]) -> None:
    """The dump of the database yields no usable key: digests of bearer tokens, sealed signing secrets."""
    stray = stack.key(key.tenant)
    admin = stack.admin("POST", "/admins", {"name": "canary", "role": "auditor"}, expect=201)
    _misplace(stack, key, stray.bearer_token)
    rotated = stack.admin("POST", f"/keys/{stray.id}/rotate", {"grace_seconds": 3600})
    stack.boto3(key).invoke_model(modelId=LLAMA, body=BODY)
    found = everything()
    mine = [
        key.bearer_token,
        stray.bearer_token,
        rotated["bearer_token"],
        admin["admin_key"],
        stack.admin_key,
    ]
    mine += [key.aws_secret_access_key, stray.aws_secret_access_key, rotated["aws_secret_access_key"]]
    mine += [stack.master_key, "upstream-secret", stack.database_url.split(":")[2].split("@")[0]]
    assert {secret[:20]: found.hits(secret) for secret in mine if found.hits(secret)} == {}
    pattern = re.compile(TOKEN_PATTERN)
    assert {
        where: pattern.findall(text)[:1] for where, text in found.places.items() if pattern.search(text)
    } == {}


def test_a_database_holds_digests_and_sealed_boxes_only(
    stack: Proxy, key: Key, module_owner_url: str
) -> None:
    async def rows() -> list[asyncpg.Record]:
        db = await asyncpg.connect(module_owner_url.replace("postgresql+asyncpg://", "postgresql://", 1))
        try:
            return list(
                await db.fetch(
                    "SELECT bearer_digest, bearer_prefix, last4, sigv4_ciphertext FROM credentials"
                )
            )
        finally:
            await db.close()

    kept = run_async(rows())
    assert kept
    for row in kept:
        assert len(row["bearer_digest"]) == 32
        assert len(row["bearer_prefix"]) + len(row["last4"]) < len(key.bearer_token) - 33
        assert (
            row["sigv4_ciphertext"] is None
            or key.aws_secret_access_key.encode() not in row["sigv4_ciphertext"]
        )


HOSTILE = {
    "line feed": 'a\r\n{"level": "error", "message": "forged"}',
    "ansi": "\x1b[31mred\x1b[0m\x1b]0;title\x07",
    "nul": "a\x00b",
    "megabyte": "x" * 1_000_000,
    "surrogate": "\ud800",
    "separators": "a\u2028b\u2029c\x85d",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_hostile_to_logs_is_one_escaped_line(stack: Proxy, key: Key, name: str) -> None:
    """In names and bodies of the REST and of calls; every line of the log stays one JSON object."""
    assert stack.log is not None
    text = HOSTILE[name]
    for body in ({"tenant": key.tenant, "name": text}, {"tenant": text, "name": "x"}):
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # 413 before all was sent
            assert stack.request("POST", "/admin/v1/keys", body)[0] in (201, 400, 413)
    stack.request("POST", INVOKE, {"prompt": text, "max_gen_len": 16}, key=key.bearer_token)
    stack.request(
        "POST", "/openai/v1/chat/completions", {"model": text, "messages": MESSAGES}, key=key.bearer_token
    )
    if name not in ("megabyte", "surrogate", "line feed", "nul"):
        headers = {"X-Request-Id": text.encode("latin-1", "replace").decode("latin-1")}
        stack.request("POST", INVOKE, BODY, key=key.bearer_token, headers=headers)
    for line in stack.log.read_bytes().splitlines():
        told = json.loads(line)
        assert isinstance(told, dict)
        assert line.isascii()
        assert len(line) < 20_000
        assert told.get("message") != "forged"


LEAKS = re.compile(
    r"Traceback|File \\?\"|asyncpg|sqlalchemy|psycopg|litestar|granian \d|aiohttp|redis\.|SELECT |INSERT |"
    r"/proxy/|site-packages|127\.0\.0\.1:|localhost:|line \d+ column",
)


def test_no_error_tells_how_it_was_made(stack: Proxy, key: Key) -> None:
    """Every route with broken input of every kind: no trace, no SQL, no library, no internal address."""
    from proxy.web.admin import openapi_document

    bodies = [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"null",
        b'{"a":' * 70 + b"1" + b"}" * 70,
        b'{"id": 1e400}',
        b'"\\ud800"',
    ]
    told = []
    for path, operations in openapi_document()["paths"].items():
        url = re.sub(r"\{\w+\}", "x%27--", path)
        for method in operations:
            for body in bodies if method in ("post", "patch") else [None]:
                told.append(stack.request(method.upper(), url, body))
    for path in (INVOKE, STREAM, "/openai/v1/chat/completions", "/v1/responses", "/v1/messages", "/nowhere"):
        told += [stack.request("POST", path, body, key=key.bearer_token) for body in bodies]
    assert len(told) > 150
    for status, headers, answer in told:
        assert status < 500, answer
        found = LEAKS.search(json.dumps(answer) if not isinstance(answer, bytes) else answer.decode())
        assert found is None, (answer, found)
        assert headers.get("server", "granian") == "granian"


async def test_a_defect_of_ours_shows_its_incident_only(caplog: pytest.LogCaptureFixture) -> None:
    from proxy.web.inference import Inference

    class Broken:
        async def handle(self, *_: object) -> None:
            raise RuntimeError("SELECT secret FROM 10.0.0.7")

    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    application = Inference(Broken(), lambda *_: b"", 1.0)  # type: ignore[arg-type]
    scope = {"type": "http", "method": "POST", "raw_path": INVOKE.encode(), "path": INVOKE, "headers": []}
    await application(scope, asyncio.Event().wait, send)
    assert sent[0]["status"] == 500
    told = json.loads(sent[1]["body"])["message"]
    incident = told.removeprefix("internal error ")
    assert re.fullmatch(r"[0-9a-f-]{36}", incident)
    assert incident in caplog.text


def test_a_crash_writes_no_memory(stack: Proxy) -> None:
    """No process of the proxy may leave a core dump, whatever the shell that started it allows."""
    for process in stack.processes:
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        (line,) = [line for line in limits.splitlines() if line.startswith("Max core file size")]
        assert line.split()[4:6] == ["0", "0"]
