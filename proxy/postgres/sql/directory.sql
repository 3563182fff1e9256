-- The directory (tenants, projects, keys, credentials, limits, budgets) is read by polling
-- `WHERE changed > last seen`. That is complete because every write takes the one row of
-- directory_epoch: writers commit in the order of their versions, so no smaller version can
-- appear after a larger one was seen. Nothing is deleted; an end is a column (a tombstone).

CREATE OR REPLACE FUNCTION directory_stamp() RETURNS trigger
LANGUAGE plpgsql AS $body$
DECLARE
  v_version bigint;
BEGIN
  IF TG_OP = 'DELETE' THEN
    RAISE EXCEPTION 'rows of % are ended by a column, never deleted', TG_TABLE_NAME USING ERRCODE = '2F002';
  END IF;
  UPDATE directory_epoch SET version = version + 1 RETURNING version INTO v_version;
  NEW.changed := v_version;
  NEW.version := CASE TG_OP WHEN 'UPDATE' THEN OLD.version + 1 ELSE 1 END;
  PERFORM pg_notify('tollhouse_directory', v_version::text);
  RETURN NEW;
END
$body$;

-- What a budget counts is fixed for its life; its limit may change and its usage stays.
CREATE OR REPLACE FUNCTION budget_guard() RETURNS trigger
LANGUAGE plpgsql AS $body$
BEGIN
  IF TG_OP = 'INSERT' THEN
    NEW.models := (SELECT array_agg(DISTINCT m ORDER BY m) FROM unnest(NEW.models) AS m);
  ELSIF (NEW.scope, NEW.subject, NEW.tenant, NEW.period, NEW.time_zone)
        IS DISTINCT FROM (OLD.scope, OLD.subject, OLD.tenant, OLD.period, OLD.time_zone)
        OR NEW.models IS DISTINCT FROM OLD.models THEN
    RAISE EXCEPTION 'scope, period, time zone and models of a budget are fixed' USING ERRCODE = '23514';
  ELSIF OLD.deleted_at IS NOT NULL AND NEW.deleted_at IS NULL THEN
    RAISE EXCEPTION 'a deleted budget stays deleted' USING ERRCODE = '23514';
  END IF;
  RETURN NEW;
END
$body$;

-- A new budget has its accounts in its own transaction; a changed limit reaches them in the same.
CREATE OR REPLACE FUNCTION budget_accounts() RETURNS trigger
LANGUAGE plpgsql AS $body$
BEGIN
  IF TG_OP = 'INSERT' THEN
    PERFORM open_accounts(NEW.id, now());
  ELSIF NEW.limit_nano <> OLD.limit_nano THEN
    PERFORM FROM accounts WHERE budget = NEW.id AND ends_at > now() ORDER BY id FOR NO KEY UPDATE;
    UPDATE accounts a
       SET limit_target = greatest(0, a.limit_target + NEW.limit_nano - OLD.limit_nano),
           limit_effective = greatest(
             limit_at(greatest(0, a.limit_target + NEW.limit_nano - OLD.limit_nano),
                      a.boost_amounts, a.boost_untils, now()),
             a.reserved + a.settled),
           version = a.version + 1
     WHERE a.budget = NEW.id AND a.ends_at > now();
  END IF;
  RETURN NULL;
END
$body$;

-- A top-up without an end lifts the current period only. One with an end lifts every period it
-- touches until then, by the database's clock, without anybody having to take it back.
CREATE OR REPLACE FUNCTION adjustment_apply() RETURNS trigger
LANGUAGE plpgsql AS $body$
BEGIN
  PERFORM FROM accounts WHERE budget = NEW.budget AND ends_at > now() ORDER BY id FOR NO KEY UPDATE;
  IF NEW.until IS NULL THEN
    UPDATE accounts a
       SET limit_target = greatest(0, a.limit_target + NEW.amount),
           limit_effective = greatest(
             limit_at(greatest(0, a.limit_target + NEW.amount), a.boost_amounts, a.boost_untils, now()),
             a.reserved + a.settled),
           version = a.version + 1
     WHERE a.budget = NEW.budget AND a.starts_at <= now() AND a.ends_at > now();
  ELSE
    UPDATE accounts a
       SET boost_amounts = kept.amounts || NEW.amount,
           boost_untils = kept.untils || NEW.until,
           limit_effective = greatest(
             limit_at(a.limit_target, kept.amounts || NEW.amount, kept.untils || NEW.until, now()),
             a.reserved + a.settled),
           version = a.version + 1
      FROM accounts o
      CROSS JOIN LATERAL (
        SELECT coalesce(array_agg(b.amount), '{}') AS amounts, coalesce(array_agg(b.until), '{}') AS untils
          FROM unnest(o.boost_amounts, o.boost_untils) AS b(amount, until) WHERE b.until > now()) kept
     WHERE o.id = a.id AND a.budget = NEW.budget AND a.ends_at > now() AND a.starts_at < NEW.until;
  END IF;
  RETURN NULL;
END
$body$;

DROP TRIGGER IF EXISTS stamp ON tenants;
DROP TRIGGER IF EXISTS stamp ON projects;
DROP TRIGGER IF EXISTS stamp ON keys;
DROP TRIGGER IF EXISTS stamp ON credentials;
DROP TRIGGER IF EXISTS stamp ON limits;
DROP TRIGGER IF EXISTS stamp ON budgets;
DROP TRIGGER IF EXISTS guard ON budgets;
DROP TRIGGER IF EXISTS accounts ON budgets;
DROP TRIGGER IF EXISTS apply ON adjustments;
CREATE TRIGGER stamp BEFORE INSERT OR UPDATE OR DELETE ON tenants FOR EACH ROW EXECUTE FUNCTION directory_stamp();
CREATE TRIGGER stamp BEFORE INSERT OR UPDATE OR DELETE ON projects FOR EACH ROW EXECUTE FUNCTION directory_stamp();
CREATE TRIGGER stamp BEFORE INSERT OR UPDATE OR DELETE ON keys FOR EACH ROW EXECUTE FUNCTION directory_stamp();
CREATE TRIGGER stamp BEFORE INSERT OR UPDATE OR DELETE ON credentials FOR EACH ROW EXECUTE FUNCTION directory_stamp();
CREATE TRIGGER stamp BEFORE INSERT OR UPDATE OR DELETE ON limits FOR EACH ROW EXECUTE FUNCTION directory_stamp();
CREATE TRIGGER stamp BEFORE INSERT OR UPDATE OR DELETE ON budgets FOR EACH ROW EXECUTE FUNCTION directory_stamp();
CREATE TRIGGER guard BEFORE INSERT OR UPDATE ON budgets FOR EACH ROW EXECUTE FUNCTION budget_guard();
CREATE TRIGGER accounts AFTER INSERT OR UPDATE ON budgets FOR EACH ROW EXECUTE FUNCTION budget_accounts();
CREATE TRIGGER apply AFTER INSERT ON adjustments FOR EACH ROW EXECUTE FUNCTION adjustment_apply();
