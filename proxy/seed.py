"""The demo tenant of `tollhouse run`: one tenant on plan `default`, one key, kept in a file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import UUID

from proxy.clock import uuid7
from proxy.keys import Keyring, Place, parse_master_key
from proxy.postgres import issued, tenants
from proxy.postgres.control import MissingError, writing
from proxy.postgres.engine import create_engine
from proxy.settings import Settings

TENANT = "demo"


@dataclass(frozen=True, slots=True)
class DemoKey:
    """The demo key with its secrets, which only the file keeps."""

    id: str
    bearer_token: str
    aws_access_key_id: str
    aws_secret_access_key: str


async def seed_demo(settings: Settings, path: Path) -> DemoKey:
    """The kept key when it is still good in this database, else a new one."""
    from proxy.runner import write_private  # noqa: PLC0415 (the runner imports this module)

    engine = create_engine(settings.database_url, pool_size=2)
    try:
        async with writing(engine) as db:
            try:
                tenant = (await tenants.get_tenant(db, TENANT)).id
            except MissingError:
                tenant = uuid7()
                await tenants.insert_tenant(
                    db, id=tenant, slug=TENANT, name="Demo", plan="default", time_zone="UTC", overrides={}
                )
            if path.is_file():
                kept = DemoKey(**json.loads(path.read_text(encoding="utf-8")))
                try:
                    if (await issued.get_key(db, UUID(kept.id))).status == "active":
                        return kept
                except MissingError:
                    pass
            key = uuid7()
            await issued.insert_key(
                db, id=key, tenant=tenant, project=None, name="demo", expires_at=None, overrides={}
            )
            keyring = Keyring(parse_master_key(settings.master_key), environment=settings.key_environment)
            bearer, pair, credential = keyring.mint_bearer(), keyring.mint_access_key(), uuid7()
            place = Place(tenant=tenant, key=key, credential=credential, version=1)
            await issued.insert_credential(
                db,
                key,
                issued.NewCredential(
                    id=credential,
                    bearer_digest=bearer.digest,
                    bearer_prefix=bearer.prefix,
                    last4=bearer.last4,
                    pepper_id=bearer.pepper_id,
                    access_key_id=pair.id,
                    sigv4_ciphertext=keyring.seal(pair.secret, place),
                    data_key_id=keyring.generation,
                ),
            )
        demo = DemoKey(str(key), bearer.token, pair.id, pair.secret)
        write_private(path, json.dumps(asdict(demo)))
        return demo
    finally:
        await engine.dispose()
