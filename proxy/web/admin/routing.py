"""Puts the desks behind their routes. `admin_routes` may be called before anything is started: what
it is given is asked for its parts on the first request.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Protocol

from litestar import HttpMethod, Request, Response, Router, get, route
from litestar.connection import ASGIConnection
from litestar.di import Provide
from litestar.handlers import BaseRouteHandler
from litestar.types import Guard

from proxy.domain.delivery import allowed_networks
from proxy.domain.tenant import Caller
from proxy.errors import ConfigurationError
from proxy.keys import Keyring
from proxy.web.admin import problems
from proxy.web.admin.access import AdminAuthenticator, Gate, Principal
from proxy.web.admin.admins import AdminController, AdminDesk, OidcAdmins, PostgresAdmins
from proxy.web.admin.advice import AdviceController, AdviceDesk
from proxy.web.admin.budgets import BudgetController, BudgetDesk
from proxy.web.admin.calls import CallController, CallDesk, RecordController
from proxy.web.admin.core import Advisor, Answers, Office, Policies
from proxy.web.admin.corrections import CorrectionController, CorrectionDesk
from proxy.web.admin.idempotency import KeepAnswers, claim
from proxy.web.admin.keys import KeyController, KeyDesk
from proxy.web.admin.limits import LimitController, LimitDesk
from proxy.web.admin.me import Freshness, KeyDeps, MeController, MyDesk, key_gate
from proxy.web.admin.oidc import Oidc
from proxy.web.admin.openapi import document
from proxy.web.admin.policies import PolicyController, PolicyDesk
from proxy.web.admin.problems import not_found
from proxy.web.admin.reports import ReportController, ReportDesk
from proxy.web.admin.request import BODY_BYTES_MAX, StrictRequest
from proxy.web.admin.statements import StatementController, StatementDesk
from proxy.web.admin.store import Store
from proxy.web.admin.tenants import TenantController, TenantDesk
from proxy.web.admin.transfers import TransferController, TransferDesk
from proxy.web.admin.webhooks import AlertController, WebhookController, WebhookDesk
from proxy.web.auth import KeyAuthenticator

PREFIX = "/admin/v1"
_EVERY_METHOD = [HttpMethod.GET, HttpMethod.POST, HttpMethod.PUT, HttpMethod.PATCH, HttpMethod.DELETE]

on_error = problems.handle
ErrorHandler = Callable[[Request[Any, Any, Any], Exception], Response[Any]]


def problems_or(otherwise: ErrorHandler) -> ErrorHandler:
    """For the application: errors of routing (404, 405) under our paths are told as problems, all others
    by `otherwise`.
    """

    def handler(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
        ours = request.scope["path"].startswith(("/admin", "/me", "/health"))
        return on_error(request, error) if ours else otherwise(request, error)

    return handler


class AdminSettings(Protocol):
    @property
    def admin_key(self) -> str: ...
    @property
    def webhook_networks(self) -> str: ...
    @property
    def oidc_issuer(self) -> str: ...
    @property
    def oidc_audience(self) -> str: ...
    @property
    def oidc_jwks_url(self) -> str: ...
    @property
    def oidc_groups_claim(self) -> str: ...
    @property
    def oidc_roles(self) -> str: ...


class Watched(Protocol):
    @property
    def problems(self) -> Sequence[object]: ...


class AdminDeps(Protocol):
    """What the composition root has once it has started."""

    @property
    def control(self) -> Store: ...
    @property
    def keyring(self) -> Keyring: ...
    @property
    def policies(self) -> Policies: ...
    @property
    def policy_files(self) -> Watched: ...
    @property
    def cache(self) -> Answers: ...
    @property
    def prefixes(self) -> Advisor: ...
    @property
    def directory(self) -> Freshness: ...
    @property
    def authenticator(self) -> KeyAuthenticator: ...
    @property
    def settings(self) -> AdminSettings: ...


class _Building:
    """The desks of one process, made when the first request needs them."""

    def __init__(self, deps: AdminDeps, clock: Callable[[], float]) -> None:
        self._deps = deps
        self._clock = clock

    @cached_property
    def office(self) -> Office:
        deps = self._deps
        return Office(
            store=deps.control,
            keyring=deps.keyring,
            policies=lambda: deps.policies,
            clock=self._clock,
            cache=lambda: deps.cache,
            advice=lambda: deps.prefixes,
            policy_problems=lambda: deps.policy_files.problems,
            networks=_networks(deps.settings),
        )

    @cached_property
    def gate(self) -> Gate:
        store, settings = PostgresAdmins(self.office), self._deps.settings
        tokens = OidcAdmins(self.office, _oidc(settings)) if settings.oidc_issuer else None
        return Gate(AdminAuthenticator(self._deps.keyring, store, settings.admin_key, tokens))


def check_settings(settings: AdminSettings) -> None:
    """Raises `ConfigurationError` for what the admin REST must not be started with."""
    _networks(settings)
    if settings.oidc_issuer:
        _oidc(settings)


def _networks(settings: AdminSettings) -> tuple[Any, ...]:
    try:
        return allowed_networks(settings.webhook_networks)
    except ValueError as error:
        raise ConfigurationError(f"TOLLHOUSE_WEBHOOK_NETWORKS: {error}") from None


def _oidc(settings: AdminSettings) -> Oidc:
    return Oidc(
        issuer=settings.oidc_issuer,
        audience=settings.oidc_audience,
        jwks_url=settings.oidc_jwks_url,
        groups_claim=settings.oidc_groups_claim,
        roles=settings.oidc_roles,
    )


def _guard(building: _Building) -> Guard:
    """A function: Litestar copies guards deeply, and functions stay what they are."""

    async def guard(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        await building.gate(connection, handler)
        await claim(connection, connection.state.principal, building.office)

    return guard


def admin_routes(deps: AdminDeps, *, clock: Callable[[], float] = time.time) -> list[Router]:
    """Routers to be mounted at the application's root: `/admin/v1/...` and `/me...`.

    `clock` gives unix seconds.
    """
    building = _Building(deps, clock)
    return [_admin_router(building), _me_router(building, deps)]


def openapi_document() -> dict[str, Any]:
    """OpenAPI 3.1 of both, without anything having been started."""
    return document(_admin_router(None), _me_router(None, None))


def _admin_router(building: _Building | None) -> Router:
    desks = {
        "desk_of_tenants": TenantDesk,
        "desk_of_keys": KeyDesk,
        "desk_of_limits": LimitDesk,
        "desk_of_budgets": BudgetDesk,
        "desk_of_calls": CallDesk,
        "desk_of_reports": ReportDesk,
        "desk_of_advice": AdviceDesk,
        "desk_of_statements": StatementDesk,
        "desk_of_webhooks": WebhookDesk,
        "desk_of_policies": PolicyDesk,
        "desk_of_transfers": TransferDesk,
        "desk_of_corrections": CorrectionDesk,
        "desk_of_admins": AdminDesk,
    }
    return Router(
        path=PREFIX,
        route_handlers=[
            TenantController, KeyController, LimitController, BudgetController, CallController,
            RecordController, ReportController, AdviceController, StatementController, WebhookController, AlertController, PolicyController,
            TransferController, CorrectionController,
            AdminController, openapi, nowhere,
        ],
        dependencies={name: _desk(building, desk) for name, desk in desks.items()}
        | {"who": Provide(_principal, sync_to_thread=False)},
        guards=[] if building is None else [_guard(building)],
        middleware=[KeepAnswers()],
        **_COMMON,
    )  # fmt: skip


def _me_router(building: _Building | None, deps: KeyDeps | None) -> Router:
    return Router(
        path="/",
        route_handlers=[MeController],
        dependencies={
            "my_desk": _desk(building, MyDesk),
            "caller": Provide(_caller, sync_to_thread=False),
        },
        guards=[] if deps is None else [key_gate(deps)],
        **_COMMON,
    )


_COMMON: dict[str, Any] = {
    "exception_handlers": problems.HANDLERS,
    "request_class": StrictRequest,
    "request_max_body_size": BODY_BYTES_MAX,
}


def _desk(building: _Building | None, desk: Callable[[Office], Any]) -> Provide:
    def provide() -> Any:
        assert building is not None  # noqa: S101 (documents are made without one, requests are not)
        return desk(building.office)

    return Provide(provide, sync_to_thread=False)


def _principal(request: Request[Any, Any, Any]) -> Principal:
    who: Principal = request.state.principal
    return who


def _caller(request: Request[Any, Any, Any]) -> Caller:
    caller: Caller = request.state.caller
    return caller


_made: list[dict[str, Any]] = []


@get("/openapi.json", include_in_schema=False, sync_to_thread=True)
def openapi() -> Response[dict[str, Any]]:
    """Made once per process, outside the event loop: it takes a good part of a second."""
    if not _made:
        _made.append(openapi_document())
    return Response(_made[0], headers={"Cache-Control": "no-store"})


@route("/{rest:path}", http_method=_EVERY_METHOD, include_in_schema=False)
async def nowhere(rest: str) -> None:  # noqa: ARG001 (whatever it is, it is no route)
    raise not_found("route")
