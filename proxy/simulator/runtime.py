"""One inference call, from the bytes of a request to the plan of its answer.

The order is the service's: credentials, body, model, request, capacity; only then does a call cost money.
"""

import base64
import binascii
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import orjson

from proxy.simulator import guardrails, signature, tokens
from proxy.simulator.account import Account, Call, Seen
from proxy.simulator.capacity import Lease, PromptCache, Quotas
from proxy.simulator.catalog import Catalog, Model
from proxy.simulator.config import Config
from proxy.simulator.dialects import Dialect, Outcome, Wishes
from proxy.simulator.errors import Refusal, invalid, named
from proxy.simulator.families import llama
from proxy.simulator.families.base import Ask, Choice, Json, Reply, sample_input
from proxy.simulator.faults import Fault, Faults, Orders
from proxy.simulator.prices import Prices, Usage, cost_nanos
from proxy.simulator.transport import Request

_MOST_METADATA = 16
_LONGEST_METADATA = 256
_HUGE = 2**62
_NO_CACHING = (
    "You invoked an unsupported model or your request did not allow prompt caching. "
    "See the documentation for more information."
)


@dataclass(slots=True)
class Route:
    """Where a request came in."""

    operation: str
    dialect: Dialect
    stream: bool
    #: Model name from the path; empty where the body names it.
    model: str = ""


@dataclass(slots=True)
class Plan:
    """An answer decided but not sent."""

    request_id: str
    seen: Seen
    route: Route
    orders: Orders
    model: Model
    #: An error that a fault asked for; the call is then not billed.
    refusal: Refusal | None = None
    call: Call | None = None
    lease: Lease | None = None
    ask: Ask | None = None
    reply: Reply | None = None
    outcome: Outcome | None = None


def parse_body(body: bytes) -> Json:
    try:
        parsed = orjson.loads(body)
    except ValueError:
        raise invalid("Malformed input request, please reformat your input and try again.") from None
    if not isinstance(parsed, dict):
        raise invalid("Malformed input request: #: expected type: JSONObject, please reformat your input.")
    return parsed


def parse_metadata(given: Any) -> dict[str, str]:
    """At most 16 pairs of strings up to 256 characters; from a header it comes as JSON text."""
    if given is None or given == "":
        return {}
    if isinstance(given, str):
        try:
            given = orjson.loads(given)
        except ValueError:
            raise invalid("Request metadata must be a JSON object.") from None
    if not isinstance(given, dict) or len(given) > _MOST_METADATA:
        raise invalid(f"Request metadata must be an object of at most {_MOST_METADATA} entries.")
    for key, value in given.items():
        if not isinstance(value, str) or max(len(key), len(value)) > _LONGEST_METADATA:
            raise invalid(f"Request metadata takes strings of at most {_LONGEST_METADATA} characters.")
    return given


