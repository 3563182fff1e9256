"""Usage and spend, summed by whatever a report asks for. Reads only, one statement, one snapshot.

Most of a report comes from `usage_days`, which hold the calls that the worker's mark has passed. What they cannot say
yet comes from the ledger itself: calls that were resolved since, whole days with corrections since or that wait to be summed
again, and the two ends of a range that begins or ends within a day. So a report holds exactly what the ledger holds at that
moment, however late the worker is; a worker that is late makes it slow, not wrong.

A day is a local day of its tenant, whose time zone is fixed for life. Of months that were dropped from
the ledger only whole days are left: a range that ends within one counts all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.domain.control import CallFilter
from proxy.domain.reporting import SUMS, TAG

#: report key -> (expression over one row `x` of usage, its name to readers, joins that name needs)
_KEYS: dict[str, tuple[str, str, str]] = {
    "tenant": ("x.tenant", "coalesce(n.slug, g.tenant::text)", "LEFT JOIN tenants n ON n.id = g.tenant"),
    "project": ("x.project", "coalesce(p.slug, '')", "LEFT JOIN projects p ON p.id = g.project"),
    "key": ("x.key", "g.key::text", ""),
    "model": ("x.model", "coalesce(lm.value, '')", "LEFT JOIN labels lm ON lm.id = g.model"),
    "target": ("x.target", "coalesce(lt.value, '')", "LEFT JOIN labels lt ON lt.id = g.target"),
    "tags": ("x.tags", "coalesce(lg.value, '')", "LEFT JOIN labels lg ON lg.id = g.tags"),
    "operation": ("x.operation", "g.operation", ""),
    "outcome": ("x.state", "g.outcome", ""),
    "day": ("x.day", "to_char(g.day, 'YYYY-MM-DD')", ""),
    "month": ("to_char(x.day, 'YYYY-MM')", "g.month", ""),
}
_TAG_OF_LABEL = """
    SELECT l.id, (SELECT substr(p, length(:tag) + 2) FROM unnest(string_to_array(l.value, '&')) AS p
                   WHERE starts_with(p, :tag || '=') LIMIT 1) AS value
      FROM labels l WHERE l.kind = 4"""
_IDENTITY = "tenant, day, project, key, model, target, tags, operation, state"


async def usage(
    db: AsyncConnection, group_by: Sequence[str], where: CallFilter, *, limit: int
) -> list[dict[str, Any]]:
    """Sums of resolved attempts by `group_by`, the dearest first, at most `limit`.

    Keys are those of `proxy.domain.reporting`; one of them may be `tag:<name>`. Every row also has
    `total`, the cost of all groups together, shown or not. Nano-dollars and counts.
    """
    parameters: dict[str, Any] = {"limit": limit}
    tag = next((key.removeprefix(TAG) for key in group_by if key.startswith(TAG)), None)
    places = {key: f"k{place}" if key.startswith(TAG) else key for place, key in enumerate(group_by)}
    inner, outer, joins = [], [], []
    for key, alias in places.items():
        if key.startswith(TAG):
            inner.append(f"coalesce(tv.value, '') AS {alias}")
            outer.append(f"g.{alias}")
        else:
            expression, shown, join = _KEYS[key]
            inner.append(f"{expression} AS {alias}")
            outer.append(f"{shown} AS {alias}")
            joins.append(join)
    sums = ", ".join(f"coalesce(sum(x.{name}), 0)::bigint AS {name}" for name in SUMS)
    hits = "coalesce(sum(x.attempts) FILTER (WHERE x.state = 4), 0)::bigint AS hits"
    grouping = f"GROUP BY {', '.join(str(n + 1) for n in range(len(inner)))}" if inner else ""
    tags = "" if tag is None else f", tag_values AS MATERIALIZED ({_TAG_OF_LABEL})"
    if tag is not None:
        parameters["tag"] = tag
    statement = f"""
        WITH {_rows(where, parameters)}{tags},
        grouped AS (
          SELECT {"".join(f"{one}, " for one in inner)}{sums}, {hits}
            FROM x {"" if tag is None else "LEFT JOIN tag_values tv ON tv.id = x.tags"} {grouping})
        SELECT {"".join(f"{one}, " for one in outer)}
               {", ".join(f"g.{name}" for name in (*SUMS, "hits"))}, sum(g.cost) OVER ()::bigint AS total
          FROM grouped g {" ".join(joins)} ORDER BY g.cost DESC, {_order(len(outer))} LIMIT :limit"""  # noqa: S608 (literals of this module)
    rows = (await db.execute(text(statement), parameters)).mappings()
    names = {alias: key for key, alias in places.items()}
    return [{names.get(name, name): value for name, value in row.items()} for row in rows]


def _order(columns: int) -> str:
    return ", ".join(str(n + 1) for n in range(columns)) or "g.attempts"


def _rows(where: CallFilter, parameters: dict[str, Any]) -> str:
    """Common table expressions that end in `x`: usage of the range, from the days and from the ledger."""
    tenants = "true"
    if where.tenant is not None:
        tenants, parameters["tenant"] = "n.id = :tenant", where.tenant
    since = until = "NULL::timestamptz"
    if where.since is not None:
        since, parameters["since"] = "CAST(:since AS timestamptz)", where.since
    if where.until is not None:
        until, parameters["until"] = "CAST(:until AS timestamptz)", where.until
    return f"""
        range AS MATERIALIZED (
          SELECT n.id AS tenant, n.time_zone AS zone, {since} AS since, {until} AS until,
                 ({since} AT TIME ZONE n.time_zone)::date AS first,
                 (({until} - interval '1 microsecond') AT TIME ZONE n.time_zone)::date AS last
            FROM tenants n WHERE {tenants}),
        stale AS (
          SELECT t.tenant, (t.admitted_at AT TIME ZONE r.zone)::date AS day,
                 date_trunc('month', uuid7_time(t.attempt) AT TIME ZONE 'UTC')::date AS month
            FROM entries e JOIN attempts t ON t.attempt = e.attempt JOIN range r ON r.tenant = t.tenant
           WHERE e.at > (SELECT rolled_to FROM usage_mark) AND e.slot > 0
          UNION SELECT d.tenant, d.day, d.month FROM usage_dirty d
          UNION SELECT r.tenant, d.day, date_trunc('month', m.at AT TIME ZONE 'UTC')::date
            FROM range r
            CROSS JOIN LATERAL (
              SELECT r.first WHERE r.first::timestamp AT TIME ZONE r.zone <> r.since
              UNION SELECT r.last WHERE (r.last + 1)::timestamp AT TIME ZONE r.zone <> r.until) AS d(day)
            CROSS JOIN LATERAL (VALUES (d.day::timestamp AT TIME ZONE r.zone - interval '6 minutes'),
                                       ((d.day + 1)::timestamp AT TIME ZONE r.zone + interval '6 minutes')) AS m(at)),
        live AS MATERIALIZED (
          SELECT s.tenant, s.day, s.month, r.zone,
                 greatest(r.since, s.day::timestamp AT TIME ZONE r.zone) AS first,
                 least(r.until, (s.day + 1)::timestamp AT TIME ZONE r.zone) AS last
            FROM stale s JOIN range r ON r.tenant = s.tenant
           WHERE (r.first IS NULL OR s.day >= r.first) AND (r.last IS NULL OR s.day <= r.last)
             AND NOT EXISTS (SELECT FROM ledger_months m WHERE m.month = s.month)),
        x AS (
          SELECT {_IDENTITY}, {", ".join(f"u.{name}" for name in SUMS)}
            FROM usage_days u JOIN range r USING (tenant)
           WHERE (r.first IS NULL OR u.day >= r.first) AND (r.last IS NULL OR u.day <= r.last)
             AND NOT EXISTS (SELECT FROM live v WHERE (v.tenant, v.day, v.month) = (u.tenant, u.day, u.month))
             AND {_filters("u", where, parameters)}
          UNION ALL
          {_FRESH} AND {_filters("t", where, parameters)}
          UNION ALL
          {_LIVE} AND {_filters("t", where, parameters)})"""  # noqa: S608 (literals of this module)


def _filters(alias: str, where: CallFilter, parameters: dict[str, Any]) -> str:
    conditions = ["true"]
    for name in ("project", "key"):
        if (value := getattr(where, name)) is not None:
            conditions.append(f"{alias}.{name} = :{name}")
            parameters[name] = value
    if where.model is not None:
        conditions.append(f"{alias}.model = (SELECT id FROM labels WHERE kind = 1 AND value = :model)")  # noqa: S608
        parameters["model"] = where.model
    if where.outcome is not None:
        conditions.append(f"{alias}.state = :outcome")
        parameters["outcome"] = int(where.outcome)
    return " AND ".join(conditions)


#: what one call adds, but its corrections; in the order of `usage_days`
_CALL = """
                 coalesce(t.project, '00000000-0000-0000-0000-000000000000'), t.key, t.model,
                 t.target, t.tags, t.operation, t.state, 1, t.cost, t.upstream_cost, t.saved"""
_TOKENS = """
                 coalesce(t.input_tokens, 0), coalesce(t.output_tokens, 0), coalesce(t.cache_read_tokens, 0),
                 coalesce(t.cache_write_5m_tokens, 0) + coalesce(t.cache_write_1h_tokens, 0),
                 coalesce(t.images, 0), coalesce(t.guardrail_units, 0)"""
#: calls that the mark has not passed, in days that are not summed from the ledger anyway. They have no corrections.
_FRESH = f"""
          SELECT t.tenant, d.day, {_CALL}, 0, 0, 0, {_TOKENS}
            FROM entries e
            JOIN attempts t ON t.attempt = e.attempt
            JOIN range r ON r.tenant = t.tenant
            CROSS JOIN LATERAL (
              SELECT (t.admitted_at AT TIME ZONE r.zone)::date AS day,
                     date_trunc('month', uuid7_time(t.attempt) AT TIME ZONE 'UTC')::date AS month) AS d
           WHERE e.at > (SELECT rolled_to FROM usage_mark) AND e.slot = 0
             AND (r.first IS NULL OR d.day >= r.first) AND (r.last IS NULL OR d.day <= r.last)
             AND NOT EXISTS (SELECT FROM live v WHERE (v.tenant, v.day, v.month) = (t.tenant, d.day, d.month))"""  # noqa: S608 (literals of this module)
_LIVE = f"""
          SELECT t.tenant, v.day, {_CALL},
                 coalesce(c.refunded, 0), coalesce(c.adjusted, 0), coalesce(c.overrun, 0), {_TOKENS}
            FROM live v
            CROSS JOIN LATERAL (
              SELECT greatest(uuid7_floor(v.first - interval '6 minutes'),
                              uuid7_floor(v.month::timestamp AT TIME ZONE 'UTC')) AS low,
                     least(uuid7_floor(v.last + interval '6 minutes'),
                           uuid7_floor((v.month + interval '1 month')::timestamp AT TIME ZONE 'UTC')) AS high) AS b
            JOIN attempts t ON t.tenant = v.tenant AND t.attempt >= b.low AND t.attempt < b.high
             AND uuid_send(t.attempt) >= uuid_send(b.low) AND uuid_send(t.attempt) < uuid_send(b.high)
            LEFT JOIN LATERAL (
              SELECT sum(e.amount) FILTER (WHERE e.kind = 5) AS refunded,
                     sum(e.amount) FILTER (WHERE e.kind = 6) AS adjusted,
                     sum(e.amount) FILTER (WHERE e.kind = 7) AS overrun
                FROM entries e WHERE e.attempt = t.attempt AND e.slot > 0) AS c ON t.extra_entries > 0
           WHERE t.state <> 0 AND t.admitted_at >= v.first AND t.admitted_at < v.last"""  # noqa: S608 (literals of this module)
