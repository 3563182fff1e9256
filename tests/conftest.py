"""Real servers for the tests: private processes per xdist worker, or those named by the environment.

`TOLLHOUSE_TEST_DATABASE_URL` (a superuser's URL) and `TOLLHOUSE_TEST_REDIS_URL` (whose database is flushed!)
replace the private ones, so that the suite can run against other versions. Nothing is started before a test
asks for it, and unit tests may not ask.
"""

import asyncio
import importlib
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg
import pytest
import redis as redis_client

from proxy.embedded import Bootstrap, Postgres, Role, Valkey

if TYPE_CHECKING:
    from proxy.simulator.launch import Simulator

T = TypeVar("T")
REPOSITORY = Path(__file__).parents[1]
UNIT_TESTS = Path(__file__).parent / "unit"
SERVER_FIXTURES = {"postgres_server", "valkey_server", "simulator_server"}
MEMORY_BYTES_MIN = 2 << 30
NAMED_DATABASE_URL = os.environ.get("TOLLHOUSE_TEST_DATABASE_URL", "")
NAMED_REDIS_URL = os.environ.get("TOLLHOUSE_TEST_REDIS_URL", "")
#: What a developer's shell may hold that would redirect a client, a driver or the proxy under test.
FOREIGN_PREFIXES = ("TOLLHOUSE_", "AWS_", "OPENAI_", "ANTHROPIC_", "PG", "REDIS_")
FOREIGN_NAMES = {"http_proxy", "https_proxy", "all_proxy"}

OWNER, APPLICATION = "tollhouse_owner", "tollhouse_app"
BOOTSTRAP = Bootstrap(owner=OWNER, roles=(Role(name=OWNER), Role(name=APPLICATION)))
ROLE_PASSWORD = "tollhouse"
MAKE_ROLE = f"""DO $$ BEGIN CREATE ROLE {{name}} LOGIN PASSWORD '{ROLE_PASSWORD}';
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Unit tests stay fast and need nothing installed: a server fixture in one is a mistake."""
    for item in items:
        wanted = SERVER_FIXTURES & set(getattr(item, "fixturenames", ()))
        if wanted and UNIT_TESTS in item.path.parents:
            raise pytest.UsageError(f"{item.nodeid} is a unit test but uses {', '.join(sorted(wanted))}")


@pytest.fixture(scope="session", autouse=True)
def clean_environment() -> None:
    """Tests see the same world in every shell: no names of other servers, no credentials, no HTTP proxy."""
    for name in list(os.environ):
        if name.startswith(FOREIGN_PREFIXES) or name.lower() in FOREIGN_NAMES:
            del os.environ[name]
    os.environ |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull, "NO_PROXY": "*"}
    os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull


