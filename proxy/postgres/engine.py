"""The engine: how this process speaks to Postgres, and what it refuses to speak to.

One engine serves everything: the bank holds a few of its connections for good, the directory,
the admin REST and reports take one for a transaction.
"""

from __future__ import annotations

import time
from typing import Any, Literal

from sqlalchemy import text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from proxy.errors import BankAway, ConfigurationError

OLDEST_SERVER = 150000
#: seconds by which the worker's clock may differ from the database's
CLOCK_TOLERANCE_S = 60.0
#: what stands between us and the server
Pooler = Literal["none", "pgbouncer"]
_SESSIONS = "tollhouse_owns_sessions"


def normalized(url: str) -> URL:
    """The URL with our driver; `postgres://`, `postgresql://` and `postgresql+asyncpg://` are the same.

    Raises ConfigurationError for any other database or driver.
    """
    try:
        parsed = make_url(url)
    except Exception as error:
        raise ConfigurationError("the database URL cannot be read") from error
    if parsed.drivername not in {"postgres", "postgresql", "postgresql+asyncpg"}:
        raise ConfigurationError(f"not a Postgres URL: {parsed.drivername}://")
    return parsed.set(drivername="postgresql+asyncpg")


def create_engine(
    url: str,
    *,
    pool_size: int = 10,
    connect_timeout_s: float = 3.0,
    statement_timeout_ms: int = 10_000,
    application_name: str = "tollhouse",
    pooler: Pooler = "none",
) -> AsyncEngine:
    """An engine whose pool never holds more than `pool_size` connections.

    `statement_timeout_ms` is sent as a start-up parameter. PgBouncer refuses those it does not
    know, and its server connections are everybody's: behind it (`pooler`; 1.21 or newer,
    `max_prepared_statements` above 0) nothing is set for a session, here or by whoever uses the
    engine, and ALTER ROLE sets the limit. Nothing else depends on session state.
    """
    settings = {"application_name": application_name}
    if pooler == "none":
        settings |= {"statement_timeout": str(statement_timeout_ms), "jit": "off"}
    return create_async_engine(
        normalized(url),
        pool_size=pool_size,
        hide_parameters=True,
        max_overflow=0,
        pool_timeout=connect_timeout_s,
        pool_pre_ping=True,
        pool_recycle=1800,
        execution_options={_SESSIONS: pooler == "none"},
        connect_args={"timeout": connect_timeout_s, "server_settings": settings},
    )


def owns_sessions(engine: AsyncEngine) -> bool:
    """A connection of this engine is one session, whose settings nobody else inherits."""
    return bool(engine.sync_engine.get_execution_options().get(_SESSIONS, True))


_FACTS = text(
    """
    SELECT current_setting('server_version_num')::integer AS version,
           current_setting('fsync') AS fsync,
           current_setting('full_page_writes') AS full_page_writes,
           current_setting('synchronous_commit') AS synchronous_commit,
           current_setting('default_transaction_isolation') AS isolation,
           pg_is_in_recovery() AS standby,
           extract(epoch FROM clock_timestamp())::double precision AS clock
    """
)


async def check_server(engine: AsyncEngine, *, require_durable: bool = True) -> None:
    """Refuses a server that could lose or misjudge money.

    Raises ConfigurationError with every reason, BankAway when it cannot be asked.
    `require_durable=False` accepts fsync off, for throwaway servers of tests only.
    """
    before = time.time()
    try:
        async with engine.connect() as connection:
            facts = (await connection.execute(_FACTS)).mappings().one()
    except Exception as error:
        raise BankAway(f"Postgres does not answer: {type(error).__name__}") from error
    wrong = list(_faults(dict(facts), require_durable=require_durable))
    drift = abs(facts["clock"] - (before + time.time()) / 2)
    if drift > CLOCK_TOLERANCE_S:
        wrong.append(f"its clock and ours differ by {drift:.0f} s (at most {CLOCK_TOLERANCE_S:.0f})")
    if wrong:
        raise ConfigurationError("this Postgres must not keep money: " + "; ".join(wrong))


def _faults(facts: dict[str, Any], *, require_durable: bool) -> list[str]:
    wrong = []
    if facts["version"] < OLDEST_SERVER:
        wrong.append(f"version {facts['version'] // 10000} is older than {OLDEST_SERVER // 10000}")
    if require_durable:
        wrong += [f"{name} is off" for name in ("fsync", "full_page_writes") if facts[name] != "on"]
        if facts["synchronous_commit"] == "off":
            wrong.append("synchronous_commit is off")
    if facts["isolation"] != "read committed":
        wrong.append(f"default_transaction_isolation is {facts['isolation']!r}, not 'read committed'")
    if facts["standby"]:
        wrong.append("it is a standby")
    return wrong
