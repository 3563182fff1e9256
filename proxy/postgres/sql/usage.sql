-- Usage by day, kept in step with the ledger.
--
-- An attempt belongs to the local day of its tenant in which it was admitted, whenever it was settled or corrected. Every
-- change of money is an entry, and entries carry the time of the transaction that wrote them. So what is new are the
-- entries since the mark: a call's first one adds the call to its day, in the transaction that moves the mark, so once;
-- a correction makes its day dirty, and a dirty day is summed again from the ledger. What a round costs goes with what
-- happened since the last one, not with what lies in the day.
--
-- The mark never passes a transaction that is still running: whatever commits later has a later time. Only transactions
-- of the caller's own role are visible for that, and that role is the only one that writes entries.
--
-- A day that is over is summed again once more (`usage_doubt`): should an entry ever carry a time that the mark had
-- passed, because a clock went back, no report is wrong for longer than that.

-- Adds the calls that were resolved since the mark to their days, notes the days with corrections, and moves the mark, by
-- an hour of the ledger at most. `behind`: there is more.
CREATE OR REPLACE FUNCTION usage_advance(OUT mark timestamptz, OUT behind boolean)
LANGUAGE plpgsql SET plan_cache_mode TO force_custom_plan SET enable_hashjoin TO off SET jit TO off AS $body$
DECLARE
  v_from timestamptz;
  v_horizon timestamptz;
BEGIN
  SELECT m.rolled_to INTO v_from FROM usage_mark m FOR UPDATE;
  SELECT least(clock_timestamp(), min(s.xact_start)) - interval '1 second' INTO v_horizon
    FROM pg_stat_activity s
   WHERE s.datname = current_database() AND s.pid <> pg_backend_pid();
  behind := false;
  IF clock_timestamp() < v_from THEN
    -- The clock went back. What was written since then carries times that the mark had passed.
    mark := v_horizon;
    PERFORM usage_stain(mark - interval '1 hour', 'infinity', 0);
  ELSIF v_horizon <= v_from THEN
    mark := v_from;
    RETURN;
  ELSE
    IF NOT isfinite(v_from) THEN
      v_from := coalesce((SELECT min(e.at) FROM entries e) - interval '1 microsecond', v_horizon);
    END IF;
    mark := least(v_horizon, v_from + interval '1 hour');
    behind := mark < v_horizon;
    PERFORM usage_stain(v_from, mark, 1);
    INSERT INTO usage_days AS u
    SELECT t.tenant, (t.admitted_at AT TIME ZONE n.time_zone)::date,
           date_trunc('month', uuid7_time(t.attempt) AT TIME ZONE 'UTC')::date,
           coalesce(t.project, '00000000-0000-0000-0000-000000000000'), t.key, t.model, t.target, t.tags, t.operation,
           t.state, count(*), sum(t.cost), sum(t.upstream_cost), sum(t.saved), 0, 0, 0,
           coalesce(sum(t.input_tokens), 0), coalesce(sum(t.output_tokens), 0), coalesce(sum(t.cache_read_tokens), 0),
           coalesce(sum(t.cache_write_5m_tokens), 0) + coalesce(sum(t.cache_write_1h_tokens), 0),
           coalesce(sum(t.images), 0), coalesce(sum(t.guardrail_units), 0)
      FROM entries e
      JOIN attempts t ON t.attempt = e.attempt
      JOIN tenants n ON n.id = t.tenant
     WHERE e.at > v_from AND e.at <= mark AND e.slot = 0
     GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
    ON CONFLICT (tenant, day, month, project, key, model, target, tags, operation, state) DO UPDATE
      SET (attempts, cost, upstream_cost, saved, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens,
           images, guardrail_units) = (
            u.attempts + excluded.attempts, u.cost + excluded.cost, u.upstream_cost + excluded.upstream_cost,
            u.saved + excluded.saved, u.input_tokens + excluded.input_tokens,
            u.output_tokens + excluded.output_tokens, u.cache_read_tokens + excluded.cache_read_tokens,
            u.cache_write_tokens + excluded.cache_write_tokens, u.images + excluded.images,
            u.guardrail_units + excluded.guardrail_units);
  END IF;
  UPDATE usage_mark SET rolled_to = mark;
END
$body$;

-- Notes the days of attempts with entries in (p_from, p_to]: corrections only with `p_slot` 1, all with 0.
CREATE OR REPLACE FUNCTION usage_stain(p_from timestamptz, p_to timestamptz, p_slot integer) RETURNS void
LANGUAGE plpgsql SET plan_cache_mode TO force_custom_plan SET enable_hashjoin TO off SET jit TO off AS $body$
BEGIN
  INSERT INTO usage_dirty (tenant, day, month)
  SELECT DISTINCT t.tenant, (t.admitted_at AT TIME ZONE n.time_zone)::date,
         date_trunc('month', uuid7_time(t.attempt) AT TIME ZONE 'UTC')::date
    FROM entries e
    JOIN attempts t ON t.attempt = e.attempt
    JOIN tenants n ON n.id = t.tenant
   WHERE e.at > p_from AND e.at <= p_to AND e.slot >= p_slot
  ON CONFLICT DO NOTHING;
END
$body$;

