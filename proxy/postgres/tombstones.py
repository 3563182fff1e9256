"""What is left of a deleted tenant: its slug, its calls and their money, under ids that tell nothing.

Removed are names, secrets, overrides, limits, budgets and webhooks, what its calls were tagged with, its
alerts and refusals. Entries of the ledger and of the audit trail are facts and stay; neither holds a
prompt, a secret or a tag.
"""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.domain.control import TenantRecord

_STATEMENTS = (
    "UPDATE tenants SET name = 'deleted', overrides = '{}' WHERE id = :tenant",
    "UPDATE projects SET name = 'deleted', overrides = '{}', status = 'deleted' WHERE tenant = :tenant",
    "UPDATE keys SET name = 'deleted', overrides = '{}', status = 'revoked' WHERE tenant = :tenant",
    """UPDATE credentials SET revoked_at = coalesce(revoked_at, now()), sigv4_ciphertext = NULL,
              bearer_digest = sha256(convert_to('deleted ' || id::text, 'UTF8')), bearer_prefix = '', last4 = ''
        WHERE key IN (SELECT id FROM keys WHERE tenant = :tenant)""",
    """UPDATE limits SET deleted_at = now() WHERE deleted_at IS NULL AND subject IN (
         SELECT CAST(:tenant AS uuid) UNION ALL SELECT id FROM projects WHERE tenant = :tenant
         UNION ALL SELECT id FROM keys WHERE tenant = :tenant)""",
    "UPDATE budgets SET deleted_at = now() WHERE tenant = :tenant AND deleted_at IS NULL",
    "UPDATE admins SET name = 'deleted', revoked_at = coalesce(revoked_at, now()) WHERE tenant = :tenant",
    "UPDATE webhooks SET deleted_at = coalesce(deleted_at, now()), sealed = '', url = '', name = 'deleted' WHERE tenant = :tenant",
    "DELETE FROM outbox o USING alerts a WHERE a.id = o.alert AND a.tenant = :tenant",
    "DELETE FROM alerts WHERE tenant = :tenant",
    "DELETE FROM refusals WHERE tenant = :tenant",
    "UPDATE attempts SET tags = 0 WHERE tenant = :tenant AND tags <> 0",
    """INSERT INTO usage_dirty (tenant, day, month)
       SELECT DISTINCT u.tenant, u.day, u.month FROM usage_days u
        WHERE u.tenant = :tenant AND u.tags <> 0
          AND NOT EXISTS (SELECT FROM ledger_months m WHERE m.month = u.month) ON CONFLICT DO NOTHING""",
)


async def erase(db: AsyncConnection, tenant: TenantRecord) -> None:
    """In the transaction that deletes the tenant. Days whose month was dropped keep their sums by tag."""
    await db.execute(text("SET LOCAL statement_timeout = '120s'"))
    for statement in _STATEMENTS:
        await db.execute(text(statement), {"tenant": tenant.id})
