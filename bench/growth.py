"""`make bench-growth`: does a call cost the same when there is more of everything?

python -m bench.growth [--tenants 10,1000] [--rows 0,200000] [--bytes 1000,1000000] [--workers 1,2] [--calls 0]

Tollhouse alone, c=16, CPU of proxy and Postgres per call: with few and many tenants that call in turn, with an
empty and a grown ledger, with small and large bodies, with one worker and two, and its memory over many calls.

The machine may change its pace meanwhile: each look says how many ns one addition in Python took beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import asyncpg

from bench import contestants, forms, install, measure, payloads, processes
from bench.contestants import Ask
from bench.measure import Figures
from bench.run import RESULTS, Session, session_of
from bench.world import Key, Tollhouse
from proxy.clock import uuid7
from proxy.keys import Keyring, parse_master_key

SECONDS = 5
#: at a grown ledger; the worker sums the day again in one or two of them, and rests twenty times as long
LOOKS = 7
ROWS_AT_ONCE = 100_000
#: the middle of so many looks, where nothing comes now and then
ALTERNATIONS = 3
KINDS = ("tenants", "rows", "bytes", "workers")


def tenants(session: Session, counts: list[int]) -> list[Figures]:
    """As many tenants as told, each with its key, three budgets and three limits, calling in turn; the larger and the
    smaller crowd alternate. All are known from the beginning, as an installation knows them.
    """
    if not counts:
        return []
    tokens = asyncio.run(_insert_tenants(session.tollhouse, max(counts), session.place.bank.postgres.dsn))
    ours = _ours(session, tokens[-1])
    if wrong := measure.settled_down(ours, seconds=120):
        raise RuntimeError(f"{len(tokens)} tenants are not known: {wrong}")
    warm = 0
    while warm < 1.2 * len(tokens):  # each has called before
        warm += measure.closed(session.place, ours, 16, 2, tokens=tokens)["calls"]
    looks: list[list[Figures]] = [[] for _ in counts]
    for _ in range(ALTERNATIONS):
        for count, seen in zip(counts, looks, strict=True):
            seen.append(_look(session, ours, tokens[:count]))
    return [
        _said(session, {"tenants": count, **_middle(seen, "cpu_us_proxy")})
        for count, seen in zip(counts, looks, strict=True)
    ]


def _said(session: Session, figures: Figures) -> Figures:
    session.say(json.dumps(figures))
    return figures


def rows(session: Session, key: Key, counts: list[int]) -> list[Figures]:
    """The ledger filled with finished attempts of one tenant, as they would lie after so many calls."""
    out, there = [], 0
    ours = _ours(session, key.bearer_token)
    measure.closed(session.place, ours, 16, 2)  # leaves attempts to copy from
    for count in counts:
        dsn = session.place.bank.postgres.dsn
        while there < count:
            more = min(ROWS_AT_ONCE, count - there)
            asyncio.run(_fill(dsn, more))
            there += more
        asyncio.run(_execute(dsn, "VACUUM ANALYZE attempts, entries"))
        measure.closed(session.place, ours, 16, 2)
        looks = [_look(session, ours) for _ in range(LOOKS)]
        most = max(look["cpu_us_postgres"] for look in looks)
        out.append({"rows": there, **_middle(looks, "cpu_us_postgres"), "cpu_us_postgres_most": most})
        session.say(json.dumps(out[-1]))
    return out


def _middle(looks: list[Figures], by: str) -> Figures:
    """The look in the middle by the cost of `by` at one pace of the machine, with the errors of all."""
    looks = sorted(looks, key=lambda look: float(look[by] / look["pace"]))
    return looks[len(looks) // 2] | {"errors": sum(look["errors"] for look in looks)}


def _pace(core: int) -> float:
    """ns that the core takes for one addition in Python now. What the machine does, the same in every look."""
    spin = [sys.executable, "-c", _SPIN, str(core)]
    return float(subprocess.run(spin, check=True, capture_output=True, text=True).stdout)


_SPIN = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
total, began = 0, time.process_time_ns()
for n in range(3_000_000):
    total += n
print((time.process_time_ns() - began) / 3_000_000)
"""