-- Sums one tenant's day again, as far as it lies in one partition of the ledger: the calls that the mark has passed, since
-- the others are added when it does. Their corrections are whole, and a later one makes the day dirty again.
CREATE OR REPLACE FUNCTION usage_recompute(p_tenant uuid, p_day date, p_month date, p_mark timestamptz) RETURNS void
LANGUAGE plpgsql SET plan_cache_mode TO force_custom_plan SET jit TO off AS $body$
DECLARE
  v_zone CONSTANT text := (SELECT time_zone FROM tenants WHERE id = p_tenant);
  v_first CONSTANT timestamptz := p_day::timestamp AT TIME ZONE v_zone;
  v_last CONSTANT timestamptz := (p_day + 1)::timestamp AT TIME ZONE v_zone;
  v_low CONSTANT uuid := greatest(uuid7_floor(v_first - interval '6 minutes'),
                                  uuid7_floor(p_month::timestamp AT TIME ZONE 'UTC'));
  v_high CONSTANT uuid := least(uuid7_floor(v_last + interval '6 minutes'),
                                uuid7_floor((p_month + interval '1 month')::timestamp AT TIME ZONE 'UTC'));
BEGIN
  IF EXISTS (SELECT FROM ledger_months m WHERE m.month = p_month) THEN
    RETURN;
  END IF;
  DELETE FROM usage_days u WHERE u.tenant = p_tenant AND u.day = p_day AND u.month = p_month;
  INSERT INTO usage_days
  SELECT p_tenant, p_day, p_month, coalesce(t.project, '00000000-0000-0000-0000-000000000000'), t.key,
         t.model, t.target, t.tags, t.operation, t.state, count(*), sum(t.cost), sum(t.upstream_cost),
         sum(t.saved), coalesce(sum(x.refunded), 0), coalesce(sum(x.adjusted), 0), coalesce(sum(x.overrun), 0),
         coalesce(sum(t.input_tokens), 0), coalesce(sum(t.output_tokens), 0),
         coalesce(sum(t.cache_read_tokens), 0),
         coalesce(sum(t.cache_write_5m_tokens), 0) + coalesce(sum(t.cache_write_1h_tokens), 0),
         coalesce(sum(t.images), 0), coalesce(sum(t.guardrail_units), 0)
    FROM attempts t
    JOIN entries e ON e.attempt = t.attempt AND e.slot = 0 AND e.at <= p_mark
    LEFT JOIN LATERAL (
      SELECT sum(e.amount) FILTER (WHERE e.kind = 5) AS refunded,
             sum(e.amount) FILTER (WHERE e.kind = 6) AS adjusted,
             sum(e.amount) FILTER (WHERE e.kind = 7) AS overrun
        FROM entries e WHERE e.attempt = t.attempt AND e.slot > 0) AS x ON t.extra_entries > 0
   WHERE t.tenant = p_tenant AND t.attempt >= v_low AND t.attempt < v_high
     AND uuid_send(t.attempt) >= uuid_send(v_low) AND uuid_send(t.attempt) < uuid_send(v_high)
     AND e.attempt >= v_low AND e.attempt < v_high
     AND t.admitted_at >= v_first AND t.admitted_at < v_last AND t.state <> 0
   GROUP BY t.project, t.key, t.model, t.target, t.tags, t.operation, t.state;
END
$body$;

-- Has the last whole day of every tenant summed again in one of the next rounds. Returns how many days that are.
CREATE OR REPLACE FUNCTION usage_doubt() RETURNS bigint LANGUAGE sql AS $body$
  WITH noted AS (
    INSERT INTO usage_dirty (tenant, day, month)
    SELECT DISTINCT u.tenant, u.day, u.month
      FROM tenants n
      JOIN usage_days u ON u.tenant = n.id AND u.day = (now() AT TIME ZONE n.time_zone)::date - 1
    ON CONFLICT DO NOTHING RETURNING 1)
  SELECT count(*) FROM noted
$body$;

-- One round of a worker: add what is new, sum at most so many dirty days again. One worker at a time, by an
-- advisory lock that falls with the transaction. `waiting` days, or hours of the ledger, are left for the next round.
CREATE OR REPLACE FUNCTION roll_usage(at_most integer)
RETURNS TABLE (leader boolean, rolled integer, waiting bigint, rolled_to timestamptz)
LANGUAGE plpgsql SET lock_timeout TO '2s' AS $body$
DECLARE
  v_mark timestamptz;
  v_behind boolean;
  v_one record;
  v_rolled integer := 0;
BEGIN
  IF NOT pg_try_advisory_xact_lock(7305804404) THEN
    RETURN QUERY SELECT false, 0, 0::bigint, NULL::timestamptz;
    RETURN;
  END IF;
  SELECT a.mark, a.behind INTO v_mark, v_behind FROM usage_advance() a;
  FOR v_one IN SELECT d.tenant, d.day, d.month FROM usage_dirty d ORDER BY d.day DESC, d.tenant LIMIT at_most LOOP
    DELETE FROM usage_dirty d WHERE d.tenant = v_one.tenant AND d.day = v_one.day AND d.month = v_one.month;
    PERFORM usage_recompute(v_one.tenant, v_one.day, v_one.month, v_mark);
    v_rolled := v_rolled + 1;
  END LOOP;
  RETURN QUERY SELECT true, v_rolled, (SELECT count(*) FROM usage_dirty) + v_behind::integer, v_mark;
END
$body$;
