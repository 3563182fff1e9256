"""Settings: environment variables named `TOLLHOUSE_*`, read once, typed, with good defaults.

This is the only module that reads the environment. An unknown `TOLLHOUSE_*` variable is an error,
so that a typo cannot silently leave a default in force.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

from proxy.errors import ConfigurationError

PREFIX = "TOLLHOUSE_"
#: names that clients read from the same files a person sources; they mean nothing to the server
CLIENT_NAMES = frozenset(
    {"TOLLHOUSE_URL", "TOLLHOUSE_API_KEY", "TOLLHOUSE_SIMULATOR_URL", "TOLLHOUSE_METRICS_URL"}
)
_INJECTED = re.compile(r"TOLLHOUSE\w*_PORT_\d+_(TCP|UDP)(_\w+)?")


def _setting(default: Any, about: str, *, secret: bool = False) -> Any:
    return field(default=default, metadata={"about": about, "secret": secret})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every knob. Seconds, bytes and milliseconds are in the names where they are not obvious."""

    host: str = _setting("127.0.0.1", "address the proxy listens on")
    port: int = _setting(
        8080, "port of the inference routes (and of the admin REST unless ADMIN_PORT is set)"
    )
    admin_port: int = _setting(0, "own port for /admin/v1; 0 serves it on PORT")
    metrics_port: int = _setting(9464, "port of /metrics; 0 turns it off")
    surface: Literal["all", "inference", "admin"] = _setting("all", "which routes this process serves")
    workers: int = _setting(1, "worker processes of the proxy")
    database_url: str = _setting("", "Postgres, postgresql+asyncpg://user:password@host/db", secret=True)
    migration_database_url: str = _setting(
        "", "Postgres as the owner of the tables; DATABASE_URL when empty", secret=True
    )
    database_pooler: Literal["none", "pgbouncer"] = _setting(
        "none", "what DATABASE_URL leads to: Postgres itself, or PgBouncer in transaction mode"
    )
    redis_url: str = _setting("", "Redis or Valkey, redis://host:port/0", secret=True)
    require_durable: bool = _setting(True, "refuse a Postgres with fsync or synchronous_commit off")
    upstream: Literal["simulator", "aws"] = _setting(
        "simulator", "where `tollhouse run` sends calls: its simulator or AWS"
    )
    bedrock_endpoint_url: str = _setting(
        "", "send upstream calls here instead of to AWS: one address, or `region=address` pairs with commas"
    )
    bedrock_control_endpoint_url: str = _setting(
        "", "Bedrock control plane; AWS's when empty, and none when BEDROCK_ENDPOINT_URL is set"
    )
    control_seconds: int = _setting(
        300, "how often the control plane is asked what profiles and provisioned models run; 0: never"
    )
    tenant_role_arn: str = _setting(
        "",
        "IAM role assumed per tenant, tagged with it, so that AWS's cost reports carry tenants; off when empty",
    )
    aws_region: str = _setting("us-east-1", "region of targets whose route names none")
    policies_dir: str = _setting("", "folder of policy files; the packaged ones when empty")
    master_key: str = _setting("", "32 bytes, base64: guards every issued secret", secret=True)
    previous_master_key: str = _setting(
        "", "the master key before the last rotation, while old secrets live", secret=True
    )
    key_environment: str = _setting("live", "the <env> part of issued keys")
    admin_key: str = _setting("", "first admin's bearer key", secret=True)
    oidc_issuer: str = _setting("", "issuer whose JWTs administrators may come with; empty for none")
    oidc_audience: str = _setting("", "audience that those JWTs must name")
    oidc_jwks_url: str = _setting("", "where the issuer's keys are; by its discovery document when empty")
    oidc_groups_claim: str = _setting("groups", "claim that holds a person's groups")
    oidc_roles: str = _setting(
        "", "roles of groups: admin=platform; auditor=finance,controllers; tenant-admin:acme=team-acme"
    )
    state_dir: str = _setting(
        ".run/state", "local folder of the flight recorders; must not be a network file system"
    )
    limiter_fallback: Literal["local", "deny", "allow"] = _setting(
        "local", "what rate limits do while Redis is away"
    )
    cache_encryption: bool = _setting(
        True, "seal cached answers in Redis under a key derived for their tenant"
    )
    cache_interventions: bool = _setting(False, "also cache answers that a guardrail stepped into")
    cache_wait_ms: int = _setting(
        10_000, "longest wait for another worker's answer to the same request before asking Bedrock too"
    )
    prefix_advice: bool = _setting(
        True, "measure, by keyed hashes, how prompts repeat from the start, for advice on prompt caching"
    )
    replicas: int = _setting(
        0, "proxy replicas that share the limits while Redis is away; 0 counts those seen last"
    )
    bank_lanes: int = _setting(
        1, "Postgres connections per worker that admit and settle; more make smaller, dearer batches"
    )
    admit_timeout_ms: int = _setting(2000, "longest wait for the bank before a call is refused")
    held_wait_ms: int = _setting(
        500, "longest wait for running calls to free budget before a call is refused as held; at most 2000"
    )
    counts_per_second: int = _setting(
        20, "most inputs per worker and second that CountTokens counts because a budget is short; 0: never"
    )
    settle_hold_ms: int = _setting(2000, "longest time the end of an answer waits for its settlement")
    connect_ms: int = _setting(
        3000, "longest wait for a connection to a target before the route's next one is tried"
    )
    breaker_faults: int = _setting(
        5, "failures of a target in a row after which it is left alone for a while; 0: never"
    )
    breaker_ceilings: int = _setting(
        10, "answers without an end within a minute, at least half of all, that do the same; 0: never"
    )
    call_seconds: int = _setting(3600, "longest time one call may take upstream")
    first_byte_seconds: int = _setting(300, "longest wait for the first byte of an answer")
    idle_seconds: int = _setting(120, "longest silence in the middle of an answer")
    drain_seconds: int = _setting(600, "longest time an answer is read on after its client left")
    drain_calls: int = _setting(
        500, "answers read on at once after their clients left; more are charged their ceiling"
    )
    max_calls: int = _setting(2000, "calls in flight per worker before new ones are refused as overload")
    head_seconds: int = _setting(
        10,
        "longest time a request's head may take, and an HTTP/1.1 connection is kept after an answer: more than a load "
        "balancer in front keeps it",
    )
    body_seconds: int = _setting(30, "longest time a request body may take to arrive")
    shutdown_seconds: int = _setting(3900, "grace for running calls on SIGTERM")
    otlp_endpoint: str = _setting(
        "", "collector that traces are sent to by OTLP/HTTP, such as http://collector:4318; off when empty"
    )
    otlp_headers: str = _setting(
        "", "headers for that collector, name=value pairs with commas, values percent-encoded", secret=True
    )
    trace_sample: float = _setting(
        0.01, "share of calls that are traced, 0 to 1; a client's traceparent decides for its own calls"
    )
    leave_seconds: int = _setting(
        1, "time from SIGTERM, when /health/ready turns 503, to the last accepted connection"
    )
    clock_skew_seconds: int = _setting(60, "difference to the database's clock above which calls are refused")
    tls_certificate: str = _setting("", "PEM file; with TLS_KEY the proxy speaks TLS")
    tls_key: str = _setting("", "PEM file of the certificate's key")
    log_level: Literal["debug", "info", "warning", "error"] = _setting("info", "lowest level that is logged")
    fail_point: str = _setting("", "for tests only: where this process stops itself, see proxy/failpoints.py")
    ledger_keep_months: int = _setting(
        0, "months whose single calls are kept, at least 2; older ones are dropped, their sums stay; 0: all"
    )
    invariants_seconds: int = _setting(
        10, "how long the check of the bank's invariants may read the month before it is given up"
    )
    evidence_log_group: str = _setting(
        "", "CloudWatch Logs group of Bedrock's model invocation log, in each Region that serves calls"
    )
    evidence_s3: str = _setting("", "`bucket` or `bucket/prefix` of Bedrock's model invocation log in S3")
    evidence_seconds: int = _setting(300, "how often the log is asked about calls charged at their ceiling")
    evidence_days: int = _setting(3, "how long a call charged at its ceiling is looked for in the log")
    evidence_endpoint_url: str = _setting(
        "", "address of CloudWatch, CloudWatch Logs and S3 instead of AWS's own, for all three"
    )
    reconcile_days: int = _setting(
        0, "days of the ledger that are compared with CloudWatch's token metrics once a day; 0: never"
    )
    webhook_networks: str = _setting(
        "",
        "networks that webhooks may be sent to though they are not public, such as 10.0.0.0/8, and by http",
    )
    metrics_tenants: int = _setting(100, "tenants with metric labels of their own; the others share `other`")
    exemplars: bool = _setting(
        True, "name the last call of each bucket and of rare counters to scrapers that ask for OpenMetrics"
    )

    @property
    def state_path(self) -> Path:
        return Path(self.state_dir).resolve()

    def leaving_mark(self, server: int) -> Path:
        """Exists from SIGTERM on: how a server, by its process id, tells its workers that it is leaving."""
        return self.state_path / f"leaving-{server}"

    @property
    def owner_url(self) -> str:
        """Database URL for migrations."""
        return self.migration_database_url or self.database_url


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings. Raises `ConfigurationError` naming every wrong or unknown variable."""
    source = os.environ if environ is None else environ
    hints = get_type_hints(Settings)
    known = {PREFIX + f.name.upper(): f.name for f in fields(Settings)}
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name, text in source.items():
        if not name.startswith(PREFIX) or _not_ours(name, text):
            continue
        if name not in known:
            problems.append(f"{name} is not a setting of Tollhouse (see `tollhouse settings`)")
            continue
        try:
            values[known[name]] = _parse(hints[known[name]], text)
        except ValueError as error:
            problems.append(f"{name}={text!r}: {error}")
    if problems:
        raise ConfigurationError("; ".join(sorted(problems)))
    return Settings(**values)


def _not_ours(name: str, text: str) -> bool:
    """Names for clients, and what Kubernetes injects for a Service called `tollhouse`."""
    return (
        name in CLIENT_NAMES
        or "_SERVICE_" in name
        or _INJECTED.fullmatch(name) is not None
        or text.startswith("tcp://")
    )


def _parse(kind: Any, text: str) -> Any:
    if kind is bool:
        word = text.strip().lower()
        if word in {"1", "true", "yes", "on"}:
            return True
        if word in {"0", "false", "no", "off"}:
            return False
        raise ValueError("expected true or false")
    if kind is int:
        number = int(text)
        if number < 0:
            raise ValueError("expected a number of at least 0")
        return number
    if kind is float:
        share = float(text)
        if not 0 <= share <= 1:
            raise ValueError("expected a share from 0 to 1")
        return share
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise ValueError(f"expected one of {', '.join(get_args(kind))}")
        return text
    return text


def describe() -> list[tuple[str, str, str]]:
    """(variable, default, what it is) for every setting, in declaration order."""
    return [(PREFIX + f.name.upper(), str(f.default), str(f.metadata["about"])) for f in fields(Settings)]


def application_role(settings: Settings) -> str:
    """The database role the proxy runs as."""
    return urlsplit(settings.database_url).username or "tollhouse_app"


def child_environment(settings: Settings, **extra: str) -> dict[str, str]:
    """The environment of a child process: ours, with `settings` spelled out and `extra` on top."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX)}
    for f in fields(Settings):
        value = getattr(settings, f.name)
        if value != f.default:
            environment[PREFIX + f.name.upper()] = (
                str(value).lower() if isinstance(value, bool) else str(value)
            )
    return environment | extra


def aws_credentials_given() -> bool:
    """True when the environment names AWS credentials that are not keys issued by a Tollhouse."""
    names = (
        "AWS_ACCESS_KEY_ID",
        "AWS_PROFILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    )
    return any(os.environ.get(name) for name in names)


def client_environment() -> dict[str, str]:
    """What a person sourced to talk to a running server, without reading any server setting."""
    names = (*CLIENT_NAMES, "TOLLHOUSE_ADMIN_KEY")
    return {name: os.environ[name] for name in names if name in os.environ}


def multiprocess_dir() -> str | None:
    """Where the worker processes of one server add up their metrics."""
    return os.environ.get("PROMETHEUS_MULTIPROC_DIR")


def set_multiprocess_dir(path: str) -> None:
    """Must happen before the first metric is made, in this process and its children."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = path
