"""Tollhouse as it is measured: private Postgres and Valkey, one worker, every kind of governance on.

One tenant, one project, one key; a budget and a limit of requests and tokens per minute on each of the
three, a concurrency limit on the key; ledger, flight recorder, metrics and the background worker on;
the cache off, because a hit would not measure the path of a call.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg

from bench import install, processes
from bench.processes import Cores
from proxy.embedded import Bootstrap, Postgres, Role, Valkey
from proxy.postgres.migrate import upgrade

ROOT = Path(__file__).resolve().parents[1]
OWNER, APPLICATION = "tollhouse_owner", "tollhouse_app"
_PLAN = """\
plan: bench
description: Every priced model; nothing is answered from the cache.
models_allowed: ["*"]
default_output_tokens: 4096
cache:
  enabled: false
"""
_ACCOUNT = """
SELECT a.reserved, a.settled,
       (SELECT coalesce(sum(e.amount), 0) FROM attempts t JOIN entries e USING (attempt) WHERE a.id = ANY (t.holds))
         AS entries
FROM accounts a WHERE a.budget = $1 AND now() >= a.starts_at AND now() < a.ends_at
"""
_PLENTY = {"requests_per_minute": 100_000_000, "tokens_per_minute": 1_000_000_000}


@dataclass(slots=True)
class Key:
    bearer_token: str
    aws_access_key_id: str
    aws_secret_access_key: str
    tenant: str
    budget: str  # of the tenant


@dataclass(slots=True)
class Bank:
    """Postgres and Valkey; everything durable in them is as a production server would have it."""

    postgres: Postgres
    valkey: Valkey

    @classmethod
    def start(cls, home: Path) -> Bank:
        bootstrap = Bootstrap(owner=OWNER, roles=(Role(name=OWNER), Role(name=APPLICATION)))
        postgres = Postgres.start(home / "postgres", bootstrap=bootstrap)
        valkey = Valkey.start(home / "valkey", with_password=False)
        upgrade(postgres.url_for(role=OWNER), application_role=APPLICATION)
        return cls(postgres, valkey)

    def stop(self) -> None:
        self.valkey.stop()
        self.postgres.stop()

    def postgres_us(self) -> int:
        return processes.cpu_us(self.postgres.pid)

    def valkey_us(self) -> int:
        return processes.cpu_us(self.valkey.pid)

    def account(self, budget: str) -> tuple[int, int, int]:
        """(reserved, settled) of a budget's current period and the sum of its ledger entries, nano-dollars."""

        async def read() -> tuple[int, int, int]:
            connection = await asyncpg.connect(self.postgres.dsn)
            try:
                row = await connection.fetchrow(_ACCOUNT, UUID(budget))
                if row is None:
                    raise RuntimeError(f"budget {budget} has no account")
                return int(row["reserved"]), int(row["settled"]), int(row["entries"])
            finally:
                await connection.close()

        return asyncio.run(read())


