"""A private Postgres: a cluster in a directory of its own, on a unix socket and a port of 127.0.0.1.

Nothing durable is weakened: fsync and synchronous_commit stay on, data survives SIGKILL of every process.
`throwaway` only skips the fsync of the freshly made, still empty cluster.
"""

import json
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import quote

from proxy.embedded.binaries import postgres_bin_dir
from proxy.embedded.process import EmbeddedError, Home, Server, unprivileged_identity

SUPERUSER = "postgres"
_IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]{0,62}")

_HBA = """\
# Written at every start. Passwords everywhere: other users of this machine reach 127.0.0.1 too.
local all all scram-sha-256
host  all all 127.0.0.1/32 scram-sha-256
"""

_SETTINGS: Mapping[str, str] = {
    "fsync": "on",
    "synchronous_commit": "on",
    "listen_addresses": "127.0.0.1",
    "unix_socket_permissions": "0700",
    "password_encryption": "scram-sha-256",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
    "log_destination": "stderr",
}


@dataclass(frozen=True, kw_only=True)
class Role:
    """A login role; its password is random and kept with the cluster.

    `name`: lower-case identifier. `attributes`: words of CREATE ROLE, such as `CREATEROLE`.
    """

    name: str
    attributes: str = ""


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """What a new cluster contains. It has no effect on a cluster that exists: from there on migrations rule.

    `database` belongs to `owner` (a role of `roles`, or the superuser). `statements` run last, one a line in
    single-user mode in that database, so each must be complete and end with a semicolon.
    """

    database: str = "tollhouse"
    owner: str = SUPERUSER
    roles: Sequence[Role] = ()
    statements: Sequence[str] = ()


