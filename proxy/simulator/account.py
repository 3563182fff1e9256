"""The simulator's own account: the bill, the refusals, the requests seen and the invocation log."""

import time
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from proxy.simulator.config import Config
from proxy.simulator.prices import Usage, usd


@dataclass(slots=True)
class Call:
    """One billable generation. It owes its full cost from the moment it starts, whoever is still listening."""

    request_id: str
    operation: str
    model: str
    base_model: str
    price_id: str
    region: str
    metadata: dict[str, str]
    usage: Usage
    tier: str
    latency: str
    guardrail_units: dict[str, int]
    cost_nanos: int
    started_at: float
    #: True once the whole answer was handed to a client that was still there.
    completed: bool = False

    def item(self) -> dict[str, Any]:
        usage = self.usage
        return {
            "request_id": self.request_id,
            "metadata": self.metadata,
            "model": self.model,
            "base_model": self.base_model,
            "price_id": self.price_id,
            "region": self.region,
            "operation": self.operation,
            "input_tokens": usage.input,
            "output_tokens": usage.output,
            "cache_read_tokens": usage.cache_read,
            "cache_write_tokens": usage.cache_write + usage.cache_write_1h,
            "cache_write_5m_tokens": usage.cache_write,
            "cache_write_1h_tokens": usage.cache_write_1h,
            "images": usage.images,
            "queries": usage.queries,
            "guardrail_units": self.guardrail_units,
            "service_tier": self.tier,
            "latency": self.latency,
            "cost_usd": usd(self.cost_nanos),
            "completed": self.completed,
            "started_at": _rfc3339(self.started_at),
        }

    def log_record(self, account: str) -> dict[str, Any]:
        """A ModelInvocationLog record without bodies."""
        usage = self.usage
        record: dict[str, Any] = {
            "schemaType": "ModelInvocationLog",
            "schemaVersion": "1.0",
            "timestamp": _rfc3339(self.started_at),
            "accountId": account,
            "region": self.region,
            "requestId": self.request_id,
            "operation": self.operation,
            "modelId": self.model,
            "identity": {"arn": f"arn:aws:sts::{account}:assumed-role/simulated/session"},
            "input": {
                "inputContentType": "application/json",
                "inputTokenCount": usage.input,
                "cacheReadInputTokenCount": usage.cache_read,
                "cacheWriteInputTokenCount": usage.cache_write + usage.cache_write_1h,
            },
            "output": {"outputContentType": "application/json", "outputTokenCount": usage.output},
        }
        if self.metadata:
            record["requestMetadata"] = self.metadata
        return record


@dataclass(slots=True)
class Seen:
    """One request that arrived, billed or not; its headers show what a proxy let through."""

    request_id: str
    method: str
    path: str
    headers: list[tuple[str, str]]
    at: float
    operation: str = ""
    model: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    #: Status sent; None while it is unanswered or when the connection was cut first.
    status: int | None = None
    error: str = ""

    def item(self) -> dict[str, Any]:
        return {
            "request_id": self.request_id,
            "method": self.method,
            "path": self.path,
            "operation": self.operation,
            "model": self.model,
            "metadata": self.metadata,
            "status": self.status,
            "error": self.error,
            "headers": [[name, value] for name, value in self.headers],
            "at": _rfc3339(self.at),
        }


class Account:
    def __init__(self, config: Config) -> None:
        self._config = config
        self.calls: list[Call] = []
        self.refused: deque[Seen] = deque(maxlen=config.keep)
        self.seen: deque[Seen] = deque(maxlen=config.keep)
        self.clear_bill()

    def clear_bill(self) -> None:
        self.calls = []
        self.refused.clear()
        self.total_nanos = 0
        self.count = 0
        self.completed = 0
        self.refusals = 0

    def arrive(self, request_id: str, method: str, path: str, headers: list[tuple[str, str]]) -> Seen:
        seen = Seen(request_id, method, path, headers, time.time())
        if not self._config.canned:
            self.seen.append(seen)
        return seen

    def charge(self, call: Call) -> None:
        self.total_nanos += call.cost_nanos
        self.count += 1
        if not self._config.canned and len(self.calls) < self._config.keep:
            self.calls.append(call)

    def complete(self, call: Call) -> None:
        call.completed = True
        self.completed += 1

    def refuse(self, seen: Seen, error: str) -> None:
        seen.error = error
        self.refusals += 1
        if not self._config.canned:
            self.refused.append(seen)

    def summary(self) -> dict[str, Any]:
        return {
            "total_usd": usd(self.total_nanos),
            "count": self.count,
            "completed": self.completed,
            "refused_count": self.refusals,
        }

    def bill(self, since: int = 0, refused_since: int = 0) -> dict[str, Any]:
        """``since`` counts calls in the order in which they started; ``next`` goes on from there."""
        refused = list(self.refused)[refused_since:]
        return {
            **self.summary(),
            "next": len(self.calls),
            "calls": [call.item() for call in self.calls[since:]],
            "refused": [
                {
                    "request_id": seen.request_id,
                    "operation": seen.operation,
                    "model": seen.model,
                    "metadata": seen.metadata,
                    "status": seen.status,
                    "error": seen.error,
                    "cost_usd": usd(0),
                }
                for seen in refused
            ],
        }

    def invocation_log(self, since: int = 0) -> list[dict[str, Any]]:
        return [call.log_record(self._config.account) for call in self.calls[since:]]


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
