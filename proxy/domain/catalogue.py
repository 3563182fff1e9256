"""Models and the places they run.

A *base model* is what prices, budgets and allow-lists speak of. A *target* is one place it can be
sent to; a *route* is the ordered targets of one name that clients use.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from proxy.domain.rates import Rates

TargetKind = Literal["on_demand", "profile", "provisioned", "imported"]
RoutePolicy = Literal["order", "spill", "provisioned_only", "cheapest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A base model. Token figures are AWS's documented maxima."""

    id: str
    provider: str
    name: str
    #: name of the dialect of its native body (`llama`, `anthropic`, `nova`, ...)
    family: str
    context_tokens: int
    max_output_tokens: int
    #: what the service uses when a native request names no limit, None when undocumented
    default_output_tokens: int | None = None
    #: largest native limit the documentation allows, None when it is `max_output_tokens`
    native_max_output_tokens: int | None = None
    modality: str = "text->text"
    streaming: bool = True
    #: served by Bedrock's own OpenAI / Anthropic HTTP routes
    openai: bool = False
    #: CountTokens answers for it
    count_tokens: bool = False
    end_of_life: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One place. `model_id` goes into the URL: an id, a profile id or an ARN."""

    model: str
    model_id: str
    region: str
    kind: TargetKind = "on_demand"
    #: `us`, `eu`, `global`, ... for cross-region profiles, None in-region
    prefix: str | None = None
    #: what tenants are charged per token for capacity that is paid by the hour, None for list prices
    rates: Rates | None = None
    #: service tier and latency mode that calls ask for here when they name none themselves
    tier: str | None = None
    latency: str | None = None

    @property
    def label(self) -> str:
        return f"{self.region}/{self.model_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What a client's model name means."""

    name: str
    model: Model
    targets: tuple[Target, ...]
    policy: RoutePolicy = "order"
    #: base models to fall back to on error, in order
    fallbacks: tuple[str, ...] = field(default=())

    @property
    def opaque(self) -> bool:
        """It is the ARN of something an account owns, which does not say what it runs."""
        public = (":foundation-model/", ":inference-profile/")
        return self.name.startswith("arn:") and not any(kind in self.name for kind in public)
