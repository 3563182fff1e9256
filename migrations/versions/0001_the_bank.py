"""The directory, the bank and the ledger.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

from proxy.postgres.sqlfiles import run_files, run_script

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_DIRECTORY = """
CREATE TABLE directory_epoch (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  version bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 10);
INSERT INTO directory_epoch DEFAULT VALUES;

CREATE TABLE tenants (
  id uuid PRIMARY KEY,
  slug text NOT NULL UNIQUE,
  name text NOT NULL,
  plan text NOT NULL DEFAULT 'default',
  time_zone text NOT NULL DEFAULT 'UTC',
  status text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'suspended', 'deleted')),
  overrides jsonb NOT NULL DEFAULT '{}',
  version integer NOT NULL DEFAULT 1,
  created_at timestamptz NOT NULL DEFAULT now(),
  changed bigint NOT NULL DEFAULT 0
);
CREATE INDEX tenants_changed ON tenants (changed);

CREATE TABLE projects (
  id uuid PRIMARY KEY,
  tenant uuid NOT NULL REFERENCES tenants (id),
  slug text NOT NULL,
  name text NOT NULL,
  status text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'suspended', 'deleted')),
  overrides jsonb NOT NULL DEFAULT '{}',
  version integer NOT NULL DEFAULT 1,
  created_at timestamptz NOT NULL DEFAULT now(),
  changed bigint NOT NULL DEFAULT 0,
  UNIQUE (tenant, slug)
);
CREATE INDEX projects_changed ON projects (changed);

CREATE TABLE keys (
  id uuid PRIMARY KEY,
  tenant uuid NOT NULL REFERENCES tenants (id),
  project uuid REFERENCES projects (id),
  name text NOT NULL,
  status text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'disabled', 'revoked')),
  expires_at timestamptz,
  overrides jsonb NOT NULL DEFAULT '{}',
  version integer NOT NULL DEFAULT 1,
  created_at timestamptz NOT NULL DEFAULT now(),
  changed bigint NOT NULL DEFAULT 0
);
CREATE INDEX keys_tenant ON keys (tenant);
CREATE INDEX keys_changed ON keys (changed);

CREATE TABLE credentials (
  id uuid PRIMARY KEY,
  key uuid NOT NULL REFERENCES keys (id),
  bearer_digest bytea NOT NULL UNIQUE,
  bearer_prefix text NOT NULL,
  last4 text NOT NULL,
  pepper_id smallint NOT NULL,
  access_key_id text UNIQUE,
  sigv4_ciphertext bytea,
  data_key_id smallint,
  version integer NOT NULL DEFAULT 1,
  created_at timestamptz NOT NULL DEFAULT now(),
  expires_at timestamptz,
  revoked_at timestamptz,
  changed bigint NOT NULL DEFAULT 0
);
CREATE INDEX credentials_key ON credentials (key);
CREATE INDEX credentials_changed ON credentials (changed);

CREATE TABLE limits (
  id uuid PRIMARY KEY,
  scope text NOT NULL CHECK (scope IN ('tenant', 'project', 'key')),
  subject uuid NOT NULL,
  requests_per_minute integer CHECK (requests_per_minute >= 0),
  tokens_per_minute bigint CHECK (tokens_per_minute >= 0),
  burst_seconds integer NOT NULL DEFAULT 60 CHECK (burst_seconds > 0),
  concurrency integer CHECK (concurrency >= 0),
  models text[],
  mode text NOT NULL DEFAULT 'enforce' CHECK (mode IN ('enforce', 'observe')),
  version integer NOT NULL DEFAULT 1,
  created_at timestamptz NOT NULL DEFAULT now(),
  deleted_at timestamptz,
  changed bigint NOT NULL DEFAULT 0
);
CREATE INDEX limits_subject ON limits (subject) WHERE deleted_at IS NULL;
CREATE INDEX limits_changed ON limits (changed);

CREATE TABLE admins (
  id uuid PRIMARY KEY,
  name text NOT NULL,
  role text NOT NULL CHECK (role IN ('admin', 'auditor', 'tenant-admin')),
  tenant uuid REFERENCES tenants (id),
  digest bytea NOT NULL UNIQUE,
  created_at timestamptz NOT NULL DEFAULT now(),
  revoked_at timestamptz,
  CHECK ((role = 'tenant-admin') = (tenant IS NOT NULL))
);

CREATE TABLE audit (
  seq bigint PRIMARY KEY,
  at timestamptz NOT NULL,
  actor text NOT NULL,
  action text NOT NULL,
  object text NOT NULL,
  before jsonb,
  after jsonb,
  prev_hash bytea NOT NULL,
  hash bytea NOT NULL
);
CREATE INDEX audit_object ON audit (object, seq);

