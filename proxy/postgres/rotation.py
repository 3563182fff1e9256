"""After the master key was changed: what can be moved to the new one without anybody noticing.

The order: start every replica with the new master key and the old one as the previous; then
rewrap, which seals every access key pair anew; then, once no bearer token made under the old key is
in use any more (rotate those keys), drop the previous key. Bearer tokens cannot be moved: only their
digests are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncEngine

from proxy.keys import Keyring, Place
from proxy.postgres import issued
from proxy.postgres.control import audit, writing

_BATCH = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrapped:
    """`bearers_left` tokens still need the previous master key; at 0 it may be dropped."""

    secrets: int
    bearers_left: int


async def rewrap(engine: AsyncEngine, keyring: Keyring) -> Rewrapped:
    """Seal every live signing secret under the current master key. May be stopped and run again.

    Raises `SealError` for a secret that neither master key opens; what was done before stays.
    """
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
            break
    async with engine.connect() as db:
        return Rewrapped(secrets=done, bearers_left=await issued.under_other_peppers(db, keyring.generation))
