-- The invariants of the money, over accounts whose period began at or after `since` and the attempts
-- minted since then. One statement, so one snapshot: no locks, and no false alarm under load.
-- An empty answer is a proof for that snapshot. It reads everything in the range: keep `since` near.
CREATE OR REPLACE FUNCTION check_invariants(since timestamptz DEFAULT '-infinity')
RETURNS TABLE (invariant text, subject text, detail text) LANGUAGE sql STABLE AS $body$
  WITH base AS MATERIALIZED (
    SELECT CASE WHEN isfinite(since) THEN uuid7_floor(since - interval '10 minutes')
                ELSE '00000000-0000-0000-0000-000000000000'::uuid END AS first),
  money AS MATERIALIZED (
    SELECT t.attempt, t.state, t.ceiling, t.cost, t.upstream_cost, t.holds, t.extra_entries,
           coalesce(e.charged, 0) AS charged, coalesce(e.overrun, 0) AS overrun, coalesce(e.upstream, 0) AS upstream,
           coalesce(e.terminals, 0) AS terminals, e.terminal, coalesce(e.extras, 0) AS extras
      FROM attempts t
      LEFT JOIN (SELECT attempt, sum(amount) FILTER (WHERE kind <> 7) AS charged,
                        sum(amount) FILTER (WHERE kind = 7) AS overrun, sum(upstream_amount) AS upstream,
                        count(*) FILTER (WHERE slot = 0) AS terminals, max(kind) FILTER (WHERE slot = 0) AS terminal,
                        count(*) FILTER (WHERE slot > 0) AS extras
                   FROM entries WHERE attempt >= (SELECT first FROM base) GROUP BY attempt) AS e USING (attempt)
     WHERE t.attempt >= (SELECT first FROM base)),
  held AS MATERIALIZED (
    SELECT x AS id, coalesce(sum(m.ceiling) FILTER (WHERE m.state = 0), 0) AS reserved, sum(m.charged) AS settled,
           sum(m.overrun) AS overrun
      FROM money m, unnest(m.holds) AS x GROUP BY x),
  compared AS MATERIALIZED (
    SELECT a.*, coalesce(h.reserved, 0) AS true_reserved, coalesce(h.settled, 0) AS true_settled,
           coalesce(h.overrun, 0) AS true_overrun
      FROM accounts a LEFT JOIN held h USING (id) WHERE a.starts_at >= since OR NOT isfinite(since))
  SELECT 'I1', 'account ' || id, format('reserved %s + settled %s > limit %s', reserved, settled, limit_effective)
    FROM compared WHERE reserved + settled > limit_effective OR reserved < 0 OR settled < 0
  UNION ALL
  SELECT 'I1', 'account ' || id, format('overrun %s, limit %s, %s top-ups with %s ends, from %s to %s', overrun, limit_target,
         cardinality(boost_amounts), cardinality(boost_untils), starts_at, ends_at)
    FROM compared WHERE least(overrun, limit_target) < 0 OR cardinality(boost_amounts) <> cardinality(boost_untils)
                     OR ends_at <= starts_at
  UNION ALL
  SELECT 'I2', 'account ' || id, format('reserved %s, open attempts hold %s', reserved, true_reserved)
    FROM compared WHERE reserved <> true_reserved
  UNION ALL
  SELECT 'I3', 'account ' || id, format('settled %s overrun %s, entries say %s and %s', settled, overrun, true_settled, true_overrun)
    FROM compared WHERE settled <> true_settled OR overrun <> true_overrun
  UNION ALL
  SELECT 'I4', 'attempt ' || attempt, format('state %s with %s terminal entries (kind %s), cost %s, entries %s, upstream %s, entries %s',
         state, terminals, terminal, cost, charged + overrun, upstream_cost, upstream)
    FROM money
   WHERE terminals <> (state <> 0)::integer OR terminal IS DISTINCT FROM nullif(state, 0) OR extras <> extra_entries
      OR coalesce(cost, 0) <> charged + overrun OR coalesce(upstream_cost, 0) <> upstream
$body$;

-- Where each of these budgets stands now, by the database's clock. Budgets without a current
-- account have no row.
CREATE OR REPLACE FUNCTION budget_standing(p_budgets uuid[])
RETURNS TABLE (budget uuid, account bigint, starts_at timestamptz, ends_at timestamptz, limit_nano bigint,
               settled bigint, reserved bigint, overrun bigint, version bigint) LANGUAGE sql STABLE AS $body$
  SELECT a.budget, a.id, a.starts_at, a.ends_at,
         limit_at(a.limit_target, a.boost_amounts, a.boost_untils, now()), a.settled, a.reserved, a.overrun, a.version
    FROM accounts a
   WHERE a.budget = ANY (p_budgets) AND a.starts_at <= now() AND a.ends_at > now()
$body$;
