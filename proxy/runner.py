"""`tollhouse run`: everything on one machine, from nothing, in the foreground.

Starts a private Postgres and Valkey and the simulator unless settings name others, migrates, seeds
a demo tenant, serves, and writes `.run/client.env` and `.run/admin.env` to be sourced. All state is
in `.run/` and survives SIGKILL of everything.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from proxy import settings as settings_module
from proxy import tls
from proxy.adminclient import Access
from proxy.embedded import Bootstrap, EmbeddedError, Postgres, Role, Valkey
from proxy.embedded.process import free_port
from proxy.errors import ConfigurationError
from proxy.keys import new_master_key
from proxy.postgres.migrate import upgrade
from proxy.seed import DemoKey, seed_demo, write_private
from proxy.settings import Settings
from proxy.simulator.launch import Simulator
from proxy.simulator.launch import start as start_simulator

READY_SECONDS = 60.0
_RESTART_SECONDS = 1.0


@dataclass(slots=True)
class _Child:
    """A process that is restarted when it dies of itself."""

    name: str
    arguments: list[str]
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        shim = str(Path(__file__).with_name("embedded") / "shim.py")
        argv = [sys.executable, "-I", "-S", shim, "same", str(int(signal.SIGKILL)), str(os.getpid()), "--"]
        argv += [sys.executable, "-m", "proxy", *self.arguments]
        self.process = subprocess.Popen(argv, env=self.environment, start_new_session=True)  # noqa: S603 (our own interpreter)

    def stop(self, seconds: float) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def run(settings: Settings, base: Path) -> int:
    """Blocks until SIGINT or SIGTERM; returns the exit code."""
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    stopping = _Stop()
    with contextlib.ExitStack() as stack:
        try:
            settings, simulator = _servers(settings, base, stack)
            upgrade(settings.owner_url, application_role=settings_module.application_role(settings))
        except (EmbeddedError, ConfigurationError) as error:
            print(f"tollhouse run: {error}", file=sys.stderr)
            return 1
        children = _children(settings, base)
        stack.callback(_stop_all, children)
        for child in children:
            child.start()
        context = tls.pinned(settings.tls_certificate) if settings.tls_certificate else None
        if not _await_ready(Access(base_url(settings), "", None, context), children, stopping):
            return 1 if not stopping.asked else 0
        access = Access(base_url(settings, admin=True), settings.admin_key, None, context)
        try:
            demo = seed_demo(access, base / "demo.json")
        except ConfigurationError as error:
            print(f"tollhouse run: {error}", file=sys.stderr)
            return 1
        _write_env_files(settings, base, demo, simulator)
        print(_welcome(settings, base, simulator), flush=True)
        while not stopping.asked:
            time.sleep(0.2)
            for child in children:
                if child.process is not None and child.process.poll() is not None and not stopping.asked:
                    print(
                        f"tollhouse run: {child.name} ended; starting it again", file=sys.stderr, flush=True
                    )
                    time.sleep(_RESTART_SECONDS)
                    child.start()
    return 0


class _Stop:
    """Set by SIGINT and SIGTERM; a second signal does not cut the clean-up short."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True


def _servers(
    settings: Settings, base: Path, stack: contextlib.ExitStack
) -> tuple[Settings, Simulator | None]:
    """The settings with every server filled in, and the simulator when one was started."""
    if not settings.database_url:
        bootstrap = Bootstrap(
            owner="tollhouse_owner", roles=(Role(name="tollhouse_owner"), Role(name="tollhouse_app"))
        )
        postgres = stack.enter_context(Postgres.start(base / "postgres", bootstrap=bootstrap))
        settings = replace(
            settings,
            database_url=postgres.url_for(role="tollhouse_app"),
            migration_database_url=postgres.url_for(role="tollhouse_owner"),
        )
    if not settings.redis_url:
        settings = replace(settings, redis_url=stack.enter_context(Valkey.start(base / "valkey")).url)
    if not settings.master_key or not settings.admin_key:
        kept = _kept_secrets(base / "secrets.json")
        settings = replace(
            settings,
            master_key=settings.master_key or kept["master_key"],
            admin_key=settings.admin_key or kept["admin_key"],
        )
    simulator = None
    if not settings.bedrock_endpoint_url and settings.upstream == "simulator":
        simulator = start_simulator()
        stack.callback(simulator.stop)
        settings = replace(
            settings, bedrock_endpoint_url=simulator.url, bedrock_control_endpoint_url=simulator.url
        )
    if (
        settings.upstream == "aws"
        and not settings.bedrock_endpoint_url
        and not settings_module.aws_credentials_given()
    ):
        raise ConfigurationError("TOLLHOUSE_UPSTREAM=aws needs AWS credentials in the environment")
    state = settings.state_dir if settings.state_dir != Settings().state_dir else str(base / "state")
    metrics_port = settings.metrics_port
    if metrics_port == Settings().metrics_port and settings.port != Settings().port:
        metrics_port = free_port()  # a second `run` beside the first must not fight for it
    return replace(settings, state_dir=state, metrics_port=metrics_port), simulator


