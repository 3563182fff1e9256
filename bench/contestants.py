"""Who is measured, how each is started, and how each is asked. Who cannot start says why."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import payloads, processes, servers
from bench.processes import Cores
from bench.world import Bank, Key, Tollhouse

SIGNED_FOR_S = 240


class NotStartedError(RuntimeError):
    """A contestant is not installed or does not start; the message is printed in the report."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, the same every time."""

    port: int
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Place:
    """Where a contestant runs and what it may use."""

    upstream: servers.Upstream
    bank: Bank
    cores: Cores
    home: Path
    cache: Path


class Contestant(ABC):
    """Started once, asked many times. `pid` is the root of what its CPU and memory are counted from."""

    name = ""
    #: what was on and what was not, for the report
    about = ""
    start_seconds = 60.0
    fast = True  # False: costs milliseconds a call, so it is given fewer and shorter runs

    def __init__(self, place: Place) -> None:
        self.place = place
        self.port = processes.free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.version = ""

    @abstractmethod
    def start(self) -> None:
        """Raises `NotStartedError`."""

    @abstractmethod
    def ask(self, *, stream: bool) -> Ask: ...

    @property
    def pid(self) -> int | None:
        return None if self.process is None else self.process.pid

    def stop(self) -> None:
        if self.process is not None:
            processes.stop(self.process)
            self.process = None

    @property
    def home(self) -> Path:
        path = self.place.home / self.name.replace(" ", "-")
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _run(self, command: list[str | Path], environment: dict[str, str], probe: str) -> None:
        log = self.home / "log"
        base = {k: v for k, v in os.environ.items() if not k.startswith(("TOLLHOUSE_", "AWS_", "PYTHON"))}
        self.process = processes.start(
            command, self.place.cores.proxy, log, environment=base | environment, directory=self.home
        )
        url = f"http://127.0.0.1:{self.port}{probe}"
        if not processes.wait_for_http(url, self.process, self.start_seconds):
            ended = self.process.poll()
            why = "it did not answer in time" if ended is None else f"it ended with {ended}"
            self.stop()
            raise NotStartedError(f"{why}: {_last_words(log)}")


class Direct(Contestant):
    name = "direct"
    about = "no proxy: the client asks the upstream"

    def start(self) -> None:
        self.port = self.place.upstream.port

    def ask(self, *, stream: bool) -> Ask:
        return _native(self.port, {}, stream=stream)


class Nginx(Contestant):
    name = "nginx"
    about = "plain reverse proxy, one worker, keep-alive to the upstream, no buffering"

    def start(self) -> None:
        try:
            body = servers.forwarding(self.port, self.place.upstream.port)
            self.process = servers.nginx(self.home, body, self.place.cores.proxy)
        except servers.NoNginxError as error:
            raise NotStartedError(str(error)) from None
        self.version = processes_version("nginx", "-v")
        if not processes.wait_for_http(f"http://127.0.0.1:{self.port}/", self.process, 20):
            raise NotStartedError(_last_words(self.home / "nginx.log"))

    def ask(self, *, stream: bool) -> Ask:
        return _native(self.port, {}, stream=stream)


class Ours(Contestant):
    """Tollhouse, asked with a bearer token."""

    name = "tollhouse"
    about = (
        "three budgets, three limits (six buckets) and a concurrency limit per call, ledger and flight "
        "recorder durable, metrics and worker on, cache off; bearer token from the client, SigV4 upstream"
    )

    def __init__(self, place: Place, tollhouse: Tollhouse, key: Key) -> None:
        super().__init__(place)
        self.tollhouse = tollhouse
        self.key = key

    def start(self) -> None:
        self.port = self.tollhouse.port

    @property
    def pid(self) -> int | None:
        return self.tollhouse.pid

    def ask(self, *, stream: bool) -> Ask:
        return _native(self.port, {"Authorization": f"Bearer {self.key.bearer_token}"}, stream=stream)


