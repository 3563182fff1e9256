"""After the master key was changed: what can be moved to the new one without anybody noticing.

The order: start every replica with the new master key and the old one as the previous; then
rewrap, which seals anew every access key pair, every webhook's secret and every answer that is kept for
a repeated request; then, once no bearer token and no admin key made under the old key is in use any more
(rotate and make anew), drop the previous key. Bearer tokens and admin keys cannot be moved: only their digests are kept.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from proxy.domain.delivery import webhook_context
from proxy.keys import Keyring, Place, SealError
from proxy.postgres import admins, issued
from proxy.postgres.control import audit, writing
from proxy.postgres.desk_tables import Webhook
from proxy.postgres.tables import IdempotencyRecord as Answer

_BATCH = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrapped:
    """What was sealed anew. `bearers_left` tokens and `admins_left` admin keys still need the previous
    master key; when both are 0 it may be dropped. `webhooks_lost` have a secret that neither key opens: they have to be made anew.
    """

    secrets: int
    bearers_left: int
    admins_left: int = 0
    webhooks: int = 0
    webhooks_lost: int = 0
    answers: int = 0


async def rewrap(engine: AsyncEngine, keyring: Keyring) -> Rewrapped:
    """Seal everything that lives under the current master key. May be stopped and run again.

    Raises `SealError` for a signing secret that neither master key opens; what was done before stays.
    """
    secrets = await _rewrap_secrets(engine, keyring)
    webhooks, lost = await _rewrap_webhooks(engine, keyring)
    answers = await _rewrap_answers(engine, keyring)
    async with engine.connect() as db:
        bearers = await issued.under_other_peppers(db, keyring.generation)
        people = await admins.under_other_peppers(db, keyring.generation)
    return Rewrapped(
        secrets=secrets,
        bearers_left=bearers,
        admins_left=people,
        webhooks=webhooks,
        webhooks_lost=lost,
        answers=answers,
    )


async def _rewrap_secrets(engine: AsyncEngine, keyring: Keyring) -> int:
    done = 0
    while True:
        async with writing(engine) as db:
            batch = await issued.sealed_elsewhere(db, keyring.generation, limit=_BATCH)
            for one in batch:
                place = Place(tenant=one.tenant, key=one.key, credential=one.credential, version=1)
                sealed = keyring.rewrap(one.sealed, place)
                await issued.replace_sealed(db, one.credential, sealed, keyring.generation)
            if batch:
                after = {"secrets": len(batch), "data_key_id": keyring.generation}
                await audit(db, "operator", "keys.rewrap", "keys", after=after)
        done += len(batch)
        if len(batch) < _BATCH:
            return done


async def _rewrap_webhooks(engine: AsyncEngine, keyring: Keyring) -> tuple[int, int]:
    """How many were sealed anew, and how many open no more."""
    done, lost, after = 0, 0, UUID(int=0)
    while True:
        async with writing(engine) as db:
            batch = await _webhooks(db, after)
            moved = 0
            for ident, sealed in batch:
                fresh = _resealed(keyring, sealed, webhook_context(ident))
                lost += fresh is None
                if fresh:
                    await db.execute(update(Webhook).where(Webhook.id == ident).values(sealed=fresh))
                    moved += 1
            if moved:
                told = {"webhooks": moved, "data_key_id": keyring.generation}
                await audit(db, "operator", "webhooks.rewrap", "webhooks", after=told)
        done += moved
        if len(batch) < _BATCH:
            return done, lost
        after = batch[-1][0]


async def _webhooks(db: AsyncConnection, after: UUID) -> Sequence[Any]:
    """The next live ones; locked until the transaction ends."""
    live = select(Webhook.id, Webhook.sealed).where(Webhook.deleted_at.is_(None), Webhook.id > after)
    locked = live.order_by(Webhook.id).limit(_BATCH).with_for_update(key_share=True)
    return (await db.execute(locked)).all()


async def _rewrap_answers(engine: AsyncEngine, keyring: Keyring) -> int:
    """Answers to requests that may be repeated; one that opens no more is left to the day it lives."""
    done, after = 0, ("", "")
    while True:
        async with writing(engine) as db:
            waiting = select(Answer.principal, Answer.key, Answer.response).where(
                Answer.response.is_not(None), tuple_(Answer.principal, Answer.key) > after
            )
            ordered = waiting.order_by(Answer.principal, Answer.key).limit(_BATCH).with_for_update()
            batch = (await db.execute(ordered)).all()
            for principal, key, response in batch:
                fresh = _resealed(keyring, base64.b64decode(response["sealed"]), f"{principal}|{key}")
                if fresh:
                    mine = (Answer.principal == principal, Answer.key == key)
                    kept = {"sealed": base64.b64encode(fresh).decode("ascii")}
                    await db.execute(update(Answer).where(*mine).values(response=kept))
                    done += 1
        if len(batch) < _BATCH:
            return done
        after = (batch[-1][0], batch[-1][1])


def _resealed(keyring: Keyring, sealed: bytes, context: str) -> bytes | None:
    """The same under the current key: empty when it already is, None when neither key opens it."""
    if keyring.is_current(sealed):
        return b""
    try:
        return keyring.seal_answer(keyring.unseal_answer(sealed, context), context)
    except SealError:
        return None
