-- Migrations run as the owner of the tables; the proxy runs as another role, which this function
-- gives what it needs and no more: it can add entries and audit records but never change them, and
-- resolve attempts but never remove them. Run it after each migration:
--   SELECT grant_application('tollhouse_app');
CREATE OR REPLACE FUNCTION grant_application(p_role name) RETURNS void
LANGUAGE plpgsql AS $body$
BEGIN
  EXECUTE format('GRANT USAGE ON SCHEMA public TO %I', p_role);
  EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA public FROM %I', p_role);
  EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA public TO %I', p_role);
  EXECUTE format('GRANT INSERT ON tenants, projects, keys, credentials, limits, admins, budgets, adjustments, '
                 'accounts, attempts, entries, audit, labels, refusals, idempotency TO %I', p_role);
  EXECUTE format('GRANT UPDATE ON tenants, projects, keys, credentials, limits, admins, budgets, accounts, '
                 'attempts, refusals, idempotency, directory_epoch, sweep_mark TO %I', p_role);
  EXECUTE format('GRANT DELETE ON idempotency, refusals TO %I', p_role);
  EXECUTE format('GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO %I', p_role);
  EXECUTE format('GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO %I', p_role);
  EXECUTE format('REVOKE EXECUTE ON FUNCTION grant_application(name) FROM %I', p_role);
  IF to_regprocedure('grant_desk(name)') IS NOT NULL THEN
    EXECUTE format('SELECT grant_desk(%L)', p_role);
  END IF;
END
$body$;
REVOKE EXECUTE ON FUNCTION grant_application(name) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION ensure_partitions(integer) FROM PUBLIC;