class OursSigned(Ours):
    """Tollhouse, asked as the AWS SDKs ask it: every request is signed, and proven over its body."""

    name = "tollhouse, SigV4 client"
    about = "the same, but the proxy also verifies a SigV4 signature of the client"

    def ask(self, *, stream: bool) -> Ask:
        from botocore.auth import SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials

        plain = _native(self.port, {}, stream=stream)
        request = AWSRequest(
            "POST", f"http://127.0.0.1:{self.port}{plain.path}", data=plain.body, headers=plain.headers
        )
        pair = Credentials(self.key.aws_access_key_id, self.key.aws_secret_access_key)
        SigV4Auth(pair, "bedrock", "us-east-1").add_auth(request)
        return Ask(self.port, plain.path, dict(request.headers.items()), plain.body)


class LiteLLM(Contestant):
    name = "litellm"
    start_seconds = 120.0
    fast = False
    about = (
        "one worker, Bedrock Converse behind its chat completions. On: its key check, by a custom "
        "authenticator that answers from memory with limits and a budget for key, team and user; its rate "
        "limiter in Redis; its budget checks. Not on: keys, spend and budgets in Postgres, which need a Prisma "
        "engine that is downloaded at run time. The real thing costs more."
    )

    def start(self) -> None:
        program = self.place.cache / "litellm" / "bin" / "litellm"
        if not program.exists():
            raise NotStartedError("not installed (`python -m bench.install litellm`)")
        self.version = _installed(program.parent / "python", "litellm")
        valkey = self.place.bank.valkey.url.removeprefix("redis://").split("/")[0]
        host, _, port = valkey.partition(":")
        config = {
            "model_list": [
                {
                    "model_name": "bench",
                    "litellm_params": {
                        "model": f"bedrock/converse/{payloads.MODEL}",
                        "aws_region_name": "us-east-1",
                        "aws_access_key_id": "AKIDEXAMPLE",
                        "aws_secret_access_key": "upstream-secret",
                        "aws_bedrock_runtime_endpoint": self.place.upstream.url,
                        "rpm": 100_000_000,
                        "tpm": 1_000_000_000,
                    },
                }
            ],
            "general_settings": {"custom_auth": "bench_auth.authenticate", "master_key": "sk-bench-master"},
            "litellm_settings": {
                "cache": True,
                "cache_params": {
                    "type": "redis",
                    "host": host,
                    "port": int(port),
                    "supported_call_types": [],
                },
                "telemetry": False,
                "num_retries": 0,
            },
            "router_settings": {"redis_host": host, "redis_port": int(port)},
        }
        (self.home / "config.yaml").write_text(json.dumps(config))
        (self.home / "bench_auth.py").write_text(_LITELLM_AUTH)
        environment = {
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
            "PYTHONPATH": str(self.home),
            "NO_PROXY": "*",
            "LITELLM_MODE": "PRODUCTION",
        }
        command: list[str | Path] = [program, "--config", self.home / "config.yaml", "--host", "127.0.0.1"]
        self._run(
            [*command, "--port", str(self.port), "--num_workers", "1"], environment, "/health/liveliness"
        )

    def ask(self, *, stream: bool) -> Ask:
        return _chat(self.port, {"Authorization": "Bearer sk-bench"}, "bench", stream=stream)


