"""Leaving without losing: SIGTERM takes readiness away first, then the port; calls that are open end."""

from __future__ import annotations

import http.client
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from proxy.postgres.migrate import head
from tests.conftest import OWNER, execute
from tests.support.stack import LLAMA, Key, Proxy, get_json, running

WHOLE = f"/model/{LLAMA}/invoke"
STREAM = f"/model/{LLAMA}/invoke-with-response-stream"
BODY = {"prompt": "[[tokens=30]] hello", "max_gen_len": 64}
CALLERS = 4
REPOSITORY = Path(__file__).parents[2]


def replica(database: str, redis: str, simulator: Any, state: Path, **like: Any) -> Proxy:
    settings = {"TOLLHOUSE_LEAVE_SECONDS": "1"}
    return Proxy(database, redis, simulator.url, state, settings=settings, **like)


@pytest.fixture
def proxy(app_database_url: str, redis_url: str, simulator: Any, tmp_path: Path) -> Iterator[Proxy]:
    with running(replica(app_database_url, redis_url, simulator, tmp_path / "first" / "state")) as started:
        yield started


def until(met: Callable[[], bool], seconds: float = 10.0) -> float:
    """Seconds until then. Fails the test when it does not come."""
    began = time.monotonic()
    while not met():
        assert time.monotonic() - began < seconds
        time.sleep(0.01)
    return time.monotonic() - began