def _kept_secrets(path: Path) -> dict[str, str]:
    try:
        kept: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        kept = {"master_key": new_master_key(), "admin_key": "admin-" + secrets.token_urlsafe(32)}
        write_private(path, json.dumps(kept))
    return kept


def _children(settings: Settings, base: Path) -> list[_Child]:
    metrics = base / "metrics"
    metrics.mkdir(exist_ok=True)
    for old in metrics.glob("*.db"):
        old.unlink()
    environment = settings_module.child_environment(
        settings, PROMETHEUS_MULTIPROC_DIR=str(metrics.absolute())
    )
    worker = environment | {"TOLLHOUSE_METRICS_PORT": "0"}
    return [_Child("proxy", ["serve"], environment), _Child("worker", ["worker"], worker)]


def _stop_all(children: list[_Child]) -> None:
    for child in children:
        if child.process is not None and child.process.poll() is None:
            child.process.terminate()
    for child in children:
        child.stop(15.0)


def _await_ready(access: Access, children: list[_Child], stopping: _Stop) -> bool:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and not stopping.asked:
        proxy = children[0].process
        if proxy is not None and proxy.poll() is not None:
            print(f"tollhouse run: the proxy ended with {proxy.returncode}", file=sys.stderr)
            return False
        with contextlib.suppress(ConfigurationError, http.client.HTTPException):
            if access.request("GET", "/health/ready")[0] == 200:
                return True
        time.sleep(0.05)
    if not stopping.asked:
        print(f"tollhouse run: not ready within {READY_SECONDS:g} s", file=sys.stderr)
    return False


def _local_host(settings: Settings) -> str:
    return "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104 (compared, not bound)


def base_url(settings: Settings, *, admin: bool = False) -> str:
    """Where clients (or, with a port of its own, administrators) reach it from this machine."""
    scheme = "https" if settings.tls_certificate else "http"
    port = settings.admin_port if admin and settings.admin_port else settings.port
    return f"{scheme}://{_local_host(settings)}:{port}"


def _write_env_files(settings: Settings, base: Path, demo: DemoKey, simulator: Simulator | None) -> None:
    url = base_url(settings)
    client = {
        "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": url,
        "AWS_ACCESS_KEY_ID": demo.aws_access_key_id,
        "AWS_SECRET_ACCESS_KEY": demo.aws_secret_access_key,
        "AWS_REGION": settings.aws_region,
        "AWS_DEFAULT_REGION": settings.aws_region,
        "OPENAI_BASE_URL": f"{url}/openai/v1",
        "OPENAI_API_KEY": demo.bearer_token,
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_API_KEY": demo.bearer_token,
        "TOLLHOUSE_URL": url,
        "TOLLHOUSE_API_KEY": demo.bearer_token,
    }
    admin = {"TOLLHOUSE_URL": base_url(settings, admin=True), "TOLLHOUSE_ADMIN_KEY": settings.admin_key}
    if settings.metrics_port:
        admin["TOLLHOUSE_METRICS_URL"] = f"http://{_local_host(settings)}:{settings.metrics_port}/metrics"
    if simulator is not None:
        admin["TOLLHOUSE_SIMULATOR_URL"] = simulator.url
    if (files := tls.beside(settings.tls_certificate)) is not None:
        admin["SSL_CERT_FILE"] = str(files.bundle)
        client |= {"AWS_CA_BUNDLE": str(files.bundle), "SSL_CERT_FILE": str(files.bundle),
                   "NODE_EXTRA_CA_CERTS": str(files.ca)}  # fmt: skip
    for name, values in (("client.env", client), ("admin.env", admin)):
        lines = [f"export {key}={shlex.quote(value)}\n" for key, value in values.items()]
        write_private(base / name, "".join(lines))


def _welcome(settings: Settings, base: Path, simulator: Simulator | None) -> str:
    where = "the simulator" if simulator else settings.bedrock_endpoint_url or f"AWS ({settings.aws_region})"
    folder = os.path.relpath(base)
    return f"""
Tollhouse serves {base_url(settings)} and sends calls to {where}.

  . {folder}/client.env     # keys for every SDK
  . {folder}/admin.env      # the admin's key

A first call:

  curl -s "$TOLLHOUSE_URL/model/meta.llama3-1-405b-instruct-v1:0/invoke" \\
    -H "Authorization: Bearer $TOLLHOUSE_API_KEY" -d '{{"prompt":"Say hello.","max_gen_len":64}}'

What it cost:

  curl -s "$TOLLHOUSE_URL/admin/v1/calls?limit=1" -H "Authorization: Bearer $TOLLHOUSE_ADMIN_KEY"

A budget at work (the second call is refused):

  curl -s "$TOLLHOUSE_URL/admin/v1/budgets" -H "Authorization: Bearer $TOLLHOUSE_ADMIN_KEY" \\
    -d '{{"scope":"tenant:demo","period":"month","limit_usd":"0.0004"}}' -H 'Content-Type: application/json'

Ctrl-C stops everything; {folder}/ keeps the data; `make clean-run` forgets it."""
