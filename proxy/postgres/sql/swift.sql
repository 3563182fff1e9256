-- The bank's common case, at a fraction of the cost of bank.sql: every admission of the batch fits
-- everywhere, every settlement is the first of an open attempt and costs no more than its ceiling.
-- All of the batch is done as bank_settle_and_admit would do it, or nothing is:
--   * `at_us` null: something is not plain, nothing was written. Ask bank_settle_and_admit.
--   * any error: nothing stays. SQLSTATE TH001 is ours and says the same; so may others (a duplicate).
--
-- What makes it cheap, since nearly all of a statement's cost is to set it up:
--   * Callers (c_*) stand once a batch; admissions name theirs by place. What was found out about them is
--     answered (who holds where, until when, at which version of the directory) and may be handed in again
--     as h_*. It is used while the directory is at that very version: every change to a tenant, project,
--     key, credential or budget makes a new one in its own transaction, so the same would be found again.
--   * `s_lock` are the accounts that the settled attempts hold, as their admission answered. It says only
--     what to lock first; the rows say what is moved, and an attempt with any other hold is not plain.
--   * A limit is checked by the update that reserves, which is also the lock of the accounts.
--   * Few statements, few variables: each is prepared anew in every transaction. Settlements come
--     sorted by attempt, so that their values are found by place (width_bucket is a binary search).
-- Order of locks as in bank.sql: accounts by id (the order of the index), then attempts by id.

-- What each caller's attempts hold now, and until when that stays so if the directory does not change. All callers
-- in one statement: of 10,000 tenants calling in turn every caller of a batch is a new one. Every step is one
-- look-up by an index (OFFSET 0 keeps it one). `plain` false: one may not spend, or a budget has no current account.
CREATE OR REPLACE FUNCTION bank_callers(
  c_tenant uuid[], c_project uuid[], c_key uuid[], c_credential uuid[], c_model integer[],
  OUT callers integer[], OUT accounts bigint[], OUT budgets uuid[], OUT until_us bigint, OUT plain boolean
) LANGUAGE plpgsql STABLE AS $body$
#variable_conflict use_column
BEGIN
  SELECT coalesce(array_agg(c.n::integer) FILTER (WHERE x.id IS NOT NULL), '{}'),
         coalesce(array_agg(x.id) FILTER (WHERE x.id IS NOT NULL), '{}'),
         coalesce(array_agg(x.budget) FILTER (WHERE x.id IS NOT NULL), '{}'),
         extract(epoch FROM least(min(x.ends_at), min(s.expires_at), min(k.expires_at),
                                  now() + interval '1 minute')) * 1000000,
         bool_and(m.may AND (b.id IS NULL OR x.id IS NOT NULL))
    INTO callers, accounts, budgets, until_us, plain
    FROM unnest(c_tenant, c_project, c_key, c_credential, c_model) WITH ORDINALITY
           AS c(tenant, project, key, credential, model, n)
    CROSS JOIN LATERAL (
      SELECT may_spend(c.tenant, c.project, c.key, c.credential, now()) AS may OFFSET 0) AS m
    LEFT JOIN LATERAL (SELECT q.expires_at FROM credentials q WHERE q.id = c.credential OFFSET 0) AS s ON true
    LEFT JOIN LATERAL (SELECT q.expires_at FROM keys q WHERE q.id = c.key OFFSET 0) AS k ON true
    LEFT JOIN LATERAL (
      SELECT q.id FROM (VALUES ('tenant', c.tenant), ('project', c.project), ('key', c.key)) AS v(scope, subject)
       CROSS JOIN LATERAL (
         SELECT q.id FROM budgets q
          WHERE q.scope = v.scope AND q.subject = v.subject AND q.deleted_at IS NULL
            AND (q.models IS NULL OR c.model = ANY (q.models)) OFFSET 0) AS q) AS b ON true
    LEFT JOIN LATERAL (
      SELECT a.id, a.budget, a.ends_at FROM accounts a
       WHERE a.budget = b.id AND a.starts_at <= now() AND a.ends_at > now()
       ORDER BY a.starts_at DESC LIMIT 1) AS x ON true;
END
$body$;

-- What it answers. A type with a name: the columns of an OUT list are unpacked from the catalogue at every call.
DO $body$
BEGIN
  CREATE TYPE swift_answer AS (
    -- when it was done, unix microseconds; null: nothing was
    at_us bigint,
    -- what was found out about callers (null: h_* was used): pairs of caller and account, with the account's
    -- budget, all of it until that time or the directory's next version
    callers integer[], accounts bigint[], budgets uuid[], until_us bigint, version bigint);
EXCEPTION WHEN duplicate_object THEN NULL;
END
$body$;

