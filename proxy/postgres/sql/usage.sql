-- Usage by day, kept in step with the ledger.
--
-- An attempt belongs to the local day of its tenant in which it was admitted, whenever it was settled
-- or corrected. Every change of money is an entry, and entries carry the time of the transaction that
-- wrote them; so the days that changed are those of attempts with entries since the mark. A day is
-- never added to: it is summed again from the ledger, which makes a repeat harmless.
--
-- The mark never passes a transaction that is still running: whatever commits later has a later time.
-- Only transactions of the caller's own role are visible for that, and that role is the only one that
-- writes entries.

-- Notes the days that have entries in (mark, horizon] and moves the mark. Returns the new mark.
CREATE OR REPLACE FUNCTION usage_stain() RETURNS timestamptz
LANGUAGE plpgsql SET enable_hashjoin TO off SET jit TO off AS $body$
DECLARE
  v_from timestamptz;
  v_to timestamptz;
BEGIN
  SELECT rolled_to INTO v_from FROM usage_mark FOR UPDATE;
  SELECT least(clock_timestamp(), min(s.xact_start)) - interval '1 second' INTO v_to
    FROM pg_stat_activity s
   WHERE s.datname = current_database() AND s.pid <> pg_backend_pid();
  IF v_to <= v_from THEN
    RETURN v_from;
  END IF;
  INSERT INTO usage_dirty (tenant, day, month)
  SELECT DISTINCT t.tenant, (t.admitted_at AT TIME ZONE n.time_zone)::date,
         date_trunc('month', uuid7_time(t.attempt) AT TIME ZONE 'UTC')::date
    FROM entries e
    JOIN attempts t ON t.attempt = e.attempt
    JOIN tenants n ON n.id = t.tenant
   WHERE e.at > v_from AND e.at <= v_to
  ON CONFLICT DO NOTHING;
  UPDATE usage_mark SET rolled_to = v_to;
  RETURN v_to;
END
$body$;

-- Sums one tenant's day again, as far as it lies in one partition of the ledger.
CREATE OR REPLACE FUNCTION usage_recompute(p_tenant uuid, p_day date, p_month date) RETURNS void
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
    LEFT JOIN LATERAL (
      SELECT sum(e.amount) FILTER (WHERE e.kind = 5) AS refunded,
             sum(e.amount) FILTER (WHERE e.kind = 6) AS adjusted,
             sum(e.amount) FILTER (WHERE e.kind = 7) AS overrun
        FROM entries e WHERE e.attempt = t.attempt AND e.slot > 0) AS x ON t.extra_entries > 0
   WHERE t.tenant = p_tenant AND t.attempt >= v_low AND t.attempt < v_high
     AND uuid_send(t.attempt) >= uuid_send(v_low) AND uuid_send(t.attempt) < uuid_send(v_high)
     AND t.admitted_at >= v_first AND t.admitted_at < v_last AND t.state <> 0
   GROUP BY t.project, t.key, t.model, t.target, t.tags, t.operation, t.state;
END
$body$;

-- One round of a worker: note what changed, sum at most so many days again. One worker at a time, by an
-- advisory lock that falls with the transaction. `waiting` days are left for the next round.
CREATE OR REPLACE FUNCTION roll_usage(at_most integer)
RETURNS TABLE (leader boolean, rolled integer, waiting bigint, rolled_to timestamptz)
LANGUAGE plpgsql SET lock_timeout TO '2s' AS $body$
DECLARE
  v_to timestamptz;
  v_one record;
  v_rolled integer := 0;
BEGIN
  IF NOT pg_try_advisory_xact_lock(7305804404) THEN
    RETURN QUERY SELECT false, 0, 0::bigint, NULL::timestamptz;
    RETURN;
  END IF;
  v_to := usage_stain();
  FOR v_one IN SELECT d.tenant, d.day, d.month FROM usage_dirty d ORDER BY d.day DESC, d.tenant LIMIT at_most LOOP
    DELETE FROM usage_dirty d WHERE d.tenant = v_one.tenant AND d.day = v_one.day AND d.month = v_one.month;
    PERFORM usage_recompute(v_one.tenant, v_one.day, v_one.month);
    v_rolled := v_rolled + 1;
  END LOOP;
  RETURN QUERY SELECT true, v_rolled, (SELECT count(*) FROM usage_dirty), v_to;
END
$body$;
