"""`GET /v1/models`: what a key may call, in OpenAI's shape, with price and lifecycle under `tollhouse`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import orjson

from proxy.discovery import WARN_SECONDS
from proxy.domain.catalogue import Model
from proxy.domain.discovery import Lifecycle
from proxy.domain.policy import Policy
from proxy.domain.rates import usd
from proxy.errors import Refusal, Unavailable, UnknownModel
from proxy.pipeline import Presented
from proxy.policyfile import PolicySet
from proxy.web.auth import refusal_of

#: prices come into force and lifecycles pass; a list is made anew after so many seconds
_FRESH_SECONDS = 60.0
Item = dict[str, Any]


class ModelList:
    """`families` are those that can be served; `lifecycles` what the control plane says now."""

    def __init__(
        self, policies: Callable[[], PolicySet], families: Collection[str],
        lifecycles: Callable[[], Mapping[str, Lifecycle]],
    ) -> None:  # fmt: skip
        self._policies = policies
        self._families = families
        self._lifecycles = lifecycles
        self._items: list[tuple[Model, Item]] = []
        self._made: tuple[PolicySet | None, float] = (None, 0.0)

    def answer(self, presented: Presented, name: str, *, stale: bool) -> bytes:
        """What the key behind a request may call, or the one of it that is named. Its policy is that of every
        route: raises `Refusal` for a key that is not proven or not in force, and while the directory is stale.
        """
        presented.verify(b"")
        if presented.caller.refusal is not None:
            raise refusal_of(presented.caller)
        if stale:
            raise Unavailable("the directory of keys is stale; please retry", reason="directory_stale")
        policy = presented.caller.policy
        return self.one(policy, name) if name else self.all(policy)

    def all(self, policy: Policy) -> bytes:
        """Every name that may be called under the policy."""
        items = [item for model, item in self._current() if policy.allows(model.id)]
        return orjson.dumps({"object": "list", "data": items})

    def one(self, policy: Policy, name: str) -> bytes:
        """Raises `UnknownModel`, also for one that may not be called, and `UnboundedCost`."""
        model, item = self._item(name, time.time())
        if model.family not in self._families or not policy.allows(model.id):
            raise UnknownModel(f"there is no model {name[:120]!r} that this key may call")
        return orjson.dumps(item)

    def _current(self) -> list[tuple[Model, Item]]:
        policies, now = self._policies(), time.time()
        made_of, until = self._made
        if made_of is not policies or now >= until:
            found = []
            for name in policies.ids:
                with contextlib.suppress(Refusal):
                    found.append(self._item(name, now))
            self._items = [(model, item) for model, item in found if model.family in self._families]
            self._made = (policies, now + _FRESH_SECONDS)
        return self._items

    def _item(self, name: str, now: float) -> tuple[Model, Item]:
        policies = self._policies()
        route = policies.resolve(name)
        model, target = route.model, route.targets[0]
        rates = policies.priced(model, target).rates(now).rates
        ours: Item = {"model": model.id, "region": target.region}
        for kind in ("input", "output"):
            if (rate := getattr(rates, kind)) is not None:
                ours[f"{kind}_usd_per_million"] = usd(rate)
        lifecycle = self._lifecycles().get(model.id)
        if lifecycle is not None and (warning := lifecycle.warning(now, WARN_SECONDS)) is not None:
            ours["warning"] = warning
        if model.end_of_life is not None:
            ours["end_of_life"] = model.end_of_life
        item = {"id": name, "object": "model", "created": 0, "owned_by": model.provider, "tollhouse": ours}
        return model, item