CREATE TABLE idempotency (
  principal text NOT NULL,
  key text NOT NULL,
  request_hash bytea NOT NULL,
  status integer,
  response jsonb,
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (principal, key)
);
"""

_BANK = """
CREATE TABLE budgets (
  id uuid PRIMARY KEY,
  scope text NOT NULL CHECK (scope IN ('tenant', 'project', 'key')),
  subject uuid NOT NULL,
  tenant uuid NOT NULL REFERENCES tenants (id),
  period text NOT NULL CHECK (period IN ('month', 'week', 'day', 'total')),
  time_zone text NOT NULL DEFAULT 'UTC',
  limit_nano bigint NOT NULL CHECK (limit_nano BETWEEN 0 AND 1000000000000000000),
  models integer[] CHECK (cardinality(models) > 0),
  on_short text NOT NULL DEFAULT 'reject' CHECK (on_short IN ('reject', 'clamp')),
  thresholds text[] NOT NULL DEFAULT '{0.5,0.8,1}',
  floor_output_tokens integer NOT NULL DEFAULT 1 CHECK (floor_output_tokens > 0),
  origin text,
  version integer NOT NULL DEFAULT 1,
  created_at timestamptz NOT NULL DEFAULT now(),
  deleted_at timestamptz,
  changed bigint NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX budgets_one_live ON budgets (scope, subject, period, coalesce(models, '{}'::integer[]))
  WHERE deleted_at IS NULL;
CREATE INDEX budgets_tenant ON budgets (tenant);
CREATE INDEX budgets_changed ON budgets (changed);

CREATE TABLE adjustments (
  id uuid PRIMARY KEY,
  budget uuid NOT NULL REFERENCES budgets (id),
  amount bigint NOT NULL CHECK (amount BETWEEN -1000000000000000000 AND 1000000000000000000 AND amount <> 0),
  until timestamptz,
  reason text NOT NULL,
  actor text NOT NULL DEFAULT '',
  created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX adjustments_budget ON adjustments (budget, created_at);

-- The hot rows: one per budget and period. No foreign key and no index on a column that changes, so
-- that every update is heap-only and takes no other lock. Here and in attempts one CHECK says what it can:
-- each is read and prepared anew by every statement that writes.
CREATE TABLE accounts (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  budget uuid NOT NULL,
  starts_at timestamptz NOT NULL,
  ends_at timestamptz NOT NULL CHECK (ends_at > starts_at),
  limit_target bigint NOT NULL,
  limit_effective bigint NOT NULL,
  reserved bigint NOT NULL DEFAULT 0,
  settled bigint NOT NULL DEFAULT 0,
  overrun bigint NOT NULL DEFAULT 0,
  boost_amounts bigint[] NOT NULL DEFAULT '{}',
  boost_untils timestamptz[] NOT NULL DEFAULT '{}',
  version bigint NOT NULL DEFAULT 1,
  CONSTRAINT accounts_never_over CHECK (reserved + settled <= limit_effective),
  CONSTRAINT accounts_not_negative CHECK (least(reserved, settled, overrun, limit_target) >= 0),
  CONSTRAINT accounts_boosts CHECK (cardinality(boost_amounts) = cardinality(boost_untils)),
  UNIQUE (budget, starts_at)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
        autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 20000,
        autovacuum_vacuum_cost_delay = 0);

CREATE TABLE attempts (
  attempt uuid NOT NULL,
  call uuid NOT NULL,
  tenant uuid NOT NULL,
  project uuid,
  key uuid NOT NULL,
  credential uuid NOT NULL,
  recorder uuid NOT NULL,
  admitted_at timestamptz NOT NULL,
  ceiling bigint NOT NULL,
  model integer NOT NULL,
  target integer NOT NULL,
  price integer NOT NULL,
  tags integer NOT NULL DEFAULT 0,
  operation smallint NOT NULL,
  state smallint NOT NULL DEFAULT 0,
  why smallint,
  extra_entries smallint NOT NULL DEFAULT 0,
  usage_exact boolean,
  holds bigint[] NOT NULL,
  finished_at timestamptz,
  cost bigint,
  upstream_cost bigint,
  saved bigint NOT NULL DEFAULT 0,
  price_final integer,
  input_tokens integer,
  output_tokens integer,
  cache_read_tokens integer,
  cache_write_5m_tokens integer,
  cache_write_1h_tokens integer,
  images integer,
  guardrail_units integer,
  status integer,
  latency_ms integer,
  first_byte_ms integer,
  upstream_request_id text,
  PRIMARY KEY (attempt),
  CONSTRAINT attempts_bounds CHECK (
    state BETWEEN 0 AND 4 AND ceiling <= 10000000000000000 AND least(ceiling, cost, upstream_cost, saved) >= 0
    AND greatest(cost, upstream_cost) <= 100000000000000000 AND length(upstream_request_id) <= 200)
) PARTITION BY RANGE (attempt);
-- For lists by tenant, in the order of attempts. An expression, so that no look-up by attempt can be
-- planned over it: on a partition that was empty then both indexes would cost the same.
CREATE INDEX attempts_tenant ON attempts (tenant, uuid_send(attempt));

CREATE TABLE entries (
  attempt uuid NOT NULL,
  slot smallint NOT NULL CHECK (slot >= 0),
  kind smallint NOT NULL CHECK (kind BETWEEN 1 AND 7),
  why smallint NOT NULL,
  amount bigint NOT NULL,
  upstream_amount bigint NOT NULL DEFAULT 0,
  at timestamptz NOT NULL,
  evidence text CHECK (length(evidence) <= 200),
  PRIMARY KEY (attempt, slot),
  CONSTRAINT entries_one_terminal CHECK ((slot = 0) = (kind <= 4)),
  CONSTRAINT entries_signs CHECK (CASE kind WHEN 5 THEN amount < 0 WHEN 6 THEN true ELSE amount >= 0 END)
) PARTITION BY RANGE (attempt);
CREATE UNIQUE INDEX entries_evidence ON entries (attempt, kind, evidence) WHERE slot > 0;
CREATE INDEX entries_ceilings ON entries (attempt) WHERE slot = 0 AND kind = 3;

CREATE TABLE sweep_mark (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  swept_to uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000'
);
INSERT INTO sweep_mark DEFAULT VALUES;

CREATE TABLE timeline (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  accepted integer NOT NULL,
  accepted_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE labels (
  id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  kind smallint NOT NULL,
  value text NOT NULL CHECK (length(value) <= 2000),
  UNIQUE (kind, value)
);

CREATE TABLE refusals (
  tenant uuid NOT NULL,
  bucket timestamptz NOT NULL,
  key uuid NOT NULL,
  reason text NOT NULL,
  model integer NOT NULL DEFAULT 0,
  count bigint NOT NULL CHECK (count > 0),
  last_message text NOT NULL DEFAULT '',
  PRIMARY KEY (tenant, bucket, key, reason, model)
);
"""

_IMMUTABLE = """
CREATE TRIGGER keep BEFORE UPDATE OR DELETE ON entries FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER keep_all BEFORE TRUNCATE ON entries FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER keep BEFORE UPDATE OR DELETE ON audit FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER keep_all BEFORE TRUNCATE ON audit FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
SELECT ensure_partitions(4);
INSERT INTO timeline (accepted) VALUES (current_timeline());
"""

_TABLES = (
    "refusals, labels, timeline, sweep_mark, entries, attempts, accounts, adjustments, budgets, "
    "idempotency, audit, admins, limits, credentials, keys, projects, tenants, directory_epoch"
)
_FUNCTIONS = (
    "grant_application, check_invariants, budget_standing, bank_amend, bank_states, bank_ceiling, bank_sweep, "
    "bank_record_hits, bank_settle_and_admit_swiftly, bank_callers, bank_settle_and_admit, partition_days_ahead, ensure_partitions, roll_periods, open_accounts, "
    "period_bounds, audit_first_bad, audit_append, audit_hash, refuse_change, adjustment_apply, budget_accounts, "
    "budget_guard, directory_stamp, may_spend, limit_at, limit_topped_up, uuid7_time, uuid7_floor, current_timeline"
)


def upgrade() -> None:
    run_script(_DIRECTORY)
    run_script(_BANK)
    run_files(
        "base",
        "immutable",
        "partitions",
        "periods",
        "directory",
        "bank",
        "swift",
        "hits",
        "sweep",
        "amend",
        "invariants",
        "roles",
    )
    run_script(_IMMUTABLE)


def downgrade() -> None:
    run_script(f"DROP TABLE {_TABLES} CASCADE;\nDROP FUNCTION {_FUNCTIONS} CASCADE;")
    # what the functions brought with them since; a database of an earlier release has none
    run_script("DROP FUNCTION IF EXISTS entry_corrects;\nDROP TYPE IF EXISTS swift_answer;")
