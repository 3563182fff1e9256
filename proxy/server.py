"""`tollhouse serve`: granian with one ASGI application per worker process.

Nothing here decides about money: the exchange runs in its own task and the flight recorder covers a
killed worker. The parent process serves the metrics of all workers, and the admin REST runs in a
process of its own when it has a port of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from threading import Event, Thread, Timer
from typing import Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIServer

from granian.constants import HTTPModes, Interfaces, Loops, SSLProtocols
from granian.http import HTTP1Settings, HTTP2Settings
from granian.log import LogLevels
from granian.server.mp import MPServer
from prometheus_client import CollectorRegistry, multiprocess, start_http_server

from proxy import exemplars, telemetry, tls
from proxy import settings as settings_module
from proxy.errors import ConfigurationError
from proxy.settings import Settings
from proxy.tracing import collector
from proxy.web.admin import check_settings

#: connections beside those of calls: idle, slow, about to be refused
IDLE_CONNECTIONS = 16_384
#: open files that a process asks for where the system lets it
FILES = 65_536
_KEEPER_SECONDS = 2.0


def serve(settings: Settings) -> int:
    """Blocks until SIGTERM or SIGINT has been obeyed.

    The directory of the metrics is set before this module is imported (see `proxy.cli`): whether
    prometheus-client adds up processes is decided when it is imported.
    """
    check(settings)
    no_core_dumps()
    directory = settings_module.multiprocess_dir()
    if directory is None:
        raise ConfigurationError("PROMETHEUS_MULTIPROC_DIR must be set before the metrics are imported")
    if settings.tls_certificate:  # what is served until this process ends, whatever the file becomes
        telemetry.CERTIFICATE_END.labels(settings.surface).set(tls.ends_at(settings.tls_certificate))
    metrics = _serve_metrics(settings, directory) if settings.metrics_port else None
    keeper = _Keeper(settings, directory)
    keeper.start()
    try:
        _granian(settings).serve()
    finally:
        settings.leaving_mark(os.getpid()).unlink(missing_ok=True)
        keeper.stop()
        if metrics is not None:
            metrics[0].shutdown()
    return 0


class _Server(MPServer):
    """granian, leaving in two steps: SIGTERM first turns readiness off, so that whoever balances sends
    nothing new, and only then closes the port. What waits in the port's backlog when it is closed is reset.
    """

    def __init__(self, *args: Any, leaving: Path, leave_seconds: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._leaving = leaving
        self._leave_seconds = leave_seconds
        leaving.parent.mkdir(parents=True, exist_ok=True)
        leaving.unlink(missing_ok=True)

    def signal_handler_interrupt(self, *args: Any, **kwargs: Any) -> None:
        if args[:1] == (signal.SIGTERM,) and self._leave_seconds and self._mark():
            timer = Timer(self._leave_seconds, super().signal_handler_interrupt)
            timer.daemon = True
            timer.start()
        else:  # the second time, or Ctrl-C: at once
            super().signal_handler_interrupt(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _mark(self) -> bool:
        """False when it is there already, or cannot be made: then the closed port says it."""
        try:
            self._leaving.touch(exist_ok=False)
        except OSError:
            return False
        return True


class _Keeper(Thread):
    """What the parent does beside granian: keeps the admin's process alive where it has a port of its
    own, and takes the live gauges and the exemplars of dead workers out of the metrics.
    """

    def __init__(self, settings: Settings, directory: str) -> None:
        super().__init__(name="keeper", daemon=True)
        self._settings = settings
        self._directory = directory
        self._apart = bool(settings.admin_port) and settings.surface == "all"
        self._admin: subprocess.Popen[bytes] | None = None
        self._ended = Event()

    def start(self) -> None:
        if self._apart:
            self._admin = _start_admin(self._settings)
        super().start()

    def run(self) -> None:
        while not self._ended.wait(_KEEPER_SECONDS):
            if self._admin is not None and self._admin.poll() is not None:
                self._admin = _start_admin(self._settings)
            for path in Path(self._directory).glob("gauge_live*_*.db"):
                pid = int(path.stem.rpartition("_")[2])
                if not Path(f"/proc/{pid}").exists():
                    multiprocess.mark_process_dead(pid, self._directory)  # type: ignore[no-untyped-call]
            exemplars.drop_dead(self._directory)

    def stop(self) -> None:
        self._ended.set()
        self.join()
        if self._admin is not None:
            self._admin.terminate()
            self._admin.wait()


def check(settings: Settings) -> None:
    """Raises `ConfigurationError` for what must be set to serve."""
    missing = [
        name
        for name, value in (
            ("TOLLHOUSE_DATABASE_URL", settings.database_url),
            ("TOLLHOUSE_REDIS_URL", settings.redis_url),
            ("TOLLHOUSE_MASTER_KEY", settings.master_key),
        )
        if not value
    ]
    if bool(settings.tls_certificate) != bool(settings.tls_key):
        raise ConfigurationError("TOLLHOUSE_TLS_CERTIFICATE and TOLLHOUSE_TLS_KEY go together")
    for path in filter(None, (settings.tls_certificate, settings.tls_key)):
        if not Path(path).is_file():
            raise ConfigurationError(f"{path} is no file (`tollhouse tls init` makes both)")
    if missing:
        raise ConfigurationError(f"{', '.join(missing)} must be set (`tollhouse run` needs none of them)")
    _check_upstream(settings)
    collector.check(settings.otlp_endpoint, settings.otlp_headers)
    check_settings(settings)


def no_core_dumps() -> None:
    """A crash must not write the memory, with its keys and prompts, to a disk. Children inherit it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def rest_collector() -> None:
    """Take what a started process keeps out of the garbage collector's sight, and let it look seldom.

    Calls make many objects and hardly a cycle: reference counting frees them. By its defaults the
    collector looks every 700 allocations. What importing freed goes back to the system (glibc, with
    what the image installs: 13 MiB of 112).
    """
    gc.collect()
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _check_upstream(settings: Settings) -> None:
    """A proxy that sends to itself would pay for its own refusals. Raises `ConfigurationError`."""
    here = {settings.host, "localhost", "127.0.0.1", "::1", "0.0.0.0"}  # noqa: S104 (compared, not bound)
    ports = {settings.port, settings.admin_port}
    for url in (settings.bedrock_endpoint_url, settings.bedrock_control_endpoint_url):
        parts = urlsplit(url)
        if parts.hostname in here and parts.port in ports:
            raise ConfigurationError(f"{url} is this proxy itself, it cannot be its own upstream")