@dataclass(slots=True)
class Tollhouse:
    """`tollhouse serve` on the proxy's core and `tollhouse worker` beside the rest."""

    bank: Bank
    upstream: str
    cores: Cores
    home: Path
    workers: int = 1
    port: int = field(default_factory=processes.free_port)
    master_key: str = field(default_factory=lambda: base64.b64encode(secrets.token_bytes(32)).decode())
    admin_key: str = field(default_factory=lambda: secrets.token_hex(24))
    settings: dict[str, str] = field(default_factory=dict)
    server: subprocess.Popen[bytes] | None = None
    worker: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        base = {k: v for k, v in os.environ.items() if not k.startswith(("TOLLHOUSE_", "AWS_", "PYTHON"))}
        return base | {
            "TOLLHOUSE_DATABASE_URL": self.bank.postgres.url_for(role=APPLICATION),
            "TOLLHOUSE_REDIS_URL": self.bank.valkey.url,
            "TOLLHOUSE_BEDROCK_ENDPOINT_URL": self.upstream,
            "TOLLHOUSE_STATE_DIR": str(self.home / "state"),
            "TOLLHOUSE_POLICIES_DIR": str(self.home / "policies"),
            "TOLLHOUSE_MASTER_KEY": self.master_key,
            "TOLLHOUSE_ADMIN_KEY": self.admin_key,
            "TOLLHOUSE_PORT": str(self.port),
            "TOLLHOUSE_METRICS_PORT": str(processes.free_port()),
            "TOLLHOUSE_WORKERS": str(self.workers),
            "TOLLHOUSE_SHUTDOWN_SECONDS": "5",
            "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "upstream-secret",
            **self.settings,
        }

    def start(self) -> None:
        shutil.copytree(ROOT / "policies", self.home / "policies", dirs_exist_ok=True)
        (self.home / "policies" / "plans" / "bench.yaml").write_text(_PLAN)
        python = [install.interpreter(), "-m", "proxy"]
        mine = self.cores.proxy if self.workers == 1 else self.cores.both
        log = self.home / "tollhouse.log"
        environment = self.environment()
        self.server = processes.start([*python, "serve"], mine, log, environment=environment, directory=ROOT)
        environment |= {"TOLLHOUSE_METRICS_PORT": "0"}
        self.worker = processes.start(
            [*python, "worker"], self.cores.rest, log, environment=environment, directory=ROOT
        )
        if not processes.wait_for_http(f"{self.url}/health/ready", self.server, 60):
            raise RuntimeError(f"Tollhouse does not start: {log.read_text()[-3000:]}")

    def stop(self) -> None:
        for process in (self.worker, self.server):
            if process is not None:
                processes.stop(process)
        self.server = self.worker = None

    @property
    def pid(self) -> int:
        assert self.server is not None
        return self.server.pid

    def warnings(self) -> dict[str, int]:
        """What the proxy logged as a warning or worse, and how often: a degraded run must not look like a fast one."""
        seen: dict[str, int] = {}
        for line in (self.home / "tollhouse.log").read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if entry.get("level") not in {"debug", "info"}:
                    text = re.sub(r"[0-9a-f-]{36}|\d+", "#", str(entry.get("message")))[:160]
                    seen[text] = seen.get(text, 0) + 1
        return seen

    def admin(self, method: str, path: str, body: Any = None) -> Any:
        """One admin call, its parsed answer. Raises RuntimeError with what the proxy said."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.admin_key}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/admin/v1{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{method} {path}: {error.code} {error.read()[:500]!r}") from None

    def governed(self, slug: str, *, limit_usd: str = "100000000") -> Key:
        """A tenant, project and key with a budget and a limit each. `limit_usd` is the tenant's budget."""
        self.admin("POST", "/tenants", {"id": slug, "name": slug, "plan": "bench"})
        self.admin("POST", f"/tenants/{slug}/projects", {"id": "search", "name": "Search"})
        key = self.admin("POST", "/keys", {"tenant": slug, "project": "search", "name": "bench"})
        budgets = []
        for scope in (f"tenant:{slug}", f"project:{slug}/search", f"key:{key['id']}"):
            usd = limit_usd if scope.startswith("tenant") else "100000000"
            budget = {"scope": scope, "period": "month", "limit_usd": usd}
            budgets.append(self.admin("POST", "/budgets", budget)["id"])
            slots = {"concurrency": 4000} if scope.startswith("key") else {}
            self.admin("POST", "/limits", {"scope": scope, **_PLENTY, **slots})
        self._await(key["bearer_token"])
        return Key(
            key["bearer_token"], key["aws_access_key_id"], key["aws_secret_access_key"], slug, budgets[0]
        )

    def _await(self, bearer: str) -> None:
        """Until the directory has the key and, some polls later, its budgets and limits."""
        request = urllib.request.Request(
            f"{self.url}/v1/models", headers={"Authorization": f"Bearer {bearer}"}
        )
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5):
                time.sleep(1.0)
                return
            time.sleep(0.05)
        raise RuntimeError("an issued key is not accepted")
