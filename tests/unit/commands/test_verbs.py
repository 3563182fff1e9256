"""The CLI is a twin of the REST: every route has a verb, and every verb says what its route takes."""

import argparse
import re
from typing import Any

import pytest

from proxy import cli
from proxy.commands import rest
from proxy.commands.output import pairs, table
from proxy.commands.verbs import VERBS, Verb
from proxy.errors import ConfigurationError
from proxy.web.admin import openapi_document

DOCUMENT = openapi_document()
#: routes that people use in a browser or a script and not from the CLI's verbs
WITHOUT_VERB = {
    ("get", "/models"): "`tollhouse models` shows more, from the files",
}


def shape(path: str) -> str:
    return re.sub(r"\{\w+\}", "{}", path)


OPERATIONS = {
    (method, shape(path.removeprefix(rest.PREFIX))): (path, operation)
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
}


def test_every_route_has_a_verb():
    there = {(verb.method.lower(), shape(verb.path)) for verb in VERBS}
    without = {(method, shape(path)) for method, path in WITHOUT_VERB}
    assert set(OPERATIONS) - there == without
    assert there <= set(OPERATIONS)


def test_a_verb_asks_under_its_routes_prefix():
    for verb in VERBS:
        path, _ = OPERATIONS[verb.method.lower(), shape(verb.path)]
        assert shape(path) == shape(("" if verb.own else rest.PREFIX) + verb.path)
        assert verb.own == path.startswith("/me")


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: f"{verb.noun} {verb.name}")
def test_a_verb_sends_what_its_route_takes(verb: Verb):
    _, operation = OPERATIONS[verb.method.lower(), shape(verb.path)]
    assert {argument.key for argument in verb.arguments if argument.place == "path"} == set(
        re.findall(r"\{(\w+)\}", verb.path)
    )
    query = {p["name"] for p in operation.get("parameters", []) if p["in"] == "query"}
    assert {argument.key for argument in verb.arguments if argument.place == "query"} <= query
    body = {argument.key for argument in verb.arguments if argument.place == "body"}
    if body:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        known = DOCUMENT["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
        assert body == set(known["properties"]), "what the REST takes, the CLI can say"
        must = {a.key for a in verb.arguments if a.place == "body" and (a.positional or a.required)}
        assert set(known.get("required", [])) <= must


def parsed(*words: str) -> argparse.Namespace:
    return cli._parser().parse_args(words)


def test_what_is_typed_becomes_a_request():
    options = parsed("budgets", "create", "tenant:a", "month", "5", "--models", "x, y", "--thresholds", "0.5")
    assert rest._request(options.verb, options) == (
        "/admin/v1/budgets",
        {
            "scope": "tenant:a",
            "period": "month",
            "limit_usd": "5",
            "models": ["x", "y"],
            "thresholds": ["0.5"],
        },
    )
    options = parsed(
        "keys", "change", "k/1", "--expires-at", "none", "--overrides", '{"max_output_tokens": 5}'
    )
    assert rest._request(options.verb, options) == (
        "/admin/v1/keys/k%2F1",
        {"expires_at": None, "overrides": {"max_output_tokens": 5}},
    )
    options = parsed("keys", "issue", "a", "none", "--no-sigv4")
    assert rest._request(options.verb, options)[1] == {"tenant": "a", "name": "none", "sigv4": False}
    options = parsed("reports", "prompt-caching", "a/b")
    assert rest._request(options.verb, options) == ("/admin/v1/reports/prompt-caching?tenant=a%2Fb", None)
    options = parsed("reports", "prompt-caching", "--json")
    assert rest._request(options.verb, options) == ("/admin/v1/reports/prompt-caching", None)
    options = parsed("me", "usage", "--since", "2026-11-01T00:00:00Z")
    assert rest._request(options.verb, options) == ("/me/usage?since=2026-11-01T00%3A00%3A00Z", None)
    options = parsed("calls", "list", "--tenant", "a&b", "--limit", "7")
    assert rest._request(options.verb, options) == ("/admin/v1/calls?tenant=a%26b", None)
    with pytest.raises(ConfigurationError, match="takes JSON"):
        options = parsed("tenants", "create", "a", "A", "--overrides", "{")
        rest._request(options.verb, options)


def test_tables_line_up_and_nothing_in_them_steers_the_terminal():
    rows: list[dict[str, Any]] = [
        {"id": "a", "usd": "1.50", "evil": "\x1b[31mred\n", "none": None},
        {"id": "bcd", "usd": "10"},
    ]
    assert table(rows, ("id", "usd", "evil", "none", "other")) == (
        "id    usd  evil\n---  ----  ---------\na    1.50  ?[31mred?\nbcd    10"
    )
    assert table([]) == "none"
    assert table([{"usage": {"input_tokens": 3}}], ("usage.input_tokens",)).endswith("3")
    shown = pairs({"id": "x", "lines": ["a", "b"], "items": [{"k": 1}], "flag": True})
    assert shown.splitlines() == [
        "id     x",
        "lines  a",
        "       b",
        "items",
        "  k",
        "  -",
        "  1",
        "flag   yes",
    ]
