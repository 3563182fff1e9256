"""The directory against a real Postgres: what is written there is known here, soon."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import insert, text, update
from sqlalchemy.ext.asyncio import AsyncEngine

from proxy.clock import uuid7
from proxy.directory import Directory
from proxy.domain.policy import Limit, Policy
from proxy.errors import BankAway
from proxy.keys import AccessKey, Keyring, Minted, Place
from proxy.postgres import issued, tables
from proxy.postgres.control import writing
from proxy.postgres.engine import create_engine
from proxy.postgres.tenants import PostgresRoster, insert_project, insert_tenant

KEYRING = Keyring(bytes(32))


class Plans:
    def effective(self, plan, tenant_overrides, key_overrides, limits, *, scopes=None) -> Policy:
        return Policy(plan=plan, version=f"{tenant_overrides}|{key_overrides}", limits=tuple(limits))


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    made = create_engine(database_url, pool_size=6)
    yield made
    await made.dispose()


@pytest.fixture
async def directory(engine: AsyncEngine) -> AsyncIterator[Directory]:
    made = Directory(PostgresRoster(engine), KEYRING, Plans())
    await made.start()
    yield made
    await made.stop()


async def issue(
    engine: AsyncEngine, slug: str = "acme", **facts: Any
) -> tuple[UUID, UUID, Minted, AccessKey]:
    """A tenant with a project and one key: ids of tenant and key, and the key's secrets."""
    minted, pair = KEYRING.mint_bearer(), KEYRING.mint_access_key()
    key = uuid7()
    async with writing(engine) as db:
        tenant = await insert_tenant(
            db, id=uuid7(), slug=slug, name=slug, plan="default", time_zone="UTC", overrides={}
        )
        project = await insert_project(db, id=uuid7(), tenant=tenant, slug="search", name="Search")
        place = Place(tenant=tenant.id, key=key, credential=uuid7(), version=1)
        values: dict[str, Any] = {"project": project.id, "name": "ci", "expires_at": None, "overrides": {}}
        await issued.insert_key(db, id=key, tenant=tenant.id, **values | facts)
        new = issued.NewCredential(
            id=place.credential, bearer_digest=minted.digest, bearer_prefix=minted.prefix, last4=minted.last4,
            pepper_id=minted.pepper_id, access_key_id=pair.id, sigv4_ciphertext=KEYRING.seal(pair.secret, place),
            data_key_id=KEYRING.generation,
        )  # fmt: skip
        await issued.insert_credential(db, key, new)
    return tenant.id, key, minted, pair


async def until(condition, seconds: float = 2.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_key_issued_meanwhile_is_known_at_once(engine: AsyncEngine, directory: Directory) -> None:
    tenant, key, minted, pair = await issue(engine, overrides={"max_output_tokens": 5})
    await until(lambda: directory.by_token(minted.token) is not None, 1.0)
    caller = directory.by_token(minted.token)
    assert caller is not None
    assert (caller.tenant, caller.tenant_slug, caller.project_slug, caller.key) == (
        tenant,
        "acme",
        "search",
        key,
    )
    assert caller.policy.version == "None|{'max_output_tokens': 5}"
    assert directory.by_access_key_id(pair.id) == (caller, pair.secret)
    assert not directory.stale


async def test_revocation_holds_within_a_second(engine: AsyncEngine, directory: Directory) -> None:
    _, key, minted, _ = await issue(engine)
    await until(lambda: directory.by_token(minted.token) is not None)
    async with writing(engine) as db:
        await db.execute(update(tables.Key).where(tables.Key.id == key).values(status="revoked"))
    await until(lambda: directory.by_token(minted.token).refusal == "key_revoked", 1.0)  # type: ignore[union-attr]


async def test_a_fresh_directory_knows_everything(engine: AsyncEngine) -> None:
    end = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
    tenant, _, minted, pair = await issue(engine, expires_at=end)
    limit: dict[str, Any] = {
        "id": uuid7(),
        "scope": "tenant",
        "subject": tenant,
        "requests_per_minute": 60,
        "models": ["m"],
    }
    async with writing(engine) as db:
        await db.execute(insert(tables.Limit).values(**limit))
        await db.execute(insert(tables.Limit).values(**limit | {"id": uuid7(), "deleted_at": end}))
    directory = Directory(PostgresRoster(engine), KEYRING, Plans())
    await directory.load()
    caller = directory.by_token(minted.token)
    assert caller is not None and caller.expires_at == int(end.timestamp())
    assert caller.policy.limits == (
        Limit(
            id=limit["id"], scope="tenant", subject=tenant, requests_per_minute=60, models=frozenset({"m"})
        ),
    )
    assert directory.by_access_key_id(pair.id) == (caller, pair.secret)


async def test_a_deleted_limit_leaves_the_policy(engine: AsyncEngine, directory: Directory) -> None:
    tenant, _, minted, _ = await issue(engine)
    limit = uuid7()
    async with writing(engine) as db:
        await db.execute(insert(tables.Limit).values(id=limit, scope="tenant", subject=tenant, concurrency=1))

    def limits() -> int:
        caller = directory.by_token(minted.token)
        return 0 if caller is None else len(caller.policy.limits)

    await until(lambda: limits() == 1)
    async with writing(engine) as db:
        ended = update(tables.Limit).where(tables.Limit.id == limit).values(deleted_at=text("now()"))
        await db.execute(ended)
    await until(lambda: limits() == 0)


async def test_writes_that_commit_late_are_not_missed(engine: AsyncEngine) -> None:
    """A transaction that began first and commits last must come with a later version."""
    directory = Directory(PostgresRoster(engine), KEYRING, Plans())
    _, first, first_minted, _ = await issue(engine, "one")
    _, second, second_minted, _ = await issue(engine, "two")
    await directory.load()

    async def rename(key: UUID, hold: float) -> None:
        async with writing(engine) as db:
            await db.execute(update(tables.Key).where(tables.Key.id == key).values(name="renamed"))
            await asyncio.sleep(hold)

    slow = asyncio.create_task(rename(first, 0.15))
    await asyncio.sleep(0.03)
    quick = asyncio.create_task(rename(second, 0.0))
    while not (slow.done() and quick.done()):
        await directory.refresh()
        await asyncio.sleep(0.01)
    await asyncio.gather(slow, quick)
    await directory.refresh()
    for minted in (first_minted, second_minted):
        assert directory.by_token(minted.token).key_name == "renamed"  # type: ignore[union-attr]


async def test_a_postgres_that_is_away_makes_it_stale_and_its_return_heals_it(
    engine: AsyncEngine, directory: Directory, database_url: str
) -> None:
    _, _, minted, _ = await issue(engine)
    await until(lambda: directory.by_token(minted.token) is not None)
    other = create_engine(database_url)
    try:
        async with other.connect() as db:
            await db.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
    finally:
        await other.dispose()
    _, _, after, _ = await issue(engine, "after")
    await until(lambda: directory.by_token(after.token) is not None, 3.0)
    assert not directory.stale


async def test_an_unreachable_postgres_is_bank_away(free_port) -> None:
    engine = create_engine(f"postgresql://nobody@127.0.0.1:{free_port()}/none")
    roster = PostgresRoster(engine)
    directory = Directory(roster, KEYRING, Plans())
    with pytest.raises(BankAway):
        await directory.load()
    with pytest.raises(BankAway):
        await directory.refresh()
    await roster.wait(0.01)
    assert directory.stale
    await engine.dispose()
