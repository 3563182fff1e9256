"""Facts that nobody may change: entries and the audit trail, as the role the proxy runs as, and a trail
whose tail was cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from tests.conftest import APPLICATION, execute, run_async
from tests.security.raw import BODY, INVOKE
from tests.support.stack import Key, Proxy

FACTS = ("entries", "audit")


async def _refused(url: str, statement: str) -> str | None:
    db = await asyncpg.connect(url.replace("postgresql+asyncpg://", "postgresql://", 1))
    try:
        await db.execute(statement)
    except asyncpg.PostgresError as error:
        return type(error).__name__
    finally:
        await db.close()
    return None


@pytest.mark.parametrize("table", FACTS)
@pytest.mark.parametrize(
    "statement",
    ["UPDATE {} SET {} = {}", "DELETE FROM {}", "TRUNCATE {} CASCADE", "DROP TABLE {} CASCADE",
     "ALTER TABLE {} DISABLE TRIGGER ALL", "ALTER TABLE {} OWNER TO tollhouse_app", "CREATE RULE r AS ON INSERT TO {} DO INSTEAD NOTHING"],
)  # fmt: skip
def test_the_application_cannot_change_a_fact(
    stack: Proxy,
    key: Key,
    module_owner_url: str,
    as_role: Callable[[str, str], str],
    table: str,
    statement: str,
) -> None:
    assert stack.request("POST", INVOKE, BODY, key=key.bearer_token)[0] == 200
    column = "amount" if table == "entries" else "action"
    sql = statement.format(table, column, column)
    got = run_async(_refused(as_role(module_owner_url, APPLICATION), sql))
    assert got == "InsufficientPrivilegeError", (sql, got)


@pytest.mark.parametrize(
    "statement",
    ["CREATE TABLE mine (x int)", "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'", "SELECT pg_read_file('/etc/passwd')",
     "COPY (SELECT 1) TO PROGRAM 'id'", "SELECT pg_sleep(0) FROM pg_shadow", "CREATE EXTENSION dblink", "SET ROLE tollhouse_owner",
     "ALTER ROLE tollhouse_app SUPERUSER", "SELECT pg_terminate_backend(1), lo_import('/etc/passwd')"],
)  # fmt: skip
def test_the_application_is_nobody_in_its_database(
    stack: Proxy, module_owner_url: str, as_role: Callable[[str, str], str], statement: str
) -> None:
    assert run_async(_refused(as_role(module_owner_url, APPLICATION), statement)) is not None


def test_a_cut_tail_shows_against_a_head_that_was_kept(stack: Proxy, module_owner_url: str) -> None:
    """Edited, removed, reordered: the chain says where. Cut or restored: only a head from outside does."""
    for _ in range(3):
        stack.tenant()
    newest: dict[str, Any] = stack.admin("GET", "/audit?limit=1")["items"][0]
    head = f"{newest['seq']}:{newest['hash']}"
    assert stack.admin("GET", f"/audit/verify?head={head}") == {"intact": True, "first_bad": None}
    other = f"{newest['seq']}:{'0' * 64}"
    assert stack.admin("GET", f"/audit/verify?head={other}") == {"intact": False, "first_bad": newest["seq"]}
    cut = f"DELETE FROM audit WHERE seq >= {newest['seq']}"
    execute(
        module_owner_url,
        "ALTER TABLE audit DISABLE TRIGGER keep",
        cut,
        "ALTER TABLE audit ENABLE TRIGGER keep",
    )
    assert stack.admin("GET", "/audit/verify") == {
        "intact": True,
        "first_bad": None,
    }  # the chain alone is blind
    assert stack.admin("GET", f"/audit/verify?head={head}") == {"intact": False, "first_bad": newest["seq"]}
    stack.tenant()  # the number is taken again, by another record
    assert stack.admin("GET", f"/audit/verify?head={head}") == {"intact": False, "first_bad": newest["seq"]}
    for wrong in ("1", "x:y", f"{newest['seq']}:{'g' * 64}", "-1:" + "0" * 64, "9" * 30 + ":" + "0" * 64):
        assert stack.request("GET", f"/admin/v1/audit/verify?head={wrong}")[0] == 400


async def test_the_head_goes_to_the_log(module_stack: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    from proxy.background import HOUR_SECONDS, duties
    from proxy.postgres.engine import create_engine
    from proxy.postgres.keeper import Keeper
    from proxy.settings import Settings

    engine = create_engine(module_stack.database_url, pool_size=2)
    settings = Settings(master_key=module_stack.master_key, database_url=module_stack.database_url)
    try:
        (duty,) = [d for d in duties(settings, engine, None, Keeper(engine)) if d.name == "audit head"]  # type: ignore[arg-type]
        assert duty.every == HOUR_SECONDS
        with caplog.at_level("INFO"):
            await duty.act()
    finally:
        await engine.dispose()
    newest = module_stack.admin("GET", "/audit?limit=1")["items"][0]
    assert f"{newest['seq']}:{newest['hash']}" in caplog.text