def run_async(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs it in a loop and thread of its own, so that sync fixtures serve sync and async tests alike."""
    with ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(asyncio.run, coroutine).result()


async def _execute(dsn: str, *statements: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


def execute(url: str, *statements: str) -> None:
    """Runs SQL outside any transaction. `url` may be SQLAlchemy's."""
    run_async(_execute(url.replace("postgresql+asyncpg://", "postgresql://", 1), *statements))


def with_database(url: str, database: str) -> str:
    """The same server and login, another database."""
    base, question, query = url.partition("?")
    return f"{base.rpartition('/')[0]}/{database}{question}{query}"


@pytest.fixture(scope="session")
def server_dir() -> Iterator[Path]:
    """For the data of throwaway servers: in memory where there is room, so that fsync costs nothing."""
    memory = Path("/dev/shm")
    roomy = (
        memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > MEMORY_BYTES_MIN
    )
    directory = Path(tempfile.mkdtemp(prefix="tollhouse-test-", dir=memory if roomy else None))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server(server_dir: Path) -> Iterator[Postgres]:
    """A private Postgres, whatever the environment names: for tests that kill or freeze it, start your own."""
    with Postgres.start(server_dir / "postgres", bootstrap=BOOTSTRAP, throwaway=True) as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server(server_dir: Path) -> Iterator[Valkey]:
    """A private Valkey, whatever the environment names: for tests that kill or freeze it, start your own."""
    with Valkey.start(server_dir / "valkey", with_password=False) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_url(request: pytest.FixtureRequest) -> str:
    """SQLAlchemy URL of the test server as superuser: the one named by the environment, else a private one."""
    if NAMED_DATABASE_URL:
        return NAMED_DATABASE_URL
    server: Postgres = request.getfixturevalue("postgres_server")
    return server.url


@pytest.fixture(scope="session")
def as_role(request: pytest.FixtureRequest, postgres_url: str) -> Callable[[str, str], str]:
    """(URL, role) -> the same database as `tollhouse_owner`, who migrates, or `tollhouse_app`, who serves."""
    if NAMED_DATABASE_URL:
        execute(postgres_url, *(MAKE_ROLE.format(name=role.name) for role in BOOTSTRAP.roles))
        return lambda url, role: url.replace(url.split("://")[1].split("@")[0], f"{role}:{ROLE_PASSWORD}", 1)
    server: Postgres = request.getfixturevalue("postgres_server")
    return lambda url, role: server.url_for(database=url.rpartition("/")[2], role=role)


@pytest.fixture(scope="session")
def migrated_template(postgres_url: str, as_role: Callable[[str, str], str]) -> Iterator[str]:
    """The name of a database with the project's schema at head, to be copied and never connected to.

    Made as in production: by the owner, who grants the application what it needs.
    """
    for url in fresh_database(postgres_url, template="template0"):
        migrate = importlib.import_module("proxy.postgres.migrate")
        migrate.upgrade(as_role(url, OWNER), application_role=APPLICATION)
        yield url.rpartition("/")[2].partition("?")[0]


@pytest.fixture
def database_url(postgres_url: str, migrated_template: str) -> Iterator[str]:
    """SQLAlchemy URL of a database of this test's own, at head and empty, as superuser."""
    yield from fresh_database(postgres_url, template=migrated_template)


@pytest.fixture
def app_database_url(database_url: str, as_role: Callable[[str, str], str]) -> str:
    """The same database as `database_url` with no more rights than the running proxy has."""
    return as_role(database_url, APPLICATION)


@pytest.fixture
def empty_database_url(postgres_url: str, as_role: Callable[[str, str], str]) -> Iterator[str]:
    """A database of this test's own without any schema, as superuser: for the migrations' own tests."""
    del as_role  # it makes the owner
    yield from fresh_database(postgres_url, template="template0")


def fresh_database(url: str, *, template: str) -> Iterator[str]:
    name = f"tollhouse_test_{uuid.uuid4().hex[:12]}"
    admin_url = with_database(url, "postgres")
    execute(admin_url, f"CREATE DATABASE {name} TEMPLATE {template} OWNER {OWNER}")
    yield with_database(url, name)
    execute(admin_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def session_redis_url(request: pytest.FixtureRequest) -> str:
    """A `redis://` URL that all tests of a worker share; keys in it belong to tenants of one test."""
    if NAMED_REDIS_URL:
        return NAMED_REDIS_URL
    server: Valkey = request.getfixturevalue("valkey_server")
    return server.url


@pytest.fixture
def redis_url(session_redis_url: str) -> str:
    """A `redis://` URL whose database is empty when the test begins."""
    url = session_redis_url
    with redis_client.Redis.from_url(url) as client:
        client.flushdb()
    return url


@pytest.fixture(scope="session")
def simulator_server() -> "Iterator[Simulator]":
    """One simulator per worker. Tests take `simulator`; wider fixtures take this and know its bill is shared."""
    server: Simulator = importlib.import_module("proxy.simulator.launch").start()
    yield server
    server.stop()


@pytest.fixture
def simulator(simulator_server: "Simulator") -> "Simulator":
    """A running simulator with an empty bill, no faults and no request log; `.url` is its address."""
    simulator_server.reset()
    return simulator_server


@pytest.fixture
def free_port() -> Callable[[], int]:
    """A function that names a TCP port of 127.0.0.1 that was free a moment ago."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return find
