"""One proxy per module on a database of its own; every test brings its own tenants. The simulator's
bill, faults and log are reset before each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import APPLICATION, fresh_database
from tests.support.stack import Proxy, running


@pytest.fixture(scope="module")
def module_database_url(
    postgres_url: str, migrated_template: str, as_role: Callable[[str, str], str]
) -> Iterator[str]:
    """A database at head, as the application's role, for all tests of a module."""
    for url in fresh_database(postgres_url, template=migrated_template):
        yield as_role(url, APPLICATION)


@pytest.fixture(scope="module")
def module_stack(
    request: pytest.FixtureRequest,
    module_database_url: str,
    session_redis_url: str,
    simulator_server: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Proxy]:
    state = tmp_path_factory.mktemp("proxy") / "state"
    settings = getattr(request.module, "STACK_SETTINGS", {})
    proxy = Proxy(module_database_url, session_redis_url, simulator_server.url, state, settings=settings)
    with running(proxy) as started:
        yield started


@pytest.fixture
def stack(module_stack: Proxy, simulator: Any) -> Proxy:
    """The module's proxy, with a simulator that has seen nothing yet."""
    del simulator  # it was reset
    return module_stack
