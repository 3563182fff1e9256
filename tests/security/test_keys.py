"""Credentials that are none, and what can be learnt by presenting them."""

from __future__ import annotations

import hashlib
import random
import secrets
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from proxy.bedrock.inbound import InboundSignatures
from proxy.bedrock.signing import StaticCredentials, signed_headers
from proxy.directory import Directory
from proxy.domain.policy import Policy
from proxy.domain.roster import CredentialRow, KeyRow, Roster, TenantRow
from proxy.errors import Unauthenticated
from proxy.keys import Keyring, Mac, Minted, checksum
from proxy.web.auth import KeyAuthenticator
from tests.security.raw import BODY, INVOKE, connect, hear
from tests.support.stack import Key, Proxy


@pytest.fixture(scope="module")
def key(module_stack: Proxy) -> Key:
    return module_stack.key()


WRONG: dict[str, Callable[[str], str]] = {
    "SQL": lambda _: "' OR '1'='1",
    "SQL in the shape of a key": lambda token: token[:20] + "' OR '1'='1' -- ",
    "empty": lambda _: "",
    "another environment": lambda token: _resealed(token.replace("th_live_", "th_test_")),
    "an admin key's prefix": lambda token: _resealed(token.replace("th_live_", "tha_live_")),
    "truncated": lambda token: token[:-1],
    "one more": lambda token: token + "x",
    "bad checksum": lambda token: token[:-1] + ("0" if token[-1] != "0" else "1"),
    "good checksum, other secret": lambda token: _resealed(token[:30] + _other(token[30]) + token[31:]),
    "upper case": str.upper,
    "look-alikes": lambda token: token.replace("o", "\u043e").replace("e", "\u0435").replace("_", "\uff3f"),
    "trailing space": lambda token: token + " x",
    "tab": lambda token: token + "\tx",
    "two": lambda token: f"{token}, {token}",
    "long": lambda _: "th_live_" + "a" * 50_000,
}


def _other(character: str) -> str:
    return "B" if character == "A" else "A"


def _resealed(token: str) -> str:
    """With a checksum that is right for what stands before it."""
    return token[:-6] + checksum(token[:-6])


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_key_gets_one_answer_in_each_dialect(
    stack: Proxy, simulator: Any, key: Key, name: str
) -> None:
    token = WRONG[name](key.bearer_token)
    routes = {
        INVOKE: 403,
        "/openai/v1/chat/completions": 401,
        "/anthropic/v1/messages": 401,
        "/v1/models": 401,
    }
    for path, status in routes.items():
        method = "GET" if path == "/v1/models" else "POST"
        for headers in ({"Authorization": f"Bearer {token}"}, {"x-api-key": token or "x"}):
            latin = {name: value.encode().decode("latin-1") for name, value in headers.items()}
            got, told, body = stack.request(method, path, BODY, key=None, headers=latin)
            assert got == status, (path, body)
            assert "The security token included in the request is invalid." in str(body)
            if path == INVOKE:
                assert told["x-amzn-errortype"] == "UnrecognizedClientException"
    assert simulator.requests() == []


def test_a_key_with_a_trailing_newline_is_no_key(key: Key) -> None:
    keyring = Keyring(b"k" * 32)
    minted = keyring.mint_bearer()
    for text in (minted.token + "\n", "\n" + minted.token, minted.token + "\r\n", minted.token + "\x00"):
        assert keyring.bearer_digests(text) == ()


def test_a_megabyte_of_key_ends_at_the_parser(stack: Proxy, simulator: Any) -> None:
    head = b"POST " + INVOKE.encode() + b" HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + b"a" * 1_000_000
    with connect(stack.port) as opened:
        opened.sendall(head + b"\r\nContent-Length: 0\r\n\r\n")
        assert hear(opened, 0.3).statuses == [431]
    assert simulator.requests() == []


def test_an_expired_key_looks_unknown(stack: Proxy) -> None:
    ends = datetime.now(UTC) + timedelta(seconds=1.5)
    short = stack.key(expires_at=ends.isoformat())
    time.sleep(max(0.0, (ends - datetime.now(UTC)).total_seconds()) + 0.05)
    status, _, told = stack.request("POST", INVOKE, BODY, key=short.bearer_token)
    assert (status, told["message"]) == (403, "The security token included in the request is invalid.")
    with pytest.raises(Exception, match="UnrecognizedClient"):
        stack.boto3(short).invoke_model(modelId="meta.llama3-1-405b-instruct-v1:0", body=BODY)


