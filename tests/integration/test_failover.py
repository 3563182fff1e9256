"""A standby that is promoted may have lost commits: nothing is admitted until an operator accepts it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg
import pytest

from proxy.clock import uuid7
from proxy.domain.ledger import Attempt, Operation, Verdict
from proxy.embedded import Bootstrap, Postgres, Role
from proxy.errors import ConfigurationError
from proxy.postgres.bank import PostgresBank
from proxy.postgres.engine import create_engine
from proxy.postgres.failover import recover
from proxy.postgres.migrate import upgrade
from tests.support.standbys import promote

BOOTSTRAP = Bootstrap(
    owner="tollhouse_owner", roles=(Role(name="tollhouse_owner"), Role(name="tollhouse_app"))
)


async def admit(url: str) -> Verdict:
    """A stranger's attempt: REVOKED where admission is open, CLOSED where it is not."""
    engine = create_engine(url, pool_size=2)
    bank = PostgresBank(engine, lanes=1)
    try:
        stranger = Attempt(
            attempt=uuid7(), call=uuid7(), tenant=uuid7(), project=None, key=uuid7(), credential=uuid7(),
            recorder=uuid7(), operation=Operation.CONVERSE, model=1, target=1, price=1, ceiling=1,
        )  # fmt: skip
        return (await bank.admit(stranger)).verdict
    finally:
        await bank.aclose()
        await engine.dispose()


async def turned(server: Postgres) -> None:
    """Make the cluster come up as a standby and promote it: the server's own way to a new timeline."""
    server.stop()
    (server._cluster / "standby.signal").touch()
    await asyncio.to_thread(server.restart)
    await promote(server)


@pytest.fixture
def server(server_dir: Path):
    with Postgres.start(server_dir / "failover", bootstrap=BOOTSTRAP, throwaway=True) as running:
        yield running


async def test_admission_is_closed_on_another_timeline_until_it_is_accepted(server: Postgres) -> None:
    owner, app = server.url_for(role="tollhouse_owner"), server.url_for(role="tollhouse_app")
    await asyncio.to_thread(upgrade, owner)
    assert await admit(app) is Verdict.REVOKED

    await turned(server)

    assert await admit(app) is Verdict.CLOSED
    looked = await recover(owner, accept=False)
    assert looked.current == looked.accepted + 1
    assert await admit(app) is Verdict.CLOSED, "looking opens nothing"
    await recover(owner, accept=True)
    assert await admit(app) is Verdict.REVOKED
    connection = await asyncpg.connect(server.dsn_for(role="tollhouse_owner"))
    try:
        assert (
            await connection.fetchval("SELECT action FROM audit ORDER BY seq DESC LIMIT 1") == "bank.recover"
        )
    finally:
        await connection.close()


async def test_a_ledger_that_is_not_whole_is_not_accepted(server: Postgres) -> None:
    owner = server.url_for(role="tollhouse_owner")
    await asyncio.to_thread(upgrade, owner)
    connection = await asyncpg.connect(server.dsn_for(role="tollhouse_owner"))
    try:
        await connection.execute("UPDATE timeline SET accepted = accepted + 1")
        await connection.execute(
            "INSERT INTO attempts (attempt, call, tenant, key, credential, recorder, operation, model, target, "
            "price, ceiling, tags, holds, admitted_at, state, cost) SELECT uuid7_floor(now()), g, g, g, g, g, 1, 1, "
            "1, 1, 5, 0, '{}', now(), 1, 5 FROM (SELECT gen_random_uuid() AS g) AS x"
        )
    finally:
        await connection.close()
    with pytest.raises(ConfigurationError, match="not whole"):
        await recover(owner, accept=True)