def ready(proxy: Proxy) -> bool:
    try:
        return proxy.request("GET", "/health/ready", key=None)[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def refuses(proxy: Proxy) -> bool:
    try:
        socket.create_connection(("127.0.0.1", proxy.port), 1).close()
    except ConnectionRefusedError:
        return True
    return False


def test_readiness_goes_first_then_the_port_and_what_is_open_ends(proxy: Proxy, simulator: Any) -> None:
    key = proxy.key()
    answers: list[tuple[int, Any]] = []

    def call(path: str) -> None:
        status, _, body = proxy.request("POST", path, BODY, key=key.bearer_token)
        answers.append((status, body))

    simulator.hold(hold=True)
    callers = [threading.Thread(target=call, args=(path,)) for path in (WHOLE, STREAM)]
    for caller in callers:
        caller.start()
    until(lambda: simulator.waiting() == len(callers))
    [server] = proxy.processes
    server.terminate()
    until(lambda: not ready(proxy))
    status, _, said = proxy.request("GET", "/health/ready", key=None)
    assert (status, said["reason"]) == (503, "shutting down")
    assert proxy.request("GET", "/v1/models", key=key.bearer_token)[0] == 200, "who came late is still served"
    until(lambda: refuses(proxy))
    assert server.poll() is None and not answers
    simulator.hold(hold=False)
    for caller in callers:
        caller.join(10)
    assert [status for status, _ in answers] == [200, 200]
    assert server.wait(10) == 0
    proxy.start()
    assert [i["outcome"] for i in proxy.settled_calls(tenant=key.tenant)] == ["POST", "POST"]


class Load:
    """Callers that go to replicas which say that they are ready, as a balancer in front would send them."""

    def __init__(self, replicas: list[Proxy], key: Key) -> None:
        self._replicas = replicas
        self._key = key
        self._fit = {proxy.port: True for proxy in replicas}
        self._over = threading.Event()
        self.failures: list[str] = []
        self.good = 0
        self._threads = [threading.Thread(target=self._judge)] + [
            threading.Thread(target=self._call, args=(number,)) for number in range(CALLERS)
        ]

    def _judge(self) -> None:
        while not self._over.wait(0.05):
            for proxy in self._replicas:
                self._fit[proxy.port] = ready(proxy)

    def _call(self, number: int) -> None:
        while not self._over.wait(0.01):
            number += 1
            fit = [proxy for proxy in self._replicas if self._fit[proxy.port]]
            if not fit:
                self.failures.append("nobody is ready")
                break
            path = (WHOLE, STREAM)[number % 2]
            try:
                status, _, body = fit[number % len(fit)].request(
                    "POST", path, BODY, key=self._key.bearer_token
                )
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                continue
            if status == 200:
                self.good += 1
            else:
                self.failures.append(f"{status} {body}")

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(20)


NEXT = '''"""The expansion of a next version."""

from alembic import op

revision = "next"
down_revision = "{head}"
branch_labels = depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE attempts ADD COLUMN of_the_next_version text")
    op.execute("ALTER TABLE budgets ADD COLUMN of_the_next_version integer DEFAULT 7")
    op.execute("CREATE TABLE of_the_next_version (id bigint PRIMARY KEY)")


def downgrade() -> None:
    op.execute("DROP TABLE of_the_next_version")
'''


@pytest.fixture
def owner_url(database_url: str, as_role: Callable[[str, str], str]) -> str:
    return as_role(database_url, OWNER)


@pytest.fixture
def next_version(tmp_path: Path) -> Path:
    """A source tree whose migrations are one expansion ahead."""
    for part in ("proxy", "migrations", "policies"):
        shutil.copytree(
            REPOSITORY / part, tmp_path / "next" / part, ignore=shutil.ignore_patterns("__pycache__")
        )
    (tmp_path / "next" / "migrations" / "versions" / "next.py").write_text(NEXT.format(head=head()))
    return tmp_path / "next"


def test_two_versions_side_by_side_share_one_schema(
    app_database_url: str, owner_url: str, redis_url: str, simulator: Any, tmp_path: Path, next_version: Path
) -> None:
    """The next version migrates while this one serves, then both serve."""
    state, settings = tmp_path / "old" / "state", {"TOLLHOUSE_LEAVE_SECONDS": "1"}
    old = Proxy(app_database_url, redis_url, simulator.url, state, settings=settings)
    new = replica(
        app_database_url, redis_url, simulator, tmp_path / "new" / "state", master_key=old.master_key
    )
    new.root = next_version
    with running(old):
        key = old.key(old.tenant(overrides={"cache": {"enabled": False}}))
        old.budget(f"tenant:{key.tenant}", "50.00")
        with Load([old], key) as alone:
            until(lambda: alone.good > 20, 30)
            assert new.start("migrate", wait=False, TOLLHOUSE_MIGRATION_DATABASE_URL=owner_url).wait(30) == 0
            execute(owner_url, "INSERT INTO of_the_next_version VALUES (1)")
            alone.good = 0
            until(lambda: alone.good > 20, 30)
        with running(new):
            new.await_key(key)
            with Load([old, new], key) as both:
                until(lambda: both.good > 80, 30)
        assert alone.failures == both.failures == []
        rows = old.settled_calls(tenant=key.tenant)
        bill = get_json(f"{simulator.url}/_bill")["calls"]
        assert {row["upstream_request_id"] for row in rows} == {call["request_id"] for call in bill}
        assert {row["outcome"] for row in rows} == {"POST"}


def test_a_rolling_restart_under_load_loses_no_request(
    proxy: Proxy, app_database_url: str, redis_url: str, simulator: Any, tmp_path: Path
) -> None:
    other = replica(
        app_database_url, redis_url, simulator, tmp_path / "second" / "state", master_key=proxy.master_key
    )
    with running(other):
        key = proxy.key(proxy.tenant(overrides={"cache": {"enabled": False}}))
        other.await_key(key)
        with Load([proxy, other], key) as load:
            for one in (proxy, other):
                until(lambda: load.good > 40, 30)
                load.good = 0
                server = one.processes.pop()
                server.terminate()
                assert server.wait(20) == 0
                one.start()
            until(lambda: load.good > 40, 30)
        assert load.failures == []
        rows = proxy.settled_calls(tenant=key.tenant)
        bill = get_json(f"{simulator.url}/_bill")["calls"]
        assert {row["upstream_request_id"] for row in rows} == {call["request_id"] for call in bill}
        assert {row["outcome"] for row in rows} == {"POST"}
