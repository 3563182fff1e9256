"""A synchronous standby by streaming replication, as an operator would make it: base backup, then stream."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import asyncpg

from proxy.embedded import Postgres, postgres_bin_dir
from proxy.embedded.process import Home, unprivileged_identity
from tests.faults.world import BOOTSTRAP

NAME = "standby"
_HBA = "host replication all 127.0.0.1/32 scram-sha-256\n"


async def standby_of(primary: Postgres, folder: Path) -> Postgres:
    """Returns when the primary's commits wait for it."""
    connection = await asyncpg.connect(primary.dsn)
    try:
        with (primary._cluster / "pg_hba.conf").open("a") as file:
            file.write(_HBA)
        await connection.execute("SELECT pg_reload_conf()")
        standby = await asyncio.to_thread(_copy, primary, folder)
        await connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{NAME}'")
        await connection.execute("SELECT pg_reload_conf()")
        async with asyncio.timeout(15):
            while await connection.fetchval("SELECT sync_state FROM pg_stat_replication") != "sync":
                await asyncio.sleep(0.02)
    finally:
        await connection.close()
    return standby


def _copy(primary: Postgres, folder: Path) -> Postgres:
    home = Home(folder)
    source = f"{primary.dsn_for(database='postgres')}?application_name={NAME}"
    home.run_tool(
        [
            *(postgres_bin_dir() / "pg_basebackup", "--pgdata", folder / "cluster", "--dbname", source),
            *("--write-recovery-conf", "--checkpoint", "fast", "--no-sync"),
        ],
        identity=unprivileged_identity(),
    )
    shutil.copy(primary._home.path / "passwords.json", folder / "passwords.json")
    return Postgres.start(folder, bootstrap=BOOTSTRAP, throwaway=True)


def both(primary: Postgres, standby: Postgres, role: str) -> str:
    """A URL that finds whichever of the two takes writes. Both know the role by the same password."""
    assert primary.dsn_for(role=role).split("@")[0] == standby.dsn_for(role=role).split("@")[0]
    login = primary.url_for(role=role).partition("@")[0]
    hosts = "&".join(f"host=127.0.0.1:{server.port}" for server in (primary, standby))
    return f"{login}@/tollhouse?{hosts}&target_session_attrs=read-write"
