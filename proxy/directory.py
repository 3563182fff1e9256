"""Who holds which credential: an in-memory snapshot, a quarter of a second behind Postgres.

Every credential is found by the digest of its token or by its access key id, without I/O. The
snapshot is loaded whole at start and then kept by small deltas: asked for every 250 ms, and at once
when Postgres says that something changed. A snapshot that could not be refreshed for a second is
`stale`; from then on nothing may be answered that Postgres itself would not check.

Disabled keys and suspended tenants stay listed, so that their holders learn the true reason.
Expired credentials look like unknown ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol
from uuid import UUID

from proxy.domain.policy import Limit, Policy
from proxy.domain.roster import CredentialRow, KeyRow, ProjectRow, Roster, TenantRow
from proxy.domain.tenant import Caller
from proxy.errors import BankAway, ConfigurationError
from proxy.keys import Keyring, Place, SealError

log = logging.getLogger(__name__)

STALE_SECONDS = 1.0
POLL_SECONDS = 0.25
#: words that `Caller.refusal` may hold, with what they mean to the key's holder
REFUSALS = {
    "key_revoked": "this key was revoked",
    "key_disabled": "this key is disabled",
    "tenant_suspended": "the tenant of this key is suspended",
    "project_suspended": "the project of this key is suspended",
    "plan_unusable": "the plan of this key's tenant cannot be applied",
}
#: a whole reload heals whatever a delta could have missed
RELOAD_SECONDS = 300.0


class RosterSource(Protocol):
    """Where the rows live. Both reads raise `BankAway` when it does not answer in time."""

    async def load(self) -> Roster: ...

    async def changes(self, mark: int) -> Roster:
        """Every row that changed after `mark` was given out, at least; some may come twice."""
        ...

    async def wait(self, seconds: float) -> None:
        """Return after `seconds`, or as soon as a change is announced. Never raises."""
        ...

    async def close(self) -> None: ...


class PolicyMaker(Protocol):
    """Plans and overrides made into the policy of one key.

    Raises `ConfigurationError` when there is no such plan or an override is wrong.
    """

    def effective(
        self,
        plan: str,
        tenant_overrides: Mapping[str, Any] | None,
        key_overrides: Mapping[str, Any] | None,
        limits: Sequence[Limit],
        *,
        scopes: tuple[UUID, UUID | None, UUID] | None = None,
    ) -> Policy:
        """`scopes` (tenant, project, key) adds the plan's own limits for them."""
        ...


class _Entry:
    """A credential with what was worked out for it. `built` tells from which state of the rows."""

    __slots__ = ("built", "caller", "row", "secret")

    def __init__(self, row: CredentialRow) -> None:
        self.row = row
        self.caller: Caller | None = None
        self.secret: str | None = None
        self.built = -1


