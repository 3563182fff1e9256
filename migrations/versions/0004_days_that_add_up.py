"""A round of reports costs what happened since the last one.

A day that had any new entry was summed again whole: with a million calls a day a second and a half, every time. Calls are
now added to their day when the mark passes them; only days with corrections are summed again. The tables are the same.

Days that were summed before may hold calls that the mark has not passed: they are summed once more.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

from proxy.postgres.sqlfiles import run_files, run_script

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

#: waits for a worker's round to end, and holds the next one back
_ALONE = "SELECT pg_advisory_xact_lock(7305804404);"
_WITHOUT = "DROP FUNCTION IF EXISTS usage_stain(), usage_recompute(uuid, date, date);"
_STAIN = """
INSERT INTO usage_dirty (tenant, day, month)
SELECT DISTINCT t.tenant, (t.admitted_at AT TIME ZONE n.time_zone)::date,
       date_trunc('month', uuid7_time(t.attempt) AT TIME ZONE 'UTC')::date
  FROM usage_mark m
  JOIN entries e ON e.at > m.rolled_to
  JOIN attempts t ON t.attempt = e.attempt
  JOIN tenants n ON n.id = t.tenant
 WHERE isfinite(m.rolled_to)
ON CONFLICT DO NOTHING;
"""


def upgrade() -> None:
    run_script(_ALONE + "\n" + _WITHOUT)
    run_files("usage")
    run_script(_STAIN)


def downgrade() -> None:
    """The functions stay: they keep the days right for every release that reads them."""