def bodies(session: Session, key: Key, sizes: list[int]) -> list[Figures]:
    """Larger prompts; a larger one must be read, hashed, checked and sent on, and nothing more."""
    out = []
    for size in sizes:
        ours = _ours(session, key.bearer_token)
        ask = replace(ours.ask(stream=False), body=payloads.llama_request(size))
        measure.closed(session.place, ours, 4, 1, ask=ask)
        looks = [_look(session, ours, connections=4, ask=ask) for _ in range(ALTERNATIONS)]
        nginx = contestants.Nginx(session.place)
        nginx.start()
        beside = measure.closed(session.place, nginx, 4, 2, ask=replace(ask, port=nginx.port))
        nginx.stop()
        out.append(
            {"bytes": len(ask.body), **_middle(looks, "cpu_us_proxy"), "nginx_cpu_us": beside["cpu_us_proxy"]}
        )
        session.say(json.dumps(out[-1]))
    return out


def workers(session: Session, key: Key, counts: list[int]) -> list[Figures]:
    """One worker and more, each asked by 16 at once, in turn. More than one take both cores, beside the load."""
    first, groups = session.tollhouse, list[Tollhouse]()
    try:
        for count in counts:
            group = first if count == 1 else replace(
                first, workers=count, home=session.place.home / f"workers-{count}", port=processes.free_port()
            )  # fmt: skip
            groups.append(group)
            if group is not first:
                group.start()
        looks: list[list[Figures]] = [[] for _ in counts]
        for _ in range(ALTERNATIONS):
            for group, seen in zip(groups, looks, strict=True):
                ours = contestants.Ours(session.place, group, key)
                ours.start()
                measure.closed(session.place, ours, 16 * group.workers, 1)
                seen.append(_look(session, ours, connections=16 * group.workers))
    finally:
        for group in groups:
            if group is not first:
                group.stop()
    return [
        _said(session, {"workers": count, **_middle(seen, "cpu_us_proxy")})
        for count, seen in zip(counts, looks, strict=True)
    ]


def memory(session: Session, key: Key, calls: int) -> list[Figures]:
    """Ten looks at the memory of the worker over so many calls."""
    ours = _ours(session, key.bearer_token)
    out, done = [{"calls": 0, **measure.memory(ours)}], 0
    for look in range(1, 11 if calls else 1):
        while done < calls * look // 10:
            done += measure.closed(session.place, ours, 32, 2)["calls"]
        out.append({"calls": done, **measure.memory(ours)})
        session.say(json.dumps(out[-1]))
    return out


def _ours(session: Session, bearer: str) -> contestants.Ours:
    ours = contestants.Ours(session.place, session.tollhouse, Key(bearer, "", "", "", ""))
    ours.start()
    return ours


def _look(
    session: Session,
    ours: contestants.Ours,
    tokens: Sequence[str] = (),
    *,
    connections: int = 16,
    ask: Ask | None = None,
) -> Figures:
    """Five seconds, between two looks at the pace of the proxy's core."""
    core = min(session.place.cores.proxy)
    before = _pace(core)
    figures = measure.closed(session.place, ours, connections, SECONDS, tokens=tokens, ask=ask)
    return figures | {"pace": round((before + _pace(core)) / 2, 1)}


async def _execute(dsn: str, statement: str) -> None:
    db = await asyncpg.connect(dsn)
    try:
        await db.execute(statement)
    finally:
        await db.close()


async def _fill(dsn: str, count: int) -> None:
    """Copies of a finished attempt and its entry under ids of the past hour, accounts untouched."""
    db = await asyncpg.connect(dsn)
    try:
        async with db.transaction():
            await db.execute(_COPY, count)
            await db.execute(
                "INSERT INTO entries (attempt, slot, kind, why, amount, upstream_amount, at) "
                "SELECT attempt, 0, 1, 0, cost, cost, admitted_at FROM grown"
            )
            await db.execute("INSERT INTO attempts SELECT * FROM grown")
    finally:
        await db.close()


#: Ids are uuids of version 7 that lie evenly in the last hour of this month, so that they are spread over the index.
#: `n` stands in them so that each row has its own.
_COPY = """
CREATE TEMP TABLE grown ON COMMIT DROP AS
SELECT copy.*
FROM (SELECT to_jsonb(a) AS row FROM attempts AS a WHERE state = 1 AND cost IS NOT NULL LIMIT 1) AS template,
     (SELECT extract(epoch FROM now())::float8 AS until,
             least(3600, extract(epoch FROM now() - date_trunc('month', now())))::float8 AS seconds) AS span,
     generate_series(1, $1::int) AS n,
     LATERAL jsonb_populate_record(NULL::attempts, template.row || jsonb_build_object('attempt',
         lpad(to_hex((1000 * (span.until - random() * span.seconds) + 0 * n)::bigint), 12, '0')
         || '7' || substr(replace(gen_random_uuid()::text, '-', ''), 14))) AS copy
"""


