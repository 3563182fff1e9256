"""AssumeRole per tenant against a small STS of our own: tags, caching, renewal, refusal."""

from __future__ import annotations

import asyncio
import http.server
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs

import boto3
import pytest

from proxy.bedrock.client import BedrockUpstream
from proxy.bedrock.credentials import FixedCredentials
from proxy.bedrock.roles import RENEW_SECONDS, SESSION_SECONDS, TenantRoles
from proxy.domain.catalogue import Target
from proxy.errors import ConfigurationError, UpstreamFailure
from proxy.ports import UpstreamRequest

ROLE = "arn:aws:iam::123456789012:role/tollhouse-tenants"
ANSWER = """<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>
<AccessKeyId>ASIAIOSFODNN7EXAMPLE</AccessKeyId><SecretAccessKey>secret-{n}</SecretAccessKey>
<SessionToken>token-{n}</SessionToken><Expiration>{ends}</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"""
DENIED = """<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type>
<Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>"""


class Sts(http.server.ThreadingHTTPServer):
    """Answers AssumeRole; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, str]] = []
        self.deny = False
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        sts = self.server
        assert isinstance(sts, Sts)
        form = parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())
        sts.asked.append({name: values[0] for name, values in form.items()})
        ends = datetime.now(UTC) + timedelta(seconds=SESSION_SECONDS)
        text = DENIED if sts.deny else ANSWER.format(n=len(sts.asked), ends=ends.isoformat())
        self.send_response(403 if sts.deny else 200)
        self.send_header("content-type", "text/xml")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def sts() -> Iterator[Sts]:
    with Sts() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def roles(sts: Sts, ahead: list[float] | None = None) -> TenantRoles:
    import time

    session = boto3.Session(
        aws_access_key_id="AKIAIOSFODNN7EXAMPLE", aws_secret_access_key="own", region_name="us-east-1"
    )
    return TenantRoles(ROLE, "us-east-1", endpoint_url=sts.url, session=session,
                       now=lambda: time.time() + (ahead[0] if ahead else 0.0))  # fmt: skip


async def test_each_tenant_has_one_session_tagged_with_its_slug(sts):
    held = roles(sts)
    both = await asyncio.gather(*(held.of("acme") for _ in range(5)), held.of("zoo & co"))
    assert both[0] is both[4]
    assert both[0].secret_key != both[5].secret_key
    asked = {form["RoleSessionName"]: form for form in sts.asked}
    assert asked.keys() == {"tollhouse-acme", "tollhouse-zoo---co"}
    form = asked["tollhouse-acme"]
    assert (form["Action"], form["RoleArn"], form["DurationSeconds"]) == ("AssumeRole", ROLE, "3600")
    assert (form["Tags.member.1.Key"], form["Tags.member.1.Value"]) == ("tollhouse-tenant", "acme")


async def test_a_session_is_renewed_while_it_is_still_good(sts):
    ahead = [0.0]
    held = roles(sts, ahead)
    first = await held.of("acme")
    ahead[0] = SESSION_SECONDS - RENEW_SECONDS + 60
    assert await held.of("acme") is first, "nobody waits for a renewal"
    for _ in range(100):
        if await held.of("acme") is not first:
            break
        await asyncio.sleep(0.02)
    assert (await held.of("acme")).token == "token-2"


async def test_no_session_means_nothing_is_sent(sts):
    sts.deny = True
    held = roles(sts)
    with pytest.raises(ConfigurationError, match="role session"):
        await held.of("acme")
    request = UpstreamRequest(
        target=Target(model="m", model_id="m", region="us-east-1"), method="POST", path="/model/m/invoke", headers={},
        body=b"{}", first_byte_timeout=1, read_timeout=1, tenant="acme",
    )  # fmt: skip
    async with BedrockUpstream(FixedCredentials("A", "s"), endpoint_url=sts.url, roles=held) as upstream:
        with pytest.raises(UpstreamFailure) as failed:
            await upstream.send(request)
    assert failed.value.sent is False
    sts.deny = False
    assert (await held.of("acme")).secret_key.startswith("secret-")
