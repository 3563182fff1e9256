"""Budgets: reads and writes of the control plane.

What a budget counts is fixed for its life. Its limit, its thresholds and what happens when it runs
short may change; adjustments add to the limit for a while. The accounts behind it are the bank's own:
triggers keep them in step, in the same transaction. Money is integer nano-dollars.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import func, insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.domain.control import AdjustmentRecord, BudgetRecord, MissingError, NewBudget, ScopeRef
from proxy.ports import MODEL
from proxy.postgres import scopes
from proxy.postgres.control import check_version, conflict_or
from proxy.postgres.tables import Adjustment, Budget

_SELECT = f"""
    SELECT x.id, {scopes.NAME} AS scope, x.subject, x.tenant, x.period, x.time_zone, x.limit_nano,
           (SELECT array_agg(l.value ORDER BY l.value) FROM labels l WHERE l.id = ANY (x.models)) AS models,
           x.on_short, x.thresholds, x.floor_output_tokens, x.origin, x.version, x.created_at,
           a.starts_at, nullif(a.ends_at, 'infinity') AS ends_at,
           coalesce(limit_at(a.limit_target, a.boost_amounts, a.boost_untils, now()), 0) AS effective_nano,
           coalesce(a.settled, 0) AS settled, coalesce(a.reserved, 0) AS reserved,
           coalesce(a.overrun, 0) AS overrun
      FROM budgets x
      JOIN tenants t ON t.id = x.tenant
      LEFT JOIN projects p ON x.scope = 'project' AND p.id = x.subject
      LEFT JOIN LATERAL (SELECT * FROM accounts y WHERE y.budget = x.id AND y.starts_at <= now()
                            AND y.ends_at > now() ORDER BY y.starts_at DESC LIMIT 1) a ON true
     WHERE x.deleted_at IS NULL AND t.status <> 'deleted'"""  # noqa: S608 (constants only)


async def insert_budget(db: AsyncConnection, ident: UUID, scope: ScopeRef, new: NewBudget) -> BudgetRecord:
    """Its accounts are opened in the same transaction, in the tenant's time zone.

    Raises `ConflictError` when a live budget has the same scope, period and models.
    """
    models = None if new.models is None else await _label_ids(db, new.models)
    statement = insert(Budget).values(
        id=ident,
        scope=scope.kind,
        subject=scope.subject,
        tenant=scope.tenant,
        time_zone=scope.time_zone,
        period=new.period,
        limit_nano=new.limit_nano,
        models=models,
        on_short=new.on_short,
        floor_output_tokens=new.floor_output_tokens,
        thresholds=list(new.thresholds),
        origin=new.origin,
    )
    try:
        await db.execute(statement)
    except IntegrityError as error:
        message = f"{scope.name} has a budget per {new.period} for these models already; change that one"
        raise conflict_or(error, message) from error
    return await get_budget(db, ident)


async def get_budget(db: AsyncConnection, ident: UUID) -> BudgetRecord:
    """Raises `MissingError`."""
    row = (await db.execute(text(_SELECT + " AND x.id = :id"), {"id": ident})).mappings().one_or_none()
    if row is None:
        raise MissingError("budget")
    return BudgetRecord(**row)


async def lock_budget(db: AsyncConnection, ident: UUID, *, version: int | None) -> BudgetRecord:
    """For a change. Raises `MissingError` or `VersionError`."""
    statement = select(Budget.version).where(Budget.id == ident, Budget.deleted_at.is_(None))
    found = await db.scalar(statement.with_for_update(key_share=True))
    if found is None:
        raise MissingError("budget")
    check_version(found, version)
    return await get_budget(db, ident)


async def list_budgets(
    db: AsyncConnection,
    *,
    tenant: UUID | None = None,
    subjects: Sequence[UUID] | None = None,
    after: UUID | None = None,
    limit: int,
) -> list[BudgetRecord]:
    """In the order in which they were made."""
    statement = _SELECT
    parameters: dict[str, Any] = {"limit": limit}
    wanted = (
        ("x.tenant = :tenant", "tenant", tenant),
        ("x.subject = ANY (:subjects)", "subjects", None if subjects is None else list(subjects)),
        ("x.id > :after", "after", after),
    )
    for condition, name, value in wanted:
        if value is not None:
            statement += f" AND {condition}"
            parameters[name] = value
    rows = await db.execute(text(statement + " ORDER BY x.id LIMIT :limit"), parameters)
    return [BudgetRecord(**row) for row in rows.mappings()]


async def update_budget(db: AsyncConnection, ident: UUID, changes: Mapping[str, Any]) -> BudgetRecord:
    """Change a locked budget. A limit below what is committed holds back new calls and breaks nothing."""
    await db.execute(update(Budget).where(Budget.id == ident).values(**changes))
    return await get_budget(db, ident)


async def delete_budget(db: AsyncConnection, ident: UUID) -> None:
    """End a locked budget. Calls that hold money in it still settle there."""
    await db.execute(update(Budget).where(Budget.id == ident).values(deleted_at=func.now()))


async def insert_adjustment(
    db: AsyncConnection,
    *,
    ident: UUID,
    budget: UUID,
    amount: int,
    until: dt.datetime | None,
    reason: str,
    actor: str,
) -> AdjustmentRecord:
    """Applies it to the accounts in the same transaction."""
    columns = [getattr(Adjustment, name) for name in AdjustmentRecord.__dataclass_fields__]
    values = {
        "id": ident,
        "budget": budget,
        "amount": amount,
        "until": until,
        "reason": reason,
        "actor": actor,
    }
    row = (await db.execute(insert(Adjustment).values(**values).returning(*columns))).mappings().one()
    return AdjustmentRecord(**row)


async def list_adjustments(
    db: AsyncConnection, budget: UUID, *, after: UUID | None, limit: int
) -> list[AdjustmentRecord]:
    """In the order in which they were made."""
    columns = [getattr(Adjustment, name) for name in AdjustmentRecord.__dataclass_fields__]
    statement = select(*columns).where(Adjustment.budget == budget).order_by(Adjustment.id).limit(limit)
    if after is not None:
        statement = statement.where(Adjustment.id > after)
    return [AdjustmentRecord(**row) for row in (await db.execute(statement)).mappings()]


async def materialise(db: AsyncConnection, ident: UUID, scope: ScopeRef, new: NewBudget) -> UUID | None:
    """Give a scope the budget of a plan's template, unless it has one like it.

    One that came from a template before is raised to the template's limit, never lowered; one that an
    administrator made is left alone. Returns the budget that was made or raised, None for neither.
    """
    models = None if new.models is None else await _label_ids(db, new.models)
    found = await db.execute(
        text(
            """SELECT id, origin, limit_nano FROM budgets
                WHERE scope = :scope AND subject = :subject AND period = :period AND deleted_at IS NULL
                  AND coalesce(models, '{}') = coalesce(CAST(:models AS integer[]), '{}')
                  FOR NO KEY UPDATE"""
        ),
        {"scope": scope.kind, "subject": scope.subject, "period": new.period, "models": models},
    )
    like = found.mappings().one_or_none()
    if like is None:
        return (await insert_budget(db, ident, scope, new)).id
    if like["origin"] is None or like["limit_nano"] >= new.limit_nano:
        return None
    await update_budget(db, like["id"], {"limit_nano": new.limit_nano, "origin": new.origin})
    return UUID(str(like["id"]))


async def _label_ids(db: AsyncConnection, models: Sequence[str]) -> list[int]:
    """Ids of the models' labels, made where there are none yet; sorted as the table keeps them."""
    names = sorted(set(models))
    await db.execute(
        text(
            "INSERT INTO labels (kind, value) SELECT :kind, m FROM unnest(CAST(:names AS text[])) AS m "
            "ON CONFLICT DO NOTHING"
        ),
        {"kind": MODEL, "names": names},
    )
    found = await db.scalars(
        text("SELECT id FROM labels WHERE kind = :kind AND value = ANY (:names) ORDER BY id"),
        {"kind": MODEL, "names": names},
    )
    return list(found)
