"""After a failover or a restored backup: what was committed last may be gone.

Such a server runs on another timeline than the accepted one, and the bank admits nothing on it. An
operator looks, and accepts it.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text

from proxy.errors import ConfigurationError
from proxy.postgres.engine import create_engine

_STANDING = text(
    "SELECT accepted, current_timeline(), (SELECT max(admitted_at) FROM attempts WHERE attempt >= "
    "uuid7_floor(now() - interval '1 day')) FROM timeline"
)
_BROKEN = text("SELECT invariant, subject, detail FROM check_invariants(now() - interval '32 days') LIMIT 20")
_ACCEPT = text("UPDATE timeline SET accepted = current_timeline(), accepted_at = now()")
_AUDIT = text(
    "SELECT audit_append('operator', 'bank.recover', 'timeline', "
    "jsonb_build_object('timeline', CAST(:before AS integer)), jsonb_build_object('timeline', CAST(:after AS integer)))"
)


@dataclass(frozen=True, slots=True)
class Recovery:
    """What was found. `accepted` and `current` are timelines; equal ones mean that nothing is closed."""

    accepted: int
    current: int
    #: the newest admission the ledger still knows, as text; None for none within a day
    newest: str | None
    #: broken invariants, each a line
    broken: tuple[str, ...]


async def recover(url: str, *, accept: bool) -> Recovery:
    """Look at the ledger, and with `accept` open admission on the server's timeline.

    `url`: as the owner of the tables. Raises `ConfigurationError` when an invariant is broken: then
    the ledger needs a person first.
    """
    engine = create_engine(
        url, pool_size=1, statement_timeout_ms=300_000, application_name="tollhouse-recover"
    )
    try:
        async with engine.begin() as db:
            accepted, current, newest = (await db.execute(_STANDING)).one()
            broken = tuple(" ".join(row) for row in await db.execute(_BROKEN))
            if accept and broken:
                raise ConfigurationError("the ledger is not whole: " + "; ".join(broken))
            if accept and accepted != current:
                await db.execute(_ACCEPT)
                await db.execute(_AUDIT, {"before": accepted, "after": current})
        return Recovery(accepted, current, None if newest is None else newest.isoformat(), broken)
    finally:
        await engine.dispose()
