"""What all policy files say together, and the answers the rest of the program asks of it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from proxy.domain.catalogue import Model, Route, Target, TargetKind
from proxy.domain.guardrails import guardrail_route
from proxy.domain.policy import Limit, Policy
from proxy.domain.pricing import PriceBook, Priced
from proxy.domain.rates import CapacityPrice
from proxy.domain.rules import Rule
from proxy.errors import ConfigurationError, UnboundedCost, UnknownModel
from proxy.policyfile import overrides
from proxy.policyfile.plans import Plan
from proxy.policyfile.routes import ARN, OPAQUE, Place, Routes, RouteSpec, source_region, split_prefix
from proxy.policyfile.rules import Example

#: most resolved names remembered; clients can invent names, so the memory is bounded
_REMEMBERED = 4_096
_LONGEST_ID = 2_048
_LONGEST_GUESS = 128
_NOT_SERVED = {
    "prompt": "its model and its output limit are inside the prompt, not in the request",
    "endpoint": "a marketplace endpoint is billed by instance hours, not by tokens",
    "custom-model": "a custom model is called through its deployment or its provisioned throughput",
    "async-invoke": "asynchronous calls are not served",
    "prompt-router": "it chooses its model by itself; name the dearest of its models under `arns` in routes/",
    "default-prompt-router": "it chooses its model by itself; name the dearest under `arns` in routes/",
}


class PolicySet:
    """Immutable, but for bounded memories of what was asked. A reload makes another one."""

    def __init__(
        self,
        *,
        version: str,
        models: Mapping[str, Model],
        prices: PriceBook,
        plans: Mapping[str, Plan],
        routes: Routes,
        default_region: str,
        capacity: tuple[CapacityPrice, ...] = (),
        rules: tuple[Rule, ...] = (),
        examples: tuple[Example, ...] = (),
    ) -> None:
        #: changes when any file changes
        self.version = version
        self.models = models
        self.prices = prices
        self.plans = plans
        self.capacity = capacity
        self.default_region = default_region
        self.routes = routes
        self.rules = rules
        self.examples = examples
        self._resolved: dict[str, Route] = {}
        self._ids = self._callable_ids()

    @property
    def ids(self) -> tuple[str, ...]:
        """Every name that resolves to something with a price: aliases, base and profile ids, sorted."""
        return self._ids

    @property
    def regions_used(self) -> tuple[str, ...]:
        """The default Region and those that routes name, sorted: where this account has its own things."""
        routes = self.routes.routes.values()
        named = {place.region for spec in routes for place in spec.places if place.region}
        held = {found["region"] for arn in self.routes.arns if (found := ARN.fullmatch(arn))}
        return tuple(sorted({self.default_region, *named, *held}))

    def with_arns(self, arns: Mapping[str, str]) -> PolicySet:
        """The same policies knowing more opaque ARNs (from the control plane): ARN to the model or
        profile id it runs. What the files say about an ARN stays.
        """
        routes = replace(self.routes, arns={**arns, **self.routes.arns})
        return PolicySet(
            version=self.version,
            models=self.models,
            prices=self.prices,
            plans=self.plans,
            routes=routes,
            default_region=self.default_region,
            capacity=self.capacity,
            rules=self.rules,
            examples=self.examples,
        )

    def priced(self, model: Model, target: Target) -> Priced:
        """Prices of a target. Raises `UnknownModel` when the book has none."""
        return self.prices.priced(model, target)

    def plan(self, name: str) -> Plan:
        """Raises `ConfigurationError` when there is no such plan."""
        found = self.plans.get(name)
        if found is None:
            raise ConfigurationError(f"there is no plan {name!r} in plans/")
        return found

    def effective(
        self,
        plan: str,
        tenant_overrides: Mapping[str, Any] | None,
        key_overrides: Mapping[str, Any] | None,
        limits: Sequence[Limit],
        *,
        scopes: tuple[UUID, UUID | None, UUID] | None = None,
    ) -> Policy:
        """The policy of one key. `scopes` (tenant, project, key) adds the plan's own limits for them.

        Raises `ConfigurationError` for an unknown plan or an override that is wrong.
        """
        found = self.plan(plan)
        own = found.limits_for(*scopes) if scopes is not None else ()
        return overrides.effective(found, tenant_overrides, key_overrides, (*own, *limits), self.models)

    def check_overrides(self, given: Mapping[str, Any] | None) -> None:
        """Raises `ConfigurationError` saying all that is wrong with overrides before they are stored."""
        overrides.parse(given, self.models, "overrides")

    def resolve(self, name: str) -> Route:
        """What a client's model name means. Raises `UnknownModel` or `UnboundedCost`."""
        route = self._resolved.get(name)
        if route is None:
            route = self._resolve(name)
            if len(self._resolved) >= _REMEMBERED:
                self._resolved.clear()
            self._resolved[name] = route
        return route

    def guardrail(self, identifier: str, version: str) -> Route:
        """Where ApplyGuardrail goes. Raises `UnknownModel` for a Region that may not be called."""
        route = guardrail_route(identifier, version, self.default_region)
        region = route.targets[0].region
        if self.routes.regions and region not in self.routes.regions:
            raise UnknownModel(f"the Region {region} of this ARN is not among those that may be called")
        return route

    def _resolve(self, name: str) -> Route:
        if not name or len(name) > _LONGEST_ID:
            raise UnknownModel("the model identifier is empty or longer than 2,048 characters")
        if (spec := self.routes.routes.get(name)) is not None:
            return self._route(spec)
        if name.startswith("arn:"):
            return self._arn(name)
        prefix, base = split_prefix(name)
        model = self.models.get(base)
        if model is None or not self.prices.knows(base, prefix):
            if model is not None and (regions := self._regions(base, prefix)):
                region = self.default_region if self.default_region in regions else regions[0]
                return self._single(name, model, prefix, region, _kind(prefix))
            raise UnknownModel(f"there is no model {_shown(name)}{self._hint(name)}")
        region = source_region(prefix, self.default_region, self.routes.profiles)
        return self._single(name, model, prefix, region, _kind(prefix))

    def _regions(self, base: str, prefix: str | None) -> list[str]:
        """Regions with a price of their own, for models that have no price for every Region."""
        listed = {
            key.region
            for version in self.prices.versions
            for key in version.prices
            if key.model == base and key.prefix == prefix and key.latency == "standard"
        }
        return sorted(listed - {"*"})

    def _route(self, spec: RouteSpec) -> Route:
        model = self.models[spec.model]
        targets = tuple(self._target(model, place) for place in spec.places)
        return Route(
            name=spec.name, model=model, targets=targets, policy=spec.policy, fallbacks=spec.fallbacks
        )

    def _target(self, model: Model, place: Place) -> Target:
        if place.arn is not None:
            found = ARN.fullmatch(place.arn)
            kind = OPAQUE[found["kind"]] if found else "provisioned"
            region = place.region or (found["region"] if found else self.default_region)
            rates = place.rates or self.routes.rates.get(place.arn)
            return Target(model=model.id, model_id=place.arn, region=region, kind=kind, rates=rates)
        region = place.region or source_region(place.prefix, self.default_region, self.routes.profiles)
        name = f"{place.prefix}.{model.id}" if place.prefix else model.id
        return Target(
            model=model.id, model_id=name, region=region, kind=_kind(place.prefix), prefix=place.prefix,
            tier=place.tier, latency=place.latency,
        )  # fmt: skip

    def _single(self, name: str, model: Model, prefix: str | None, region: str, kind: TargetKind) -> Route:
        target = Target(model=model.id, model_id=name, region=region, kind=kind, prefix=prefix)
        return Route(name=name, model=model, targets=(target,))

    def _arn(self, name: str) -> Route:
        found = ARN.fullmatch(name)
        if found is None:
            raise UnknownModel(f"{_shown(name)} is no ARN of a Bedrock model")
        kind, region = found["kind"], found["region"]
        if self.routes.regions and region not in self.routes.regions:
            raise UnknownModel(f"the Region {region} of this ARN is not among those that may be called")
        if kind in {"foundation-model", "inference-profile"}:
            prefix, base = split_prefix(found["id"])
            model = self.models.get(base)
            fits = (prefix is None) == (kind == "foundation-model")
            if model is None or not fits or not self.prices.knows(base, prefix, region):
                raise UnknownModel(f"there is no model {_shown(found['id'])}{self._hint(found['id'])}")
            return self._single(name, model, prefix, region, _kind(prefix))
        return self._opaque(name, kind, region)

    def _opaque(self, name: str, kind: str, region: str) -> Route:
        runs = self.routes.arns.get(name)
        if runs is None:
            why = _NOT_SERVED.get(kind, "what it runs is not known here; name it under `arns` in routes/")
            raise UnboundedCost(f"the cost of {_shown(name)} cannot be bounded: {why}")
        prefix, base = split_prefix(runs)
        model, rates = self.models.get(base), self.routes.rates.get(name)
        if model is None or (rates is None and not self.prices.knows(base, prefix, region)):
            raise UnboundedCost(
                f"the cost of {_shown(name)} cannot be bounded: {runs} has no price in {region}"
            )
        what: TargetKind = "on_demand" if OPAQUE[kind] == "profile" and not prefix else OPAQUE[kind]
        target = Target(model=model.id, model_id=name, region=region, kind=what, prefix=prefix, rates=rates)
        return Route(name=name, model=model, targets=(target,))

    def _callable_ids(self) -> tuple[str, ...]:
        names = set(self.routes.routes)
        for version in self.prices.versions:
            for key, price in version.prices.items():
                if price.bounded and key.latency == "standard":
                    names.add(f"{key.prefix}.{key.model}" if key.prefix else key.model)
        return tuple(sorted(names))

    def _hint(self, name: str) -> str:
        close = nearest(name, self._ids)
        return "" if close is None else f"; did you mean {close}?"


def _kind(prefix: str | None) -> TargetKind:
    return "on_demand" if prefix is None else "profile"


def _shown(name: str) -> str:
    return repr(name if len(name) <= 120 else f"{name[:117]}...")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` was probably meant to be; bounded work for any input.

    First one that differs only in punctuation (`...-v10` for `...-v1:0`), then one that has `name`
    inside it (a profile of a model that is not served in-region), then the closest by spelling.
    """
    if len(name) > _LONGEST_GUESS:
        return None
    names = list(known)
    wanted = _squeezed(name)
    within = None
    for one in names:
        squeezed = _squeezed(one)
        if squeezed == wanted:
            return one
        if len(wanted) > 5 and wanted in squeezed and (within is None or len(one) < len(within)):
            within = one
    if within is not None:
        return within
    close = difflib.get_close_matches(name, names, 1, 0.75)
    return close[0] if close else None


def _squeezed(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
