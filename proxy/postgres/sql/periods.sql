-- Periods are calendar periods in the budget's time zone, turned into moments ahead of time, so
-- that admission compares two timestamps and knows nothing of time zones.

-- Bounds of the period that is `ahead` periods after the one containing `moment`. Both bounds come
-- from local dates by the same rule, so one period's end is the next one's start, also where clocks
-- change at midnight. `total` is one period without an end.
CREATE OR REPLACE FUNCTION period_bounds(
  p_period text, p_zone text, moment timestamptz, ahead integer, OUT starts_at timestamptz, OUT ends_at timestamptz
) LANGUAGE plpgsql STABLE STRICT AS $body$
DECLARE
  v_step interval;
  v_first timestamp;
BEGIN
  IF p_period = 'total' THEN
    IF ahead = 0 THEN
      starts_at := date_trunc('day', moment, 'UTC');
      ends_at := 'infinity';
    END IF;
    RETURN;
  END IF;
  v_step := ('1 ' || p_period)::interval;
  v_first := date_trunc(p_period, moment AT TIME ZONE p_zone) + ahead * v_step;
  starts_at := v_first AT TIME ZONE p_zone;
  ends_at := (v_first + v_step) AT TIME ZONE p_zone;
END
$body$;

-- Opens the missing accounts of one budget: the period of `moment` and two after it. Returns how many.
CREATE OR REPLACE FUNCTION open_accounts(p_budget uuid, moment timestamptz) RETURNS integer
LANGUAGE plpgsql AS $body$
DECLARE
  v_made integer;
BEGIN
  INSERT INTO accounts (budget, starts_at, ends_at, limit_target, limit_effective, boost_amounts, boost_untils)
  SELECT b.id, p.starts_at, p.ends_at, b.limit_nano,
         limit_at(b.limit_nano, x.amounts, x.untils, now()), x.amounts, x.untils
    FROM budgets b
    CROSS JOIN generate_series(0, CASE b.period WHEN 'total' THEN 0 ELSE 2 END) AS ahead
    CROSS JOIN LATERAL period_bounds(b.period, b.time_zone, moment, ahead) AS p
    CROSS JOIN LATERAL (
      SELECT coalesce(array_agg(j.amount), '{}') AS amounts, coalesce(array_agg(j.until), '{}') AS untils
        FROM adjustments j WHERE j.budget = b.id AND j.until > greatest(p.starts_at, now())) AS x
   WHERE b.id = p_budget
     AND NOT EXISTS (SELECT FROM accounts a WHERE a.budget = b.id
                        AND a.starts_at < p.ends_at AND a.ends_at > p.starts_at)
  ON CONFLICT (budget, starts_at) DO NOTHING;
  GET DIAGNOSTICS v_made = ROW_COUNT;
  RETURN v_made;
END
$body$;

-- Called by one leader every few minutes. A live budget without a current account admits nothing,
-- so this must never be more than two periods late. Takes each budget's row, so that a limit
-- changed meanwhile reaches the new account either by its trigger or by this reading.
CREATE OR REPLACE FUNCTION roll_periods(moment timestamptz DEFAULT now()) RETURNS integer
LANGUAGE plpgsql AS $body$
DECLARE
  v_budget uuid;
  v_made integer := 0;
BEGIN
  FOR v_budget IN
    SELECT b.id FROM budgets b
     WHERE b.deleted_at IS NULL
       AND NOT EXISTS (SELECT FROM accounts a, period_bounds(b.period, b.time_zone, moment,
                                CASE b.period WHEN 'total' THEN 0 ELSE 2 END) AS p
                        WHERE a.budget = b.id AND a.starts_at < p.ends_at AND a.ends_at > p.starts_at)
     ORDER BY b.id FOR SHARE OF b
  LOOP
    v_made := v_made + open_accounts(v_budget, moment);
  END LOOP;
  RETURN v_made;
END
$body$;
