"""What the account has, as the control plane tells it: what opaque ARNs run, paid capacity, lifecycles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifecycle:
    """Where a base model stands. Times are unix seconds, None where AWS names none."""

    model: str
    #: ACTIVE or LEGACY
    status: str = "ACTIVE"
    legacy_at: int | None = None
    #: from when AWS charges its higher rates for old models
    extended_at: int | None = None
    end_at: int | None = None

    def warning(self, now: float, ahead_seconds: float) -> str | None:
        """What its callers must know, None while there is nothing."""
        if self.end_at is not None and self.end_at <= now:
            return "has reached its end of life: calls fail"
        if self.end_at is not None and self.end_at - now < ahead_seconds:
            return f"reaches its end of life in {int((self.end_at - now) // 86_400)} days"
        if self.extended_at is not None and self.extended_at <= now:
            return "is charged at the extended access rate"
        return "is legacy" if self.status == "LEGACY" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """A provisioned throughput: paid by the hour until it is deleted, used or not."""

    arn: str
    model: str
    units: int
    status: str
    #: `OneMonth`, `SixMonths`, or None
    commitment: str | None
    #: unix seconds
    since: int

    @property
    def target(self) -> str:
        """The label of the target that it is."""
        return f"{self.arn.split(':')[3]}/{self.arn}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """All of it, of every Region that was asked."""

    #: opaque ARN to the model or profile id it runs
    arns: Mapping[str, str] = field(default_factory=dict)
    #: opaque ARN to why it cannot be priced
    refused: Mapping[str, str] = field(default_factory=dict)
    capacity: tuple[Capacity, ...] = ()
    #: by base model
    lifecycles: Mapping[str, Lifecycle] = field(default_factory=dict)

    def and_also(self, other: Found) -> Found:
        """Both; where they differ in a lifecycle, the later end holds (a model ends Region by Region)."""
        lifecycles = dict(self.lifecycles)
        for model, found in other.lifecycles.items():
            known = lifecycles.get(model)
            if known is None or (known.end_at or 1 << 62) < (found.end_at or 1 << 62):
                lifecycles[model] = found
        capacity = {one.arn: one for one in (*self.capacity, *other.capacity)}
        return Found(
            arns={**self.arns, **other.arns}, refused={**self.refused, **other.refused},
            capacity=tuple(capacity.values()), lifecycles=lifecycles,
        )  # fmt: skip


NOTHING_FOUND = Found()
