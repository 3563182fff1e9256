"""Policies, documents and defaults that somebody hostile or careless has written."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from proxy.domain.policy import Policy
from proxy.policyfile import strict
from proxy.policyfile.expressions import Condition, ConditionError
from tests.security.raw import INVOKE
from tests.support.stack import Key, Proxy

REPOSITORY = Path(__file__).parents[2]
NAME = "meta.llama3-1-405b-instruct-v1:0"


def test_scalars_stay_what_was_written() -> None:
    node = strict.parse(b"a: NO\nb: 1e3\nc: 0o17\nd: 12:30:00\ne: ~\nf: '{{7*7}}'\n")
    assert isinstance(node, strict.Table)
    values = {name: scalar.value for name, scalar in node.items.items() if isinstance(scalar, strict.Scalar)}
    assert values == {"a": "NO", "b": "1e3", "c": "0o17", "d": "12:30:00", "e": "~", "f": "{{7*7}}"}


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['id']", "a: !!python/name:os.system", "!!binary aGk=", "a: &x [*x]",
        "a: &a [b]\nc: *a", "<<: {a: 1}\n<<: {b: 2}", "a: 1\na: 2", "---\na: 1\n---\nb: 2", "!<tag:evil> x",
        "&a [*a, *a]", "%YAML 1.1\n%TAG ! tag:evil,2000:\n---\n!x y",
    ],
)  # fmt: skip
def test_yaml_that_does_more_than_say_data_is_refused(text: str) -> None:
    with pytest.raises(strict.BrokenFileError):
        strict.parse(text.encode())


#: the worst that the schema lets through (256 characters, eight stars, no other wildcard)
GLOBS = ["a*" * 8 + "b" * 240, "*" * 8 + "a" * 248, "*a" * 8 + "!", "a" * 120 + "*" + "a" * 120 + "*"]


@pytest.mark.parametrize("pattern", GLOBS, ids=[str(i) for i in range(len(GLOBS))])
def test_a_hostile_glob_costs_no_time(pattern: str) -> None:
    """Policies match globs; a name can have 2,048 characters."""
    policy = Policy(plan="p", version="1", models_allowed=(pattern,), arns_allowed=(pattern,))
    began = time.perf_counter()
    for name in (NAME, "a" * 2048, "a" * 2047 + "b"):
        policy.allows(name)
        policy.allows_arn(f"arn:aws:bedrock:us-east-1:123456789012:guardrail/{name}")
    assert time.perf_counter() - began < 0.5


@pytest.mark.parametrize("pattern", ["*" * 10_000, "*a" * 100, "(a+)+$", "[" * 250, "a" * 257, "a?b", ""])
def test_a_glob_that_is_more_than_a_glob_is_refused(stack: Proxy, pattern: str) -> None:
    for name in ("models_allowed", "models_denied", "arns_allowed"):
        body = {"id": "globs", "name": "x", "overrides": {name: [pattern]}}
        assert stack.request("POST", "/admin/v1/tenants", body)[0] == 400


def test_hostile_overrides_are_refused_or_harmless(stack: Proxy, key: Key) -> None:
    etag = stack.request("GET", f"/admin/v1/tenants/{key.tenant}")[1]["etag"]
    for overrides in (
        {"models_allowed": ["*" * 10_000]}, {"models_allowed": ["*a" * 100]}, {"models_allowed": ["x"] * 5000},
        {"__class__": "x"}, {"default_output_tokens": "__import__('os')"}, {"cache": {"ttl_seconds": -1}},
        {"max_body_bytes": 10**12}, {"arns_allowed": [""]}, {"limits": [{"id": "x"}]}, {"version": "1"},
    ):  # fmt: skip
        headers = {"If-Match": etag}
        status, told, answer = stack.request(
            "PATCH", f"/admin/v1/tenants/{key.tenant}", {"overrides": overrides}, headers=headers
        )
        assert status in (200, 400), answer
        etag = told.get("etag", etag)
    began = time.monotonic()
    stack.request("POST", INVOKE, {"prompt": "x", "max_gen_len": 9}, key=key.bearer_token)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "regex", ["(a+)+$", "(a|a)*$", "(a|aa)+$", "(.*a){20}$", "^(([a-z])+.)+[A-Z]([a-z])+$"]
)
def test_a_hostile_expression_of_a_rule_runs_in_linear_time(regex: str) -> None:
    try:
        condition = Condition(f'request.name.matches("{regex}")')
    except ConditionError:
        return  # refused when it is loaded is as good
    values: dict[str, Any] = {"request.name": "a" * 250 + "!"}
    began = time.perf_counter()
    try:
        condition(values)
    except (ConditionError, ValueError, KeyError):
        pass
    assert time.perf_counter() - began < 0.5


@pytest.mark.parametrize(
    "text",
    [
        "{{7*7}}",
        "{% import os %}{{ os.system('id') }}",
        "${7*7}",
        "<%= 7*7 %>",
        "#{7*7}",
        "%(x)s {0} {x.__class__}",
    ],
)
def test_template_syntax_is_text(stack: Proxy, simulator: Any, key: Key, text: str) -> None:
    """In prompts, names, tags and messages of errors."""
    made = stack.admin("POST", "/keys", {"tenant": key.tenant, "name": text}, expect=201)
    assert made["name"] == text
    status, _, answer = stack.request(
        "POST", INVOKE, {"prompt": text, "max_gen_len": 9}, key=key.bearer_token
    )
    assert status == 200, answer
    status, _, answer = stack.request(
        "POST", "/openai/v1/chat/completions", {"model": text, "messages": []}, key=key.bearer_token
    )
    assert status in (400, 404)
    assert "49" not in str(answer) and "uid=" not in str(answer)
    hook = {"name": text, "url": "https://hooks.example.com/", "tenant": key.tenant}
    assert stack.admin("POST", "/webhooks", hook, expect=201)["name"] == text


def test_the_example_of_an_aws_role_allows_nothing_by_star() -> None:
    text = (REPOSITORY / "docs" / "iam.md").read_text()
    policies = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL)]
    allowed = [s for policy in policies for s in policy["Statement"] if s["Effect"] == "Allow"]
    assert allowed
    for statement in allowed:
        actions = statement["Action"]
        for action in [actions] if isinstance(actions, str) else actions:
            assert "*" not in action, action
            assert not re.search(r":(Create|Delete|Put|Update|Start)", action), action
        lists = all(":List" in a for a in ([actions] if isinstance(actions, str) else actions))
        assert lists or statement.get("Resource") != "*" or "Condition" in statement, statement


def test_the_shared_prompt_cache_of_an_account_is_told() -> None:
    assert "belongs to the AWS account" in (REPOSITORY / "docs" / "caching.md").read_text()


@pytest.mark.parametrize("check", ["licences", "hashes", "secrets", "sbom"])
def test_the_audit_finds_nothing(check: str) -> None:
    """The parts of `make audit` that need neither a network nor a build."""
    from tests.security.audit import CHECKS

    assert list(CHECKS[check]()) == []


def test_the_audit_would_find_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from proxy.keys import Keyring
    from tests.security import audit

    leak = tmp_path / "notes.txt"
    leak.write_text(f"use {Keyring(b'k' * 32).mint_bearer().token} until Friday\nAKIA{'QRSTUVWXYZ234567'}\n")
    monkeypatch.setattr(audit, "REPOSITORY", tmp_path)
    monkeypatch.setattr(audit, "tracked", lambda: iter([leak]))
    assert [problem.partition(": ")[2].split(" th")[0].split(" AK")[0] for problem in audit.secrets()] == [
        "Tollhouse key", "AWS access key id",
    ]  # fmt: skip
    (tmp_path / "requirements.lock").write_text("evil==1.0\n")
    (tmp_path / "requirements.runtime.lock").write_text("fine==1.0 \\\n    --hash=sha256:00\n")
    for name in ("Makefile", "Dockerfile"):
        (tmp_path / name).write_text("pip install evil\n")
    found = list(audit.hashes())
    assert found[0] == "requirements.lock: evil has no hash"
    assert len(found) == 3
