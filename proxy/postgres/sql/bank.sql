-- The bank: resolves a batch of attempts and takes a batch of reservations, in that order, in one
-- transaction. Uuids and bounded integers only, except Bedrock's own request id.
--
-- Promises
--   * Admission raises `reserved` in every account that applies, or in none, and then only together
--     with the attempt's row: whoever holds money has a row that says where.
--   * The first terminal entry wins. A later POST can only lower a CEILING.
--   * One order of locks for everybody: accounts by id, then attempts by id. An account row is
--     written once per call, whatever the batch holds.
--   * No savepoints: what does not fit is computed from the locked rows, not caught.
--   * An attempt may stand in each half once; bank.py splits a batch in which it stands twice.
--
-- Either half may be left out. With skip_locked it waits for no account; attempts whose accounts are busy are answered BUSY.
--
-- Answers of admissions (part 'a'): 0 OK, 1 DUPLICATE, 2 DENIED, 3 REVOKED, 4 STALE,
--   5 UNAVAILABLE (a live budget has no current account: nobody may spend on it unseen), 6 BUSY,
--   7 CLOSED (the server's timeline is not the accepted one: commits may be lost, nothing is admitted).
-- Answers of settlements (part 's'): 0 SETTLED, 1 ALREADY, 2 REFUNDED, 3 UNKNOWN, 4 REFUSED, 5 BUSY.
--
-- Plans are made once and must not depend on how large the tables were then: scans are by index
-- (the settings); a look-up by id is a LATERAL subquery that cannot be flattened into a join, so the few
-- ids always drive; an UPDATE names its ids as an array and takes its values out of arrays by place
-- (width_bucket in a sorted array is a binary search), so it has nothing to join.
CREATE OR REPLACE FUNCTION bank_settle_and_admit(
  s_attempt uuid[] DEFAULT '{}', s_state smallint[] DEFAULT '{}', s_why smallint[] DEFAULT '{}',
  s_cost bigint[] DEFAULT '{}', s_upstream bigint[] DEFAULT '{}',
  s_input integer[] DEFAULT '{}', s_output integer[] DEFAULT '{}', s_cache_read integer[] DEFAULT '{}',
  s_write_5m integer[] DEFAULT '{}', s_write_1h integer[] DEFAULT '{}',
  s_images integer[] DEFAULT '{}', s_guardrail integer[] DEFAULT '{}', s_exact boolean[] DEFAULT '{}',
  s_price integer[] DEFAULT '{}', s_request text[] DEFAULT '{}',
  s_status integer[] DEFAULT '{}', s_latency integer[] DEFAULT '{}', s_first_byte integer[] DEFAULT '{}',
  s_recorder uuid[] DEFAULT '{}',
  a_attempt uuid[] DEFAULT '{}', a_call uuid[] DEFAULT '{}', a_tenant uuid[] DEFAULT '{}',
  a_project uuid[] DEFAULT '{}', a_key uuid[] DEFAULT '{}', a_credential uuid[] DEFAULT '{}',
  a_recorder uuid[] DEFAULT '{}', a_operation smallint[] DEFAULT '{}', a_model integer[] DEFAULT '{}',
  a_target integer[] DEFAULT '{}', a_price integer[] DEFAULT '{}',
  a_ceiling bigint[] DEFAULT '{}', a_tags integer[] DEFAULT '{}', a_floor bigint[] DEFAULT '{}',
  skip_locked boolean DEFAULT false
) RETURNS TABLE (
  part text, ord integer, answer smallint, state smallint, budget uuid, settled bigint, reserved bigint,
  limit_nano bigint, resets_at bigint, admitted_at_us bigint, overrun bigint, budgets uuid[], clamp_floor integer
) LANGUAGE plpgsql
SET enable_seqscan TO off SET enable_hashjoin TO off SET enable_mergejoin TO off SET jit TO off
SET plan_cache_mode TO force_generic_plan SET lock_timeout TO '250ms'
AS $body$
#variable_conflict use_column
DECLARE
  v_now CONSTANT timestamptz := now();
  v_earliest CONSTANT uuid := uuid7_floor(v_now - interval '5 minutes');
  v_latest CONSTANT uuid := uuid7_floor(v_now + interval '5 minutes');
  v_admits CONSTANT integer := cardinality(a_attempt);
  v_settles CONSTANT integer := cardinality(s_attempt);
  v_closed CONSTANT boolean := v_admits > 0 AND current_timeline() <> (SELECT t.accepted FROM timeline t);
  -- one element per admission
  v_answer smallint[] := '{}';
  v_holds text[] := '{}';
  v_state smallint[] := array_fill(0::smallint, ARRAY[v_admits]);
  v_since timestamptz[] := array_fill(v_now, ARRAY[v_admits]);
  v_blame integer[] := array_fill(NULL::integer, ARRAY[v_admits]);
  v_blame_settled bigint[] := array_fill(0::bigint, ARRAY[v_admits]);
  v_blame_reserved bigint[] := array_fill(0::bigint, ARRAY[v_admits]);
  v_inserted uuid[];
  -- one element per locked account, by id
  v_lock bigint[] := '{}';
  c_id bigint[] := '{}';
  c_budget uuid[] := '{}';
  c_limit bigint[] := '{}';
  c_reserved bigint[] := '{}';
  c_settled bigint[] := '{}';
  c_ends timestamptz[] := '{}';
  -- what the settlements move, by account
  m_id bigint[] := '{}';
  m_reserved bigint[] := '{}';
  m_settled bigint[] := '{}';
  m_overrun bigint[] := '{}';
  -- one element per settlement of a known attempt
  o_ord integer[] := '{}';
  o_answer smallint[] := '{}';
  o_state smallint[] := '{}';
  o_overrun bigint[] := '{}';
  o_holds text[] := '{}';
  -- one element per attempt that is resolved or refunded now, by id
  r_id uuid[];
  r_ord integer[];
  r_cost bigint[];
  r_upstream bigint[];
  r_extra integer[];
  v_found record;
  v_fits boolean := true;
  v_hold bigint;
  v_place integer;
  v_left bigint;
  v_spent boolean;
  v_worst integer;
  v_worst_left bigint;
  v_worst_spent boolean;
BEGIN
  IF (v_admits > 1 AND (SELECT count(*) <> count(DISTINCT u) FROM unnest(a_attempt) AS u))
     OR (v_settles > 1 AND (SELECT count(*) <> count(DISTINCT u) FROM unnest(s_attempt) AS u)) THEN
    RAISE EXCEPTION 'an attempt stands twice in one batch' USING ERRCODE = '22023';
  END IF;
  -- Ten and a hundred million USD: no sum of a batch leaves the range of bigint. What is below 0 the tables refuse.
  IF 10000000000000000 < ANY (a_ceiling) OR 100000000000000000 < ANY (s_cost || s_upstream) THEN
    RAISE EXCEPTION 'an amount is out of bounds' USING ERRCODE = '22003';
  END IF;

  -- 1. Which accounts apply to each admission, and may its credential spend? Once per distinct caller.
  IF v_admits > 0 THEN
    SELECT array_agg(q.answer ORDER BY q.ord), array_agg(q.holds ORDER BY q.ord)
      INTO v_answer, v_holds
      FROM (
        SELECT o.ord, h.holds::text AS holds,
               CASE WHEN v_closed THEN 7
                    WHEN a_attempt[o.ord] < v_earliest OR a_attempt[o.ord] >= v_latest THEN 4
                    WHEN NOT may_spend(c.tenant, c.project, c.key, c.credential, v_now) THEN 3
                    WHEN h.missing THEN 5 ELSE 0 END::smallint AS answer
          FROM (
            SELECT i.tenant, i.project, i.key, i.credential, i.model, array_agg(i.ord::integer) AS ords
              FROM unnest(a_tenant, a_project, a_key, a_credential, a_model)
                   WITH ORDINALITY AS i(tenant, project, key, credential, model, ord)
             GROUP BY i.tenant, i.project, i.key, i.credential, i.model) AS c
          CROSS JOIN LATERAL (
            SELECT coalesce(array_agg(a.id ORDER BY a.id) FILTER (WHERE a.id IS NOT NULL), '{}') AS holds,
                   coalesce(bool_or(a.id IS NULL), false) AS missing
              FROM (VALUES ('tenant', c.tenant), ('project', c.project), ('key', c.key)) AS s(scope, subject)
              CROSS JOIN LATERAL (
                SELECT b.id FROM budgets b
                 WHERE b.scope = s.scope AND b.subject = s.subject AND b.deleted_at IS NULL
                   AND (b.models IS NULL OR c.model = ANY (b.models)) OFFSET 0) AS b
              LEFT JOIN LATERAL (
                SELECT x.id FROM accounts x
                 WHERE x.budget = b.id AND x.starts_at <= v_now AND x.ends_at > v_now
                 ORDER BY x.starts_at DESC LIMIT 1) AS a ON true) AS h
          CROSS JOIN LATERAL unnest(c.ords) AS o(ord)) AS q;
    SELECT coalesce(array_agg(DISTINCT x), '{}') INTO v_lock
      FROM unnest(v_answer, v_holds) AS w(answer, holds), unnest(w.holds::bigint[]) AS x WHERE w.answer = 0;
  END IF;

  -- 2. Lock every account of the batch, in one order, and read what it holds now.
  IF v_settles > 0 THEN
    v_lock := v_lock || (SELECT coalesce(array_agg(DISTINCT x), '{}')
      FROM unnest(s_attempt) AS s(attempt)
      CROSS JOIN LATERAL (SELECT a.holds FROM attempts a WHERE a.attempt = s.attempt OFFSET 0) AS t
      CROSS JOIN LATERAL unnest(t.holds) AS x);
  END IF;
  IF cardinality(v_lock) > 0 AND skip_locked THEN
    SELECT array_agg(l.id), array_agg(l.budget), array_agg(l.ceiling), array_agg(l.reserved),
           array_agg(l.settled), array_agg(l.ends_at)
      INTO c_id, c_budget, c_limit, c_reserved, c_settled, c_ends
      FROM (SELECT DISTINCT k.id FROM unnest(v_lock) AS k(id) ORDER BY k.id) AS k
      CROSS JOIN LATERAL (
        SELECT a.id, a.budget, a.reserved, a.settled + a.overrun AS settled, a.ends_at,
               limit_at(a.limit_target, a.boost_amounts, a.boost_untils, v_now) AS ceiling
          FROM accounts a WHERE a.id = k.id FOR NO KEY UPDATE SKIP LOCKED) AS l;
    c_id := coalesce(c_id, '{}');
    v_answer := (SELECT coalesce(array_agg(CASE WHEN w.answer = 0 AND NOT w.holds::bigint[] <@ c_id
                                           THEN 6::smallint ELSE w.answer END ORDER BY w.ord), '{}')
                   FROM unnest(v_answer, v_holds) WITH ORDINALITY AS w(answer, holds, ord));
  ELSIF cardinality(v_lock) > 0 THEN
    SELECT array_agg(l.id), array_agg(l.budget), array_agg(l.ceiling), array_agg(l.reserved),
           array_agg(l.settled), array_agg(l.ends_at)
      INTO c_id, c_budget, c_limit, c_reserved, c_settled, c_ends
      FROM (SELECT DISTINCT k.id FROM unnest(v_lock) AS k(id) ORDER BY k.id) AS k
      CROSS JOIN LATERAL (
        SELECT a.id, a.budget, a.reserved, a.settled + a.overrun AS settled, a.ends_at,
               limit_at(a.limit_target, a.boost_amounts, a.boost_untils, v_now) AS ceiling
          FROM accounts a WHERE a.id = k.id FOR NO KEY UPDATE) AS l;
    c_id := coalesce(c_id, '{}');
  END IF;

  -- 3. Settle. Entries and attempts are written here; what it moves between columns is kept for 6.
  IF v_settles > 0 THEN
    WITH held AS MATERIALIZED (
      SELECT s.*, t.state AS was, t.ceiling, coalesce(t.cost, 0) AS charged,
             coalesce(t.upstream_cost, 0) AS charged_upstream, t.holds, t.extra_entries AS extra,
             t.recorder AS own_recorder
        FROM (SELECT * FROM unnest(s_attempt, s_state, s_why, s_cost, s_upstream, s_input, s_output, s_cache_read,
                    s_write_5m, s_write_1h, s_images, s_guardrail, s_exact, s_price, s_request, s_status,
                    s_latency, s_first_byte, s_recorder) WITH ORDINALITY
             AS s(attempt, state, why, cost, upstream, input, output, cache_read, write_5m, write_1h,
                  images, guardrail, exact, price, request, status, latency, first_byte, recorder, ord)
              ORDER BY s.attempt) AS s
        CROSS JOIN LATERAL (
          SELECT a.* FROM attempts a WHERE a.attempt = s.attempt FOR NO KEY UPDATE) AS t),
    -- A late report lowers and overruns once each, whatever has been corrected since: it is one evidence.
    told AS MATERIALIZED (
      SELECT h.*, h.was = 3 AND h.state = 1 AND least(h.cost, h.ceiling) < least(h.charged, h.ceiling)
                  AND NOT EXISTS (SELECT FROM entries e WHERE e.attempt = h.attempt AND e.kind = 5
                                     AND e.slot > 0 AND e.evidence = 'usage') AS lowers,
             h.was = 3 AND h.state = 1 AND h.cost > greatest(h.charged, h.ceiling)
                  AND NOT EXISTS (SELECT FROM entries e WHERE e.attempt = h.attempt AND e.kind = 7
                                     AND e.slot > 0 AND e.evidence = 'usage') AS overruns
        FROM held h),
    judged AS MATERIALIZED (
      SELECT h.*, CASE
               WHEN NOT h.holds <@ c_id THEN 5
               WHEN h.was = 0 AND h.state = 2 AND h.recorder <> h.own_recorder THEN 4
               WHEN h.was = 0 THEN 0
               WHEN h.lowers OR h.overruns THEN 2
               ELSE 1 END AS answer
        FROM told h),
    priced AS MATERIALIZED (
      SELECT j.*,
             CASE WHEN j.answer = 0 THEN j.ceiling ELSE 0 END AS released,
             CASE WHEN j.answer = 0 AND j.state = 1 THEN least(j.cost, j.ceiling)
                  WHEN j.answer = 0 AND j.state = 3 THEN j.ceiling
                  WHEN j.answer = 2 AND j.lowers
                  THEN least(0, least(j.cost, j.ceiling) - least(j.charged, j.ceiling))
                  ELSE 0 END AS taken,
             CASE WHEN j.state = 1 AND (j.answer = 0 OR j.answer = 2 AND j.overruns)
                  THEN greatest(0, greatest(0, j.cost - j.ceiling) - greatest(0, j.charged - j.ceiling))
                  ELSE 0 END AS over,
             CASE j.state WHEN 1 THEN j.upstream WHEN 3 THEN j.ceiling ELSE 0 END - j.charged_upstream AS upstream_moved
        FROM judged j),
    terminal AS (
      INSERT INTO entries (attempt, slot, kind, amount, upstream_amount, at, why)
      SELECT p.attempt, 0, p.state, p.taken, p.upstream_moved, v_now, p.why FROM priced p WHERE p.answer = 0),
    more AS (
      INSERT INTO entries (attempt, slot, kind, amount, upstream_amount, at, why, evidence)
      SELECT p.attempt, p.extra + 1, 5, p.taken, p.upstream_moved, v_now, p.why, 'usage'
        FROM priced p WHERE p.answer = 2 AND p.taken < 0
      UNION ALL
      SELECT p.attempt, p.extra + CASE WHEN p.answer = 2 AND p.taken < 0 THEN 2 ELSE 1 END, 7, p.over,
             CASE WHEN p.answer = 2 AND p.taken = 0 THEN p.upstream_moved ELSE 0 END, v_now, p.why, 'usage'
        FROM priced p WHERE p.over > 0),
    moved AS (
      SELECT x AS id, -sum(p.released)::bigint AS reserved, sum(p.taken)::bigint AS settled, sum(p.over)::bigint AS overrun
        FROM priced p, unnest(p.holds) AS x WHERE p.answer IN (0, 2) GROUP BY x)
    SELECT q.ord, q.answer, q.state, q.overrun, q.holds, d.id, d.reserved, d.settled, d.overrun,
           r.id, r.ord, r.cost, r.upstream, r.extra
      INTO o_ord, o_answer, o_state, o_overrun, o_holds, m_id, m_reserved, m_settled, m_overrun,
           r_id, r_ord, r_cost, r_upstream, r_extra
      FROM (SELECT array_agg(p.ord::integer) AS ord, array_agg(p.answer::smallint) AS answer,
                   array_agg(CASE p.answer WHEN 0 THEN p.state ELSE p.was END) AS state,
                   array_agg(p.over) AS overrun,
                   array_agg(CASE WHEN p.answer IN (0, 2) THEN p.holds ELSE '{}' END::text) AS holds
              FROM priced p) AS q,
           (SELECT coalesce(array_agg(m.id), '{}') AS id, array_agg(m.reserved) AS reserved,
                   array_agg(m.settled) AS settled, array_agg(m.overrun) AS overrun FROM moved m) AS d,
           (SELECT coalesce(array_agg(p.attempt ORDER BY p.attempt), '{}') AS id,
                   array_agg(p.ord::integer ORDER BY p.attempt) AS ord,
                   array_agg((p.charged + p.taken + p.over)::bigint ORDER BY p.attempt) AS cost,
                   array_agg((p.charged_upstream + p.upstream_moved)::bigint ORDER BY p.attempt) AS upstream,
                   array_agg((p.over > 0)::integer + (p.answer = 2 AND p.taken < 0)::integer ORDER BY p.attempt) AS extra
              FROM priced p WHERE p.answer IN (0, 2)) AS r;
    IF cardinality(r_id) > 0 THEN
      UPDATE attempts t
         SET (state, why, cost, upstream_cost, input_tokens, output_tokens, cache_read_tokens,
              cache_write_5m_tokens, cache_write_1h_tokens, images, guardrail_units, usage_exact, price_final,
              upstream_request_id, status, latency_ms, first_byte_ms, finished_at, extra_entries) = (
               SELECT CASE t.state WHEN 0 THEN s_state[n.ord] ELSE t.state END,
                      CASE t.state WHEN 0 THEN s_why[n.ord] ELSE t.why END,
                      r_cost[n.place], r_upstream[n.place], s_input[n.ord], s_output[n.ord], s_cache_read[n.ord],
                      s_write_5m[n.ord], s_write_1h[n.ord], s_images[n.ord], s_guardrail[n.ord], s_exact[n.ord],
                      s_price[n.ord], coalesce(s_request[n.ord], t.upstream_request_id), s_status[n.ord],
                      s_latency[n.ord], s_first_byte[n.ord], coalesce(t.finished_at, v_now),
                      t.extra_entries + r_extra[n.place]
                 FROM (SELECT p.place, r_ord[p.place] AS ord
                         FROM (SELECT width_bucket(t.attempt, r_id) AS place OFFSET 0) AS p OFFSET 0) AS n)
       WHERE t.attempt = ANY (r_id) AND t.attempt BETWEEN r_id[1] AND r_id[cardinality(r_id)];
    END IF;
    FOR i IN 1 .. cardinality(m_id) LOOP
      v_place := width_bucket(m_id[i], c_id);
      c_reserved[v_place] := c_reserved[v_place] + m_reserved[i];
      c_settled[v_place] := c_settled[v_place] + m_settled[i] + m_overrun[i];
    END LOOP;
  END IF;

  -- 4. Decide. When the whole batch fits everywhere, everybody is in; else one after the other.
  IF v_admits > 0 AND cardinality(c_id) > 0 THEN
    v_fits := (SELECT coalesce(bool_and(n.need <= c_limit[n.place] - c_reserved[n.place] - c_settled[n.place]), true)
                 FROM (SELECT width_bucket(x, c_id) AS place, sum(w.ceiling) AS need
                         FROM unnest(v_answer, v_holds, a_ceiling) AS w(answer, holds, ceiling),
                              unnest(w.holds::bigint[]) AS x
                        WHERE w.answer = 0 GROUP BY 1) AS n);
  END IF;
  IF NOT v_fits THEN
    FOR v_place IN
      SELECT w.ord FROM unnest(a_attempt) WITH ORDINALITY AS w(attempt, ord)
        CROSS JOIN LATERAL (SELECT FROM attempts t WHERE t.attempt = w.attempt OFFSET 0) AS found
    LOOP
      v_answer[v_place] := 1;
    END LOOP;
    FOR i IN 1 .. v_admits LOOP
      CONTINUE WHEN v_answer[i] <> 0;
      v_worst := NULL;
      FOREACH v_hold IN ARRAY v_holds[i]::bigint[] LOOP
        v_place := width_bucket(v_hold, c_id);
        v_left := c_limit[v_place] - c_reserved[v_place] - c_settled[v_place];
        CONTINUE WHEN a_ceiling[i] <= v_left;
        -- Blame a spent budget before a held one, then the one with the least left.
        v_spent := c_settled[v_place] + a_floor[i] > c_limit[v_place];
        IF v_worst IS NULL OR (v_spent AND NOT v_worst_spent)
           OR (v_spent = v_worst_spent AND v_left < v_worst_left) THEN
          v_worst := v_place;
          v_worst_left := v_left;
          v_worst_spent := v_spent;
        END IF;
      END LOOP;
      IF v_worst IS NULL THEN
        FOREACH v_hold IN ARRAY v_holds[i]::bigint[] LOOP
          v_place := width_bucket(v_hold, c_id);
          c_reserved[v_place] := c_reserved[v_place] + a_ceiling[i];
        END LOOP;
      ELSE
        v_answer[i] := 2;
        v_blame[i] := v_worst;
        v_blame_settled[i] := c_settled[v_worst];
        v_blame_reserved[i] := c_reserved[v_worst];
      END IF;
    END LOOP;
  END IF;

  -- 5. and 6. Insert the attempts that are in; move money by the rows that were really inserted, so
  -- that a duplicate on another connection reserves nothing twice.
  IF v_admits = 0 THEN
    UPDATE accounts a
       SET reserved = a.reserved + m.reserved, settled = a.settled + m.settled, overrun = a.overrun + m.overrun,
           limit_effective = greatest(limit_at(a.limit_target, a.boost_amounts, a.boost_untils, v_now),
                                      a.reserved + m.reserved + a.settled + m.settled),
           version = a.version + 1
      FROM unnest(m_id, m_reserved, m_settled, m_overrun) AS m(id, reserved, settled, overrun)
     WHERE a.id = m.id AND a.id = ANY (m_id);
  ELSE
    WITH taken AS (
      INSERT INTO attempts (attempt, call, tenant, project, key, credential, recorder, operation, model,
                            target, price, ceiling, tags, holds, admitted_at)
      SELECT w.attempt, w.call, w.tenant, w.project, w.key, w.credential, w.recorder, w.operation, w.model,
             w.target, w.price, w.ceiling, w.tags, w.holds::bigint[], v_now
        FROM unnest(v_answer, v_holds, a_attempt, a_call, a_tenant, a_project, a_key, a_credential, a_recorder,
                    a_operation, a_model, a_target, a_price, a_ceiling, a_tags)
             AS w(answer, holds, attempt, call, tenant, project, key, credential, recorder,
                  operation, model, target, price, ceiling, tags)
       WHERE w.answer = 0 ORDER BY w.attempt
      ON CONFLICT (attempt) DO NOTHING RETURNING attempt, ceiling, holds),
    moved AS (
      SELECT u.id, sum(u.reserved)::bigint AS reserved, sum(u.settled)::bigint AS settled, sum(u.overrun)::bigint AS overrun
        FROM (SELECT x AS id, t.ceiling AS reserved, 0 AS settled, 0 AS overrun FROM taken t, unnest(t.holds) AS x
              UNION ALL SELECT * FROM unnest(m_id, m_reserved, m_settled, m_overrun)) AS u
       GROUP BY u.id),
    written AS (
      UPDATE accounts a
         SET reserved = a.reserved + m.reserved, settled = a.settled + m.settled, overrun = a.overrun + m.overrun,
             limit_effective = greatest(limit_at(a.limit_target, a.boost_amounts, a.boost_untils, v_now),
                                        a.reserved + m.reserved + a.settled + m.settled),
             version = a.version + 1
        FROM moved m WHERE a.id = m.id AND a.id = ANY (c_id))
    SELECT coalesce(array_agg(t.attempt), '{}') INTO v_inserted FROM taken t;
  END IF;

  -- 7. Whoever was not inserted may have been here before: then that is the answer.
  IF cardinality(v_inserted) < v_admits THEN
    FOR v_found IN
      SELECT w.ord, t.state, t.admitted_at
        FROM unnest(a_attempt) WITH ORDINALITY AS w(attempt, ord)
        CROSS JOIN LATERAL (
          SELECT a.state, a.admitted_at FROM attempts a WHERE a.attempt = w.attempt OFFSET 0) AS t
       WHERE NOT w.attempt = ANY (v_inserted)
    LOOP
      v_answer[v_found.ord] := 1;
      v_state[v_found.ord] := v_found.state;
      v_since[v_found.ord] := v_found.admitted_at;
      v_blame[v_found.ord] := NULL;
    END LOOP;
  END IF;

  RETURN QUERY
    SELECT 's', o.ord, o.answer, o.state, NULL::uuid, NULL::bigint, NULL::bigint, NULL::bigint, NULL::bigint,
           NULL::bigint, o.overrun,
           (SELECT coalesce(array_agg(c_budget[width_bucket(x, c_id)]), '{}') FROM unnest(o.holds::bigint[]) AS x), 0
      FROM unnest(o_ord, o_answer, o_state, o_overrun, o_holds) AS o(ord, answer, state, overrun, holds)
    UNION ALL
    SELECT 's', s.ord::integer, 3::smallint, 0::smallint, NULL, NULL, NULL, NULL, NULL, NULL, 0::bigint, '{}', 0
      FROM unnest(s_attempt) WITH ORDINALITY AS s(attempt, ord)
     WHERE coalesce(cardinality(o_ord), 0) < v_settles AND NOT s.ord = ANY (coalesce(o_ord, '{}'))
    UNION ALL
    SELECT 'a', a.ord::integer, a.answer, a.state, c_budget[a.blame], a.settled, a.reserved,
           coalesce(c_limit[a.blame], 0),
           CASE WHEN isfinite(c_ends[a.blame]) THEN floor(extract(epoch FROM c_ends[a.blame]))::bigint ELSE 0 END,
           (extract(epoch FROM a.since) * 1000000)::bigint, 0::bigint, NULL,
           CASE WHEN a.blame IS NULL THEN 0 ELSE (
             SELECT CASE b.on_short WHEN 'clamp' THEN b.floor_output_tokens ELSE 0 END
               FROM budgets b WHERE b.id = c_budget[a.blame]) END
      FROM unnest(v_answer, v_state, v_blame, v_blame_settled, v_blame_reserved, v_since)
           WITH ORDINALITY AS a(answer, state, blame, settled, reserved, since, ord);
END
$body$;
