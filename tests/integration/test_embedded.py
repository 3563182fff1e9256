"""The private servers: what they promise about data, passwords, ports and the processes they leave behind."""

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncpg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from proxy.embedded import (
    BinaryMissingError,
    Bootstrap,
    BusyError,
    EmbeddedError,
    Postgres,
    Role,
    StartFailedError,
    Valkey,
    postgres_bin_dir,
    valkey_server,
)
from proxy.embedded.process import Home, descendants, free_port, wait_for

BOOTSTRAP = Bootstrap(
    database="ledger",
    owner="keeper",
    roles=(Role(name="keeper"), Role(name="clerk", attributes="NOINHERIT")),
    statements=("CREATE EXTENSION btree_gist;", "CREATE TABLE seen (id int);"),
)


@pytest.fixture(scope="module")
def postgres(server_dir: Path) -> Iterator[Postgres]:
    with Postgres.start(server_dir / "embedded-postgres", bootstrap=BOOTSTRAP, throwaway=True) as server:
        yield server


@pytest.fixture(scope="module")
def valkey(server_dir: Path) -> Iterator[Valkey]:
    with Valkey.start(server_dir / "embedded-valkey") as server:
        yield server


async def fetch(dsn: str, sql: str, *, limit_s: float = 10) -> list[tuple[object, ...]]:
    connection = await asyncpg.connect(dsn, timeout=limit_s)
    try:
        return [tuple(row) for row in await connection.fetch(sql, timeout=limit_s)]
    finally:
        await connection.close()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").exists() and ") Z " in Path(f"/proc/{pid}/stat").read_text()


async def test_a_new_cluster_has_what_the_bootstrap_says(postgres):
    rows = await fetch(
        postgres.dsn,
        "SELECT current_database()::text, pg_get_userbyid(datdba)::text,"
        " (SELECT count(*) FROM pg_extension WHERE extname = 'btree_gist'), to_regclass('seen') IS NOT NULL"
        " FROM pg_database WHERE datname = current_database()",
    )
    assert rows == [("ledger", "keeper", 1, True)]
    assert await fetch(
        postgres.dsn_for(role="clerk"),
        "SELECT current_user::text, rolsuper FROM pg_roles WHERE rolname = current_user",
    ) == [("clerk", False)]
    assert postgres.url.startswith("postgresql+asyncpg://postgres:")
    with pytest.raises(EmbeddedError, match="nobody_made"):
        postgres.dsn_for(role="nobody_made")


async def test_nothing_durable_is_weakened(postgres):
    rows = await fetch(
        postgres.dsn,
        "SELECT name, setting FROM pg_settings WHERE name IN"
        " ('fsync', 'synchronous_commit', 'full_page_writes', 'default_transaction_isolation') ORDER BY name",
    )
    assert rows == [
        ("default_transaction_isolation", "read committed"),
        ("fsync", "on"),
        ("full_page_writes", "on"),
        ("synchronous_commit", "on"),
    ]


