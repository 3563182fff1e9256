"""The admin REST over a real Postgres: an application of its own routes only, asked without a network."""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import httpx
import pytest
from litestar import Litestar, Response
from litestar.exceptions import HTTPException
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from proxy.advice import ModelAdvice
from proxy.bedrock.inbound import InboundSignatures
from proxy.directory import Directory
from proxy.domain.catalogue import Model
from proxy.domain.policy import Limit, Policy
from proxy.domain.pricing import PriceBook
from proxy.errors import ConfigurationError
from proxy.keys import Keyring
from proxy.policyfile import BudgetTemplate, LimitTemplate, Plan, overrides
from proxy.postgres.engine import create_engine
from proxy.postgres.migrate import APPLICATION_ROLE
from proxy.postgres.session import PostgresControl
from proxy.postgres.tenants import PostgresRoster
from proxy.web.admin import admin_routes, problems_or
from proxy.web.auth import KeyAuthenticator

ADMIN_KEY = "admin-" + "k" * 32


def _model(name: str) -> Model:
    return Model(
        id=name, provider="Meta", name=name, family="llama", context_tokens=128_000, max_output_tokens=4096
    )


@dataclass
class Policies:
    """Three plans and two models, by the project's own rules for overrides."""

    models: dict[str, Model] = field(
        default_factory=lambda: {name: _model(name) for name in ("meta.llama-a-v1:0", "meta.llama-b-v1:0")}
    )
    plans: dict[str, Plan] = field(
        default_factory=lambda: {
            "default": Plan(name="default", version="1"),
            "team": Plan(
                name="team",
                version="7",
                limits=(LimitTemplate(scope="key", requests_per_minute=60),),
                budgets=(
                    BudgetTemplate(
                        scope="tenant", period="month", limit=100 * 10**9, thresholds=(Decimal("0.8"),)
                    ),
                    BudgetTemplate(scope="project", period="day", limit=5 * 10**9, models=("meta.llama-a*",)),
                    BudgetTemplate(scope="key", period="total", limit=10**9),
                ),
            ),
            "larger": Plan(
                name="larger",
                version="2",
                budgets=(BudgetTemplate(scope="tenant", period="month", limit=200 * 10**9),),
            ),
        }
    )

    version = "1"
    prices = PriceBook(())
    rules = ()

    def plan(self, name: str) -> Plan:
        if name not in self.plans:
            raise ConfigurationError(f"there is no plan {name!r} in plans/")
        return self.plans[name]

    def check_overrides(self, given: Mapping[str, Any] | None) -> None:
        overrides.parse(given, self.models, "overrides")

    def effective(
        self,
        plan: str,
        tenant_overrides: Mapping[str, Any] | None,
        key_overrides: Mapping[str, Any] | None,
        limits: Sequence[Limit],
        *,
        scopes: tuple[UUID, UUID | None, UUID] | None = None,
    ) -> Policy:
        own = self.plan(plan).limits_for(*scopes) if scopes is not None else ()
        every = (*own, *limits)
        return overrides.effective(self.plan(plan), tenant_overrides, key_overrides, every, self.models)


class Cache:
    """Counts purges of a cache with two answers, one of them of the first model."""

    def __init__(self) -> None:
        self.purged: list[tuple[UUID, str | None]] = []

    async def purge(self, tenant: UUID, model: str | None = None) -> int:
        self.purged.append((tenant, model))
        return 2 if model is None else 1


class Advisor:
    """What workers measured of each tenant; None when Redis is away."""

    def __init__(self) -> None:
        self.found: dict[UUID, list[ModelAdvice]] | None = {}

    async def report(self, tenant: UUID) -> list[ModelAdvice] | None:
        return None if self.found is None else self.found.get(tenant, [])


class Admin:
    """The REST as an administrator with `key` sees it."""

    def __init__(self, app: Litestar, key: str | None) -> None:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(cast("Any", app)), base_url="http://tollhouse", headers=headers
        )
        self.app = app

    async def ask(self, method: str, path: str, body: Any = None, **more: Any) -> httpx.Response:
        url = path if path.startswith(("/me", "/admin/")) else f"/admin/v1{path}"
        if isinstance(body, (bytes, str)):
            more["content"] = body
        elif body is not None:
            more["json"] = body
        return await self.http.request(method, url, **more)

    async def get(self, path: str, **more: Any) -> Any:
        return await self._good(await self.ask("GET", path, **more))

    async def post(self, path: str, body: Any = None, **more: Any) -> Any:
        return await self._good(await self.ask("POST", path, body, **more))

    async def patch(self, path: str, body: Any = None, **more: Any) -> Any:
        return await self._good(await self.ask("PATCH", path, body, **more))

    async def delete(self, path: str, **more: Any) -> None:
        answer = await self.ask("DELETE", path, **more)
        assert (answer.status_code, answer.content) == (204, b"")

    async def _good(self, answer: httpx.Response) -> Any:
        assert answer.status_code in (200, 201), answer.text
        return answer.json()

    def with_key(self, key: str | None) -> "Admin":
        return Admin(self.app, key)

    async def tenant(self, slug: str = "acme", **more: Any) -> Any:
        return await self.post("/tenants", {"id": slug, "name": slug.title()} | more)

    async def key(self, tenant: str = "acme", **more: Any) -> Any:
        return await self.post("/keys", {"tenant": tenant, "name": "ci"} | more)


def problem(answer: httpx.Response, status: int) -> Any:
    """The body of an error, once its form is proven."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert set(body) == {"type", "title", "status", "detail", "errors"}
    assert body["status"] == status and body["detail"] and body["type"].startswith("urn:tollhouse:problem:")
    return body


@pytest.fixture
async def owner(database_url: str) -> AsyncIterator[AsyncEngine]:
    """For what the application may not do."""
    made = create_engine(database_url, pool_size=2)
    yield made
    await made.dispose()


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """As the role the proxy runs under, so that a missing grant shows here."""
    made = create_engine(database_url, pool_size=8)

    @event.listens_for(made.sync_engine, "connect")
    def become_application(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        cursor.execute(f"SET ROLE {APPLICATION_ROLE}")
        cursor.close()
        connection.commit()

    yield made
    await made.dispose()


@pytest.fixture
async def deps(engine: AsyncEngine) -> AsyncIterator[Any]:
    keyring, policies = Keyring(bytes(32)), Policies()
    directory = Directory(PostgresRoster(engine), keyring, policies)
    await directory.start()
    yield SimpleNamespace(
        control=PostgresControl(engine),
        keyring=keyring,
        policies=policies,
        cache=Cache(),
        prefixes=Advisor(),
        policy_files=SimpleNamespace(problems=()),
        directory=directory,
        authenticator=KeyAuthenticator(directory, InboundSignatures(time.time)),
        settings=SimpleNamespace(
            admin_key=ADMIN_KEY,
            webhook_networks="",
            oidc_issuer="",
            oidc_audience="",
            oidc_jwks_url="",
            oidc_groups_claim="groups",
            oidc_roles="",
        ),
    )
    await directory.stop()


@pytest.fixture
async def admin(deps: Any) -> Admin:
    app = Litestar(
        route_handlers=[*admin_routes(deps)],
        openapi_config=None,
        logging_config=None,
        exception_handlers={HTTPException: problems_or(lambda *_: Response("elsewhere", status_code=299))},
    )
    return Admin(app, ADMIN_KEY)


@pytest.fixture
def refused():
    """`refused(answer, status)` checks the form of an error and gives its body."""
    return problem
