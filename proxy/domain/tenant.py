"""Who calls: tenant, project, key, credential, as the hot path sees them.

Immutable; a changed fact is a new object in a new snapshot of the directory.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from proxy.domain.policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A key that was proven by one of its credentials, with the policy that applies to it."""

    tenant: UUID
    tenant_slug: str
    project: UUID | None
    project_slug: str | None
    key: UUID
    key_name: str
    credential: UUID
    policy: Policy
    #: unix seconds after which the credential is worth nothing, None for never
    expires_at: int | None = None
    #: disabled keys and suspended tenants stay listed so that they get the true reason
    refusal: str | None = None
