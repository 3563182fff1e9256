"""Who may do what on the admin REST.

Admin principals are separate from issued keys: an issued key proves its tenant's identity on
inference routes and on `/me`, and nothing here. A tenant-admin sees its own tenant only; whatever
belongs to another tenant does not exist for it.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.params import ParameterKwarg

from proxy.domain.roster import Role
from proxy.errors import ConfigurationError
from proxy.keys import Keyring
from proxy.web.admin.lockout import Lockout
from proxy.web.admin.problems import forbidden, invalid, not_found, unauthenticated

BOOTSTRAP_CHARS_MIN = 24
#: a JWT with many groups
TOKEN_CHARS_MAX = 16_384
READING = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """An administrator. `tenant` is set for, and only for, a tenant-admin. Names need not be unique."""

    ident: str
    name: str
    role: Role
    tenant: UUID | None = None
    tenant_slug: str | None = None

    def owns(self, tenant: UUID) -> bool:
        """True when things of `tenant` exist for this principal."""
        return self.tenant is None or self.tenant == tenant

    def need_all_tenants(self) -> None:
        """Raises a 403 `Problem` for a tenant-admin."""
        if self.tenant is not None:
            raise forbidden("only an administrator of all tenants may do this")


class AdminStore(Protocol):
    async def admin_by_digest(self, digests: tuple[bytes, ...]) -> Principal | None: ...


class Tokens(Protocol):
    """Principals of an identity provider (see `oidc`)."""

    async def principal(self, token: str) -> Principal:
        """Raises a `Problem`."""
        ...


class AdminAuthenticator:
    """Proves admin keys, and tokens of an identity provider when there is one. No admin key is cached: one
    that was revoked is dead at once.

    `bootstrap_key` is the first admin's key, from a setting; empty for none. Raises
    `ConfigurationError` when it is too short to be a secret.
    """

    def __init__(
        self, keyring: Keyring, store: AdminStore, bootstrap_key: str = "", tokens: Tokens | None = None
    ) -> None:
        if bootstrap_key and len(bootstrap_key) < BOOTSTRAP_CHARS_MIN:
            raise ConfigurationError(f"the admin key must have at least {BOOTSTRAP_CHARS_MIN} characters")
        self._keyring = keyring
        self._store = store
        self._tokens = tokens
        self._lockout = Lockout()
        self._bootstrap = keyring.admin_secret_digests(bootstrap_key)[0] if bootstrap_key else None

    async def principal(self, authorization: str | None, address: str = "") -> Principal:
        """The principal behind an `Authorization` header that came from `address`.

        Raises a `Problem`: 403 for an issued key (which is good for other routes), else 401. Equal
        answers for every other way to be wrong; 429 for who guesses on and on.
        """
        scheme, _, token = (authorization or "").partition(" ")
        longest = TOKEN_CHARS_MAX if self._tokens is not None else 512
        if scheme.lower() != "bearer" or not token or len(token) > longest:
            raise unauthenticated()
        if self._bootstrap is not None and self._is_bootstrap(token, address):
            return Principal(ident="bootstrap", name="bootstrap", role="admin")
        if self._tokens is not None and token.count(".") == 2:
            return await self._tokens.principal(token)
        digests = self._keyring.admin_digests(token)
        found = await self._store.admin_by_digest(digests) if digests else None
        if found is not None:
            return found
        if self._keyring.is_bearer(token):
            raise forbidden("an issued key is no admin key")
        raise unauthenticated()

    def _is_bootstrap(self, token: str, address: str) -> bool:
        jwt = self._tokens is not None and token.count(".") == 2
        guess = not (jwt or self._keyring.is_admin(token) or self._keyring.is_bearer(token))
        if guess:
            self._lockout.check(address)
        found = hmac.compare_digest(self._keyring.admin_secret_digests(token)[0], self._bootstrap or b"")
        if guess and not found:
            self._lockout.failed(address)
        return found


class Gate:
    """The guard of every admin route: proves the principal before a body is read."""

    def __init__(self, authenticator: AdminAuthenticator) -> None:
        self._authenticator = authenticator

    async def __call__(
        self, connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler
    ) -> None:
        headers = connection.headers.getall("authorization", [])
        if len(headers) > 1:
            raise unauthenticated()
        address = connection.client.host if connection.client else ""
        principal = await self._authenticator.principal(headers[0] if headers else None, address)
        if principal.role == "auditor" and connection.scope.get("method") not in READING:
            raise forbidden("an auditor may read, and nothing else")
        refuse_unknown_parameters(connection, handler)
        connection.state.principal = principal


def refuse_unknown_parameters(
    connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler
) -> None:
    """A misspelled filter must not silently return everything. Raises a 400 `Problem`."""
    known = _parameters(handler)
    for name in connection.query_params:
        if name not in known or name in connection.path_params:
            raise invalid(name[:100], f"unknown query parameter {name[:100]!r}")


def _parameters(handler: BaseRouteHandler) -> frozenset[str]:
    """Names that may stand in the query: those of the signature, or what they are renamed to."""
    names = []
    for name, field in handler.parsed_fn_signature.parameters.items():
        kwarg = field.kwarg_definition
        names.append((kwarg.query if isinstance(kwarg, ParameterKwarg) else None) or name)
    return frozenset(names)


def of_own_tenant(principal: Principal, tenant: UUID, what: str) -> None:
    """Raises the 404 of a thing that does not exist, when it belongs to another tenant."""
    if not principal.owns(tenant):
        raise not_found(what)
