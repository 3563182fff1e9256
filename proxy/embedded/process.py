"""One child process that owns a directory: identity, lock, death with its parent, and the ways to end it.

Two advisory locks say who is alive, which a pid file cannot (pids are reused, and stale files stay):

- `server.lock` is inherited by the server and all its children, so it is free only when the last is gone.
- `owner.lock` is held by the process that started the server. A server that outlived its owner is an orphan
  and is ended by the next start; a server whose owner lives makes that start fail.
"""

import fcntl
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

START_LIMIT_S = 60.0
"""How long a server may take to become ready: recovery after a crash replays its log first."""
STOP_LIMIT_S = 15.0
ORPHAN_LIMIT_S = 15.0
POLL_S = 0.01
LOG_BYTES_MAX = 8 << 20
PORT_TRIES = 5
_SOCKET_DIR_PREFIX = "tollhouse-"
_SOCKET_PATH_BYTES_MAX = 100

_SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embedded-spawner")
"""Linux sends the parent-death signal when the *thread* that made the child ends, so one that lives as long as
this process makes them all; else a server started from a pool's or a test's thread would vanish with it."""


class EmbeddedError(RuntimeError):
    """A private server could not be found, started or stopped."""


class StartFailedError(EmbeddedError):
    """The server ended, or did not become ready in time; the message ends with the tail of its log."""


