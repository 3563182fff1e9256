"""What finance and operators read: usage by day, statements, alerts and webhooks.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

from alembic import op

from proxy.postgres.sqlfiles import run_files, run_script

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_USAGE = """
-- One row per tenant, local day and everything a report may group by. `month` is the partition of the
-- ledger that it sums, so that dropping one leaves rows that nothing can change any more.
CREATE TABLE usage_days (
  tenant uuid NOT NULL,
  day date NOT NULL,
  month date NOT NULL,
  project uuid NOT NULL,
  key uuid NOT NULL,
  model integer NOT NULL,
  target integer NOT NULL,
  tags integer NOT NULL,
  operation smallint NOT NULL,
  state smallint NOT NULL,
  attempts bigint NOT NULL,
  cost bigint NOT NULL,
  upstream_cost bigint NOT NULL,
  saved bigint NOT NULL,
  refunded bigint NOT NULL,
  adjusted bigint NOT NULL,
  overrun bigint NOT NULL,
  input_tokens bigint NOT NULL,
  output_tokens bigint NOT NULL,
  cache_read_tokens bigint NOT NULL,
  cache_write_tokens bigint NOT NULL,
  images bigint NOT NULL,
  guardrail_units bigint NOT NULL,
  PRIMARY KEY (tenant, day, month, project, key, model, target, tags, operation, state)
);

CREATE TABLE usage_dirty (
  tenant uuid NOT NULL,
  day date NOT NULL,
  month date NOT NULL,
  PRIMARY KEY (tenant, day, month)
);

CREATE TABLE usage_mark (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  rolled_to timestamptz NOT NULL DEFAULT '-infinity'
);
INSERT INTO usage_mark DEFAULT VALUES;

CREATE TABLE ledger_months (
  month date PRIMARY KEY,
  dropped_at timestamptz NOT NULL DEFAULT now(),
  attempts bigint NOT NULL,
  cost bigint NOT NULL,
  upstream_cost bigint NOT NULL
);

CREATE TABLE statements (
  tenant uuid NOT NULL REFERENCES tenants (id),
  month date NOT NULL,
  issued_at timestamptz NOT NULL DEFAULT now(),
  issued_by text NOT NULL,
  usage bigint NOT NULL,
  corrections bigint NOT NULL,
  total bigint NOT NULL,
  body jsonb NOT NULL,
  PRIMARY KEY (tenant, month)
);
CREATE TRIGGER keep BEFORE UPDATE OR DELETE ON statements FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- Entries are written in the order of their time, so a block-range index finds the new ones and costs
-- an insert nothing.
CREATE INDEX entries_at ON entries USING brin (at) WITH (autosummarize = on);
"""

_ALERTS = """
CREATE TABLE webhooks (
  id uuid PRIMARY KEY,
  tenant uuid REFERENCES tenants (id),
  name text NOT NULL,
  url text NOT NULL,
  format text NOT NULL DEFAULT 'json' CHECK (format IN ('json', 'slack')),
  events text[] NOT NULL,
  sealed bytea NOT NULL,
  status text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'disabled')),
  version integer NOT NULL DEFAULT 1,
  created_at timestamptz NOT NULL DEFAULT now(),
  deleted_at timestamptz
);

-- What is true now. A condition is told once when its row appears, and again only after it was false.
CREATE TABLE crossings (
  subject text NOT NULL,
  what text NOT NULL,
  since timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (subject, what)
);

CREATE TABLE alerts (
  id uuid PRIMARY KEY,
  kind text NOT NULL,
  tenant uuid,
  subject text NOT NULL,
  what text NOT NULL,
  at timestamptz NOT NULL DEFAULT now(),
  message text NOT NULL,
  body jsonb NOT NULL
);
CREATE INDEX alerts_tenant ON alerts (tenant, id);

CREATE TABLE outbox (
  id uuid PRIMARY KEY,
  webhook uuid NOT NULL REFERENCES webhooks (id),
  alert uuid NOT NULL REFERENCES alerts (id),
  tries integer NOT NULL DEFAULT 0,
  next_at timestamptz NOT NULL DEFAULT now(),
  done_at timestamptz,
  status text NOT NULL DEFAULT 'waiting' CHECK (status IN ('waiting', 'delivered', 'failed')),
  last_error text,
  UNIQUE (webhook, alert)
);
CREATE INDEX outbox_waiting ON outbox (next_at) WHERE status = 'waiting';
"""

_ADMINS = """
-- Which master key's pepper the digest was made with; null for keys older than this column.
ALTER TABLE admins ADD COLUMN pepper_id smallint;
"""

_TABLES = (
    "outbox, alerts, crossings, webhooks, statements, ledger_months, usage_mark, usage_dirty, usage_days"
)
_FUNCTIONS = "grant_desk, drop_ledger_month, ledger_month_sums, roll_usage, usage_stain, usage_recompute"
_FUNCTIONS_SINCE = "usage_advance, usage_doubt"  # a schema that never saw revision 0004 has not got them


def upgrade() -> None:
    run_script(_USAGE)
    run_script(_ALERTS)
    run_script(_ADMINS)
    run_files("usage", "retention", "desk", "roles")


def downgrade() -> None:
    op.execute("DROP INDEX entries_at")
    op.execute("ALTER TABLE admins DROP COLUMN pepper_id")
    run_script(f"DROP FUNCTION {_FUNCTIONS} CASCADE;\nDROP FUNCTION IF EXISTS {_FUNCTIONS_SINCE} CASCADE;")
    run_script(f"DROP TABLE {_TABLES} CASCADE;")
