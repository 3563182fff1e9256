"""What every write of the control plane has in common: one transaction, with its audit record."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import msgspec
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from proxy.domain.control import ConflictError, MissingError, RangeError, VersionError
from proxy.errors import BankAway

__all__ = ["MissingError", "audit", "check_version", "conflict_or", "reading", "sqlstate", "writing"]

UNIQUE_VIOLATION = "23505"
#: lock and statement time-outs, serialization failures, deadlocks, a server that stops: all pass
_BUSY = frozenset({"55P03", "57014", "40001", "40P01", "53300", "57P01", "57P02", "57P03"})
_OUT_OF_RANGE = frozenset({"22003", "22008", "22021", "22P05"})


@asynccontextmanager
async def writing(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A transaction that commits when the block ends well. Waits at most 2 s for any lock.

    Raises `BankAway` when Postgres does not answer or is too busy, `RangeError`, and what the block
    raises.
    """
    with _told():
        async with engine.begin() as db:
            await db.execute(text("SET LOCAL lock_timeout = '2s'"))
            yield db


@asynccontextmanager
async def reading(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection for reading. Raises as `writing` does."""
    with _told():
        async with engine.connect() as db:
            yield db


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (InterfaceError, OperationalError, PoolTimeoutError, OSError, TimeoutError) as error:
        raise BankAway(f"Postgres does not answer: {type(error).__name__}") from error
    except DBAPIError as error:
        state = sqlstate(error)
        if state in _OUT_OF_RANGE:
            raise RangeError("a number, a time or a character is out of range") from error
        if state in _BUSY or error.connection_invalidated:
            raise BankAway(f"Postgres is busy: {state}") from error
        raise


_AUDIT = text("SELECT audit_append(:actor, :action, :thing, CAST(:before AS jsonb), CAST(:after AS jsonb))")


async def audit(
    db: AsyncConnection,
    actor: str,
    action: str,
    thing: str,
    *,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Append to the audit trail, in the writer's own transaction and as its last statement.

    Holds the trail's lock until the commit. `before` and `after` never hold secrets or digests.
    """
    values = {"actor": actor, "action": action, "thing": thing}
    await db.execute(_AUDIT, values | {"before": _json(before), "after": _json(after)})


def _json(values: Mapping[str, Any] | None) -> str | None:
    return None if values is None else msgspec.json.encode(values).decode()


def sqlstate(error: BaseException) -> str | None:
    """The SQLSTATE behind a database error, None when it has none."""
    found = getattr(getattr(error, "orig", None), "sqlstate", None)
    return found if isinstance(found, str) else None


def conflict_or(error: IntegrityError, message: str) -> Exception:
    """`ConflictError` for a violated unique key, else the error itself, to be raised."""
    return ConflictError(message) if sqlstate(error) == UNIQUE_VIOLATION else error


def check_version(found: int, expected: int | None) -> None:
    """Raises `VersionError` when the caller expected another version than the one found."""
    if expected is not None and found != expected:
        raise VersionError("it was changed since you read it; read it again")
