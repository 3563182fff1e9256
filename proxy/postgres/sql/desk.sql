-- What the application may do with the tables of reports and alerts; called by grant_application.
-- Statements and the totals of dropped months can be added and never changed.
CREATE OR REPLACE FUNCTION grant_desk(p_role name) RETURNS void
LANGUAGE plpgsql AS $body$
BEGIN
  EXECUTE format('GRANT INSERT, UPDATE, DELETE ON usage_days, usage_dirty, crossings, outbox TO %I', p_role);
  EXECUTE format('GRANT INSERT, DELETE ON alerts TO %I', p_role);
  EXECUTE format('GRANT INSERT, UPDATE ON webhooks TO %I', p_role);
  EXECUTE format('GRANT INSERT ON statements TO %I', p_role);
  EXECUTE format('GRANT UPDATE ON usage_mark TO %I', p_role);
  EXECUTE format('REVOKE EXECUTE ON FUNCTION grant_desk(name) FROM %I', p_role);
END
$body$;
REVOKE EXECUTE ON FUNCTION grant_desk(name) FROM PUBLIC;
