"""What every write of the control plane has in common: one transaction, with its audit record."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from proxy.errors import TollhouseError

UNIQUE_VIOLATION = "23505"


class ControlError(TollhouseError):
    """A write that was refused; nothing of it happened."""


class MissingError(ControlError):
    """The thing does not exist (any more). The message is what kind of thing."""


class ConflictError(ControlError):
    """The write would contradict what is there."""


class VersionError(ControlError):
    """The thing was changed by somebody else since the caller read it."""


@asynccontextmanager
async def writing(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A transaction that commits when the block ends well. Waits at most 2 s for any lock."""
    async with engine.begin() as db:
        await db.execute(text("SET LOCAL lock_timeout = '2s'"))
        yield db


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
