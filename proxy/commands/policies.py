"""Work on policy files: check, test, compare, and replay recorded calls through them."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from proxy import policyfile, settings
from proxy.adminclient import Access
from proxy.commands.output import table
from proxy.commands.rest import PREFIX
from proxy.domain.rates import usd
from proxy.domain.usage import Usage
from proxy.errors import ConfigurationError
from proxy.policyfile.backtest import Payer, Pot, Recorded, Replayed, replay
from proxy.policyfile.comparing import differences
from proxy.policyfile.trying import run_examples

_NANO = 1_000_000_000


def add_verbs(group: Any) -> None:
    check = _verb(group, "check", "report every error in the policy files", run_check)
    _folder(check)
    test = _verb(group, "test", "run the examples in the policy files", run_test)
    _folder(test)
    diff = _verb(group, "diff", "say what changes from one folder to another", run_diff)
    diff.add_argument("old", type=Path, help="the folder in force; `-` for the configured one")
    _folder(diff)
    backtest = _verb(group, "backtest", "replay recorded calls under changed policies", run_backtest)
    _folder(backtest)
    backtest.add_argument("--since", required=True, help="RFC 3339; best where a budget's period begins")
    backtest.add_argument("--until", help="RFC 3339 (now)")
    backtest.add_argument("--tenant")
    backtest.add_argument("--limit", type=int, default=20_000, help="most calls (20000)")
    backtest.add_argument("--prices-at", help="RFC 3339: prices of that time for all calls")
    backtest.add_argument("--calls", action="store_true", help="also list every call that would differ")
    backtest.add_argument("--json", action="store_true", dest="as_json")


def _verb(group: Any, name: str, about: str, command: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = group.add_parser(
        name, help=about, description=f"{about[0].upper()}{about[1:]}."
    )
    parser.set_defaults(command=command)
    return parser


def _folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", nargs="?", type=Path, help="the policy folder (TOLLHOUSE_POLICIES_DIR)")


def _directory(given: Path | None) -> Path:
    return given or policyfile.directory(settings.load().policies_dir)


def run_check(options: argparse.Namespace) -> int:
    folder = _directory(options.directory)
    problems = policyfile.check(folder)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{folder}: {len(problems)} errors")
    return 1 if problems else 0


def run_test(options: argparse.Namespace) -> int:
    folder = _directory(options.directory)
    policies = policyfile.load(folder)
    failed = run_examples(policies)
    for problem in failed:
        print(problem, file=sys.stderr)
    wrong = len({(one.path, one.line) for one in failed})
    print(f"{folder}: {len(policies.examples) - wrong} examples hold, {wrong} do not")
    return 1 if failed else 0


def run_diff(options: argparse.Namespace) -> int:
    old = _directory(None if str(options.old) == "-" else options.old)
    lines = differences(policyfile.load(old), policyfile.load(_directory(options.directory)), time.time())
    for line in lines:
        print(line)
    if not lines:
        print("no difference")
    return 0


def run_backtest(options: argparse.Namespace) -> int:
    policies = policyfile.load(_directory(options.directory))
    access = Access.find()
    at = dt.datetime.fromisoformat(options.prices_at).timestamp() if options.prices_at else None
    calls, complete = _calls(access, options)
    made = replay(policies, calls, _payers(access), _pots(access, options.tenant), prices_at=at)
    summary = summarize(made, complete=complete)
    if options.as_json:
        listed = [_shown(one) for one in made if one.verdict != "same" or one.cost != one.call.cost]
        print(json.dumps(summary | ({"calls": listed} if options.calls else {}), indent=2))
        return 0
    print(table([{"tenant": name, **values} for name, values in summary["tenants"].items()]))
    print(table([{"why": why, "calls": count} for why, count in summary["why"].items()]))
    if options.calls:
        print(table([_shown(one) for one in made if one.verdict != "same"]))
    print(f"{summary['calls']} calls: {summary['cost_usd']} USD were charged, "
          f"{summary['new_cost_usd']} USD would have been")  # fmt: skip
    if not complete:
        print(f"only the newest {options.limit} calls were replayed; see --limit", file=sys.stderr)
    return 0


def summarize(made: Sequence[Replayed], *, complete: bool) -> dict[str, Any]:
    """Counts and money, together and by tenant."""
    tenants: dict[str, dict[str, Any]] = {}
    for name in sorted({one.call.tenant for one in made}):
        mine = [one for one in made if one.call.tenant == name]
        verdicts = Counter(one.verdict for one in mine)
        tenants[name] = {
            "calls": len(mine), **{v: verdicts[v] for v in ("refused", "moved", "capped")},
            "cost_usd": usd(sum(one.call.cost for one in mine)), "new_cost_usd": usd(sum(one.cost for one in mine)),
        }  # fmt: skip
    return {
        "calls": len(made), "complete": complete, "cost_usd": usd(sum(one.call.cost for one in made)),
        "new_cost_usd": usd(sum(one.cost for one in made)), "tenants": tenants,
        "why": dict(Counter(f"{one.verdict}: {one.why}" for one in made if one.verdict != "same").most_common()),
    }  # fmt: skip


def _shown(one: Replayed) -> dict[str, Any]:
    return {
        "attempt": one.call.id, "at": one.call.at.isoformat(), "tenant": one.call.tenant, "model": one.call.model,
        "verdict": one.verdict, "why": one.why, "new_model": one.model, "cost_usd": usd(one.call.cost),
        "new_cost_usd": usd(one.cost),
    }  # fmt: skip


# -- what the server has recorded -------------------------------------------------------------


def _pages(access: Access, path: str, most: int, **query: str | None) -> tuple[list[dict[str, Any]], bool]:
    """Items, and whether they are all. Raises `ConfigurationError` when the server refuses."""
    items: list[dict[str, Any]] = []
    cursor: str | None = None
    while len(items) < most:
        given = {name: value for name, value in {**query, "cursor": cursor, "limit": "200"}.items() if value}
        status, answer = access.get(f"{PREFIX}{path}?{urlencode(given)}")
        if status != 200:
            detail = answer.get("detail") if isinstance(answer, dict) else answer
            raise ConfigurationError(f"the server refused {path}: {detail}")
        items += answer["items"]
        cursor = answer["next"]
        if not cursor:
            return items[:most], True
    return items[:most], False


def _calls(access: Access, options: argparse.Namespace) -> tuple[list[Recorded], bool]:
    """Resolved calls, the oldest first."""
    found, complete = _pages(
        access, "/calls", options.limit, since=options.since, until=options.until, tenant=options.tenant
    )
    charged = [one for one in found if one["outcome"] in {"POST", "CEILING"}]
    return [_recorded(one) for one in reversed(charged)], complete


def _recorded(item: dict[str, Any]) -> Recorded:
    usage = item["usage"]
    tags = dict(pair.split("=", 1) for pair in (item["tags"] or "").split("&") if "=" in pair)
    return Recorded(
        id=item["attempt"], tenant=item["tenant"], project=item["project"] or "", key=item["key"],
        operation=item["operation"], model=item["model"], target=item["target"], tags=tags,
        cost=_nanos(item["cost_usd"]), at=dt.datetime.fromisoformat(item["admitted_at"]),
        usage=Usage(
            input_tokens=usage["input_tokens"], output_tokens=usage["output_tokens"],
            cache_read_tokens=usage["cache_read_tokens"], cache_write_5m_tokens=usage["cache_write_tokens"],
        ),
    )  # fmt: skip


def _payers(access: Access) -> dict[str, Payer]:
    tenants, _ = _pages(access, "/tenants", 100_000)
    keys, _ = _pages(access, "/keys", 100_000)
    return {
        one["id"]: Payer(
            plan=one["plan"],
            overrides=one["overrides"],
            keys={k["id"]: k["overrides"] for k in keys if k["tenant"] == one["id"] and k["overrides"]},
        )
        for one in tenants
    }


def _pots(access: Access, tenant: str | None) -> list[Pot]:
    budgets, _ = _pages(access, "/budgets", 100_000, tenant=tenant)
    return [
        Pot(
            scope=one["scope"], period=one["period"], zone=one["time_zone"], limit=_nanos(one["limit_usd"]),
            models=None if one["models"] is None else frozenset(one["models"]),
        )
        for one in budgets
    ]  # fmt: skip


def _nanos(text: str) -> int:
    whole, _, part = text.partition(".")
    sign = -1 if whole.startswith("-") else 1
    return sign * (abs(int(whole)) * _NANO + int(part.ljust(9, "0")))