class Runtime:
    def __init__(
        self, config: Config, prices: Prices, catalog: Catalog, account: Account, faults: Faults
    ) -> None:
        self.config = config
        self.prices = prices
        self.catalog = catalog
        self.account = account
        self.faults = faults
        self.quotas = Quotas(config.quotas)
        self.cache = PromptCache(config.cache_min_tokens)

    def arrive(self, request: Request) -> Seen:
        return self.account.arrive(str(uuid.uuid4()), request.method, request.path, request.raw_headers)

    def authenticate(self, request: Request) -> str:
        """The Region that the call is priced in. Raises Refusal for bad credentials."""
        if not self.config.require_auth and "authorization" not in request.headers:
            return self.config.region
        region = signature.check(
            request.method,
            request.path,
            request.query,
            request.headers,
            request.body,
            self.config.verify_secret,
        )
        return region or self.config.region

    def plan(self, request: Request, route: Route, seen: Seen) -> Plan:
        """Raises Refusal; a plan with a call in it has been billed."""
        seen.operation, seen.model = route.operation, route.model
        region = self.authenticate(request)
        body = parse_body(request.body)
        name = route.model or body.get("model")
        if not isinstance(name, str) or not name:
            raise invalid("model: Field required")
        seen.model = name
        dialect = route.dialect
        wishes = dialect.wishes(request.headers, body)
        seen.metadata = metadata = parse_metadata(wishes.metadata)
        model = self.catalog.resolve(name, region)
        ask = dialect.read(body, model)
        if self.config.strict_llama and model.family == "llama" and ask.limit > llama.DOCUMENTED_MAX:
            raise invalid(
                f"Malformed input request: #/max_gen_len: {ask.limit} is not less or equal to 2048."
            )
        if ask.prompt.tokens > model.context_tokens:
            raise invalid("Input is too long for requested model.")
        if ask.prompt.marks and not model.price.caches:
            raise Refusal("AccessDeniedException", _NO_CACHING)
        text = ask.prompt.text
        seed = tokens.seed_of(model.base.encode(), text.encode("utf-8", "surrogatepass"))
        names = (model.requested, model.price_id, model.base)
        orders = self.faults.orders(request.body, text, seed, names, route.operation, metadata)
        control = request.headers.get("x-simulator-tokens", "")
        if control.isdigit():
            orders.output_tokens = int(control)
        plan = Plan(seen.request_id, seen, route, orders, model, refusal=_refusal(orders, route))
        if plan.refusal is None and orders.of("html502") is None:
            self._generate(plan, ask, wishes, seed, region)
        return plan

    def _generate(self, plan: Plan, ask: Ask, wishes: Wishes, seed: int, region: str) -> None:
        model = plan.model
        plan.lease = self.quotas.take(model, ask.prompt.tokens + ask.limit * ask.choices)
        usage = self._prompt_usage(ask, model, plan.orders)
        blocked = wishes.guardrail is not None and plan.orders.guardrail_blocks
        reply = self._reply(plan, ask, seed, blocked=blocked)
        usage.output = sum(len(choice.words) for choice in reply.choices)
        if blocked:
            usage = Usage()
        extra = self._pieces(ask, model, usage) if model.per_token else Decimal(0)
        guardrail: Json | None = None
        units: dict[str, int] = {}
        if wishes.guardrail is not None:
            guardrail, units = guardrails.assess(
                wishes.guardrail, ask.prompt.characters, reply, blocked=blocked
            )
            extra += guardrails.cost(units, self.prices.guardrail_units)
        tier, latency = self._served(plan, wishes, usage)
        rates = (
            model.price.rates(usage, tier or "default", latency or "standard") if model.per_token else None
        )
        plan.call = Call(
            request_id=plan.request_id,
            operation=plan.route.operation,
            model=model.requested,
            base_model=model.base,
            price_id=model.price_id,
            region=region,
            metadata=plan.seen.metadata,
            usage=usage,
            tier=tier or "default",
            latency=latency or "standard",
            guardrail_units=units,
            cost_nanos=cost_nanos(usage, rates, extra),
            started_at=time.time(),
        )
        self.account.charge(plan.call)
        plan.ask, plan.reply = ask, reply
        plan.outcome = self._outcome(plan, ask, usage, (tier, latency))
        plan.outcome.guardrail, plan.outcome.guardrail_trace = guardrail, wishes.guardrail_trace

    def _prompt_usage(self, ask: Ask, model: Model, orders: Orders) -> Usage:
        prompt = ask.prompt
        usage = (
            self.cache.split(model, prompt.tokens, prompt.marks)
            if prompt.marks
            else Usage(input=prompt.tokens)
        )
        if orders.cached_tokens is not None:
            usage.cache_read = min(orders.cached_tokens, prompt.tokens)
            usage.input = prompt.tokens - usage.cache_read
        if orders.written_tokens is not None:
            usage.cache_write = min(orders.written_tokens, usage.input)
            usage.input -= usage.cache_write
        return usage

    def _reply(self, plan: Plan, ask: Ask, seed: int, *, blocked: bool) -> Reply:
        reply = Reply(plan.request_id, seed, plan.model, [], self.config.tokens_per_event, int(time.time()))
        if ask.silent:
            reply.choices = [Choice((), "end")]
        elif blocked:
            reply.choices = [Choice(guardrails.BLOCKED, "guardrail")]
        else:
            wanted = plan.orders.output_tokens
            for place in range(ask.choices):
                this = seed + place
                length = tokens.drawn_length(this) if wanted is None else wanted
                amount = min(length, ask.limit)
                if ask.tool is not None and length <= ask.limit:
                    given = sample_input(ask.tool[1], seed)
                    reply.choices.append(Choice(tokens.words(this, amount), "tool", ask.tool[0], given))
                else:
                    stop = "length" if length > ask.limit else "end"
                    reply.choices.append(Choice(tokens.words(this, amount), stop))  # type: ignore[arg-type]
        return reply

    def _pieces(self, ask: Ask, model: Model, usage: Usage) -> Decimal:
        """USD of what is not counted in tokens."""
        usage.queries = ask.queries
        total = model.price.query * ask.queries
        if ask.image is not None:
            width, height, quality, amount = ask.image
            usage.images = amount
            total += model.price.image(width, height, quality) * amount
        return total

    def _served(self, plan: Plan, wishes: Wishes, usage: Usage) -> tuple[str | None, str | None]:
        """Tier and latency as served, and so as priced; None where nobody asked."""
        tier, latency, price = wishes.tier, wishes.latency, plan.model.price
        downgraded = plan.orders.of("downgrade") is not None
        if tier is not None and (downgraded or tier not in price.tiers):
            tier = "default"
        if latency == "optimized":
            long_405b = (
                "405b" in plan.model.base and usage.prompt + usage.output > self.config.latency_limit_tokens
            )
            if downgraded or long_405b or price.optimized is None or not plan.model.per_token:
                latency = "standard"
        return tier, latency

    def _outcome(self, plan: Plan, ask: Ask, usage: Usage, served: tuple[str | None, str | None]) -> Outcome:
        first = self.config.first_byte_ms + plan.orders.delay_ms
        pace = self.config.tokens_per_second
        whole = first + (usage.output * 1000 / pace if pace else 0)
        reported: Usage | None = usage
        wrong = plan.orders.of("usage", "nousage")
        if wrong is not None and wrong.kind == "nousage":
            reported = None
        elif wrong is not None and wrong.arguments[0] == "negative":
            reported = Usage(input=-usage.input, output=-usage.output)
        elif wrong is not None and wrong.arguments[0] == "huge":
            reported = Usage(input=_HUGE, output=_HUGE)
        return Outcome(
            reported, *served, max(1, int(whole)), max(1, int(first)), cached=bool(ask.prompt.marks)
        )

    def count_tokens(self, request: Request, route: Route, seen: Seen, bodies: Mapping[str, Dialect]) -> int:
        """CountTokens: free, and for the models that support it only. Raises Refusal."""
        seen.operation, seen.model = route.operation, route.model
        region = self.authenticate(request)
        given = parse_body(request.body).get("input")
        if not isinstance(given, dict) or len(given) != 1:
            raise invalid("The value at input failed to satisfy constraint: exactly one member must be set")
        model = self.catalog.resolve(route.model, region)
        if model.family not in {"claude", "nova"}:
            raise invalid("The provided model doesn't support counting tokens.")
        kind, inner = next(iter(given.items()))
        if kind == "converse":
            return bodies["converse"].read(inner, model).prompt.tokens
        if kind == "invokeModel" and isinstance(inner, dict):
            body = parse_body(_decoded(inner.get("body")))
            return bodies[model.family].read(body, model).prompt.tokens
        raise invalid("The value at input failed to satisfy constraint: invokeModel or converse")


def _decoded(blob: Any) -> bytes:
    try:
        return base64.b64decode(str(blob), validate=True)
    except binascii.Error:
        raise invalid("The value at input.invokeModel.body is no base64.") from None


def _refusal(orders: Orders, route: Route) -> Refusal | None:
    """The HTTP error that a fault asks for. Exception frames are HTTP errors where nothing streams."""
    fault: Fault | None = orders.of("throttle", "error")
    if fault is not None:
        return Refusal("ThrottlingException") if fault.kind == "throttle" else named(fault.arguments[0])
    fault = orders.of("exception", "unmodelled")
    if fault is not None and not route.stream:
        member = (
            fault.arguments[0] if fault.kind == "exception" and fault.arguments else "internalServerException"
        )
        return named(member[0].upper() + member[1:])
    return None
