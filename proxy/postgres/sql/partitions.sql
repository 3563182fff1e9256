-- attempts and entries are partitioned by the month in which the attempt's id was minted. The id
-- decides, never a time the database picks: so the primary key is global and a retried admission
-- always meets its first try.

-- Makes the partitions from last month to `months` ahead. Attaching locks the parent only against
-- other schema changes; calls go on. Returns how many tables were made.
CREATE OR REPLACE FUNCTION ensure_partitions(months integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path TO public, pg_temp SET lock_timeout TO '2s' AS $body$
DECLARE
  v_parent text;
  v_name text;
  v_first timestamptz;
  v_made integer := 0;
BEGIN
  PERFORM pg_advisory_xact_lock(7305804402);
  FOR v_parent, v_first IN
    SELECT p, date_trunc('month', now(), 'UTC') FROM unnest(ARRAY['attempts', 'entries']) AS p
  LOOP
    FOR ahead IN -1 .. least(months, 120) LOOP
      v_name := v_parent || to_char((v_first AT TIME ZONE 'UTC') + ahead * interval '1 month', '"_y"YYYY"m"MM');
      CONTINUE WHEN to_regclass('public.' || v_name) IS NOT NULL;
      EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL) WITH (fillfactor = %s, '
                     'autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05, '
                     'autovacuum_analyze_scale_factor = 0.02)',
                     v_name, v_parent, CASE v_parent WHEN 'attempts' THEN 50 ELSE 100 END);
      IF v_parent = 'entries' THEN
        EXECUTE format('CREATE TRIGGER keep_all BEFORE TRUNCATE ON %I FOR EACH STATEMENT '
                       'EXECUTE FUNCTION refuse_change()', v_name);
      END IF;
      EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', v_parent, v_name,
        uuid7_floor(((v_first AT TIME ZONE 'UTC') + ahead * interval '1 month') AT TIME ZONE 'UTC'),
        uuid7_floor(((v_first AT TIME ZONE 'UTC') + (ahead + 1) * interval '1 month') AT TIME ZONE 'UTC'));
      v_made := v_made + 1;
    END LOOP;
  END LOOP;
  RETURN v_made;
END
$body$;

-- Days until the last partition ends; alert below 45.
CREATE OR REPLACE FUNCTION partition_days_ahead() RETURNS double precision
LANGUAGE sql STABLE AS $body$
  SELECT coalesce(extract(epoch FROM min(last) - now()) / 86400, 0)::double precision
    FROM (SELECT max(uuid7_time((regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \(''([0-9a-f-]{36})''\)'))[1]::uuid)) AS last
            FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
           WHERE i.inhparent IN ('attempts'::regclass, 'entries'::regclass)
             AND c.relispartition GROUP BY i.inhparent) AS each_parent
$body$;
