"""Which models the simulator serves and under which names.

Foundation-model ids and geo or global profile ids are those of the price table; ARNs resolve to them.
More ARNs come from configuration or ``POST /_catalog``, one mapping each:

``{"arn": ..., "model": <model or profile id>, "status": "InService", "units": 1, "concurrency": null,
"requests_per_minute": null, "tokens_per_minute": null}``

The kind is read from the ARN: ``provisioned-model`` and ``imported-model`` have no per-token price,
``application-inference-profile`` and ``custom-model-deployment`` have the price of their model.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from proxy.simulator.config import Config, Quota
from proxy.simulator.errors import Refusal, invalid
from proxy.simulator.prices import Price, Prices

#: What Bedrock says to a bare id that is only served through inference profiles.
_NEEDS_PROFILE = (
    "Invocation of model ID {} with on-demand throughput isn’t supported. "
    "Retry your request with the ID or ARN of an inference profile that contains this model."
)
UNKNOWN = "The provided model identifier is invalid."
_ARN = re.compile(r"arn:aws[a-z-]*:bedrock:([a-z0-9-]*):(\d*):([a-z-]+)/(.+)$")
_GEOGRAPHIES = ("us-gov", "us", "eu", "apac", "au", "jp", "in", "ca", "global")
#: First match wins; what matches nothing speaks the OpenAI dialect.
_FAMILIES = (
    ("meta.llama", "llama"),
    ("anthropic.claude-v", "claude_text"),
    ("anthropic.claude-instant", "claude_text"),
    ("anthropic.", "claude"),
    ("amazon.nova-canvas", "amazon_image"),
    ("amazon.titan-image", "amazon_image"),
    ("amazon.titan-embed-image", ""),
    ("amazon.titan-embed", "titan_embed"),
    ("amazon.titan-text", "titan"),
    ("amazon.nova-2-multimodal", ""),
    ("amazon.nova-reel", ""),
    ("amazon.nova-sonic", ""),
    ("amazon.nova-2-sonic", ""),
    ("amazon.nova-2-5-sonic", ""),
    ("amazon.nova", "nova"),
    ("amazon.", ""),
    ("mistral.mistral-7b", "mistral_text"),
    ("mistral.mixtral", "mistral_text"),
    ("mistral.mistral-large-2402", "mistral_text"),
    ("mistral.mistral-small", "mistral_text"),
    ("mistral.", "mistral"),
    ("cohere.command-r", "command_r"),
    ("cohere.command", "command"),
    ("cohere.embed", "cohere_embed"),
    ("cohere.rerank", "cohere_rerank"),
    ("ai21.jamba", "jamba"),
    ("ai21.", ""),
    ("deepseek.r1", "deepseek"),
    ("stability.", "stability"),
    ("twelvelabs.", ""),
    ("luma.", ""),
)


@dataclass(frozen=True, slots=True)
class Model:
    """One resolved name."""

    #: The decoded name in the request.
    requested: str
    #: Model or profile id that prices are looked up under.
    price_id: str
    #: Foundation-model id.
    base: str
    family: str
    context_tokens: int
    max_output_tokens: int
    default_output_tokens: int
    price: Price
    #: False for provisioned and imported models: they are paid by the hour or minute.
    per_token: bool
    quota: Quota | None = None


def base_of(price_id: str) -> str:
    head, _, tail = price_id.partition(".")
    return tail if head in _GEOGRAPHIES else price_id


def family_of(base: str) -> str:
    for prefix, family in _FAMILIES:
        if base.startswith(prefix):
            return family
    return "openai"


def _samples(region: str, account: str) -> Iterable[Mapping[str, Any]]:
    def arn(kind: str, name: str) -> str:
        return f"arn:aws:bedrock:{region}:{account}:{kind}/{name}"

    yield {
        "arn": arn("provisioned-model", "llama31405b0"),
        "model": "meta.llama3-1-405b-instruct-v1:0",
        "units": 2,
    }
    yield {"arn": arn("provisioned-model", "llama3108b00"), "model": "meta.llama3-1-8b-instruct-v1:0"}
    yield {
        "arn": arn("provisioned-model", "notready0000"),
        "model": "meta.llama3-1-8b-instruct-v1:0",
        "status": "Creating",
    }
    yield {
        "arn": arn("application-inference-profile", "llama405bapp"),
        "model": "us.meta.llama3-1-405b-instruct-v1:0",
    }
    yield {
        "arn": arn("application-inference-profile", "haiku3app000"),
        "model": "anthropic.claude-3-haiku-20240307-v1:0",
    }
    yield {"arn": arn("imported-model", "importllama0"), "model": "meta.llama3-1-8b-instruct-v1:0"}
    yield {"arn": arn("custom-model-deployment", "deployllama0"), "model": "meta.llama3-3-70b-instruct-v1:0"}


class Catalog:
    def __init__(self, config: Config, prices: Prices) -> None:
        self._config = config
        self._prices = prices
        self.entries: dict[str, Mapping[str, Any]] = {}
        for entry in (*_samples(config.region, config.account), *config.catalog):
            self.add(entry)
        self._known: dict[tuple[str, str], Model] = {}

    def add(self, entry: Mapping[str, Any]) -> None:
        """Raises ValueError for an entry that is no Bedrock ARN or names an unknown model."""
        arn = str(entry.get("arn", ""))
        if not _ARN.match(arn):
            raise ValueError(f"not a Bedrock ARN: {arn!r}")
        if self._prices.find(str(entry.get("model")), self._config.region) is None:
            raise ValueError(f"unknown model: {entry.get('model')!r}")
        self.entries[arn] = dict(entry)
        self._known = {}

    def ids(self) -> list[str]:
        """Foundation-model and profile ids that can be called in the configured Region."""
        return [
            name
            for name in self._prices
            if family_of(base_of(name)) and self._prices.find(name, self._config.region) is not None
        ]

    def family(self, name: str) -> str:
        """The family that a name's native bodies belong to; some family, for names that will be refused."""
        matched = _ARN.match(name)
        if matched:
            entry = self.entries.get(name)
            name = str(entry["model"]) if entry else matched.group(4)
        return family_of(base_of(name)) or "openai"

    def resolve(self, name: str, region: str) -> Model:
        """Raises Refusal for names that Bedrock would not know, and for capacity that is not ready."""
        key = (name, region)
        model = self._known.get(key)
        if model is None:
            model = self._known[key] = self._look_up(name, region)
            if len(self._known) > 10_000:
                self._known = {}
        return model

    def _look_up(self, name: str, region: str) -> Model:
        price_id, per_token, quota = name, True, None
        matched = _ARN.match(name)
        if matched:
            kind, rest = matched.group(3), matched.group(4)
            if kind in {"foundation-model", "inference-profile"}:
                price_id = rest
            else:
                price_id, per_token, quota = self._entry(name, kind)
        elif name.startswith("arn:"):
            raise invalid(UNKNOWN)
        price = self._prices.find(price_id, region)
        base = base_of(price_id)
        family = family_of(base)
        if price is None and any(base_of(known) == price_id for known in self._prices):
            raise invalid(_NEEDS_PROFILE.format(price_id))
        if price is None or not family:
            raise invalid(UNKNOWN)
        record = price.record
        return Model(
            requested=name,
            price_id=price_id,
            base=base,
            family=family,
            context_tokens=int(record.get("context") or 1_000_000),
            max_output_tokens=int(record.get("max_output") or 4_096),
            default_output_tokens=int(record.get("default_output") or record.get("max_output") or 4_096),
            price=price,
            per_token=per_token,
            quota=quota,
        )

    def _entry(self, arn: str, kind: str) -> tuple[str, bool, Quota | None]:
        entry = self.entries.get(arn)
        if entry is None:
            if kind in {"application-inference-profile", "provisioned-model", "imported-model"}:
                raise Refusal("ResourceNotFoundException", f"Could not resolve the resource from {arn}.")
            raise invalid(UNKNOWN)
        if entry.get("status", "InService") not in {"InService", "Active", "ACTIVE"}:
            raise Refusal("ModelNotReadyException", f"The model {arn} is not ready for inference.")
        limits = {
            name: entry.get(name) for name in ("requests_per_minute", "tokens_per_minute", "concurrency")
        }
        quota = Quota(**limits) if any(limit is not None for limit in limits.values()) else None
        return str(entry["model"]), kind not in {"provisioned-model", "imported-model"}, quota