class BusyError(EmbeddedError):
    """Another living process runs a server on this directory."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago. Whoever binds it must be ready to lose the race."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@functools.cache
def unprivileged_identity() -> str:
    """How a server that refuses root is to run here: `same`, `namespace` or `nobody` (see `shim`)."""
    if os.geteuid() != 0:
        return "same"
    trial = subprocess.run(  # noqa: S603 (our own interpreter and script)
        [*_shim_argv("namespace", 0), sys.executable, "-I", "-S", "-c", ""], capture_output=True, check=False
    )
    return "namespace" if trial.returncode == 0 else "nobody"


SERVER_ENV: Mapping[str, str] = {"LC_ALL": "C", "TZ": "UTC", "PATH": "/usr/bin:/bin"}
"""Servers inherit nothing of our environment: it holds secrets, and PG* variables would change them."""


def _shim_argv(identity: str, death_signal: int) -> list[str]:
    shim_file = str(Path(__file__).resolve().with_name("shim.py"))
    return [sys.executable, "-I", "-S", shim_file, identity, str(int(death_signal)), str(os.getpid()), "--"]


class Home:
    """The directory of one server, locked for its owner. All methods raise EmbeddedError or OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._owner_fd = -1
        self._socket_dir: Path | None = None

    @property
    def log(self) -> Path:
        return self.path / "server.log"

    @property
    def socket_dir(self) -> Path:
        """A private directory for unix sockets, a new one at every start."""
        if self._socket_dir is None:
            raise EmbeddedError(f"no server runs on {self.path}")
        return self._socket_dir

    def acquire(self) -> None:
        """Becomes the owner, ending an orphan first. Raises BusyError while another owner lives."""
        self._owner_fd = self._open("owner.lock")
        try:
            if not _try_lock(self._owner_fd):
                raise BusyError(f"another process runs a server on {self.path}")
            self._end_orphan()
            self._remove_stale_sockets()
            self._socket_dir = _make_socket_dir()
            (self.path / "sockets").write_text(str(self._socket_dir))
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Gives the directory up; to be called once the server has ended. Harmless when it is not held."""
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
            self._socket_dir = None
        if self._owner_fd >= 0:
            os.close(self._owner_fd)
            self._owner_fd = -1

    def spawn(
        self, argv: Sequence[str | Path], *, identity: str, death_signal: int
    ) -> subprocess.Popen[bytes]:
        """Starts the server; its output is appended to `server.log`."""
        self._rotate_log()
        lock_fd = self._locked()
        try:
            with self.log.open("ab") as log:
                child = _SPAWNER.submit(
                    subprocess.Popen[bytes],
                    [*_shim_argv(identity, death_signal), *map(str, argv)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=SERVER_ENV,
                    cwd="/",
                    pass_fds=(lock_fd,),
                    start_new_session=True,  # else Ctrl-C would reach the servers before we have drained
                ).result()
        finally:
            os.close(lock_fd)
        (self.path / "server.pid").write_text(str(child.pid))
        return child

    def run_tool(self, argv: Sequence[str | Path], *, identity: str, stdin: str = "") -> None:
        """Runs a program on this directory to its end. Raises StartFailedError with its output if it fails."""
        lock_fd = self._locked()
        try:
            done = subprocess.run(  # noqa: S603 (a binary of ours or the operator's)
                [*_shim_argv(identity, signal.SIGKILL), *map(str, argv)],
                input=stdin,
                env=SERVER_ENV,
                cwd="/",
                pass_fds=(lock_fd,),
                capture_output=True,
                text=True,
                check=False,
            )
        finally:
            os.close(lock_fd)
        if done.returncode != 0:
            raise StartFailedError(
                f"{argv[0]} ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}"
            )

    def wait_until_free(self, limit_s: float) -> bool:
        """True once no process of the last server lives."""
        fd = self._open("server.lock")
        try:
            return wait_for(lambda: _try_lock(fd), limit_s)
        finally:
            os.close(fd)

    def log_tail(self, start: int = 0) -> str:
        """The last of what the server said since byte `start`."""
        with suppress(OSError):
            return self.log.read_bytes()[start:][-2000:].decode(errors="replace")
        return ""

    def _open(self, name: str) -> int:
        return os.open(self.path / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _locked(self) -> int:
        """A descriptor that holds `server.lock`, to be inherited by whatever works on this directory."""
        lock_fd = self._open("server.lock")
        if not _try_lock(lock_fd):
            os.close(lock_fd)
            raise BusyError(f"a server still runs on {self.path}")
        (self.path / "server.pid").unlink(missing_ok=True)
        return lock_fd

    def _end_orphan(self) -> None:
        """Servers get a signal when their owner dies (Linux), so usually this only waits for their end."""
        if self.wait_until_free(2.0):
            return
        # Whoever takes the lock removes the last one's pid, and the lock is held: the pid is the holder's.
        try:
            pid = int((self.path / "server.pid").read_text())
        except (FileNotFoundError, ValueError):
            raise BusyError(f"an unknown process still works on {self.path}") from None
        for ending in (signal.SIGINT, signal.SIGKILL):
            for target in [pid, *descendants(pid)] if ending == signal.SIGKILL else [pid]:
                with suppress(ProcessLookupError):
                    os.kill(target, ending)
            if self.wait_until_free(ORPHAN_LIMIT_S):
                return
        raise BusyError(f"the orphaned server {pid} on {self.path} does not end")

    def _remove_stale_sockets(self) -> None:
        with suppress(OSError):
            stale = Path((self.path / "sockets").read_text())
            if stale.name.startswith(_SOCKET_DIR_PREFIX):
                shutil.rmtree(stale, ignore_errors=True)

    def _rotate_log(self) -> None:
        with suppress(FileNotFoundError):
            if self.log.stat().st_size > LOG_BYTES_MAX:
                self.log.replace(self.log.with_suffix(".log.1"))


def _make_socket_dir() -> Path:
    """Private and short: the path of a unix socket is limited to about 107 bytes."""
    directory = Path(tempfile.mkdtemp(prefix=_SOCKET_DIR_PREFIX))
    if len(os.fsencode(directory / ".s.PGSQL.65535")) > _SOCKET_PATH_BYTES_MAX:
        directory.rmdir()
        directory = Path(tempfile.mkdtemp(prefix=_SOCKET_DIR_PREFIX, dir="/tmp"))
    return directory


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for(condition: Callable[[], bool], limit_s: float) -> bool:
    """Polls until `condition` holds; False when it did not within `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def descendants(pid: int) -> list[int]:
    """Children and their children by /proc; empty where there is none. Postgres gives each child its own group."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for candidate in found:
        found.extend(child for child, parent in parents.items() if parent == candidate)
    return found[1:]


class Server:
    """What both servers share: a child on a locked home, that can be stopped, killed, paused and run again."""

    name = "server"
    stop_signals: Sequence[int] = (signal.SIGTERM, signal.SIGKILL)

    def __init__(self, home: Home, port: int | None) -> None:
        self._home = home
        self._wanted_port = port
        self._child: subprocess.Popen[bytes] | None = None
        self.port = port or 0

    @property
    def pid(self) -> int:
        """The server's process id. Raises EmbeddedError when it is not running."""
        if self._child is None:
            raise EmbeddedError(f"{self.name} is not running")
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @property
    def log(self) -> Path:
        """The file with the server's own words."""
        return self._home.log

    def stop(self) -> None:
        """Ends the server in order: what it acknowledged is on disk. Harmless when it is not running."""
        self._end(self.stop_signals)

    def kill(self) -> None:
        """SIGKILL to the server and its children, as a crash would."""
        self._end((signal.SIGKILL,))

    def restart(self) -> None:
        """Runs again after `stop` or `kill` (or now, orderly), on the same data, port and password."""
        self.stop()
        self._wanted_port = self.port
        self._run()

    def pause(self) -> None:
        """Freezes the server and its children: connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Undoes `pause`."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        os.kill(self.pid, number)
        for pid in descendants(self.pid):
            with suppress(ProcessLookupError):  # a connection's process may end meanwhile
                os.kill(pid, number)

    def _argv(self) -> list[str | Path]:
        raise NotImplementedError

    def _ready(self, child: subprocess.Popen[bytes]) -> bool:
        raise NotImplementedError

    def _run(self) -> None:
        """Takes the directory and starts the child. Gives everything up again when that fails."""
        self._home.acquire()
        try:
            for attempt in range(PORT_TRIES):
                self.port = self._wanted_port or free_port()
                said = self._home.log.stat().st_size if self._home.log.exists() else 0
                if self._try_run():
                    return
                tail = self._home.log_tail(said)
                self._end_child((signal.SIGKILL,))
                if "ddress already in use" not in tail or self._wanted_port or attempt == PORT_TRIES - 1:
                    raise StartFailedError(f"{self.name} did not start on {self._home.path}:\n{tail}")
        except BaseException:
            self._end((signal.SIGKILL,))
            raise

    def _try_run(self) -> bool:
        raise NotImplementedError

    def _await_ready(self, child: subprocess.Popen[bytes]) -> bool:
        wait_for(lambda: child.poll() is not None or self._ready(child), START_LIMIT_S)
        return child.poll() is None and self._ready(child)

    def _end(self, signals: Sequence[int]) -> None:
        self._end_child(signals)
        self._home.release()

    def _end_child(self, signals: Sequence[int]) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        for ending in signals:
            targets = [child.pid, *descendants(child.pid)] if ending == signal.SIGKILL else [child.pid]
            for target in targets:
                with suppress(ProcessLookupError):
                    os.kill(target, ending)
            with suppress(subprocess.TimeoutExpired):
                child.wait(STOP_LIMIT_S)
                break
        self._home.wait_until_free(STOP_LIMIT_S)
