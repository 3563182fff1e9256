"""Brings a database to a revision of the schema. Synchronous: called by the CLI and by tests.

Only one runner migrates at a time (an advisory lock); a second one waits and finds nothing to do.
Run as the owner of the tables. `application_role`, where the server has it, receives the grants of
the running proxy: it may add entries and audit records, never change them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import pool, text
from sqlalchemy.ext.asyncio import create_async_engine

from proxy.errors import ConfigurationError
from proxy.postgres.engine import normalized

T = TypeVar("T")
#: advisory lock of whoever changes the schema or its grants
MIGRATION_LOCK = 7305804400
#: alembic keeps its context in module globals: one migration at a time in a process, too
_ONE_AT_A_TIME = threading.Lock()
_PACKAGE = Path(__file__).resolve().parent.parent


def migrations_dir() -> Path:
    """Inside the wheel, or next to the package in a checkout. Raises ConfigurationError for neither."""
    for candidate in (_PACKAGE / "_data" / "migrations", _PACKAGE.parent / "migrations"):
        if (candidate / "env.py").is_file():
            return candidate
    raise ConfigurationError("the migrations were not installed with the package")


APPLICATION_ROLE = "tollhouse_app"


def upgrade(url: str, revision: str = "head", *, application_role: str = APPLICATION_ROLE) -> None:
    """Raises what the driver raises when the server is away or a lock is not free within 5 s; then
    nothing has changed.
    """
    _detached(lambda: command.upgrade(_config(url), revision))
    _detached(lambda: asyncio.run(_grant(url, application_role)))


def downgrade(url: str, revision: str) -> None:
    """Drops what newer revisions made, their data with it."""
    _detached(lambda: command.downgrade(_config(url), revision))


def head() -> str:
    """The newest revision this package knows."""
    return ScriptDirectory(str(migrations_dir())).get_current_head() or ""


def current(url: str) -> str | None:
    """The revision of the database, None for an empty one."""
    return _detached(lambda: asyncio.run(_current(url)))


def _config(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations_dir()).replace("%", "%%"))
    shown = normalized(url).render_as_string(hide_password=False)
    config.set_main_option("sqlalchemy.url", shown.replace("%", "%%"))
    return config


async def _grant(url: str, role: str) -> None:
    engine = create_async_engine(normalized(url), poolclass=pool.NullPool)
    try:
        async with engine.begin() as connection:
            await connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
            await connection.execute(
                text("SELECT grant_application(rolname) FROM pg_roles WHERE rolname = :role"), {"role": role}
            )
    finally:
        await engine.dispose()


async def _current(url: str) -> str | None:
    engine = create_async_engine(normalized(url), poolclass=pool.NullPool)
    try:
        async with engine.connect() as connection:
            known = await connection.scalar(text("SELECT to_regclass('alembic_version') IS NOT NULL"))
            if not known:
                return None
            version = await connection.scalar(text("SELECT version_num FROM alembic_version"))
            return str(version) if version is not None else None
    finally:
        await engine.dispose()


def _detached(work: Callable[[], T]) -> T:
    """Run in a thread of its own, so that it also works where an event loop is running."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            with _ONE_AT_A_TIME:
                outcome.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="migrate")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]
