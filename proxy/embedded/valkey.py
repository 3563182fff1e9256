"""A private Valkey (or Redis): one process on a unix socket and a port of 127.0.0.1, with its data on disk.

Appended to its log every second: a crash of the machine may lose the last second, a crash of the process
loses nothing that was written. No money is kept in it.
"""

import os
import secrets
import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from proxy.embedded.binaries import valkey_server
from proxy.embedded.process import Home, Server

_REPLY_LIMIT_S = 1.0


class Valkey(Server):
    """A running server. Made by `start`; a context manager that stops it."""

    name = "valkey"

    def __init__(
        self, home: Home, port: int | None, *, program: Path, password: str, settings: Mapping[str, str]
    ) -> None:
        super().__init__(home, port)
        self._program = program
        self._password = password
        self._settings = settings

    @classmethod
    def start(
        cls,
        data_dir: Path,
        *,
        program: Path | None = None,
        port: int | None = None,
        with_password: bool = True,
        settings: Mapping[str, str] | None = None,
    ) -> Self:
        """Returns when it answers PING, its data loaded: 0.1 s when empty.

        `data_dir` is made, mode 700, with its parents. `program`: the server or its directory. The password
        is random and kept with the data. `settings` are lines of its configuration over the defaults here.
        Raises BinaryMissingError, BusyError, StartFailedError (with the log's tail).
        """
        home = Home(data_dir)
        password = _kept_password(home.path / "password") if with_password else ""
        server = cls(home, port, program=valkey_server(program), password=password, settings=settings or {})
        server._run()
        return server

    @property
    def url(self) -> str:
        """`redis://` URL of database 0, over TCP."""
        login = f":{self._password}@" if self._password else ""
        return f"redis://{login}127.0.0.1:{self.port}/0"

    @property
    def socket_path(self) -> Path:
        """The unix socket. It changes with every start."""
        return self._home.socket_dir / "valkey.sock"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _try_run(self) -> bool:
        (self._home.path / "data").mkdir(mode=0o700, exist_ok=True)
        self._write_config()
        self._child = self._home.spawn(self._argv(), identity="same", death_signal=signal.SIGTERM)
        return self._await_ready(self._child)

    def _argv(self) -> list[str | Path]:
        return [self._program, self._config]

    @property
    def _config(self) -> Path:
        return self._home.path / "valkey.conf"

    def _write_config(self) -> None:
        """A file rather than arguments: everybody on the machine can read a process's arguments."""
        settings = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "unixsocket": _quoted(self.socket_path),
            "unixsocketperm": "700",
            "dir": _quoted(self._home.path / "data"),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": '""',
            "daemonize": "no",
            **self._settings,
        }
        if self._password:
            settings["requirepass"] = self._password
        fd = os.open(self._config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w") as file:
            file.writelines(f"{name} {value}\n" for name, value in settings.items())

    def _ready(self, child: subprocess.Popen[bytes]) -> bool:
        """By the unix socket, whose path no other server can have: a port might answer for a stranger."""
        del child
        request = f"AUTH {self._password}\r\nPING\r\n" if self._password else "PING\r\n"
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(_REPLY_LIMIT_S)
                connection.connect(str(self.socket_path))
                connection.sendall(request.encode())
                reply = b""
                while reply.count(b"\r\n") < request.count("\r\n"):
                    part = connection.recv(4096)
                    if not part:
                        return False
                    reply += part
        except OSError:
            return False
        return reply.endswith(b"+PONG\r\n")


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _kept_password(path: Path) -> str:
    try:
        kept = path.read_text()
    except FileNotFoundError:
        kept = ""
    if not kept:
        kept = secrets.token_urlsafe(24)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(kept)
    return kept