async def test_strangers_are_refused(postgres):
    for host in ("127.0.0.1", str(postgres.socket_dir)):
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(
                host=host, port=postgres.port, user="postgres", password="guess", database="ledger"
            )
    listening = await fetch(postgres.dsn, "SHOW listen_addresses")
    assert listening == [("127.0.0.1",)]
    assert stat.S_IMODE(postgres.socket_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE((postgres.log.parent / "passwords.json").stat().st_mode) == 0o600


async def test_committed_rows_survive_sigkill_and_the_url_stays(postgres):
    url, first_pid = postgres.dsn, postgres.pid
    await fetch(url, "INSERT INTO seen VALUES (1)")
    postgres.kill()
    assert not postgres.running
    assert gone(first_pid)
    postgres.restart()
    assert (postgres.dsn, postgres.running) == (url, True)
    assert postgres.pid != first_pid
    assert await fetch(url, "SELECT id FROM seen") == [(1,)]
    await fetch(url, "DELETE FROM seen")


async def test_a_stale_pid_file_naming_a_living_stranger_does_not_matter(postgres):
    postgres.kill()
    pid_file = postgres.log.parent / "cluster" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    pid_file.write_text("\n".join([str(os.getpid()), *lines[1:]]))
    postgres.restart()
    assert await fetch(postgres.dsn, "SELECT 1") == [(1,)]


async def test_paused_means_silent_not_closed(postgres):
    postgres.pause()
    try:
        with pytest.raises(TimeoutError):
            await fetch(postgres.dsn, "SELECT 1", limit_s=0.2)
    finally:
        postgres.resume()
    assert await fetch(postgres.dsn, "SELECT 1") == [(1,)]


def test_a_directory_has_one_owner(postgres, valkey):
    with pytest.raises(BusyError):
        Postgres.start(postgres.log.parent)
    with pytest.raises(BusyError):
        Valkey.start(valkey.log.parent)
    assert postgres.running
    assert valkey.running


def test_ctrl_c_in_the_terminal_does_not_reach_the_servers(postgres, valkey):
    assert {os.getsid(postgres.pid), os.getsid(valkey.pid)} == {postgres.pid, valkey.pid}


def test_servers_inherit_no_secret_of_ours(postgres, valkey):
    for server in (postgres, valkey):
        environment = Path(f"/proc/{server.pid}/environ")
        if not environment.exists():
            pytest.skip("no /proc")
        names = {line.partition(b"=")[0] for line in environment.read_bytes().split(b"\0")} - {b""}
        assert names <= {b"LC_ALL", b"TZ", b"PATH", b"PGDATA", b"PG_GRANDPARENT_PID"}


def test_a_server_that_cannot_start_says_why(tmp_path, postgres):
    with pytest.raises(StartFailedError, match="no_such_setting"):
        Postgres.start(tmp_path / "bad", throwaway=True, settings={"no_such_setting": "1"})
    with pytest.raises(StartFailedError, match=r"(?i)no_such_setting|bad directive"):
        Valkey.start(tmp_path / "worse", settings={"no_such_setting": "1"})
    with pytest.raises(StartFailedError, match="syntax error"):
        Postgres.start(tmp_path / "typo", throwaway=True, bootstrap=Bootstrap(statements=("CREAT TABLE x;",)))
    assert not (tmp_path / "typo" / "cluster").exists()


def test_a_port_asked_for_is_not_traded_for_another(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(StartFailedError, match="ddress already in use"):
            Valkey.start(tmp_path / "valkey", port=taken.getsockname()[1])


def test_missing_binaries_are_named(tmp_path):
    with pytest.raises(BinaryMissingError, match="postgres"):
        postgres_bin_dir(tmp_path)
    with pytest.raises(BinaryMissingError, match="valkey-server"):
        valkey_server(tmp_path)


def test_binaries_may_be_given(tmp_path):
    program = tmp_path / "redis-server"
    program.symlink_to(valkey_server())
    with Valkey.start(tmp_path / "data", program=tmp_path, with_password=False) as server:
        assert server.url == f"redis://127.0.0.1:{server.port}/0"
        assert redis.Redis.from_url(server.url).ping()
    assert postgres_bin_dir(postgres_bin_dir()) == postgres_bin_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")
async def test_root_without_namespaces_becomes_nobody(tmp_path):
    """Also below a directory that `nobody` may not enter, as a checkout in a private home is."""
    tmp_path.chmod(0o700)
    home = tmp_path / "postgres"
    with Postgres.start(home, throwaway=True, bootstrap=BOOTSTRAP, identity="nobody") as server:
        await fetch(server.dsn, "INSERT INTO seen VALUES (7)")
        server.kill()
        server.restart()
        assert await fetch(server.dsn, "SELECT id FROM seen") == [(7,)]
        assert Path(f"/proc/{server.pid}").stat().st_uid != 0
    with Postgres.start(home, bootstrap=BOOTSTRAP) as server:  # and back again
        assert await fetch(server.dsn, "SELECT id FROM seen") == [(7,)]


def test_valkey_keeps_acknowledged_writes_through_sigkill(valkey):
    with redis.Redis.from_url(valkey.url) as client:
        client.set("k", "v")
    url = valkey.url
    valkey.kill()
    valkey.restart()
    assert valkey.url == url
    with redis.Redis.from_url(url) as client:
        assert client.get("k") == b"v"
        assert client.config_get("append*")["appendfsync"] == "everysec"


def test_valkey_password_is_needed_and_is_not_in_the_arguments(valkey):
    once = Retry(NoBackoff(), 0)
    with redis.Redis(port=valkey.port, retry=once) as client, pytest.raises(redis.AuthenticationError):
        client.ping()
    password = (valkey.log.parent / "password").read_text()
    assert password.encode() not in Path(f"/proc/{valkey.pid}/cmdline").read_bytes()
    assert stat.S_IMODE((valkey.log.parent / "valkey.conf").stat().st_mode) == 0o600
    with redis.Redis(unix_socket_path=str(valkey.socket_path), password=password) as client:
        assert client.ping()


OWNER = """
import json, sys, time
from pathlib import Path
from proxy.embedded import Bootstrap, Postgres, Valkey
home = Path(sys.argv[1])
postgres = Postgres.start(home / "postgres", throwaway=True)
valkey = Valkey.start(home / "valkey")
print(json.dumps({"dsn": postgres.dsn, "redis": valkey.url, "pids": [postgres.pid, valkey.pid]}), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("whole_tree", [False, True], ids=["owner killed", "whole tree killed"])
async def test_a_killed_owner_leaves_no_process_and_all_data(tmp_path, whole_tree):
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE)
    assert owner.stdout
    with owner.stdout:
        told = json.loads(owner.stdout.readline())
    await fetch(told["dsn"], "CREATE TABLE kept AS SELECT 42 AS n")
    with redis.Redis.from_url(told["redis"]) as client:
        client.set("kept", "42")
    tree = [pid for server in told["pids"] for pid in (server, *descendants(server))]
    for pid in [owner.pid, *(tree if whole_tree else [])]:
        with contextlib.suppress(ProcessLookupError):  # a helper process of Postgres may have ended by itself
            os.kill(pid, signal.SIGKILL)
    owner.wait()
    started = time.monotonic()
    with Postgres.start(tmp_path / "postgres") as postgres, Valkey.start(tmp_path / "valkey") as valkey:
        assert wait_for(lambda: all(map(gone, tree)), 5)
        assert await fetch(postgres.dsn, "SELECT n FROM kept") == [(42,)]
        with redis.Redis.from_url(valkey.url) as client:
            assert client.get("kept") == b"42"
        assert len(list(Path(postgres.socket_dir).parent.glob(postgres.socket_dir.name))) == 1
    assert time.monotonic() - started < 20


def test_a_crash_while_the_cluster_is_made_is_made_good(tmp_path):
    (tmp_path / "cluster.new-1").mkdir()
    (tmp_path / "cluster.new-1" / "PG_VERSION").write_text("half")
    with Postgres.start(tmp_path, throwaway=True) as server:
        assert server.running
    assert not list(tmp_path.glob("cluster.new-*"))


def test_a_server_outlives_the_thread_that_started_it(tmp_path):
    with ThreadPoolExecutor(max_workers=1) as executor:
        server = executor.submit(Valkey.start, tmp_path, with_password=False).result()
    time.sleep(0.3)  # a signal would have ended it by now
    assert server.running
    server.stop()


def test_an_orphan_is_ended_by_the_next_owner(tmp_path):
    """Where the system sends no signal at the owner's death, the lock still tells."""
    first, second = Home(tmp_path), Home(tmp_path)
    first.acquire()
    orphan = first.spawn(
        [sys.executable, "-c", "import time; time.sleep(600)"], identity="same", death_signal=0
    )
    with pytest.raises(BusyError):
        second.acquire()
    first.release()
    second.acquire()
    assert orphan.wait(1) == -signal.SIGINT
    second.release()


def test_ports_come_from_the_system():
    assert len({free_port() for _ in range(8)}) > 1