# ---- in the process itself: no look-up for a typo, and no time that tells --------------------------


class Rows:
    """A roster of one tenant with one key."""

    def __init__(self, minted: Minted) -> None:
        tenant, key = uuid4(), uuid4()
        self.roster = Roster(
            mark=1,
            tenants=(TenantRow(id=tenant, slug="acme", plan="default"),),
            keys=(KeyRow(id=key, tenant=tenant, project=None, name="k"),),
            credentials=(CredentialRow(id=uuid4(), key=key, digest=minted.digest),),
        )

    async def load(self) -> Roster:
        return self.roster


class Anything:
    def effective(self, *_: Any, scopes: tuple[UUID, UUID | None, UUID] | None = None) -> Policy:
        return Policy(plan="default", version="1")


async def _authenticator() -> tuple[KeyAuthenticator, Keyring, Minted]:
    keyring = Keyring(secrets.token_bytes(32))
    minted = keyring.mint_bearer()
    directory = Directory(Rows(minted), keyring, Anything())  # type: ignore[arg-type]
    await directory.load()
    return KeyAuthenticator(directory, InboundSignatures(time.time)), keyring, minted


async def test_a_typo_costs_no_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    authenticator, _, minted = await _authenticator()
    asked: list[bytes] = []

    def digest(_: Mac, message: bytes) -> bytes:
        asked.append(message)
        return b"x" * 32

    monkeypatch.setattr(Mac, "digest", digest)
    for wrong in (minted.token[:-1] + "~", minted.token[:-1], minted.token.swapcase(), "x", ""):
        with pytest.raises(Unauthenticated):
            authenticator.present("POST", b"/", b"", [(b"authorization", b"Bearer " + wrong.encode())])
    assert asked == []


def _distance(one: list[int], other: list[int]) -> float:
    """Kolmogorov-Smirnov's D of two samples."""
    marks = sorted([(value, 0) for value in one] + [(value, 1) for value in other])
    seen, worst, position = [0, 0], 0.0, 0
    while position < len(marks):
        value = marks[position][0]
        while position < len(marks) and marks[position][0] == value:
            seen[marks[position][1]] += 1
            position += 1
        worst = max(worst, abs(seen[0] / len(one) - seen[1] / len(other)))
    return worst


async def test_no_time_tells_a_known_prefix_from_an_unknown_one() -> None:
    """Kolmogorov-Smirnov over 10,000 tries each, interleaved; the best of six guards against the
    machine's noise, which a real difference survives."""
    authenticator, keyring, minted = await _authenticator()
    tries, chance = 10_000, random.Random(13)

    def heads(prefix: str | None) -> list[list[tuple[bytes, bytes]]]:
        """Wrong tokens whose checksum is right, so that nothing but the look-up can tell them apart."""
        rests = [keyring.mint_bearer().token[len(minted.prefix) :] for _ in range(500)]
        tokens = [_resealed((prefix or keyring.mint_bearer().prefix) + rest) for rest in rests]
        return [[(b"authorization", b"Bearer " + token.encode())] for token in tokens]

    def measure() -> float:
        kinds = heads(minted.prefix), heads(None)
        taken: tuple[list[int], list[int]] = ([], [])
        for _ in range(tries):
            for kind in chance.choice(((0, 1), (1, 0))):
                head = kinds[kind][chance.randrange(500)]
                began = time.perf_counter_ns()
                try:
                    authenticator.present("POST", b"/", b"", head)
                except Unauthenticated:
                    taken[kind].append(time.perf_counter_ns() - began)
        assert len(taken[0]) == len(taken[1]) == tries
        return _distance(*taken)

    critical = 1.628 * (2 / tries) ** 0.5  # p = 0.01
    assert any(measure() < critical for _ in range(6))


# ---- signatures ------------------------------------------------------------------------------------


def _signed(
    stack: Proxy, key: Key, *, moment: float | None = None, body: bytes = BODY, **more: str
) -> dict[str, str]:
    headers = {"Content-Type": "application/json", **{n.replace("_", "-"): v for n, v in more.items()}}
    host = f"127.0.0.1:{stack.port}"
    credentials = StaticCredentials(key.aws_access_key_id, key.aws_secret_access_key)
    return signed_headers(
        credentials, "us-east-1", "POST", host, INVOKE, headers, body, moment or time.time()
    )


