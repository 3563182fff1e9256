-- Charges the ceiling of attempts that nobody resolved: open for longer than twice the longest call.
-- One sweeper at a time, by an advisory lock that falls with the transaction.
--
-- The mark says: nothing open has a smaller id. That stays true because admission refuses ids more
-- than five minutes off this clock, and the mark stays a further minute behind; a statement must
-- not run that long (bank.py's own limit is seconds). So each range of ids is scanned once, apart
-- from the last six minutes.
CREATE OR REPLACE FUNCTION bank_sweep(deadline_seconds double precision, at_most integer)
RETURNS TABLE (leader boolean, swept integer, more boolean, swept_to uuid) LANGUAGE plpgsql
SET enable_seqscan TO off SET enable_hashjoin TO off SET jit TO off SET lock_timeout TO '250ms'
AS $body$
#variable_conflict use_column
DECLARE
  v_cutoff CONSTANT timestamptz := now() - 2 * deadline_seconds * interval '1 second';
  v_safe CONSTANT uuid := uuid7_floor(v_cutoff - interval '6 minutes');
  v_mark uuid;
  v_late uuid[];
  v_unresolved integer;
BEGIN
  IF NOT pg_try_advisory_xact_lock(7305804401) THEN
    RETURN QUERY SELECT false, 0, false, NULL::uuid;
    RETURN;
  END IF;
  SELECT m.swept_to INTO v_mark FROM sweep_mark m FOR UPDATE;
  v_late := ARRAY(
    SELECT t.attempt FROM attempts t
     WHERE t.attempt >= v_mark AND t.attempt < uuid7_floor(v_cutoff + interval '5 minutes')
       AND t.state = 0 AND t.admitted_at < v_cutoff
     ORDER BY t.attempt LIMIT at_most);
  SELECT count(*) FILTER (WHERE r.answer NOT IN (0, 1)) INTO v_unresolved
    FROM bank_ceiling(v_late, 6::smallint) AS r;
  IF v_unresolved = 0 THEN
    v_mark := greatest(v_mark, CASE WHEN cardinality(v_late) < at_most THEN v_safe
                                    ELSE least(v_safe, v_late[cardinality(v_late)]) END);
    UPDATE sweep_mark SET swept_to = v_mark WHERE sweep_mark.swept_to < v_mark;
  END IF;
  RETURN QUERY SELECT true, cardinality(v_late) - v_unresolved, cardinality(v_late) >= at_most, v_mark;
END
$body$;

-- Settles open attempts at their ceiling, for the reason given.
CREATE OR REPLACE FUNCTION bank_ceiling(p_attempts uuid[], p_why smallint)
RETURNS TABLE (attempt uuid, answer smallint) LANGUAGE sql AS $body$
  SELECT p_attempts[r.ord], r.answer
    FROM (SELECT cardinality(p_attempts) AS n) AS c,
         LATERAL bank_settle_and_admit(
           s_attempt => p_attempts, s_state => array_fill(3::smallint, ARRAY[n]),
           s_why => array_fill(p_why, ARRAY[n]), s_cost => array_fill(0::bigint, ARRAY[n]),
           s_upstream => array_fill(0::bigint, ARRAY[n]), s_input => array_fill(0, ARRAY[n]),
           s_output => array_fill(0, ARRAY[n]), s_cache_read => array_fill(0, ARRAY[n]),
           s_write_5m => array_fill(0, ARRAY[n]), s_write_1h => array_fill(0, ARRAY[n]),
           s_images => array_fill(0, ARRAY[n]), s_guardrail => array_fill(0, ARRAY[n]),
           s_exact => array_fill(false, ARRAY[n]), s_price => array_fill(0, ARRAY[n]),
           s_request => array_fill(NULL::text, ARRAY[n]), s_status => array_fill(0, ARRAY[n]),
           s_latency => array_fill(0, ARRAY[n]), s_first_byte => array_fill(0, ARRAY[n]),
           s_recorder => array_fill(NULL::uuid, ARRAY[n])) AS r
$body$;

-- What became of these attempts; unknown ones have no row.
CREATE OR REPLACE FUNCTION bank_states(p_attempts uuid[])
RETURNS TABLE (attempt uuid, state smallint, recorder uuid, ceiling bigint) LANGUAGE sql STABLE
SET enable_seqscan TO off SET enable_hashjoin TO off SET jit TO off
AS $body$
  SELECT t.attempt, t.state, t.recorder, t.ceiling
    FROM unnest(p_attempts) AS p(attempt)
    CROSS JOIN LATERAL (SELECT * FROM attempts a WHERE a.attempt = p.attempt OFFSET 0) AS t
$body$;
