"""Tenants, keys, budgets and limits, written straight into the tables: no worker has to live for it."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from proxy.clock import uuid7
from proxy.keys import Keyring, parse_master_key
from tests.faults.world import World


@dataclass(frozen=True)
class Caller:
    """Somebody with a key. `scopes` are the subjects of budgets that hold for it."""

    tenant: UUID
    project: UUID | None
    key: UUID
    token: str


async def tenant(world: World, *, concurrency: int = 500) -> UUID:
    """With rate limits wide enough never to refuse, so that Redis has its part in every call."""
    ident = uuid7()
    await world.write(
        "INSERT INTO tenants (id, slug, name) VALUES ($1, $2, $2)", ident, f"t{ident.hex[-12:]}"
    )
    await limit(world, "tenant", ident, concurrency=concurrency)
    return ident


async def limit(
    world: World, scope: str, subject: UUID, *, requests: int = 600_000, concurrency: int = 500
) -> None:
    await world.write(
        "INSERT INTO limits (id, scope, subject, requests_per_minute, tokens_per_minute, concurrency) "
        "VALUES ($1, $2, $3, $4, 900000000, $5)", uuid7(), scope, subject, requests, concurrency,
    )  # fmt: skip


async def project(world: World, owner: UUID) -> UUID:
    ident = uuid7()
    await world.write("INSERT INTO projects (id, tenant, slug, name) VALUES ($1, $2, 'p', 'p')", ident, owner)
    return ident


async def key(world: World, owner: UUID, of_project: UUID | None = None) -> Caller:
    ident, keyring = uuid7(), Keyring(parse_master_key(world.proxy.master_key))
    bearer = keyring.mint_bearer()
    await world.write(
        "INSERT INTO keys (id, tenant, project, name) VALUES ($1, $2, $3, 'k')", ident, owner, of_project
    )
    await world.write(
        "INSERT INTO credentials (id, key, bearer_digest, bearer_prefix, last4, pepper_id) "
        "VALUES ($1, $2, $3, $4, $5, $6)",
        uuid7(), ident, bearer.digest, bearer.prefix, bearer.last4, bearer.pepper_id,
    )  # fmt: skip
    return Caller(owner, of_project, ident, bearer.token)


async def budget(
    world: World, scope: str, subject: UUID, owner: UUID, period: str, nanos: int, on_short: str = "reject"
) -> UUID:
    ident = uuid7()
    await world.write(
        "INSERT INTO budgets (id, scope, subject, tenant, period, limit_nano, on_short) "
        "VALUES ($1, $2, $3, $4, $5, $6, $7)", ident, scope, subject, owner, period, nanos, on_short,
    )  # fmt: skip
    return ident


async def top_up(world: World, of_budget: UUID, nanos: int) -> None:
    await world.write(
        "INSERT INTO adjustments (id, budget, amount, reason) VALUES ($1, $2, $3, 'contested')",
        uuid7(), of_budget, nanos,
    )  # fmt: skip
