"""`tollhouse rewrap`, and files that are checked without a server."""

from __future__ import annotations

import argparse
import asyncio
import csv
import sys

from proxy import settings
from proxy.domain import focus
from proxy.errors import ConfigurationError
from proxy.keys import Keyring, parse_master_key
from proxy.postgres.engine import create_engine
from proxy.postgres.rotation import Rewrapped, rewrap


def run_rewrap(_: argparse.Namespace) -> int:
    """Seals every secret anew under the current master key."""
    loaded = settings.load()
    if not loaded.database_url or not loaded.master_key or not loaded.previous_master_key:
        raise ConfigurationError(
            "rewrap needs TOLLHOUSE_DATABASE_URL, TOLLHOUSE_MASTER_KEY and TOLLHOUSE_PREVIOUS_MASTER_KEY"
        )
    keyring = Keyring(
        parse_master_key(loaded.master_key),
        previous=parse_master_key(loaded.previous_master_key),
        environment=loaded.key_environment,
    )
    done = asyncio.run(_rewrap(loaded.database_url, keyring))
    print(
        f"{done.secrets} signing secrets, {done.webhooks} webhooks and {done.answers} kept answers are sealed anew"
    )
    if done.webhooks_lost:
        print(f"{done.webhooks_lost} webhooks have a secret that neither key opens; make them anew")
    left = done.bearers_left or done.admins_left
    print(
        f"{done.bearers_left} bearer tokens and {done.admins_left} admin keys still need the previous master key"
        f"{'; rotate the keys, make the admin keys anew' if left else ': it may be dropped'}"
    )
    return 0


async def _rewrap(url: str, keyring: Keyring) -> Rewrapped:
    engine = create_engine(url, pool_size=2, application_name="tollhouse-rewrap")
    try:
        return await rewrap(engine, keyring)
    finally:
        await engine.dispose()


def run_validate(options: argparse.Namespace) -> int:
    """Checks a FOCUS file."""
    with options.file.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        problems = focus.violations(reader.fieldnames or [], reader)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{options.file}: {'not ' if problems else ''}FOCUS {focus.VERSION}")
    return 1 if problems else 0
