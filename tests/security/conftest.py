"""One proxy per module on a database of its own, as in tests/acceptance; a module says in `SETTINGS`
what its proxy is to be told besides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import APPLICATION, fresh_database
from tests.security.raw import free_port
from tests.support.stack import Key, Proxy, running


@pytest.fixture(scope="module")
def module_owner_url(postgres_url: str, migrated_template: str) -> Iterator[str]:
    """A database at head for all tests of a module, as superuser."""
    yield from fresh_database(postgres_url, template=migrated_template)


@pytest.fixture(scope="module")
def module_stack(
    request: pytest.FixtureRequest,
    module_owner_url: str,
    as_role: Callable[[str, str], str],
    session_redis_url: str,
    simulator_server: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Proxy]:
    state = tmp_path_factory.mktemp("proxy") / "state"
    settings = {"TOLLHOUSE_METRICS_PORT": str(free_port()), **getattr(request.module, "SETTINGS", {})}
    database = as_role(module_owner_url, APPLICATION)
    with running(Proxy(database, session_redis_url, simulator_server.url, state, settings)) as started:
        yield started


@pytest.fixture
def stack(module_stack: Proxy, simulator: Any) -> Proxy:
    """The module's proxy, with a simulator that has seen nothing yet."""
    del simulator  # it was reset
    return module_stack


@pytest.fixture
def key(stack: Proxy) -> Key:
    """A key of a tenant of its own."""
    return stack.key()
