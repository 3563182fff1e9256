"""Administrators with tokens of a real issuer on this machine: keys over HTTP, signatures, groups, roles."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from proxy.errors import ConfigurationError
from proxy.web.admin.oidc import Oidc, read_roles
from proxy.web.admin.problems import Problem

NOTHING: Any = None
ROLES = "admin=platform; auditor=finance,controllers; tenant-admin:acme=team-acme; tenant-admin:none=ghosts"


@dataclass
class Issuer:
    """Discovery, keys and tokens. `asked` counts fetches of the keys."""

    url: str = ""
    keys: dict[str, Any] = field(default_factory=dict)
    asked: int = 0
    away: bool = False

    def add(self, kid: str, kind: str = "RS256") -> None:
        key: Any = (
            rsa.generate_private_key(65537, 2048)
            if kind == "RS256"
            else ec.generate_private_key(ec.SECP256R1())
        )
        self.keys[kid] = (kind, key)

    def jwks(self) -> dict[str, Any]:
        made = []
        for kid, (kind, key) in self.keys.items():
            algorithm = jwt.get_algorithm_by_name(kind)
            made.append(
                algorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": kid, "alg": kind, "use": "sig"}
            )
        return {"keys": made}

    def token(self, kid: str = "one", **claims: Any) -> str:
        now = int(time.time())
        said = {
            "iss": self.url, "aud": "tollhouse", "sub": "u-1", "email": "ann@example.com", "iat": now, "exp": now + 300,
            "groups": ["platform"],
        }  # fmt: skip
        said = {name: value for name, value in (said | claims).items() if value is not None}
        kind, key = self.keys[kid]
        return jwt.encode(said, key, algorithm=kind, headers={"kid": kid})


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    made = Issuer()
    made.add("one")

    async def document(_: web.Request) -> web.Response:
        return web.json_response({"issuer": made.url, "jwks_uri": f"{made.url}/keys"})

    async def keys(_: web.Request) -> web.Response:
        made.asked += 1
        return web.Response(status=500) if made.away else web.json_response(made.jwks())

    app = web.Application()
    app.router.add_get("/.well-known/openid-configuration", document)
    app.router.add_get("/keys", keys)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[union-attr]
    yield made
    await runner.cleanup()


@pytest.fixture
def admin_of(issuer: Issuer, deps: Any, admin: Any) -> Any:
    settings = deps.settings
    settings.oidc_issuer, settings.oidc_audience, settings.oidc_roles = issuer.url, "tollhouse", ROLES
    return admin


async def test_groups_are_roles(admin_of, issuer, refused) -> None:
    boss = admin_of.with_key(issuer.token())
    await boss.tenant("acme")
    await boss.tenant("other")
    [made, *_] = (await boss.get("/audit"))["items"]
    assert made["actor"] == "admin:ann@example.com"
    auditor = admin_of.with_key(issuer.token(groups=["people", "controllers"]))
    await auditor.get("/audit")
    refused(await auditor.ask("POST", "/tenants", {"id": "x", "name": "X"}), 403)
    team = admin_of.with_key(issuer.token(groups="team-acme"))
    assert [one["id"] for one in (await team.get("/tenants"))["items"]] == ["acme"]
    both = admin_of.with_key(issuer.token(groups=["team-acme", "platform"]))
    assert len((await both.get("/tenants"))["items"]) == 2
    for groups in (["people"], [], None, ["ghosts"], {"platform": True}, [["platform"]]):
        refused(await admin_of.with_key(issuer.token(groups=groups)).ask("GET", "/tenants"), 403)
    await admin_of.get("/tenants")  # admin keys go on working
    assert issuer.asked == 1


async def test_tokens_that_prove_nothing(admin_of, issuer, refused) -> None:
    stranger = Issuer(url=issuer.url)
    stranger.add("one")
    now, nothing = int(time.time()), NOTHING
    public = (
        issuer.keys["one"][1]
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    good = {
        "iss": issuer.url,
        "aud": "tollhouse",
        "sub": "u",
        "iat": now,
        "exp": now + 300,
        "groups": ["platform"],
    }
    wrong = [
        stranger.token(), issuer.token(exp=now - 120), issuer.token(aud="other"), issuer.token(iss="https://else.example"),
        issuer.token(exp=None), issuer.token(iat=None), issuer.token(sub=None), issuer.token(iat=now - 8000, exp=now + 300),
        issuer.token(nbf=now + 600), jwt.encode(good, nothing, algorithm="none", headers={"kid": "one"}),
        jwt.encode(good, b"k" * 64, algorithm="HS256", headers={"kid": "one"}),
        _signed_by_public_key(good, public), issuer.token()[:-4] + "AAAA", "a.b.c", "..", issuer.token() + ".x",
    ]  # fmt: skip
    told = {refused(await admin_of.with_key(token).ask("GET", "/tenants"), 401)["detail"] for token in wrong}
    assert len(told) == 1


def _signed_by_public_key(claims: dict[str, Any], public: bytes) -> str:
    """What a verifier falls for that lets the token choose HMAC under the public key."""
    import base64
    import hashlib
    import hmac
    import json

    def part(value: Any) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

    head = part({"alg": "HS256", "kid": "one"}) + b"." + part(claims)
    mac = base64.urlsafe_b64encode(hmac.new(public, head, hashlib.sha256).digest()).rstrip(b"=")
    return (head + b"." + mac).decode()


async def test_keys_are_kept_rotated_and_outlive_a_silent_issuer(issuer) -> None:
    clock = [1000.0]
    oidc = Oidc(issuer=issuer.url, audience="tollhouse", roles=ROLES, monotonic=lambda: clock[0])
    nobody: Any = None
    for _ in range(3):
        assert (await oidc.principal(issuer.token(), nobody)).role == "admin"
    assert issuer.asked == 1
    issuer.add("two", "ES256")
    with pytest.raises(Problem, match="key"):
        await oidc.principal(issuer.token("two"), nobody)
    clock[0] += 31
    assert (await oidc.principal(issuer.token("two"), nobody)).name == "ann@example.com"
    assert issuer.asked == 2
    issuer.away = True
    clock[0] += 601
    assert (await oidc.principal(issuer.token(), nobody)).ident == "oidc:u-1"
    clock[0] += 3600
    with pytest.raises(Problem, match="identity provider"):
        await oidc.principal(issuer.token(), nobody)


def test_settings_that_cannot_be_right() -> None:
    for roles in ("root=x", "admin", "tenant-admin=x", "admin:acme=x"):
        with pytest.raises(ConfigurationError):
            read_roles(roles)
    more: dict[str, Any]
    for more in (
        {"audience": ""},
        {"issuer": "http://id.example.com"},
        {"jwks_url": "http://id.example.com/k"},
        {"roles": ""},
    ):
        with pytest.raises(ConfigurationError):
            given: dict[str, Any] = {
                "issuer": "https://id.example.com",
                "audience": "x",
                "roles": ROLES,
            } | more
            Oidc(**given)
    assert read_roles("auditor=a; admin=a; auditor=a")["a"].role == "admin"
