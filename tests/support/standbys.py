"""What tests of a fail-over ask of a standby."""

from __future__ import annotations

import asyncio

import asyncpg

from proxy.embedded import Postgres


async def promote(standby: Postgres) -> None:
    """Returns when it takes writes."""
    connection = await asyncpg.connect(standby.dsn)
    try:
        assert await connection.fetchval("SELECT pg_promote(true, 30)")
        while await connection.fetchval("SELECT pg_is_in_recovery()"):
            await asyncio.sleep(0.02)
    finally:
        await connection.close()
