"""Runs migrations in one transaction, one runner at a time, without queueing behind long statements.

`proxy.postgres.migrate` hands over the URL; `alembic -x url=postgresql+asyncpg://... upgrade head`
works too. A migration that cannot get a lock in time fails and changes nothing: run it again.
"""

from __future__ import annotations

import asyncio

from alembic import context
from sqlalchemy import Connection, pool
from sqlalchemy.ext.asyncio import create_async_engine

from proxy.postgres.desk_tables import Base
from proxy.postgres.engine import normalized
from proxy.postgres.migrate import MIGRATION_LOCK

LOCK_TIMEOUT = "5s"


def _migrate(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata)
    with context.begin_transaction():
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
        context.run_migrations()


async def _main() -> None:
    url = context.get_x_argument(as_dictionary=True).get("url") or context.config.get_main_option(
        "sqlalchemy.url"
    )
    if not url:
        raise SystemExit("no database: pass -x url=postgresql+asyncpg://...")
    engine = create_async_engine(normalized(url), poolclass=pool.NullPool)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(_migrate)
    finally:
        await engine.dispose()


if context.is_offline_mode():
    raise SystemExit("these migrations load SQL functions and make partitions; run them against a database")
asyncio.run(_main())
