-- Corrections after the fact, each with its evidence: REFUND (5) lowers a CEILING, ADJUST (6)
-- corrects any resolved attempt in either direction. The same evidence counts once per attempt and
-- kind. An ADJUST upwards cannot fail: the account's limit gives way and falls again later.
--
-- Answers: 0 done, 1 already (same evidence), 3 unknown attempt, 4 refused (still open, not a
-- CEILING, wrong sign, or it would charge less than nothing).
CREATE OR REPLACE FUNCTION bank_amend(
  p_attempt uuid[], p_kind smallint[], p_amount bigint[], p_upstream bigint[], p_why smallint[], p_evidence text[]
) RETURNS TABLE (ord integer, answer smallint) LANGUAGE plpgsql
SET enable_seqscan TO off SET enable_hashjoin TO off SET jit TO off SET lock_timeout TO '1s'
AS $body$
#variable_conflict use_column
DECLARE
  v_row record;
  v_charged bigint;
BEGIN
  IF 100000000000000000 < ANY (p_amount || p_upstream) THEN
    RAISE EXCEPTION 'an amount is out of bounds' USING ERRCODE = '22003';
  END IF;
  PERFORM FROM (
      SELECT DISTINCT x AS id FROM unnest(p_attempt) AS p(attempt)
        CROSS JOIN LATERAL (SELECT a.holds FROM attempts a WHERE a.attempt = p.attempt OFFSET 0) AS t
        CROSS JOIN LATERAL unnest(t.holds) AS x ORDER BY x) AS k
    CROSS JOIN LATERAL (SELECT FROM accounts a WHERE a.id = k.id FOR NO KEY UPDATE) AS l;
  PERFORM FROM (SELECT DISTINCT u AS attempt FROM unnest(p_attempt) AS u ORDER BY u) AS k
    CROSS JOIN LATERAL (SELECT FROM attempts a WHERE a.attempt = k.attempt FOR NO KEY UPDATE) AS l;
  FOR ord IN 1 .. cardinality(p_attempt) LOOP
    SELECT * INTO v_row FROM attempts t WHERE t.attempt = p_attempt[ord];
    v_charged := (SELECT sum(e.amount) FROM entries e WHERE e.attempt = p_attempt[ord] AND e.kind <> 7);
    IF v_row IS NULL OR v_row.attempt IS NULL THEN
      answer := 3;
    ELSIF EXISTS (SELECT FROM entries e WHERE e.attempt = p_attempt[ord] AND e.slot > 0
                     AND e.kind = p_kind[ord] AND e.evidence = p_evidence[ord]) THEN
      answer := 1;
    ELSIF v_row.state IN (0, 4) OR p_kind[ord] NOT IN (5, 6) OR p_evidence[ord] IS NULL
          OR (p_kind[ord] = 5 AND (v_row.state <> 3 OR p_amount[ord] >= 0))
          OR v_charged + p_amount[ord] < 0 OR v_row.upstream_cost + p_upstream[ord] < 0 THEN
      answer := 4;
    ELSE
      answer := 0;
      INSERT INTO entries (attempt, slot, kind, amount, upstream_amount, at, why, evidence)
      VALUES (p_attempt[ord], v_row.extra_entries + 1, p_kind[ord], p_amount[ord], p_upstream[ord], now(),
              p_why[ord], p_evidence[ord]);
      UPDATE attempts t SET cost = t.cost + p_amount[ord], upstream_cost = t.upstream_cost + p_upstream[ord],
                            extra_entries = t.extra_entries + 1
       WHERE t.attempt = p_attempt[ord];
      UPDATE accounts a
         SET settled = a.settled + p_amount[ord], version = a.version + 1,
             limit_effective = greatest(limit_at(a.limit_target, a.boost_amounts, a.boost_untils, now()),
                                        a.reserved + a.settled + p_amount[ord])
       WHERE a.id = ANY (v_row.holds);
    END IF;
    RETURN NEXT;
  END LOOP;
END
$body$;
