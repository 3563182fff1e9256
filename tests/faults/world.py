"""Real servers and the product on them: Postgres, Valkey, the simulator with its own bill, one proxy tree."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import redis as redis_client

from proxy.embedded import Bootstrap, Postgres, Role, Valkey
from proxy.simulator import launch
from proxy.simulator.launch import Simulator
from tests.faults.processes import Tree
from tests.support.stack import Proxy

REPOSITORY = Path(__file__).resolve().parents[2]
POLICIES = Path(__file__).with_name("policies")
OWNER, APPLICATION = "tollhouse_owner", "tollhouse_app"
BOOTSTRAP = Bootstrap(owner=OWNER, roles=(Role(name=OWNER), Role(name=APPLICATION)))
#: seconds; the sweeper waits for twice this
CALL_SECONDS = 30


@dataclass
class World:
    """Everything of one run, in one directory that is gone afterwards."""

    directory: Path
    root: Path
    postgres: Postgres
    valkey: Valkey
    simulator: Simulator
    tree: Tree
    db: asyncpg.Pool[asyncpg.Record]
    keeper: subprocess.Popen[bytes] | None = None
    #: where the bill and the request log were read up to
    billed: int = 0
    requested: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def proxy(self) -> Proxy:
        return self.tree.proxy

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.proxy.port

    async def control(self, method: str, path: str, body: Any = None) -> Any:
        """A request to the simulator's control paths."""
        return await asyncio.to_thread(self.simulator.call, method, path, body)

    async def rows(self, query: str, *values: Any) -> list[asyncpg.Record]:
        return list(await self.db.fetch(query, *values))

    def valkey_version(self) -> str:
        with redis_client.Redis.from_url(self.valkey.url) as client:
            told: dict[str, str] = client.info("server")
        return told.get("valkey_version") or told["redis_version"]

    async def write(self, statement: str, *values: Any) -> None:
        await self.db.execute(statement, *values)

    async def reconnect(self) -> None:
        """After Postgres was restarted."""
        await self.db.expire_connections()


def directory() -> Path:
    """In memory where there is room: fsync then costs nothing, and SIGKILL loses no page of it."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2 << 30
    return Path(tempfile.mkdtemp(prefix="tollhouse-faults-", dir=memory if roomy else None))


def migrate(root: Path, postgres: Postgres) -> None:
    """By the program of this source tree, as its owner."""
    proxy = Proxy(postgres.url_for(role=APPLICATION), "", "", root)
    environment = proxy.environment() | {
        "TOLLHOUSE_MIGRATION_DATABASE_URL": postgres.url_for(role=OWNER), "PYTHONPATH": str(root),
    }  # fmt: skip
    subprocess.run([sys.executable, "-m", "proxy", "migrate"], env=environment, cwd=root, check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip


#: what the harness's own connection raises while Postgres is away
AWAY = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError)
SETTINGS = {
    "TOLLHOUSE_WORKERS": "2",
    "TOLLHOUSE_POLICIES_DIR": str(POLICIES),
    "TOLLHOUSE_CALL_SECONDS": str(CALL_SECONDS),
    "TOLLHOUSE_SHUTDOWN_SECONDS": "3",
    "TOLLHOUSE_LOG_LEVEL": "warning",
}


@contextlib.asynccontextmanager
async def world(root: Path = REPOSITORY, **settings: str) -> AsyncIterator[World]:
    """A running one. `root` is the source tree under test, `settings` are more of the proxy's."""
    base = directory()
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, base, ignore_errors=True)
        postgres = stack.enter_context(Postgres.start(base / "postgres", bootstrap=BOOTSTRAP, throwaway=True))
        valkey = stack.enter_context(Valkey.start(base / "valkey"))
        simulator = launch.start(first_byte_ms=4, tokens_per_second=3000, tokens_per_event=4)
        stack.callback(simulator.stop)
        await asyncio.to_thread(migrate, root, postgres)
        proxy = Proxy(
            postgres.url_for(role=APPLICATION), valkey.url, simulator.url, base / "state",
            settings=SETTINGS | settings,
        )  # fmt: skip
        pool = await asyncpg.create_pool(postgres.dsn, min_size=0, max_size=6)
        tree = Tree(proxy, root)
        made = World(base, root, postgres, valkey, simulator, tree, pool)
        try:
            await tree.start()
            made.keeper = tree.spawn_worker()
            yield made
        finally:
            await tree.kill(look=False)
            if made.keeper is not None:
                made.keeper.kill()
                made.keeper.wait()
            pool.terminate()


def rng_of(seed: int, name: str) -> random.Random:
    """Chance of one round: the same for the same seed and name."""
    return random.Random(f"{seed}/{name}")
