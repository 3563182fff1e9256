-- Small functions the rest is built from. Those on the hot path are PL/pgSQL, whose plans are kept, or
-- SQL that is a plain expression, which is inlined; any other SQL function is planned at each call.

-- The smallest uuid whose first 48 bits are this moment in milliseconds: every UUIDv7 minted at or
-- after `moment` is >= it, every earlier one is < it.
CREATE OR REPLACE FUNCTION uuid7_floor(moment timestamptz) RETURNS uuid
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $body$
BEGIN
  RETURN lpad(to_hex(floor(extract(epoch FROM moment) * 1000)::bigint), 12, '0') || '00000000000000000000';
END
$body$;

-- The moment a UUIDv7 was minted, by the clock of who minted it.
CREATE OR REPLACE FUNCTION uuid7_time(id uuid) RETURNS timestamptz
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $body$
  SELECT to_timestamp(('x' || left(replace(id::text, '-', ''), 12))::bit(48)::bigint / 1000.0)
$body$;

-- The limit in force at `moment`: the target with every top-up that has not ended. Never negative.
CREATE OR REPLACE FUNCTION limit_at(target bigint, amounts bigint[], untils timestamptz[], moment timestamptz)
RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $body$
  SELECT CASE WHEN cardinality(amounts) = 0 THEN target ELSE limit_topped_up(target, amounts, untils, moment) END
$body$;

CREATE OR REPLACE FUNCTION limit_topped_up(target bigint, amounts bigint[], untils timestamptz[], moment timestamptz)
RETURNS bigint LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $body$
BEGIN
  RETURN greatest(0, target + coalesce((SELECT sum(b.amount) FROM unnest(amounts, untils) AS b(amount, until)
                                         WHERE b.until > moment), 0))::bigint;
END
$body$;

-- May this credential spend now? Also false when key, tenant or project are not the credential's own.
-- OFFSET 0 keeps each look-up one by primary key, whatever the statistics say (see bank.sql).
CREATE OR REPLACE FUNCTION may_spend(
  p_tenant uuid, p_project uuid, p_key uuid, p_credential uuid, moment timestamptz
) RETURNS boolean LANGUAGE plpgsql STABLE PARALLEL SAFE AS $body$
BEGIN
  RETURN EXISTS (
    SELECT FROM (SELECT * FROM credentials WHERE id = p_credential OFFSET 0) AS c
      CROSS JOIN LATERAL (SELECT * FROM keys WHERE id = c.key OFFSET 0) AS k
      CROSS JOIN LATERAL (SELECT * FROM tenants WHERE id = k.tenant OFFSET 0) AS t
      LEFT JOIN LATERAL (SELECT * FROM projects WHERE id = k.project OFFSET 0) AS p ON true
     WHERE c.key = p_key AND k.tenant = p_tenant AND k.project IS NOT DISTINCT FROM p_project
       AND c.revoked_at IS NULL AND (c.expires_at IS NULL OR c.expires_at > moment)
       AND k.status = 'active' AND (k.expires_at IS NULL OR k.expires_at > moment)
       AND t.status = 'active' AND (k.project IS NULL OR p.status = 'active'));
END
$body$;

-- The server's timeline: another one means that a standby was promoted or a backup restored, and
-- that what was committed last may be gone.
CREATE OR REPLACE FUNCTION current_timeline() RETURNS integer LANGUAGE sql STABLE AS $body$
  SELECT ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::integer
$body$;

-- Whether an entry after the terminal one is sound: a REFUND lowers, an ADJUST does either, an OVERRUN raises. The
-- CHECK of `entries` asks it, so that what terminal entries are checked for stays short (see migration 0003).
CREATE OR REPLACE FUNCTION entry_corrects(slot smallint, kind smallint, amount bigint, evidence text)
RETURNS boolean LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $body$
BEGIN
  RETURN slot > 0 AND CASE kind WHEN 5 THEN amount < 0 WHEN 6 THEN true WHEN 7 THEN amount >= 0 ELSE false END
         AND coalesce(length(evidence) <= 200, true);
END
$body$;
