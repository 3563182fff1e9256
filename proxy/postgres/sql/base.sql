-- Small functions the rest is built from.

-- The smallest uuid whose first 48 bits are this moment in milliseconds: every UUIDv7 minted at or
-- after `moment` is >= it, every earlier one is < it.
CREATE OR REPLACE FUNCTION uuid7_floor(moment timestamptz) RETURNS uuid
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $body$
  SELECT (lpad(to_hex(floor(extract(epoch FROM moment) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
$body$;

-- The moment a UUIDv7 was minted, by the clock of who minted it.
CREATE OR REPLACE FUNCTION uuid7_time(id uuid) RETURNS timestamptz
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $body$
  SELECT to_timestamp(('x' || left(replace(id::text, '-', ''), 12))::bit(48)::bigint / 1000.0)
$body$;

-- The limit in force at `moment`: the target with every top-up that has not ended. Never negative.
CREATE OR REPLACE FUNCTION limit_at(target bigint, amounts bigint[], untils timestamptz[], moment timestamptz)
RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $body$
  SELECT CASE WHEN cardinality(amounts) = 0 THEN target ELSE
    greatest(0, target + coalesce((SELECT sum(b.amount) FROM unnest(amounts, untils) AS b(amount, until)
                                    WHERE b.until > moment), 0))::bigint END
$body$;

-- May this credential spend now? Also false when key, tenant or project are not the credential's own.
CREATE OR REPLACE FUNCTION may_spend(
  p_tenant uuid, p_project uuid, p_key uuid, p_credential uuid, moment timestamptz
) RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE AS $body$
  SELECT EXISTS (
    SELECT FROM credentials c
      JOIN keys k ON k.id = c.key
      JOIN tenants t ON t.id = k.tenant
      LEFT JOIN projects p ON p.id = k.project
     WHERE c.id = p_credential AND c.key = p_key AND k.tenant = p_tenant
       AND k.project IS NOT DISTINCT FROM p_project
       AND c.revoked_at IS NULL AND (c.expires_at IS NULL OR c.expires_at > moment)
       AND k.status = 'active' AND (k.expires_at IS NULL OR k.expires_at > moment)
       AND t.status = 'active' AND (k.project IS NULL OR p.status = 'active'))
$body$;
