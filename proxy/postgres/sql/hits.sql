-- Records answers served from the cache: attempts that are terminal from birth and cost nothing.
-- They show the usage of the original and what it would have cost (`saved`). A credential that may
-- not spend may not have hits either. Answers as in bank_settle_and_admit: 0, 1, 3, 4.
CREATE OR REPLACE FUNCTION bank_record_hits(
  a_attempt uuid[], a_call uuid[], a_tenant uuid[], a_project uuid[], a_key uuid[], a_credential uuid[],
  a_recorder uuid[], a_operation smallint[], a_model integer[], a_target integer[], a_price integer[],
  a_tags integer[], a_saved bigint[], a_input integer[], a_output integer[], a_cache_read integer[],
  a_write_5m integer[], a_write_1h integer[], a_images integer[], a_guardrail integer[], a_exact boolean[],
  a_status integer[], a_latency integer[]
) RETURNS TABLE (ord integer, answer smallint, state smallint, admitted_at_us bigint) LANGUAGE plpgsql
SET enable_seqscan TO off SET enable_hashjoin TO off SET enable_mergejoin TO off SET jit TO off
SET plan_cache_mode TO force_generic_plan SET lock_timeout TO '250ms'
AS $body$
#variable_conflict use_column
DECLARE
  v_now CONSTANT timestamptz := now();
  v_earliest CONSTANT uuid := uuid7_floor(v_now - interval '5 minutes');
  v_latest CONSTANT uuid := uuid7_floor(v_now + interval '5 minutes');
  v_answer smallint[];
  v_inserted uuid[];
BEGIN
  IF 0 > ANY (a_saved) OR 100000000000000000 < ANY (a_saved) THEN
    RAISE EXCEPTION 'an amount is out of bounds' USING ERRCODE = '22003';
  END IF;
  SELECT array_agg(q.answer ORDER BY q.ord) INTO v_answer
    FROM (
      SELECT o.ord, CASE WHEN a_attempt[o.ord] < v_earliest OR a_attempt[o.ord] >= v_latest THEN 4
                         WHEN NOT may_spend(c.tenant, c.project, c.key, c.credential, v_now) THEN 3
                         ELSE 0 END::smallint AS answer
        FROM (
          SELECT i.tenant, i.project, i.key, i.credential, array_agg(i.ord::integer) AS ords
            FROM unnest(a_tenant, a_project, a_key, a_credential) WITH ORDINALITY AS i(tenant, project, key, credential, ord)
           GROUP BY i.tenant, i.project, i.key, i.credential) AS c
        CROSS JOIN LATERAL unnest(c.ords) AS o(ord)) AS q;
  WITH taken AS (
    INSERT INTO attempts (attempt, call, tenant, project, key, credential, recorder, operation, model, target,
                          price, price_final, ceiling, tags, holds, admitted_at, finished_at, state, why, cost,
                          upstream_cost, saved, input_tokens, output_tokens, cache_read_tokens,
                          cache_write_5m_tokens, cache_write_1h_tokens, images, guardrail_units, usage_exact,
                          status, latency_ms, first_byte_ms)
    SELECT w.attempt, w.call, w.tenant, w.project, w.key, w.credential, w.recorder, w.operation, w.model, w.target,
           w.price, w.price, 0, w.tags, '{}', v_now, v_now, 4, 10, 0, 0, w.saved, w.input, w.output, w.cache_read,
           w.write_5m, w.write_1h, w.images, w.guardrail, w.exact, w.status, w.latency, w.latency
      FROM unnest(v_answer, a_attempt, a_call, a_tenant, a_project, a_key, a_credential, a_recorder, a_operation,
                  a_model, a_target, a_price, a_tags, a_saved, a_input, a_output, a_cache_read, a_write_5m,
                  a_write_1h, a_images, a_guardrail, a_exact, a_status, a_latency)
           AS w(answer, attempt, call, tenant, project, key, credential, recorder, operation, model, target, price,
                tags, saved, input, output, cache_read, write_5m, write_1h, images, guardrail, exact, status, latency)
     WHERE w.answer = 0 ORDER BY w.attempt
    ON CONFLICT (attempt) DO NOTHING RETURNING attempt),
  written AS (
    INSERT INTO entries (attempt, slot, kind, amount, upstream_amount, at, why)
    SELECT t.attempt, 0, 4, 0, 0, v_now, 10 FROM taken t)
  SELECT coalesce(array_agg(t.attempt), '{}') INTO v_inserted FROM taken t;
  RETURN QUERY
    SELECT w.ord::integer, CASE WHEN found.attempt IS NULL THEN w.answer ELSE 1::smallint END,
           coalesce(found.state, 4::smallint), (extract(epoch FROM coalesce(found.admitted_at, v_now)) * 1000000)::bigint
      FROM unnest(v_answer, a_attempt) WITH ORDINALITY AS w(answer, attempt, ord)
      LEFT JOIN LATERAL (
        SELECT a.attempt, a.state, a.admitted_at FROM attempts a
         WHERE a.attempt = w.attempt AND NOT w.attempt = ANY (v_inserted) OFFSET 0) AS found ON true;
END
$body$;
