"""The product at scale in miniature: three replicas behind a balancer, a Valkey cluster of three, a bank with a
synchronous standby; each of them loses one while callers go on. The oracle is the simulator's own bill.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from proxy.embedded import Postgres, Valkey
from tests.conftest import APPLICATION, OWNER
from tests.faults.world import BOOTSTRAP, POLICIES, REPOSITORY, migrate
from tests.scale import oracle
from tests.scale.balancer import Balancer, balancing
from tests.scale.load import Load, outcomes
from tests.scale.standby import both, standby_of
from tests.support.stack import Key, Proxy
from tests.support.standbys import promote
from tests.support.valkeys import cluster, cluster_url

TENANTS = 9
REPLICAS = 3
#: the sweeper charges what nobody settles after twice this, seconds
CALL_SECONDS = 6
SETTINGS = {
    "TOLLHOUSE_POLICIES_DIR": str(POLICIES),
    "TOLLHOUSE_REPLICAS": str(REPLICAS),
    "TOLLHOUSE_CALL_SECONDS": str(CALL_SECONDS),
    "TOLLHOUSE_SHUTDOWN_SECONDS": "3",
    "TOLLHOUSE_LOG_LEVEL": "warning",
}


@dataclass
class Site:
    primary: Postgres
    standby: Postgres
    masters: list[Valkey]
    replicas: list[Proxy]
    balancer: Balancer
    owner_url: str
    keys: list[Key]


@pytest.fixture
async def site(
    server_dir: Path, tmp_path: Path, free_port: Callable[[], int], simulator: Any
) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        primary = stack.enter_context(
            Postgres.start(server_dir / "primary", bootstrap=BOOTSTRAP, throwaway=True)
        )
        await asyncio.to_thread(migrate, REPOSITORY, primary)
        standby = stack.enter_context(await standby_of(primary, server_dir / "standby"))
        masters = stack.enter_context(
            cluster(server_dir, free_port, 3, {"cluster-require-full-coverage": "no"})
        )
        first = Proxy(
            both(primary, standby, APPLICATION),
            cluster_url(masters[0]),
            simulator.url,
            tmp_path / "0",
            SETTINGS,
        )
        replicas = [first]
        for number in range(1, REPLICAS):
            replicas.append(
                Proxy(
                    first.database_url, cluster_url(masters[number]), simulator.url, tmp_path / str(number),
                    SETTINGS, master_key=first.master_key,
                )
            )  # fmt: skip
        for replica in replicas:
            stack.callback(replica.kill)
            replica.start(wait=False)
        first.start("worker", wait=False, TOLLHOUSE_STATE_DIR=str(tmp_path / "worker"))
        for replica in replicas:
            await asyncio.to_thread(replica.await_ready)
        keys = await asyncio.to_thread(customers, first)
        balancer = await stack.enter_async_context(balancing([replica.port for replica in replicas]))
        yield Site(primary, standby, masters, replicas, balancer, both(primary, standby, OWNER), keys)


def customers(proxy: Proxy) -> list[Key]:
    """Keys of tenants with a budget and a limit each; the first tenant's budget is spent in the course."""
    keys = []
    for number in range(TENANTS):
        key = proxy.key()
        proxy.budget(f"tenant:{key.tenant}", "1000" if number else "0.0012")
        proxy.admin("POST", "/limits", {"scope": f"tenant:{key.tenant}", "requests_per_minute": 100_000})
        keys.append(key)
    return keys


def recover(site: Site) -> None:
    """What an operator types."""
    environment = site.replicas[0].environment() | {"TOLLHOUSE_MIGRATION_DATABASE_URL": site.owner_url}
    subprocess.run(
        [sys.executable, "-m", "proxy", "recover", "--accept"],
        env=environment,
        check=True,
        capture_output=True,
    )


def sizes(masters: list[Valkey]) -> list[int]:
    found = []
    for server in masters:
        with redis.Redis.from_url(server.url) as client:
            found.append(int(client.dbsize()))
    return found


@pytest.mark.slow
@pytest.mark.timeout(150)
async def test_each_part_loses_one_and_the_books_agree(site: Site, simulator: Any) -> None:
    said = {}
    async with Load(site.balancer.port, site.keys) as load:
        said["well"] = outcomes(await load.until_answered(60, 20))
        assert len(site.balancer.served) == REPLICAS, "all replicas serve"
        assert sum(size > 0 for size in sizes(site.masters)) > 1, "tenants are spread over the cluster"

        site.replicas[1].kill()
        said["a replica is gone"] = outcomes(await load.until_answered(60, 20))
        site.replicas[1].start(wait=False)

        lost = max(range(3), key=sizes(site.masters).__getitem__)
        site.masters[lost].kill()
        said["a cluster node is gone"] = outcomes(await load.until_answered(60, 30))

        await asyncio.to_thread(site.replicas[1].await_ready)
        site.primary.kill()
        said["the primary is gone"] = outcomes(await load.during(1.5))
        await promote(site.standby)
        await load.during(1.0)  # what ran when the primary died has ended
        said["promoted, not accepted"] = outcomes(await load.during(1.0))
        await asyncio.to_thread(recover, site)
        await asyncio.to_thread(site.masters[lost].restart)
        said["accepted"] = outcomes(await load.until_answered(60, 30))
        before = site.balancer.served.copy()
        said["whole again"] = outcomes(await load.until_answered(60, 20))

    assert len(site.balancer.served - before) == REPLICAS, "the restarted replica serves as well"
    assert all(process.poll() is None for process in site.replicas[0].processes), "the worker lives on"
    rows = await oracle.settled_rows(site.standby.dsn, 3 * CALL_SECONDS)
    accounts, broken = await oracle.books(site.standby.dsn)
    bill, requests = simulator.bill()["calls"], simulator.requests()
    assert not broken, broken
    assert not (found := oracle.problems(rows, accounts, bill, requests, load.shots)), "\n".join(found)
    assert len(accounts) == TENANTS
    assert len(bill) > 300
    refused = {shot.reason for shot in load.shots if shot.status == 503}
    for phase in ("well", "a replica is gone", "a cluster node is gone", "accepted", "whole again"):
        assert said[phase]["answered"] >= 60, said
    for phase in ("well", "a cluster node is gone", "whole again"):
        assert set(said[phase]) <= {"answered", "400"}, f"{phase}: {said}"
    assert len(said["a replica is gone"]) <= 1 + TENANTS, f"only what ran on it broke off: {said}"
    closed = said["promoted, not accepted"]
    assert closed["503"] and set(closed) <= {"503", "400"}, (
        f"nothing is admitted on an unknown timeline: {said}"
    )
    assert any("failed over" in reason for reason in refused), refused
    assert all("please retry" in reason for reason in refused), refused
    assert sum(shot.status == 400 for shot in load.shots), f"one budget is spent: {accounts}"
