"""The SQL of this package: functions live in `sql/*.sql`, to be read and reviewed as SQL.

Every file is idempotent (`CREATE OR REPLACE`), so a migration that changes one runs it again whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from alembic import op

SQL_DIR = Path(__file__).parent / "sql"


def statements(script: str) -> Iterator[str]:
    """The statements of a script; a semicolon at a line's end closes one, unless within $body$.
    The driver prepares what it runs and so takes one statement at a time.
    """
    lines: list[str] = []
    quoted = False
    for line in script.splitlines():
        if line.count("$body$") % 2:
            quoted = not quoted
        lines.append(line)
        if not quoted and line.rstrip().endswith(";") and not line.lstrip().startswith("--"):
            yield "\n".join(lines)
            lines = []
    rest = "\n".join(lines).strip()
    if any(line.strip() and not line.lstrip().startswith("--") for line in lines):
        yield rest


def run_script(script: str) -> None:
    """Within a migration: run a script of several statements."""
    connection = op.get_bind()
    for statement in statements(script):
        connection.exec_driver_sql(statement)


def run_files(*names: str) -> None:
    """Within a migration: run the named files of `sql/`, in that order."""
    connection = op.get_bind()
    connection.exec_driver_sql("SET LOCAL check_function_bodies = off")
    for name in names:
        run_script((SQL_DIR / f"{name}.sql").read_text(encoding="utf-8"))