class Postgres(Server):
    """A running cluster. Made by `start`; a context manager that stops it."""

    name = "postgres"
    stop_signals = (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL)  # fast, immediate, last resort

    def __init__(
        self,
        home: Home,
        port: int | None,
        *,
        bin_dir: Path,
        bootstrap: Bootstrap,
        throwaway: bool,
        settings: Mapping[str, str],
        identity: str | None,
    ) -> None:
        super().__init__(home, port)
        self._bin_dir = bin_dir
        self._bootstrap = bootstrap
        self._throwaway = throwaway
        self._settings = {**_SETTINGS, **settings}
        self._identity = identity or unprivileged_identity()
        self._passwords: dict[str, str] = {}

    @classmethod
    def start(
        cls,
        data_dir: Path,
        *,
        bootstrap: Bootstrap | None = None,
        bin_dir: Path | None = None,
        port: int | None = None,
        throwaway: bool = False,
        settings: Mapping[str, str] | None = None,
        identity: str | None = None,
    ) -> Self:
        """Returns when it accepts connections: within a second for a new cluster, 0.2 s for one that exists.

        `data_dir` is made, mode 700, with its parents. `port` defaults to one the system chooses. `settings`
        are server parameters over the defaults here. `identity` is found out (see `shim`). Raises BinaryMissingError, BusyError (another process
        runs it), StartFailedError (with the log's tail).
        """
        server = cls(
            Home(data_dir),
            port,
            bin_dir=postgres_bin_dir(bin_dir),
            bootstrap=bootstrap or Bootstrap(),
            throwaway=throwaway,
            settings=settings or {},
            identity=identity,
        )
        server._run()
        return server

    @property
    def url(self) -> str:
        """SQLAlchemy URL of the bootstrap's database as superuser, over TCP."""
        return self.url_for()

    @property
    def dsn(self) -> str:
        """The same for asyncpg and libpq."""
        return self.dsn_for()

    @property
    def socket_dir(self) -> Path:
        """For libpq's `host`: the directory of the unix socket. It changes with every start."""
        return self._home.socket_dir

    def url_for(self, *, database: str | None = None, role: str = SUPERUSER) -> str:
        return self.dsn_for(database=database, role=role).replace("postgresql://", "postgresql+asyncpg://", 1)

    def dsn_for(self, *, database: str | None = None, role: str = SUPERUSER) -> str:
        """Raises EmbeddedError for a role the bootstrap did not make."""
        if role not in self._passwords:
            raise EmbeddedError(f"no role {role!r} was made with this cluster")
        credentials = f"{quote(role, safe='')}:{quote(self._passwords[role], safe='')}"
        return f"postgresql://{credentials}@127.0.0.1:{self.port}/{database or self._bootstrap.database}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def _cluster(self) -> Path:
        return self._home.path / "cluster"

    def _try_run(self) -> bool:
        if not self._cluster.is_dir():
            self._create()
        self._passwords = json.loads((self._home.path / "passwords.json").read_text())
        (self._cluster / "pg_hba.conf").write_text(_HBA)
        # We hold both locks, so no process of the last server lives: the file is what a SIGKILL left.
        (self._cluster / "postmaster.pid").unlink(missing_ok=True)
        self._give_away(self._cluster)
        self._give_away(self._home.socket_dir)
        self._child = self._home.spawn(self._argv(), identity=self._identity, death_signal=signal.SIGINT)
        return self._await_ready(self._child)

    def _argv(self) -> list[str | Path]:
        settings = {
            **self._settings,
            "port": str(self.port),
            "unix_socket_directories": str(self._home.socket_dir),
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [self._bin_dir / "postgres", "-D", self._cluster, *options]

    def _ready(self, child: subprocess.Popen[bytes]) -> bool:
        """By the server's own status file; its first line must be our child, or it is an earlier server's."""
        with suppress(OSError):
            lines = (self._cluster / "postmaster.pid").read_text().splitlines()
            return len(lines) > 7 and lines[0] == str(child.pid) and lines[7].strip() == "ready"
        return False

    def _create(self) -> None:
        """Makes the cluster aside and renames it when it is complete, so a crash leaves all or nothing."""
        for half_made in self._home.path.glob("cluster.new-*"):
            shutil.rmtree(half_made, ignore_errors=True)
        new = Path(tempfile.mkdtemp(prefix="cluster.new-", dir=self._home.path))
        self._give_away(new)
        options = ["--auth=trust", "--encoding=UTF8", "--locale=C", f"--username={SUPERUSER}"]
        if self._throwaway:
            options.append("--no-sync")
        self._home.run_tool([self._bin_dir / "initdb", "-D", new, *options], identity=self._identity)
        names = [SUPERUSER, *(role.name for role in self._bootstrap.roles)]
        passwords = {name: secrets.token_urlsafe(24) for name in names}
        self._run_single_user(new, "postgres", self._account_statements(passwords))
        if self._bootstrap.statements:
            self._run_single_user(new, self._bootstrap.database, self._bootstrap.statements)
        _write_private(self._home.path / "passwords.json", json.dumps(passwords))
        new.rename(self._cluster)
        _sync_dir(self._home.path)

    def _account_statements(self, passwords: Mapping[str, str]) -> list[str]:
        for name in (*passwords, self._bootstrap.database, self._bootstrap.owner):
            if not _IDENTIFIER.fullmatch(name):
                raise EmbeddedError(f"not a plain identifier: {name!r}")
        statements = [f"ALTER ROLE {SUPERUSER} PASSWORD '{passwords[SUPERUSER]}';"]
        statements += [
            f"CREATE ROLE {role.name} LOGIN {role.attributes} PASSWORD '{passwords[role.name]}';"
            for role in self._bootstrap.roles
        ]
        if self._bootstrap.database != "postgres":
            statements.append(f"CREATE DATABASE {self._bootstrap.database} OWNER {self._bootstrap.owner};")
        return statements

    def _run_single_user(self, cluster: Path, database: str, statements: Sequence[str]) -> None:
        """Without a server and without authentication. An error in a statement shows only in the output."""
        argv: list[str | Path] = [
            self._bin_dir / "postgres",
            "--single",
            "-D",
            cluster,
            "-c",
            "exit_on_error=on",
            database,
        ]
        self._home.run_tool(argv, identity=self._identity, stdin="\n".join(statements) + "\n")

    def _give_away(self, path: Path) -> None:
        """As root under another identity the server must own its files; a tree is walked only when it does not."""
        if os.geteuid() != 0:
            return
        owner = pwd.getpwnam("nobody").pw_uid if self._identity == "nobody" else 0
        if path.stat().st_uid == owner and path.name != "cluster":
            return
        for file in (path, *path.rglob("*")):
            if file.lstat().st_uid != owner:
                os.chown(file, owner, -1, follow_symlinks=False)


def _write_private(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_dir(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