class Hardcap(Contestant):
    name = "hardcap"
    about = (
        "the PyPI package of that name, one worker: keys from its file, a token budget and a rate limit per "
        "tenant in Redis, reserve and settle, metrics. It has no database, no ledger and no SigV4."
    )

    def start(self) -> None:
        program = self.place.cache / "hardcap" / "bin" / "hardcap"
        if not program.exists():
            raise NotStartedError("not installed (`python -m bench.install hardcap`)")
        self.version = _installed(program.parent / "python", "hardcap")
        config = {
            "redis_url": self.place.bank.valkey.url,
            "upstreams": {"bench": {"base_url": self.place.upstream.url}},
            "routes": {"bench": {"targets": [{"upstream": "bench", "model": "bench"}]}},
            "pricing": {"bench": {"input": 5.0, "output": 15.0}},
            "tenants": {
                "acme": {
                    "api_keys": ["sk-bench"],
                    "budget": {"window_s": 86_400, "total": 1_000_000_000_000},
                    "rate_limit": {"requests": 100_000_000, "per_s": 60},
                }
            },
        }
        (self.home / "config.yaml").write_text(json.dumps(config))
        command: list[str | Path] = [program, "serve", "-c", self.home / "config.yaml"]
        self._run([*command, "--host", "127.0.0.1", "--port", str(self.port)], {}, "/healthz")

    def ask(self, *, stream: bool) -> Ask:
        return _chat(self.port, {"Authorization": "Bearer sk-bench"}, "bench", stream=stream)


class Portkey(Contestant):
    name = "portkey"
    about = (
        "the open gateway on Node, one process, Bedrock Converse behind its chat completions: it checks no keys, enforces no budgets and "
        "no limits, and keeps no ledger"
    )

    def start(self) -> None:
        script = self.place.cache / "portkey/node_modules/@portkey-ai/gateway/build/start-server.js"
        node = shutil.which("node")
        if node is None or not script.exists():
            raise NotStartedError("not installed (`python -m bench.install portkey`)")
        self.version = json.loads((script.parents[1] / "package.json").read_text())["version"]
        command: list[str | Path] = [node, script, "--headless", f"--port={self.port}"]
        self._run(command, {"NODE_ENV": "production"}, "/")

    def ask(self, *, stream: bool) -> Ask:
        headers = {
            "x-portkey-provider": "bedrock",
            "x-portkey-aws-access-key-id": "AKIDEXAMPLE",
            "x-portkey-aws-secret-access-key": "upstream-secret",
            "x-portkey-aws-region": "us-east-1",
            "x-portkey-custom-host": self.place.upstream.url,
        }
        return _chat(self.port, headers, payloads.MODEL, stream=stream)


OTHERS: tuple[type[Contestant], ...] = (Hardcap, Portkey, LiteLLM)

_LITELLM_AUTH = '''\
"""Answers who a key belongs to and what it may use, as the database would."""

from litellm.proxy._types import UserAPIKeyAuth


async def authenticate(request, api_key):
    if api_key != "sk-bench":
        raise Exception("unknown key")
    plenty = {"tpm_limit": 1_000_000_000, "rpm_limit": 100_000_000}
    return UserAPIKeyAuth(
        api_key=api_key, user_id="user", team_id="team", spend=1.0, max_budget=1e8, max_parallel_requests=4000,
        team_tpm_limit=1_000_000_000, team_rpm_limit=100_000_000, team_max_budget=1e8, team_spend=1.0,
        user_tpm_limit=1_000_000_000, user_rpm_limit=100_000_000, user_max_budget=1e8, user_spend=1.0, **plenty,
    )
'''


def processes_version(*command: str) -> str:
    from bench.machine import said

    return said(*command)


def _native(port: int, headers: dict[str, str], *, stream: bool) -> Ask:
    path = payloads.INVOKE_STREAM if stream else payloads.INVOKE
    return Ask(port, path, {"Content-Type": "application/json", **headers}, payloads.llama_request())


def _chat(port: int, headers: dict[str, str], model: str, *, stream: bool) -> Ask:
    body = payloads.chat_request(model, stream=stream)
    return Ask(port, payloads.CHAT, {"Content-Type": "application/json", **headers}, body)


def _installed(python: Path, package: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _last_words(log: Path) -> str:
    try:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return "it said nothing"
    return lines[-1][:300] if lines else "it said nothing"


def tags(contestant: Contestant) -> dict[str, Any]:
    return {"about": contestant.about, "version": contestant.version}


__all__ = ["OTHERS", "Ask", "Contestant", "Direct", "Nginx", "NotStartedError", "Ours", "OursSigned", "Place"]
assert sys.platform == "linux", "CPU accounting reads /proc"
