"""Administrators who come with a JWT of a configured OpenID Connect issuer: their groups are their roles.

The issuer's signing keys are fetched from its JWKS and kept for ten minutes; a key id that is not among
them makes one more fetch, at most every half minute. Signatures are asymmetric only, so that nobody can
sign with a public key. A token is good until it ends and at most for an hour after it was issued; nothing
can call it back sooner.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

import jwt
import msgspec

from proxy.domain.control import MissingError, TenantRecord
from proxy.domain.roster import Role
from proxy.errors import ConfigurationError
from proxy.web.admin.access import Principal
from proxy.web.admin.problems import Problem, forbidden, unauthenticated

log = logging.getLogger("tollhouse.oidc")

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
KEYS_SECONDS = 600.0
#: keys that could not be fetched again stay good for so long
KEYS_SECONDS_MAX = 3600.0
REFETCH_SECONDS = 30.0
LEEWAY_SECONDS = 60
AGE_SECONDS_MAX = 3600
_BYTES_MAX = 1_000_000
_NAME_MAX = 200
_RANK: tuple[Role, ...] = ("admin", "auditor", "tenant-admin")

Fetch = Callable[[str], Awaitable[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A role that a group has; `tenant` is a slug, for a tenant-admin only."""

    role: Role
    tenant: str | None


class Tenants(Protocol):
    async def tenant(self, slug: str) -> TenantRecord:
        """Raises `MissingError`."""
        ...


def read_roles(text: str) -> dict[str, Grant]:
    """`admin=platform; auditor=finance,controllers; tenant-admin:acme=team-acme`, by group.

    Raises `ConfigurationError`. A group that stands twice has the stronger role.
    """
    found: dict[str, Grant] = {}
    for part in filter(None, (piece.strip() for piece in text.split(";"))):
        left, equals, groups = part.partition("=")
        role, _, tenant = left.strip().partition(":")
        if not equals or role not in _RANK or bool(tenant) != (role == "tenant-admin"):
            raise ConfigurationError(
                f"TOLLHOUSE_OIDC_ROLES: {part!r} is not like admin=group or tenant-admin:<tenant>=group,group"
            )
        grant = Grant(role=_RANK[_RANK.index(role)], tenant=tenant or None)
        for group in filter(None, (one.strip() for one in groups.split(","))):
            known = found.get(group)
            if known is None or _RANK.index(grant.role) < _RANK.index(known.role):
                found[group] = grant
    return found


