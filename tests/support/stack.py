"""The whole product as processes: a proxy (and its worker) on real Postgres, Valkey and simulator."""

from __future__ import annotations

import base64
import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

LLAMA = "meta.llama3-1-405b-instruct-v1:0"
CLAUDE = "anthropic.claude-3-haiku-20240307-v1:0"
NANO = 1_000_000_000


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Key:
    id: str
    bearer_token: str
    aws_access_key_id: str
    aws_secret_access_key: str
    tenant: str


@dataclass
class Proxy:
    """One running `tollhouse serve` (and, if asked, `tollhouse worker`)."""

    database_url: str
    redis_url: str
    upstream_url: str
    state_dir: Path
    settings: dict[str, str] = field(default_factory=dict)
    master_key: str = field(default_factory=lambda: base64.b64encode(secrets.token_bytes(32)).decode())
    admin_key: str = "admin-key-of-the-tests-0123456789abcdef"
    port: int = field(default_factory=free_port)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    log: Path | None = None
    #: source tree to run, this one when None
    root: Path | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        base = {k: v for k, v in os.environ.items() if not k.startswith(("TOLLHOUSE_", "AWS_ENDPOINT"))}
        return base | {
            "TOLLHOUSE_DATABASE_URL": self.database_url,
            "TOLLHOUSE_REDIS_URL": self.redis_url,
            "TOLLHOUSE_BEDROCK_ENDPOINT_URL": self.upstream_url,
            "TOLLHOUSE_STATE_DIR": str(self.state_dir),
            "TOLLHOUSE_MASTER_KEY": self.master_key,
            "TOLLHOUSE_ADMIN_KEY": self.admin_key,
            "TOLLHOUSE_PORT": str(self.port),
            "TOLLHOUSE_METRICS_PORT": "0",
            "TOLLHOUSE_SHUTDOWN_SECONDS": "10",
            "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "upstream-secret",
            **self.settings,
        }

    def start(self, *verbs: str, wait: bool = True, **extra: str) -> subprocess.Popen[bytes]:
        """Start `tollhouse serve` (or another verb); returns when it is ready."""
        self.log = self.state_dir.with_suffix(".log")
        self.state_dir.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "proxy", *(verbs or ("serve",))],
                env=self.environment() | extra,
                cwd=self.root,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        if wait:
            self.await_ready(process)
        return process

    def await_ready(self, process: subprocess.Popen[bytes] | None = None, seconds: float = 20.0) -> float:
        """Seconds until `/health/ready` said 200."""
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            if process is not None and process.poll() is not None:
                break
            try:
                if self.request("GET", "/health/ready", key=None)[0] == 200:
                    return time.monotonic() - began
            except OSError:
                pass
            time.sleep(0.02)
        assert self.log is not None
        raise AssertionError(f"the proxy is not ready:\n{self.log.read_text()[-4000:]}")

    def kill(self) -> None:
        """SIGKILL the whole tree of every process."""
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.processes.clear()

    def stop(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.processes.clear()

    # ---- HTTP --------------------------------------------------------------------------------

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = "",
        headers: dict[str, str] | None = None,
    ) -> tuple[int, dict[str, str], Any]:
        """Status, headers (lower case) and body (decoded when JSON). `key` "" is the admin's."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = dict(headers or {})
        if key is not None:
            sent["Authorization"] = f"Bearer {key or self.admin_key}"
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        try:
            connection.request(method, path, data, sent)
            response = connection.getresponse()
            raw = response.read()
            found = {k.lower(): v for k, v in response.getheaders()}
        finally:
            connection.close()
        decoded: Any = raw
        if "json" in found.get("content-type", "") and raw:
            decoded = json.loads(raw)
        return response.status, found, decoded

    def admin(
        self,
        method: str,
        path: str,
        body: Any = None,
        expect: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> Any:
        status, _, answer = self.request(method, f"/admin/v1{path}", body, headers=headers)
        assert status == expect or (expect is None and status < 300), (status, answer)
        return answer

    def tenant(self, slug: str | None = None, **fields: Any) -> str:
        slug = slug or f"t-{secrets.token_hex(4)}"
        self.admin("POST", "/tenants", {"id": slug, "name": slug, **fields}, expect=201)
        return slug

    def key(self, tenant: str | None = None, project: str | None = None, **fields: Any) -> Key:
        tenant = tenant or self.tenant()
        body = {"tenant": tenant, "name": "test", **({"project": project} if project else {}), **fields}
        k = self.admin("POST", "/keys", body, expect=201)
        key = Key(k["id"], k["bearer_token"], k["aws_access_key_id"], k["aws_secret_access_key"], tenant)
        self.await_key(key)
        return key

    def await_key(self, key: Key) -> None:
        """Until it is accepted: so often in a row that each worker process was asked, where there are several."""
        wanted = 1 if self.settings.get("TOLLHOUSE_WORKERS", "1") == "1" else 16
        deadline, accepted = time.monotonic() + 4, 0
        while accepted < wanted:
            status, _, _ = self.request("GET", "/v1/models", key=key.bearer_token)
            accepted = accepted + 1 if status == 200 else 0
            if status != 200:
                assert time.monotonic() < deadline, "an issued key was not accepted within 4 s"
                time.sleep(0.02)

    def budget(self, scope: str, usd: str, **fields: Any) -> Any:
        return self.admin(
            "POST", "/budgets", {"scope": scope, "period": "month", "limit_usd": usd, **fields}, expect=201
        )

    def calls(self, **filters: str) -> list[dict[str, Any]]:
        """Every ledger item, newest first."""
        items: list[dict[str, Any]] = []
        cursor = None
        while True:
            query = "&".join(
                f"{k}={v}"
                for k, v in {**filters, "limit": "200", **({"cursor": cursor} if cursor else {})}.items()
            )
            page = self.admin("GET", f"/calls?{query}")
            items += page["items"]
            cursor = page["next"]
            if not cursor:
                return items

    def settled_calls(self, seconds: float = 10.0, **filters: str) -> list[dict[str, Any]]:
        """The ledger once nothing in it is open."""
        deadline = time.monotonic() + seconds
        while True:
            items = self.calls(**filters)
            if all(i["outcome"] != "OPEN" for i in items) or time.monotonic() > deadline:
                return items
            time.sleep(0.05)

    def boto3(self, key: Key, **config: Any) -> Any:
        """Stock boto3 over plain http, signing with the key's pair."""
        config.setdefault("retries", {"total_max_attempts": 1, "mode": "standard"})
        return boto3.client(
            "bedrock-runtime",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=key.aws_access_key_id,
            aws_secret_access_key=key.aws_secret_access_key,
            config=Config(**config),
        )


@contextmanager
def running(proxy: Proxy, *, worker: bool = False) -> Iterator[Proxy]:
    """The proxy (and its worker), stopped at the end whatever happens."""
    try:
        proxy.start()
        if worker:
            proxy.start("worker", wait=False)
        yield proxy
    finally:
        proxy.kill()


def get_json(url: str) -> Any:
    import urllib.request

    with urllib.request.urlopen(url, timeout=30) as response:
        return json.loads(response.read())


def post_json(url: str, body: Any, method: str = "POST") -> Any:
    import urllib.request

    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=30) as response:
        raw = response.read()
        return json.loads(raw) if raw else None


def nano(usd: str) -> int:
    """A decimal string of dollars in nano-dollars, exactly."""
    from decimal import Decimal

    value = Decimal(usd) * NANO
    assert value == value.to_integral_value(), usd
    return int(value)
