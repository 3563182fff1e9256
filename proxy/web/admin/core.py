"""What every desk of the admin REST is built from, and the few shapes their routes share."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Protocol, TypeVar
from uuid import UUID

import msgspec
from litestar import Response
from litestar.params import Parameter
from msgspec import UNSET, Struct

from proxy.advice import ModelAdvice
from proxy.domain.catalogue import Model
from proxy.domain.control import VersionError
from proxy.keys import Keyring
from proxy.policyfile.plans import Plan
from proxy.web.admin.access import Principal
from proxy.web.admin.paging import LIMIT_DEFAULT, LIMIT_MAX
from proxy.web.admin.problems import invalid
from proxy.web.admin.store import Session, Store

T = TypeVar("T")
Changes = dict[str, Any]

Limit = Annotated[int, Parameter(ge=1, le=LIMIT_MAX, description="most items of one page")]
Cursor = Annotated[str | None, Parameter(description="`next` of the page before")]
IfMatch = Annotated[
    str | None,
    Parameter(header="If-Match", description="the ETag that was read; the change is refused when it is old"),
]
PAGE = LIMIT_DEFAULT


class Policies(Protocol):
    """The policy files in force (see `proxy.policyfile.PolicySet`)."""

    @property
    def plans(self) -> Any: ...

    @property
    def models(self) -> Any: ...

    @property
    def version(self) -> str: ...

    @property
    def prices(self) -> Any: ...

    @property
    def rules(self) -> Any: ...

    def plan(self, name: str) -> Plan:
        """Raises `ConfigurationError` when there is no such plan."""
        ...

    def check_overrides(self, given: Any) -> None:
        """Raises `ConfigurationError` saying all that is wrong."""
        ...


class Answers(Protocol):
    """Cached answers (see `proxy.ports`)."""

    async def purge(self, tenant: UUID, model: str | None = None) -> int:
        """Delete what is cached for a tenant, of one base model or of all; returns how many answers.
        Raises `Unavailable`.
        """
        ...


class Advisor(Protocol):
    """What was measured of prompts' beginnings (see `proxy.advice`)."""

    async def report(self, tenant: UUID) -> list[ModelAdvice] | None:
        """The last day's models, the best saving first; None while nobody can be asked."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Office:
    """Collaborators of all desks. `policies` gives the set in force now; `clock` unix seconds."""

    store: Store
    keyring: Keyring
    policies: Callable[[], Policies]
    clock: Callable[[], float]
    cache: Callable[[], Answers]
    advice: Callable[[], Advisor]
    #: errors of changed policy files that are not in force
    policy_problems: Callable[[], Sequence[object]] = tuple
    #: webhooks may be there though it is not public (`domain.delivery.Network`, which is a union that the
    #: framework cannot inspect)
    networks: tuple[Any, ...] = ()

    def known_models(self, names: Sequence[str] | None, field: str = "models") -> list[str] | None:
        """Base model ids, sorted and each once. Raises a 400 `Problem` for one that is none."""
        if names is None:
            return None
        models: dict[str, Model] = self.policies().models
        for name in names:
            if name not in models:
                raise invalid(
                    field, f"there is no base model {name!r} (aliases and profiles are not base models)"
                )
        return sorted(set(names))


class Page(Struct, Generic[T]):
    items: list[T]
    next: str | None = None


def etag(version: int) -> str:
    return f'"{version}"'


_ETAG = re.compile(r'(?:W/)?"?([0-9]{1,18})"?')


def expected(if_match: str | None) -> int | None:
    """The version that the caller has read; None for any. Raises `VersionError` for another's tag."""
    if if_match is None or if_match.strip() == "*":
        return None
    found = _ETAG.fullmatch(if_match.strip())
    if found is None:
        raise VersionError("If-Match is no ETag of this")
    return int(found[1])


def shown(body: T, version: int, *, status: int = 200, location: str | None = None) -> Response[T]:
    """An answer with its ETag; never kept by a cache on the way."""
    headers = {"ETag": etag(version), "Cache-Control": "no-store"}
    if location is not None:
        headers["Location"] = location
    return Response(body, status_code=status, headers=headers)


def given(patch: Struct) -> Changes:
    """The fields that a patch names. Raises a 400 `Problem` when it names none."""
    values = {name: getattr(patch, name) for name in patch.__struct_fields__}
    changes = {name: value for name, value in values.items() if value is not UNSET}
    if not changes:
        raise invalid("", "nothing to change: the body names no field")
    return changes


def builtins(value: Struct) -> dict[str, Any]:
    """For the audit trail."""
    result: dict[str, Any] = msgspec.to_builtins(value)
    return result


async def record(
    db: Session,
    who: Principal,
    action: str,
    thing: str,
    *,
    before: Struct | None = None,
    after: Struct | None = None,
) -> None:
    """The audit record of a write, as its last statement."""
    await db.audit(
        f"{who.role}:{who.name}",
        action,
        thing,
        before=None if before is None else builtins(before),
        after=None if after is None else builtins(after),
    )


def utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC)


def utc_or_none(moment: datetime | None) -> datetime | None:
    return None if moment is None else utc(moment)


_FIRST, _LAST = datetime(1990, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)


def aware(field: str, moment: datetime | None) -> datetime | None:
    """In UTC. Raises a 400 `Problem` for a time without an offset, or outside of 1990 to 2200."""
    if moment is None:
        return None
    if moment.tzinfo is None:
        raise invalid(field, f"{field} needs an offset, such as 2026-11-24T00:00:00Z")
    if not _FIRST <= moment <= _LAST:
        raise invalid(field, f"{field} is out of range")
    return utc(moment)