CREATE OR REPLACE FUNCTION bank_settle_and_admit_swiftly(
  s_lock bigint[] DEFAULT '{}', s_attempt uuid[] DEFAULT '{}', s_state smallint[] DEFAULT '{}',
  s_why smallint[] DEFAULT '{}', s_cost bigint[] DEFAULT '{}', s_upstream bigint[] DEFAULT '{}',
  s_input integer[] DEFAULT '{}', s_output integer[] DEFAULT '{}', s_cache_read integer[] DEFAULT '{}',
  s_write_5m integer[] DEFAULT '{}', s_write_1h integer[] DEFAULT '{}', s_images integer[] DEFAULT '{}',
  s_guardrail integer[] DEFAULT '{}', s_exact boolean[] DEFAULT '{}', s_price integer[] DEFAULT '{}',
  s_request text[] DEFAULT '{}', s_status integer[] DEFAULT '{}', s_latency integer[] DEFAULT '{}',
  s_first_byte integer[] DEFAULT '{}',
  c_tenant uuid[] DEFAULT '{}', c_project uuid[] DEFAULT '{}', c_key uuid[] DEFAULT '{}',
  c_credential uuid[] DEFAULT '{}', c_model integer[] DEFAULT '{}',
  a_caller integer[] DEFAULT '{}', a_attempt uuid[] DEFAULT '{}', a_call uuid[] DEFAULT '{}',
  a_recorder uuid[] DEFAULT '{}', a_operation smallint[] DEFAULT '{}', a_target integer[] DEFAULT '{}',
  a_price integer[] DEFAULT '{}', a_ceiling bigint[] DEFAULT '{}', a_tags integer[] DEFAULT '{}',
  h_version bigint DEFAULT 0, h_until_us bigint DEFAULT 0,
  h_caller integer[] DEFAULT '{}', h_account bigint[] DEFAULT '{}'
) RETURNS swift_answer LANGUAGE plpgsql
SET enable_seqscan TO off SET enable_bitmapscan TO off SET enable_hashjoin TO off SET enable_mergejoin TO off
SET plan_cache_mode TO force_generic_plan SET lock_timeout TO '250ms'
AS $body$
#variable_conflict use_column
DECLARE
  v_answer swift_answer;
  v_version bigint;
  v_open boolean;
  v_callers integer[] := h_caller;
  v_lock bigint[] := h_account;
  v_sum bigint := 0;
  v_need bigint[];
  v_take bigint[];
  v_holds text[] := '{}';
  v_done bigint[];
  v_count bigint;
  v_earliest uuid;
  v_latest uuid;
