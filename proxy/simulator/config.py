"""What a simulator is told when it starts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

PRICES = Path(__file__).with_name("prices.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Quota:
    """Capacity per sliding minute; None is unlimited. Tokens are counted as Bedrock's own quota counts them."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """All settings; every default means: at once, unlimited, no faults."""

    region: str = "us-east-1"
    account: str = "123456789012"
    #: Delay before the first byte of every answer, in milliseconds.
    first_byte_ms: float = 0.0
    #: Pace of generation; 0 answers at once.
    tokens_per_second: float = 0.0
    #: Tokens carried by one event of a stream.
    tokens_per_event: int = 1
    #: Secret access key that SigV4 signatures are verified with; None checks only that they are well formed.
    verify_secret: str | None = None
    #: False accepts requests without credentials.
    require_auth: bool = True
    #: Refuse ``max_gen_len`` above the documented 2048 (whether the service does is not known).
    strict_llama: bool = False
    #: Shortest prefix, in tokens, that a cache checkpoint stores (Bedrock: 1,024 for most models).
    cache_min_tokens: int = 16
    #: Prompt and output tokens together above which latency-optimized Llama 405B falls back to standard.
    latency_limit_tokens: int = 11_000
    #: No per-call rows and no request log: totals only, for load tests.
    canned: bool = False
    #: Rows kept of calls, refusals and requests each; totals always count everything.
    keep: int = 500_000
    #: Model name (as asked for, or its base) to quota.
    quotas: Mapping[str, Quota] = field(default_factory=dict)
    #: More ARNs, in the form the catalogue documents.
    catalog: tuple[Mapping[str, Any], ...] = ()
    prices: Path = PRICES


def load_file(path: Path) -> dict[str, Any]:
    """Settings of a YAML file: any field of :class:`Config`, quotas and catalog as plain mappings."""
    raw = yaml.safe_load(path.read_text()) or {}
    if not isinstance(raw, dict):
        raise TypeError(f"{path}: a mapping of settings is expected")
    return raw


def make(**values: Any) -> Config:
    """A Config from plain values, as they come from a command line or a YAML file."""
    if "quotas" in values:
        values["quotas"] = {name: Quota(**quota) for name, quota in values["quotas"].items()}
    if "catalog" in values:
        values["catalog"] = tuple(values["catalog"])
    if "prices" in values:
        values["prices"] = Path(values["prices"])
    return Config(**values)