async def _insert_tenants(tollhouse: Tollhouse, count: int, dsn: str) -> list[str]:
    """Rows as the admin REST writes them, without its audit; accounts are opened by the tables' triggers."""
    keyring = Keyring(parse_master_key(tollhouse.master_key), environment="live")
    tokens, made = [], []
    for _ in range(count):
        bearer = keyring.mint_bearer()
        tokens.append(bearer.token)
        made.append((uuid7(), uuid7(), uuid7(), uuid7(), bearer))
    db = await asyncpg.connect(dsn)
    try:
        async with db.transaction():
            await db.executemany(
                "INSERT INTO tenants (id, slug, name, plan) VALUES ($1, $2, $2, 'bench')",
                [(t, f"grown-{t.hex[-12:]}") for t, *_ in made],
            )
            await db.executemany(
                "INSERT INTO projects (id, tenant, slug, name) VALUES ($1, $2, 'search', 'Search')",
                [(p, t) for t, p, *_ in made],
            )
            await db.executemany(
                "INSERT INTO keys (id, tenant, project, name) VALUES ($1, $2, $3, 'bench')",
                [(k, t, p) for t, p, k, *_ in made],
            )
            await db.executemany(
                "INSERT INTO credentials (id, key, bearer_digest, bearer_prefix, last4, pepper_id) "
                "VALUES ($1, $2, $3, $4, $5, $6)",
                [(c, k, b.digest, b.prefix, b.last4, b.pepper_id) for _, _, k, c, b in made],
            )
            scopes = [
                (uuid7(), scope, subject, tenant)
                for tenant, project, key, *_ in made
                for scope, subject in (("tenant", tenant), ("project", project), ("key", key))
            ]
            await db.executemany(
                "INSERT INTO budgets (id, scope, subject, tenant, period, limit_nano) "
                "VALUES ($1, $2, $3, $4, 'month', 100000000000000)",
                scopes,
            )
            await db.executemany(
                "INSERT INTO limits (id, scope, subject, requests_per_minute, tokens_per_minute) "
                "VALUES ($1, $2, $3, 100000000, 1000000000)",
                [(uuid7(), scope, subject) for _, scope, subject, _ in scopes],
            )
        await db.execute("ANALYZE")
    finally:
        await db.close()
    return tokens


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tenants", default="10,1000")
    parser.add_argument("--rows", default="0,200000")
    parser.add_argument("--bytes", default="1000,1000000")
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--calls", type=int, default=0, help="look at memory over so many calls")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if not install.all_of(["tools", "tollhouse"])["tools"]:
        return 1
    told = {name: [int(n) for n in getattr(options, name).split(",") if n] for name in KINDS}
    with session_of(forms.SMOKE) as session:
        key = session.tollhouse.governed("acme")
        session.results |= {
            "bytes": bodies(session, key, told["bytes"]),
            "workers": workers(session, key, told["workers"]),
            "tenants": tenants(session, told["tenants"]),
            "rows": rows(session, key, told["rows"]),
            "memory": memory(session, key, options.calls),
            "warnings": session.tollhouse.warnings(),
        }
        results = session.results
    stamp = results["began"].replace(":", "").partition("+")[0]
    output = options.output or RESULTS / f"{stamp}-growth.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))
    print(f"\nwritten: {output}", file=sys.stderr)
    return 0


def table(results: Figures) -> str:
    """What grew, and what a call cost."""
    lines = [
        "| what grew | to | calls/s | proxy µs | Postgres µs | Redis µs | pace ns | errors |",
        "|" + "---|" * 8,
    ]
    for what in KINDS:
        for each in results[what]:
            cells = [what, f"{each[what]:,}", f"{each['rate']:,.0f}"]
            cells += [f"{each[f'cpu_us_{part}']:,.0f}" for part in ("proxy", "postgres", "redis")]
            if "cpu_us_postgres_most" in each:
                cells[-2] += f", at most {each['cpu_us_postgres_most']:,.0f}"
            lines.append("| " + " | ".join([*cells, str(each["pace"]), str(each["errors"])]) + " |")
    for look in results["memory"]:
        lines.append(f"| memory, MiB | {look['calls']:,} calls | – | {look['rss_largest']} | – | – | – | – |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
