"""The rows behind issued keys, as the directory keeps them: one small value per stored fact.

Times are unix seconds; `None` means never.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from proxy.domain.policy import Limit

KeyStatus = Literal["active", "disabled", "revoked"]
ScopeStatus = Literal["active", "suspended", "deleted"]
Role = Literal["admin", "auditor", "tenant-admin"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantRow:
    id: UUID
    slug: str
    plan: str
    status: ScopeStatus = "active"
    overrides: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectRow:
    id: UUID
    tenant: UUID
    slug: str
    status: ScopeStatus = "active"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRow:
    id: UUID
    tenant: UUID
    project: UUID | None
    name: str
    status: KeyStatus = "active"
    expires_at: int | None = None
    overrides: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialRow:
    """One bearer token with its access key pair. `sealed` opens only for `version`."""

    id: UUID
    key: UUID
    digest: bytes
    access_key_id: str | None = None
    sealed: bytes | None = None
    version: int = 1
    expires_at: int | None = None
    revoked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Roster:
    """All rows, or those that changed since an earlier mark.

    `mark` is what to ask the source with next time; only the source knows what it means.
    """

    mark: int
    tenants: tuple[TenantRow, ...] = ()
    projects: tuple[ProjectRow, ...] = ()
    keys: tuple[KeyRow, ...] = ()
    credentials: tuple[CredentialRow, ...] = ()
    limits: tuple[Limit, ...] = ()
    #: limits that are no more; ids that were never known are ignored
    limits_gone: tuple[UUID, ...] = ()

    @property
    def empty(self) -> bool:
        rows = (self.tenants, self.projects, self.keys, self.credentials, self.limits, self.limits_gone)
        return not any(rows)