BEGIN
  -- 1. Which accounts apply to each caller, and may it spend?
  IF cardinality(c_tenant) > 0 THEN
    SELECT e.version, current_timeline() = (SELECT t.accepted FROM timeline t) INTO v_version, v_open FROM directory_epoch e;
    IF NOT v_open THEN
      RETURN v_answer;
    ELSIF v_version <> h_version OR extract(epoch FROM now()) * 1000000 >= h_until_us THEN
      SELECT q.callers, q.accounts, q.budgets, q.until_us, q.plain
        INTO v_callers, v_lock, v_answer.budgets, v_answer.until_us, v_open
        FROM bank_callers(c_tenant, c_project, c_key, c_credential, c_model) AS q;
      IF NOT v_open THEN
        RETURN v_answer;
      END IF;
      v_answer.version := v_version;
      v_answer.callers := v_callers;
      v_answer.accounts := v_lock;
    END IF;
    IF cardinality(c_tenant) = 1 THEN
      FOR i IN 1 .. cardinality(a_ceiling) LOOP
        v_sum := v_sum + a_ceiling[i];
      END LOOP;
      v_holds := ARRAY[v_lock::text];
      v_take := array_fill(v_sum, ARRAY[cardinality(v_lock)]);
    ELSE
      v_need := array_fill(0::bigint, ARRAY[cardinality(c_tenant)]);
      FOR i IN 1 .. cardinality(a_caller) LOOP
        v_need[a_caller[i]] := v_need[a_caller[i]] + a_ceiling[i];
      END LOOP;
      v_holds := ARRAY(SELECT ARRAY(SELECT h.account FROM unnest(v_lock, v_callers) AS h(account, caller)
                                     WHERE h.caller = c)::text
                         FROM generate_series(1, cardinality(c_tenant)) AS c ORDER BY c);
      SELECT coalesce(array_agg(q.id), '{}'), array_agg(q.need) INTO v_lock, v_take
        FROM (SELECT h.account AS id, sum(v_need[h.caller])::bigint AS need
                FROM unnest(v_lock, v_callers) AS h(account, caller) GROUP BY 1) AS q;
    END IF;
  END IF;

  -- 2. Lock every account, in one order; reserve. Where one is short nothing is reserved anywhere. What fits fits in the
  -- limit in force, which therefore is the effective one.
  IF cardinality(s_lock) > 0 THEN
    PERFORM FROM accounts a WHERE a.id = ANY (s_lock || v_lock) ORDER BY a.id FOR NO KEY UPDATE;
  END IF;
  IF cardinality(v_lock) > 0 THEN
    WITH written AS (
      UPDATE accounts a
         SET reserved = a.reserved + v_take[array_position(v_lock, a.id)], version = a.version + 1,
             limit_effective = limit_at(a.limit_target, a.boost_amounts, a.boost_untils, now())
       WHERE a.id = ANY (v_lock)
         AND a.reserved + v_take[array_position(v_lock, a.id)] + a.settled + a.overrun
             <= limit_at(a.limit_target, a.boost_amounts, a.boost_untils, now())
      RETURNING a.id)
    SELECT array_agg(w.id) INTO v_done FROM written w;
    IF cardinality(v_done) IS DISTINCT FROM cardinality(v_lock) THEN
      UPDATE accounts a SET reserved = a.reserved - v_take[array_position(v_lock, a.id)] WHERE a.id = ANY (v_done);
      RETURN v_answer;
    END IF;
  END IF;

  -- 3. Settle.
  IF cardinality(s_attempt) > 0 THEN
    WITH closed AS (
      UPDATE attempts t
         SET (state, why, cost, upstream_cost, input_tokens, output_tokens, cache_read_tokens,
              cache_write_5m_tokens, cache_write_1h_tokens, images, guardrail_units, usage_exact, price_final,
              upstream_request_id, status, latency_ms, first_byte_ms, finished_at) = (
               SELECT CASE s_attempt[p.n] WHEN t.attempt THEN s_state[p.n] END, s_why[p.n],
                      CASE s_state[p.n] WHEN 1 THEN s_cost[p.n] WHEN 3 THEN t.ceiling ELSE 0 END,
                      CASE s_state[p.n] WHEN 1 THEN s_upstream[p.n] WHEN 3 THEN t.ceiling ELSE 0 END,
                      s_input[p.n], s_output[p.n], s_cache_read[p.n], s_write_5m[p.n], s_write_1h[p.n],
                      s_images[p.n], s_guardrail[p.n], s_exact[p.n], s_price[p.n], s_request[p.n], s_status[p.n],
                      s_latency[p.n], s_first_byte[p.n], now()
                 FROM (SELECT width_bucket(t.attempt, s_attempt) AS n OFFSET 0) AS p)
       WHERE t.attempt = ANY (s_attempt)
         AND t.attempt BETWEEN s_attempt[1] AND s_attempt[cardinality(s_attempt)] AND t.state = 0
      RETURNING t.attempt, t.state, t.why, t.cost, t.upstream_cost, t.ceiling, t.holds),
    terminal AS (
      INSERT INTO entries (attempt, slot, kind, amount, upstream_amount, at, why)
      SELECT c.attempt, 0, c.state, c.cost, c.upstream_cost, now(), c.why FROM closed c),
    moved AS (
      SELECT x AS id, sum(c.ceiling)::bigint AS released, sum(c.cost)::bigint AS taken
        FROM closed c, unnest(c.holds) AS x GROUP BY x),
    written AS (
      UPDATE accounts a
         SET reserved = a.reserved - m.released, settled = a.settled + m.taken, version = a.version + 1,
             limit_effective = greatest(limit_at(a.limit_target, a.boost_amounts, a.boost_untils, now()),
                                        a.reserved - m.released + a.settled + m.taken)
        FROM moved m WHERE a.id = m.id AND a.id = ANY (s_lock))
    SELECT count(*), bool_and(c.holds <@ s_lock AND c.cost <= c.ceiling AND c.upstream_cost <= 100000000000000000
                              AND c.state BETWEEN 1 AND 3)
      INTO v_count, v_open FROM closed c;
    IF v_count <> cardinality(s_attempt) OR NOT v_open THEN
      RAISE EXCEPTION 'a settlement is not plain' USING ERRCODE = 'TH001';
    END IF;
  END IF;

  -- 4. Admit. Values are taken by place: one function to scan instead of nine.
  IF cardinality(a_attempt) > 0 THEN
    v_earliest := uuid7_floor(now() - interval '5 minutes');
    v_latest := uuid7_floor(now() + interval '5 minutes');
    INSERT INTO attempts (attempt, call, tenant, project, key, credential, recorder, operation, model,
                          target, price, ceiling, tags, holds, admitted_at)
    SELECT a_attempt[n], a_call[n], c_tenant[a_caller[n]], c_project[a_caller[n]], c_key[a_caller[n]],
           c_credential[a_caller[n]], a_recorder[n], a_operation[n], c_model[a_caller[n]], a_target[n], a_price[n],
           a_ceiling[n], a_tags[n], v_holds[a_caller[n]]::bigint[], now()
      FROM generate_series(1, cardinality(a_attempt)) AS n
     WHERE a_attempt[n] >= v_earliest AND a_attempt[n] < v_latest AND a_ceiling[n] <= 10000000000000000;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    IF v_count <> cardinality(a_attempt) THEN
      RAISE EXCEPTION 'an attempt is off this clock, or dearer than anything is' USING ERRCODE = 'TH001';
    END IF;
  END IF;
  v_answer.at_us := extract(epoch FROM now()) * 1000000;
  RETURN v_answer;
END
$body$;
