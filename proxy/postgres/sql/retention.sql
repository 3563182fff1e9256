-- Old months of the ledger go whole, as partitions; their sums by day stay.

-- What a month of the ledger holds, and what the days say about it.
CREATE OR REPLACE FUNCTION ledger_month_sums(p_month date)
RETURNS TABLE (attempts bigint, cost bigint, upstream_cost bigint, open bigint,
               day_attempts bigint, day_cost bigint, day_upstream bigint) LANGUAGE sql STABLE AS $body$
  SELECT a.*, d.*
    FROM (SELECT count(*) FILTER (WHERE t.state <> 0), coalesce(sum(t.cost), 0)::bigint,
                 coalesce(sum(t.upstream_cost), 0)::bigint, count(*) FILTER (WHERE t.state = 0)
            FROM attempts t
           WHERE t.attempt >= uuid7_floor(p_month::timestamp AT TIME ZONE 'UTC')
             AND t.attempt < uuid7_floor((p_month + interval '1 month')::timestamp AT TIME ZONE 'UTC')) AS a,
         (SELECT coalesce(sum(u.attempts), 0)::bigint, coalesce(sum(u.cost), 0)::bigint,
                 coalesce(sum(u.upstream_cost), 0)::bigint
            FROM usage_days u WHERE u.month = p_month) AS d
$body$;

-- Drops the partitions of one month when every attempt in it is resolved and the days hold exactly what
-- the ledger holds. Runs with the owner's rights: the application cannot delete a single entry itself.
-- Raises for a month that is not older than `keep_months` (at least 2) or has no partition, and when the
-- sums differ.
CREATE OR REPLACE FUNCTION drop_ledger_month(p_month date, keep_months integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path TO public, pg_temp SET lock_timeout TO '2s' AS $body$
DECLARE
  v_name CONSTANT text := to_char(p_month, '"_y"YYYY"m"MM');
  v_sums record;
BEGIN
  PERFORM pg_advisory_xact_lock(7305804404);
  IF p_month <> date_trunc('month', p_month)::date
     OR p_month + greatest(keep_months, 2) * interval '1 month' >= date_trunc('month', now() AT TIME ZONE 'UTC') THEN
    RAISE EXCEPTION 'the ledger of % is still kept', p_month USING ERRCODE = '22023';
  END IF;
  IF to_regclass('public.attempts' || v_name) IS NULL OR to_regclass('public.entries' || v_name) IS NULL THEN
    RAISE EXCEPTION 'there is no ledger of %', p_month USING ERRCODE = '22023';
  END IF;
  SELECT * INTO v_sums FROM ledger_month_sums(p_month);
  IF v_sums.open > 0 OR EXISTS (SELECT FROM usage_dirty d WHERE d.month = p_month)
     OR (v_sums.attempts, v_sums.cost, v_sums.upstream_cost)
        <> (v_sums.day_attempts, v_sums.day_cost, v_sums.day_upstream) THEN
    RAISE EXCEPTION 'the days do not hold yet what the ledger of % holds', p_month USING ERRCODE = '55000';
  END IF;
  INSERT INTO ledger_months (month, attempts, cost, upstream_cost)
  VALUES (p_month, v_sums.attempts, v_sums.cost, v_sums.upstream_cost);
  EXECUTE format('DROP TABLE %I, %I', 'attempts' || v_name, 'entries' || v_name);
END
$body$;
REVOKE EXECUTE ON FUNCTION drop_ledger_month(date, integer) FROM PUBLIC;
