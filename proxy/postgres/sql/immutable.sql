-- Entries and the audit trail are facts. Grants forbid the application to change them; these
-- triggers also stop whoever owns the tables from doing it by mistake.
CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger
LANGUAGE plpgsql AS $body$
BEGIN
  RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = '2F002';
END
$body$;

-- The audit trail is a hash chain: each hash covers the record and the hash before it. One writer
-- at a time; the lock falls with the transaction, so the trail has no gaps.
CREATE OR REPLACE FUNCTION audit_append(
  p_actor text, p_action text, p_object text, p_before jsonb, p_after jsonb
) RETURNS bigint LANGUAGE plpgsql AS $body$
DECLARE
  v_seq bigint;
  v_prev bytea;
  v_at timestamptz := clock_timestamp();
BEGIN
  PERFORM pg_advisory_xact_lock(7305804403);
  SELECT seq, hash INTO v_seq, v_prev FROM audit ORDER BY seq DESC LIMIT 1;
  v_seq := coalesce(v_seq, 0) + 1;
  v_prev := coalesce(v_prev, '\x'::bytea);
  INSERT INTO audit (seq, at, actor, action, object, before, after, prev_hash, hash)
  VALUES (v_seq, v_at, p_actor, p_action, p_object, p_before, p_after, v_prev,
          audit_hash(v_seq, v_at, p_actor, p_action, p_object, p_before, p_after, v_prev));
  RETURN v_seq;
END
$body$;

CREATE OR REPLACE FUNCTION audit_hash(
  p_seq bigint, p_at timestamptz, p_actor text, p_action text, p_object text, p_before jsonb, p_after jsonb, p_prev bytea
) RETURNS bytea LANGUAGE sql STABLE AS $body$
  SELECT sha256(p_prev || convert_to(jsonb_build_array(p_seq, (extract(epoch FROM p_at) * 1000000)::bigint,
                p_actor, p_action, p_object, p_before, p_after)::text, 'UTF8'))
$body$;

-- The first record that was edited, removed or reordered; null when the chain holds. A cut tail
-- shows only against a head that was kept elsewhere.
CREATE OR REPLACE FUNCTION audit_first_bad() RETURNS bigint LANGUAGE sql STABLE AS $body$
  SELECT min(seq) FROM (
    SELECT seq, prev_hash, hash, lag(hash, 1, '\x'::bytea) OVER w AS expected_prev,
           lag(seq, 1, 0::bigint) OVER w + 1 AS expected_seq,
           audit_hash(seq, at, actor, action, object, before, after, prev_hash) AS expected_hash
      FROM audit WINDOW w AS (ORDER BY seq)) AS c
   WHERE prev_hash <> expected_prev OR seq <> expected_seq OR hash <> expected_hash
$body$;
