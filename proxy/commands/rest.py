"""Runs a verb: what was typed becomes a request, what came back is shown. The exit code is 1 when the
server refused, 2 when nothing could be asked.
"""

from __future__ import annotations

import argparse
import json
from typing import Any
from urllib.parse import quote, urlencode

from proxy.adminclient import Access
from proxy.commands.output import problem, show
from proxy.commands.verbs import VERBS, Argument, Verb
from proxy.errors import ConfigurationError

PREFIX = "/admin/v1"
_PAGE = 200


def add_verbs(nouns: dict[str, Any]) -> None:
    """Adds every verb to the parser of its noun (an argparse group of subcommands)."""
    for verb in VERBS:
        parser = nouns[verb.noun].add_parser(
            verb.name, help=verb.about, description=f"{verb.about[0].upper()}{verb.about[1:]}."
        )
        for argument in verb.arguments:
            _add(parser, argument)
        if verb.lists:
            parser.add_argument("--limit", type=int, default=_PAGE, help="most items (200)")
        parser.add_argument("--json", action="store_true", dest="as_json", help="print the server's JSON")
        parser.set_defaults(command=run, verb=verb)


def _add(parser: argparse.ArgumentParser, argument: Argument) -> None:
    about = argument.about or None
    if argument.positional:
        count = "?" if argument.place == "query" else None
        parser.add_argument(argument.key, metavar=argument.name, help=about, nargs=count)
    elif argument.kind in {"yes", "no"}:
        parser.add_argument(f"--{argument.name}", dest=argument.key, action="store_true", help=about)
    else:
        parser.add_argument(
            f"--{argument.name}", dest=argument.key, help=about, required=argument.required,
            type=int if argument.kind == "int" else str,
        )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    verb: Verb = options.verb
    access = Access.of_issued_key() if verb.own else Access.find()
    path, body = _request(verb, options)
    if verb.lists and not _is_file(options):
        return _run_list(access, verb, path, options)
    status, answer = access.request(verb.method, path, body)
    if not 200 <= status < 300:
        problem(status, answer)
        return 1
    show(answer or None, columns=verb.columns, as_json=options.as_json)
    return 1 if isinstance(answer, dict) and answer.get("intact") is False else 0


def _is_file(options: argparse.Namespace) -> bool:
    return getattr(options, "format", None) in {"csv", "focus"}


def _request(verb: Verb, options: argparse.Namespace) -> tuple[str, dict[str, Any] | None]:
    """Path with its query, and the body of a request that has one."""
    places: dict[str, str] = {}
    query: dict[str, str] = {}
    body: dict[str, Any] = {}
    for argument in verb.arguments:
        value = getattr(options, argument.key)
        if argument.place == "path":
            places[argument.key] = quote(value, safe="")
        elif value is None or value is False:
            continue
        elif argument.place == "query":
            query[argument.key] = value
        else:
            body[argument.key] = _typed(argument, value)
    path = ("" if verb.own else PREFIX) + verb.path.format(**places)
    if query:
        path += f"?{urlencode(query)}"
    return path, body if verb.method in {"POST", "PATCH"} else None


def _typed(argument: Argument, value: Any) -> Any:
    """Raises `ConfigurationError` for JSON that is none."""
    if argument.kind == "no":
        return False
    if value == "none" and not argument.positional:
        return None
    if argument.kind == "list":
        return [one.strip() for one in value.split(",") if one.strip()]
    if argument.kind == "json":
        try:
            return json.loads(value)
        except ValueError as error:
            raise ConfigurationError(f"--{argument.name} takes JSON: {error}") from None
    return value


def _run_list(access: Access, verb: Verb, path: str, options: argparse.Namespace) -> int:
    """Follows the pages until there are `--limit` items."""
    items: list[Any] = []
    rest: dict[str, Any] = {}
    cursor: str | None = None
    paged = verb.path not in _WHOLE
    while True:
        more = {"limit": str(min(_PAGE, options.limit - len(items)))} if paged else {}
        more |= {"cursor": cursor} if cursor else {}
        joint = "&" if "?" in path else "?"
        status, answer = access.request("GET", f"{path}{joint}{urlencode(more)}" if more else path)
        if not 200 <= status < 300:
            problem(status, answer)
            return 1
        items += answer["items"]
        rest = {name: value for name, value in answer.items() if name not in {"items", "next"}}
        cursor = answer.get("next")
        if not cursor or len(items) >= options.limit:
            break
    show({"items": items[: options.limit], **rest}, columns=verb.columns, as_json=options.as_json)
    return 0


#: lists that come whole
_WHOLE = frozenset({
    "/reports/spend", "/tenants/{tenant}/statements", "/policies/rules", "/policies/prices", "/plans", "/me/limits",
})  # fmt: skip