class Directory:
    """The issued credentials of one process. Not thread-safe; one event loop owns it.

    `clock` gives unix seconds (for expiry), `monotonic` seconds (for staleness).
    """

    def __init__(
        self,
        source: RosterSource,
        keyring: Keyring,
        policies: PolicyMaker,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._keyring = keyring
        self._policies = policies
        self._clock = clock
        self._monotonic = monotonic
        self._tenants: dict[UUID, TenantRow] = {}
        self._projects: dict[UUID, ProjectRow] = {}
        self._keys: dict[UUID, KeyRow] = {}
        self._limits: dict[UUID, Limit] = {}
        self._limits_of: dict[UUID, tuple[Limit, ...]] = {}
        self._credentials: dict[UUID, _Entry] = {}
        self._by_digest: dict[bytes, _Entry] = {}
        self._by_access_key_id: dict[str, _Entry] = {}
        self._made: dict[tuple[UUID, UUID | None, UUID | None], tuple[Policy, str | None]] = {}
        self._state = 0
        self._mark = 0
        self._fresh_at: float | None = None
        self._loaded_at = 0.0
        self._task: asyncio.Task[None] | None = None

    # -- ports.Directory --------------------------------------------------------------------

    def by_token(self, token: str) -> Caller | None:
        """The caller behind a bearer token; None for one that is malformed, unknown or expired."""
        for digest in self._keyring.bearer_digests(token):
            entry = self._by_digest.get(digest)
            if entry is not None and hmac.compare_digest(entry.row.digest, digest):
                return self._caller(entry)
        return None

    def by_access_key_id(self, access_key_id: str) -> tuple[Caller, str] | None:
        """The caller and its secret; None when unknown, expired, or not issued for signing."""
        entry = self._by_access_key_id.get(access_key_id)
        if entry is None:
            return None
        caller = self._caller(entry)
        if caller is None:
            return None
        secret = self._secret(entry, caller)
        return None if secret is None else (caller, secret)

    @property
    def stale(self) -> bool:
        """True when the snapshot may miss a revocation that is more than one second old."""
        return self._fresh_at is None or self._monotonic() - self._fresh_at > STALE_SECONDS

    @property
    def age_seconds(self) -> float:
        """How old the snapshot is; 0 before the first."""
        return 0.0 if self._fresh_at is None else self._monotonic() - self._fresh_at

    # -- life -------------------------------------------------------------------------------

    async def load(self) -> None:
        """Replace the snapshot by what Postgres has now. Raises `BankAway`."""
        asked_at = self._monotonic()
        roster = await self._source.load()
        for table in (self._tenants, self._projects, self._keys, self._limits):
            table.clear()
        for index in (self._credentials, self._by_digest, self._by_access_key_id):
            index.clear()
        self._apply(roster)
        self._made.clear()
        self._index_limits()
        self._fresh_at = self._loaded_at = asked_at

    async def refresh(self) -> None:
        """Apply what changed since the last refresh. Raises `BankAway`."""
        asked_at = self._monotonic()
        roster = await self._source.changes(self._mark)
        self._apply(roster)
        self._fresh_at = asked_at

    async def start(self) -> None:
        """Load, then keep the snapshot fresh in a task until `stop`. Raises `BankAway`."""
        await self.load()
        self._task = asyncio.create_task(self._keep_fresh(), name="directory")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        await self._source.close()

    def use_policies(self, policies: PolicyMaker) -> None:
        """Rebuild every policy from these from now on (the policy files were reloaded)."""
        self._policies = policies
        self._made.clear()
        self._state += 1

    def __len__(self) -> int:
        """Credentials known, usable or not."""
        return len(self._credentials)

    def tenant_slug(self, tenant: UUID) -> str | None:
        row = self._tenants.get(tenant)
        return None if row is None else row.slug

    async def _keep_fresh(self) -> None:
        while True:
            await self._source.wait(POLL_SECONDS)
            try:
                if self._monotonic() - self._loaded_at > RELOAD_SECONDS:
                    await self.load()
                else:
                    await self.refresh()
            except BankAway as error:
                log.warning("directory not refreshed: %s", error)
            except Exception:
                # a defect here must make the directory stale, not end its refreshing
                log.exception("directory not refreshed")

    # -- rows -------------------------------------------------------------------------------

    def _apply(self, roster: Roster) -> None:
        self._mark = roster.mark
        if roster.empty:
            return
        self._state += 1
        self._tenants.update((row.id, row) for row in roster.tenants)
        self._projects.update((row.id, row) for row in roster.projects)
        self._keys.update((row.id, row) for row in roster.keys)
        for credential in roster.credentials:
            self._put(credential)
        if roster.limits or roster.limits_gone:
            self._limits.update((limit.id, limit) for limit in roster.limits)
            for gone in roster.limits_gone:
                self._limits.pop(gone, None)
            self._index_limits()
        if roster.tenants or roster.keys or roster.limits or roster.limits_gone:
            self._made.clear()

    def _put(self, row: CredentialRow) -> None:
        old = self._credentials.get(row.id)
        if old is not None:
            self._by_digest.pop(old.row.digest, None)
            if old.row.access_key_id is not None:
                self._by_access_key_id.pop(old.row.access_key_id, None)
        entry = _Entry(row)
        self._credentials[row.id] = self._by_digest[row.digest] = entry
        if row.access_key_id is not None and row.sealed is not None:
            self._by_access_key_id[row.access_key_id] = entry

    def _index_limits(self) -> None:
        by_subject: dict[UUID, list[Limit]] = {}
        for limit in self._limits.values():
            by_subject.setdefault(limit.subject, []).append(limit)
        self._limits_of = {
            subject: tuple(sorted(limits, key=lambda limit: limit.id))
            for subject, limits in by_subject.items()
        }

    # -- callers ----------------------------------------------------------------------------

    def _caller(self, entry: _Entry) -> Caller | None:
        if entry.built != self._state:
            entry.caller = self._build(entry.row)
            entry.built = self._state
        caller = entry.caller
        if caller is None or (caller.expires_at is not None and self._clock() >= caller.expires_at):
            return None
        return caller

    def _build(self, row: CredentialRow) -> Caller | None:
        key = self._keys.get(row.key)
        tenant = None if key is None else self._tenants.get(key.tenant)
        if key is None or tenant is None or tenant.status == "deleted":
            return None
        project = None if key.project is None else self._projects.get(key.project)
        policy, problem = self._policy(tenant, key)
        return Caller(
            tenant=tenant.id,
            tenant_slug=tenant.slug,
            project=key.project,
            project_slug=None if project is None else project.slug,
            key=key.id,
            key_name=key.name,
            credential=row.id,
            policy=policy,
            expires_at=_earlier(key.expires_at, row.expires_at),
            refusal=_refusal(tenant, project, key, row) or problem,
        )

    def _policy(self, tenant: TenantRow, key: KeyRow) -> tuple[Policy, str | None]:
        """Keys of one project without facts of their own share one policy object."""
        shared, own = (tenant.id, key.project, None), (tenant.id, key.project, key.id)
        special = key.overrides or key.id in self._limits_of
        made = self._made.get(own) or (None if special else self._made.get(shared))
        if made is None:
            limits: tuple[Limit, ...] = ()
            for subject in (tenant.id, key.project, key.id):
                if subject is not None:
                    limits += self._limits_of.get(subject, ())
            made = self._make_policy(tenant, key, limits)
            special = special or any(limit.subject == key.id for limit in made[0].limits)
            self._made[own if special else shared] = made
        return made

    def _make_policy(
        self, tenant: TenantRow, key: KeyRow, limits: tuple[Limit, ...]
    ) -> tuple[Policy, str | None]:
        try:
            scopes = (tenant.id, key.project, key.id)
            policy = self._policies.effective(
                tenant.plan, tenant.overrides, key.overrides, limits, scopes=scopes
            )
            return policy, None
        except ConfigurationError as error:
            log.error("no policy for tenant %s, key %s: %s", tenant.slug, key.id, error)
            return Policy(plan=tenant.plan, version="none", models_allowed=()), "plan_unusable"

    def _secret(self, entry: _Entry, caller: Caller) -> str | None:
        if entry.secret is None and entry.row.sealed is not None:
            place = Place(
                tenant=caller.tenant, key=caller.key, credential=entry.row.id, version=entry.row.version
            )
            try:
                entry.secret = self._keyring.unseal(entry.row.sealed, place)
            except SealError as error:
                log.error("credential %s cannot be used for signing: %s", entry.row.id, error)
        return entry.secret


def _refusal(
    tenant: TenantRow, project: ProjectRow | None, key: KeyRow, credential: CredentialRow
) -> str | None:
    """A stable word, see `REFUSALS`; the most final one first."""
    if key.status == "revoked" or credential.revoked:
        return "key_revoked"
    if key.status == "disabled":
        return "key_disabled"
    if tenant.status != "active":
        return "tenant_suspended"
    return None if project is None or project.status == "active" else "project_suspended"


def _earlier(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return one if other is None else other
    return min(one, other)