async def fetch(url: str) -> bytes:
    """At most a megabyte, within five seconds, without redirects. Raises `OSError`."""
    import aiohttp  # noqa: PLC0415 (8 MB that only installations with an identity provider need)

    timeout = aiohttp.ClientTimeout(total=5)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=False) as session,
            session.get(url, allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                raise OSError(f"it answered {answer.status}")
            body = await answer.content.read(_BYTES_MAX + 1)
    except aiohttp.ClientError as error:
        raise OSError(type(error).__name__) from error
    if len(body) > _BYTES_MAX:
        raise OSError("more than a megabyte")
    return body


class Oidc:
    """One issuer. Raises `ConfigurationError` for an incomplete or unsafe one."""

    def __init__(
        self,
        *,
        issuer: str,
        audience: str,
        roles: str,
        groups_claim: str = "groups",
        jwks_url: str = "",
        get: Fetch = fetch,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if not audience or not roles:
            raise ConfigurationError(
                "TOLLHOUSE_OIDC_ISSUER needs TOLLHOUSE_OIDC_AUDIENCE and TOLLHOUSE_OIDC_ROLES"
            )
        for url in filter(None, (issuer, jwks_url)):
            _check(url)
        self._issuer, self._audience, self._jwks_url = issuer, audience, jwks_url
        self._grants = read_roles(roles)
        self._groups_claim = groups_claim
        self._fetch = get
        self._monotonic = monotonic
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_at = self._asked_at = float("-inf")
        self._fetching = asyncio.Lock()

    @staticmethod
    def is_jwt(token: str) -> bool:
        return token.count(".") == 2

    async def principal(self, token: str, tenants: Tenants) -> Principal:
        """Raises a `Problem`: 401 for a token that proves nothing, 403 for one without a role here, 503 while
        the issuer's keys cannot be had.
        """
        claims = await self._claims(token)
        groups = claims.get(self._groups_claim, [])
        groups = [groups] if isinstance(groups, str) else groups
        grants = (
            [self._grants[one] for one in groups if isinstance(one, str) and one in self._grants]
            if isinstance(groups, list)
            else []
        )
        if not grants:
            raise forbidden("none of your groups has a role here")
        grant = min(grants, key=lambda one: _RANK.index(one.role))
        ident, name = f"oidc:{claims['sub']}"[:_NAME_MAX], _name(claims)
        if grant.tenant is None:
            return Principal(ident=ident, name=name, role=grant.role)
        try:
            tenant = await tenants.tenant(grant.tenant)
        except MissingError:
            raise forbidden(f"there is no tenant {grant.tenant!r}") from None
        return Principal(ident=ident, name=name, role=grant.role, tenant=tenant.id, tenant_slug=tenant.slug)

    async def _claims(self, token: str) -> dict[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
            algorithm, kid = header.get("alg"), header.get("kid")
            if algorithm not in ALGORITHMS or not isinstance(kid, str):
                raise unauthenticated()
            key = await self._key(kid)
            if key is None or key.algorithm_name != algorithm:
                raise unauthenticated()
            claims: dict[str, Any] = jwt.decode(
                token, key, algorithms=[algorithm], audience=self._audience, issuer=self._issuer,
                leeway=LEEWAY_SECONDS, options={"require": ["exp", "iat", "iss", "aud", "sub"]},
            )  # fmt: skip
        except jwt.PyJWTError:
            raise unauthenticated() from None
        if time.time() - float(claims["iat"]) > AGE_SECONDS_MAX + LEEWAY_SECONDS:
            raise unauthenticated()
        return claims

    async def _key(self, kid: str) -> jwt.PyJWK | None:
        """None for a key that the issuer does not have."""
        age = self._monotonic() - self._fetched_at
        if kid in self._keys and age < KEYS_SECONDS:
            return self._keys[kid]
        async with self._fetching:
            if self._monotonic() - self._asked_at > REFETCH_SECONDS:
                self._asked_at = self._monotonic()
                await self._refetch()
        if self._monotonic() - self._fetched_at > KEYS_SECONDS_MAX:
            raise Problem(503, "unavailable", "the identity provider does not answer; please retry",
                          headers={"Retry-After": "5"})  # fmt: skip
        return self._keys.get(kid)

    async def _refetch(self) -> None:
        """Keeps what it has when the issuer does not answer."""
        try:
            url = self._jwks_url or await self._discovered()
            found = msgspec.json.decode(await self._fetch(url), type=dict[str, Any]).get("keys", [])
        except (OSError, TimeoutError, msgspec.DecodeError, ConfigurationError) as error:
            log.warning("the issuer's keys were not fetched: %s", type(error).__name__)
            return
        keys: dict[str, jwt.PyJWK] = {}
        for one in found if isinstance(found, list) else []:
            try:
                if (
                    isinstance(one, Mapping)
                    and one.get("use", "sig") == "sig"
                    and isinstance(one.get("kid"), str)
                ):
                    keys[one["kid"]] = jwt.PyJWK(dict(one))
            except jwt.PyJWTError:
                continue  # a kind of key that is not for signatures
        self._keys, self._fetched_at = keys, self._monotonic()

    async def _discovered(self) -> str:
        document = await self._fetch(f"{self._issuer.rstrip('/')}/.well-known/openid-configuration")
        found = msgspec.json.decode(document, type=dict[str, Any])
        if found.get("issuer") != self._issuer or not isinstance(found.get("jwks_uri"), str):
            raise ConfigurationError("the issuer's document names another issuer, or no keys")
        _check(found["jwks_uri"])
        return str(found["jwks_uri"])


def _check(url: str) -> None:
    """Keys that came without TLS could be anybody's; only this machine is trusted without."""
    parts = urlsplit(url)
    local = parts.hostname in {"127.0.0.1", "::1", "localhost"}
    if parts.scheme != "https" and not (parts.scheme == "http" and local):
        raise ConfigurationError(f"{url!r}: an issuer's address begins with https://")


def _name(claims: Mapping[str, Any]) -> str:
    """For the trail; one printable line."""
    for claim in ("email", "preferred_username", "sub"):
        value = claims.get(claim)
        if isinstance(value, str) and value:
            return "".join(c if c.isprintable() else "?" for c in value)[:_NAME_MAX]
    return "?"