def _refused(stack: Proxy, simulator: Any, headers: dict[str, str], body: bytes = BODY) -> str:
    status, told, answer = stack.request("POST", INVOKE, body, key=None, headers=headers)
    assert (status, told["x-amzn-errortype"]) == (403, "UnrecognizedClientException"), answer
    assert simulator.requests() == []
    message: str = answer["message"]
    return message


def test_a_good_signature_is_served(stack: Proxy, key: Key) -> None:
    assert stack.request("POST", INVOKE, BODY, key=None, headers=_signed(stack, key))[0] == 200
    digest = hashlib.sha256(BODY).hexdigest()
    headers = _signed(stack, key, x_amz_content_sha256=digest)
    assert stack.request("POST", INVOKE, BODY, key=None, headers=headers)[0] == 200


@pytest.mark.parametrize(
    "said",
    ["UNSIGNED-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
     hashlib.sha256(b"other").hexdigest(), "", "E3" * 32],
)  # fmt: skip
def test_the_body_is_what_was_signed(stack: Proxy, simulator: Any, key: Key, said: str) -> None:
    _refused(stack, simulator, _signed(stack, key, x_amz_content_sha256=said))
    _refused(stack, simulator, _signed(stack, key), body=BODY + b" ")
    _refused(stack, simulator, _signed(stack, key, body=b""))


def test_what_governs_a_call_is_signed(stack: Proxy, simulator: Any, key: Key) -> None:
    for name in ("X-Amzn-Bedrock-GuardrailIdentifier", "x-amzn-bedrock-service-tier", "X-Amzn-Bedrock-Trace"):
        assert "must be signed" in _refused(stack, simulator, _signed(stack, key) | {name: "x"})
    tampered = _signed(stack, key, X_Amzn_Bedrock_Trace="ENABLED") | {"X-Amzn-Bedrock-Trace": "DISABLED"}
    _refused(stack, simulator, tampered)
    _refused(stack, simulator, _signed(stack, key) | {"Host": "other"})


def test_dates_and_scopes_are_checked(stack: Proxy, simulator: Any, key: Key) -> None:
    good = _signed(stack, key)
    for seconds in (-400, 400, -86_400):
        assert "five minutes" in _refused(stack, simulator, _signed(stack, key, moment=time.time() + seconds))
    authorization = good["Authorization"]
    date = good["X-Amz-Date"][:8]
    for wrong in (
        authorization.replace(f"/{date}/", "/20200101/"),
        authorization.replace("/bedrock/", "/s3/"),
        authorization.replace("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA1"),
        authorization.replace("SignedHeaders=", "SignedHeaders=host;"),
        authorization.replace("host;", ""),
        authorization[:-1],
        authorization[:-64] + "0" * 64,
        "AWS4-HMAC-SHA256 " + "x" * 5000,
    ):
        _refused(stack, simulator, good | {"Authorization": wrong})
    _refused(stack, simulator, good | {"X-Amz-Date": "20261341T996199Z"})
    _refused(stack, simulator, good | {"Authorization": authorization.replace("THAK", "AKIA")})


def test_one_credential_per_request(stack: Proxy, simulator: Any, key: Key) -> None:
    assert "two different" in _refused(
        stack, simulator, _signed(stack, key) | {"x-api-key": key.bearer_token}
    )
    other = {
        "Authorization": f"Bearer {key.bearer_token}",
        "x-api-key": WRONG["bad checksum"](key.bearer_token),
    }
    assert "two different" in _refused(stack, simulator, other)
    for scheme in ("Basic", "Digest", "Negotiate", ""):
        _refused(stack, simulator, {"Authorization": f"{scheme} {key.bearer_token}".strip()})


def test_a_large_body_under_a_bad_id_is_not_waited_for(stack: Proxy, simulator: Any, key: Key) -> None:
    """The answer comes while 25 MB are still to be sent."""
    headers = _signed(stack, key)
    for wrong in (
        headers["Authorization"].replace(key.aws_access_key_id, "THAKAAAAAAAAAAAAAAAA"),
        "Bearer x",
    ):
        head = f"POST {INVOKE} HTTP/1.1\r\nHost: 127.0.0.1:{stack.port}\r\nContent-Length: 25000000\r\n"
        head += f"X-Amz-Date: {headers['X-Amz-Date']}\r\nAuthorization: {wrong}\r\n\r\n"
        with connect(stack.port) as opened:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            opened.sendall(head.encode())
            heard = hear(opened, 0.2, first=4)
        assert heard.statuses == [403], heard.data[:300]
    assert simulator.requests() == []
