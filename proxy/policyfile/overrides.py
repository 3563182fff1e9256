"""Plan and overrides made into one policy: pure, and the only place where that is decided.

A tenant's overrides replace what its plan says, field by field. A key's overrides can only narrow the
result, so whoever may edit keys cannot give one more than its tenant has.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from typing import Any

from proxy.domain.policy import CachePolicy, Limit, Policy
from proxy.errors import ConfigurationError
from proxy.policyfile.plans import CacheFields, Fields, Plan, read_fields
from proxy.policyfile.schema import Reader
from proxy.policyfile.strict import Node, Problem, Row, Scalar, Table

_NOTHING = Fields()


def effective(
    plan: Plan,
    tenant_overrides: Mapping[str, Any] | None,
    key_overrides: Mapping[str, Any] | None,
    limits: Sequence[Limit],
    models: Iterable[str],
) -> Policy:
    """The policy of one key. Raises `ConfigurationError` for an override that is wrong."""
    known = tuple(models)
    tenant = parse(tenant_overrides, known, "the tenant's overrides")
    key = parse(key_overrides, known, "the key's overrides")
    policy = _replaced(_replaced(Policy(plan=plan.name, version=""), plan.fields), tenant)
    policy = _narrowed(policy, key)
    return replace(policy, version=_version(policy), limits=tuple(limits))


def parse(overrides: Mapping[str, Any] | None, models: Iterable[str], shown: str) -> Fields:
    """Overrides as stored (JSON), checked like a policy file. Raises `ConfigurationError`."""
    if not overrides:
        return _NOTHING
    problems: list[Problem] = []
    fields = read_fields(_node(overrides), Reader(shown, problems), models)
    if problems:
        raise ConfigurationError("; ".join(f"{shown}: {problem.message}" for problem in problems))
    return fields


def _node(value: Any) -> Node:
    """JSON as strict nodes, so that one schema reads both files and rows."""
    if isinstance(value, Mapping):
        table = Table(1, 1)
        for key, item in value.items():
            table.keys[str(key)] = Scalar(str(key), 1, 1, plain=True)
            table.items[str(key)] = _node(item)
        return table
    if isinstance(value, (list, tuple)):
        row = Row(1, 1)
        row.items = [_node(item) for item in value]
        return row
    if value is None:
        return Scalar("null", 1, 1, plain=True)
    if isinstance(value, bool):
        return Scalar("true" if value else "false", 1, 1, plain=True)
    return Scalar(str(value), 1, 1, plain=not isinstance(value, str))


def _given(fields: Fields | CacheFields, *without: str) -> dict[str, Any]:
    values = {
        name: getattr(fields, name) for name in type(fields).__dataclass_fields__ if name not in without
    }
    return {name: value for name, value in values.items() if value is not None}


def _replaced(policy: Policy, fields: Fields) -> Policy:
    cache = replace(policy.cache, **_given(fields.cache))
    return replace(policy, cache=cache, **_given(fields, "cache"))


def _narrowed(policy: Policy, key: Fields) -> Policy:
    most = _least(policy.max_output_tokens, key.max_output_tokens)
    default = policy.default_output_tokens if key.default_output_tokens is None else key.default_output_tokens
    return replace(
        policy,
        models_allowed=_both(policy.models_allowed, key.models_allowed),
        models_denied=tuple(dict.fromkeys((*policy.models_denied, *(key.models_denied or ())))),
        arns_allowed=_both(policy.arns_allowed, key.arns_allowed),
        max_output_tokens=most,
        default_output_tokens=default if most is None else min(default, most),
        max_body_bytes=_least(policy.max_body_bytes, key.max_body_bytes) or policy.max_body_bytes,
        cache=_narrowed_cache(policy.cache, key.cache),
    )


def _narrowed_cache(cache: CachePolicy, key: CacheFields) -> CachePolicy:
    return CachePolicy(
        enabled=cache.enabled and key.enabled is not False,
        ttl_seconds=_least(cache.ttl_seconds, key.ttl_seconds) or cache.ttl_seconds,
        deterministic_only=cache.deterministic_only or key.deterministic_only is True,
        max_entry_bytes=cache.max_entry_bytes
        if key.max_entry_bytes is None
        else min(cache.max_entry_bytes, key.max_entry_bytes),
        max_tenant_bytes=cache.max_tenant_bytes,
    )


def _least(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


def _both(patterns: tuple[str, ...], narrower: tuple[str, ...] | None) -> tuple[str, ...]:
    """What both lists allow, as patterns: of each pair the one that the other covers. Two patterns
    that merely overlap allow nothing, because their overlap is no pattern.
    """
    if narrower is None:
        return patterns
    kept: dict[str, None] = {}
    for one in patterns:
        for other in narrower:
            if fnmatchcase(other, one):
                kept[other] = None
            elif fnmatchcase(one, other):
                kept[one] = None
    return tuple(kept)


def _version(policy: Policy) -> str:
    """Equal for policies that say the same. Limits are left out: they change no answer, and keys of
    one tenant that differ only in them may share its cache.
    """
    said = {name: value for name, value in asdict(policy).items() if name not in {"version", "limits"}}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
