"""Effective policy of one key: the plan with the tenant's, project's and key's overrides."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Literal
from uuid import UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A configured rate of one scope. `None` means that dimension is not limited."""

    id: UUID
    scope: Literal["tenant", "project", "key"]
    #: uuid of the tenant, project or key
    subject: UUID
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    #: seconds of the rate that may be used at once
    burst_seconds: int = 60
    concurrency: int | None = None
    #: base model ids it is limited to, None for every model
    models: frozenset[str] | None = None
    mode: Literal["enforce", "observe"] = "enforce"


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePolicy:
    enabled: bool = True
    ttl_seconds: int = 3600
    deterministic_only: bool = False
    max_entry_bytes: int = 1_048_576
    max_tenant_bytes: int = 268_435_456


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What one key may do. Equal policies have equal `version`s, which is part of cache keys."""

    plan: str
    version: str
    #: patterns (`*` globs) of base model ids that may be called
    models_allowed: tuple[str, ...] = ("*",)
    models_denied: tuple[str, ...] = ()
    #: output limit injected when a request names none
    default_output_tokens: int = 512
    #: largest output limit a request may name, None for the model's own
    max_output_tokens: int | None = None
    max_body_bytes: int = 25_000_000
    limits: tuple[Limit, ...] = ()
    cache: CachePolicy = field(default_factory=CachePolicy)
    #: ARNs (globs) of guardrails, profiles, provisioned models and s3 sources that may be named
    arns_allowed: tuple[str, ...] = ()

    def allows(self, base_model: str) -> bool:
        """True when the resolved base model may be called under this policy."""
        return _allows(self.models_allowed, self.models_denied, base_model)

    def allows_arn(self, arn: str) -> bool:
        """True when a request may name this guardrail, profile, prompt or s3 source."""
        return any(fnmatchcase(arn, p) for p in self.arns_allowed)


@lru_cache(maxsize=4096)
def _allows(allowed: tuple[str, ...], denied: tuple[str, ...], base_model: str) -> bool:
    if any(fnmatchcase(base_model, pattern) for pattern in denied):
        return False
    return any(fnmatchcase(base_model, pattern) for pattern in allowed)