def _connections(settings: Settings) -> int:
    """Connections a worker keeps: idle and slow ones count, so that many more than the calls that the
    pipeline refuses with an answer; never more than files may be open.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < min(hard, FILES):
        soft = min(hard, FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    wanted = settings.max_calls * 2 + IDLE_CONNECTIONS
    return max(256, min(wanted, soft - settings.max_calls - 256))


def _granian(settings: Settings) -> _Server:
    port = settings.admin_port if settings.surface == "admin" else settings.port
    if settings.head_seconds < 1:
        raise ConfigurationError("TOLLHOUSE_HEAD_SECONDS: a request's head needs at least a second")
    return _Server(
        "proxy.app:create",
        leaving=settings.leaving_mark(os.getpid()),
        leave_seconds=settings.leave_seconds,
        address=settings.host,
        port=port,
        interface=Interfaces.ASGI,
        factory=True,
        loop=Loops.uvloop,
        workers=1 if settings.surface == "admin" else settings.workers,
        http=HTTPModes.auto,
        websockets=False,
        backlog=4096,
        backpressure=_connections(settings),
        http1_settings=HTTP1Settings(header_read_timeout=1000 * settings.head_seconds),
        http2_settings=HTTP2Settings(
            max_concurrent_streams=1000, max_headers_size=65_536, keep_alive_interval=30_000
        ),
        log_enabled=True,
        log_level=LogLevels.warning,
        ssl_cert=Path(settings.tls_certificate) if settings.tls_certificate else None,
        ssl_key=Path(settings.tls_key) if settings.tls_key else None,
        ssl_protocol_min=SSLProtocols.tls12,
        respawn_failed_workers=True,
        respawn_interval=0.5,
        workers_kill_timeout=settings.shutdown_seconds,
    )


def _serve_metrics(settings: Settings, directory: str) -> tuple[WSGIServer, Thread]:
    registry = CollectorRegistry()
    registry.register(exemplars.Collector(directory))
    try:
        return start_http_server(settings.metrics_port, settings.host, registry)
    except OSError as error:
        raise ConfigurationError(f"TOLLHOUSE_METRICS_PORT={settings.metrics_port}: {error}") from None


def _start_admin(settings: Settings) -> subprocess.Popen[bytes]:
    extra = {"TOLLHOUSE_SURFACE": "admin", "TOLLHOUSE_METRICS_PORT": "0"}
    environment = settings_module.child_environment(settings, **extra)
    return subprocess.Popen([sys.executable, "-m", "proxy", "serve"], env=environment)
