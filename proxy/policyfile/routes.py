"""`routes/*.yaml`: names that clients may use, where they lead, and which Regions may be called."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from proxy.domain.catalogue import Model, RoutePolicy, TargetKind
from proxy.domain.rates import Rates
from proxy.policyfile.prices import PREFIXES, TOKENS
from proxy.policyfile.schema import Reader
from proxy.policyfile.strict import Node, Row, Scalar, Table

_TOP = ("default_region", "regions", "profiles", "routes", "arns")
_POLICIES: tuple[RoutePolicy, ...] = ("order", "spill", "provisioned_only", "cheapest")
_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
ARN = re.compile(
    r"arn:(?P<partition>aws[a-z-]{0,12}):(?P<service>bedrock|sagemaker):(?P<region>[a-z0-9-]{1,24}):"
    r"(?P<account>[0-9]{12}|):(?P<kind>[a-z-]{1,40})/(?P<id>[A-Za-z0-9][A-Za-z0-9._:/-]{0,512})"
)
#: what an ARN of this kind is; the others name their model or cannot be served
OPAQUE: Mapping[str, TargetKind] = {
    "application-inference-profile": "profile",
    "provisioned-model": "provisioned",
    "custom-model-deployment": "on_demand",
    "imported-model": "imported",
    "default-prompt-router": "profile",
    "prompt-router": "profile",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A target as written: in-region, through a geography's profile, or an ARN."""

    prefix: str | None = None
    region: str | None = None
    arn: str | None = None
    #: what tenants are charged per token there, None for the model's list price
    rates: Rates | None = None
    tier: str | None = None
    latency: str | None = None
    line: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteSpec:
    """A route as written, with where it was written."""

    name: str
    model: str
    places: tuple[Place, ...]
    policy: RoutePolicy = "order"
    fallbacks: tuple[str, ...] = ()
    path: str = ""
    line: int = 0


@dataclass(slots=True)
class Routes:
    """Everything `routes/` says."""

    default_region: str | None = None
    regions: tuple[str, ...] = ()
    #: source Region for the profiles of a geography that the default Region is not in
    profiles: dict[str, str] = field(default_factory=dict)
    routes: dict[str, RouteSpec] = field(default_factory=dict)
    #: opaque ARN to the model or profile id it runs
    arns: dict[str, str] = field(default_factory=dict)
    #: ARN of capacity to what tenants are charged per token there
    rates: dict[str, Rates] = field(default_factory=dict)


def split_prefix(name: str) -> tuple[str | None, str]:
    """`us.meta.x` into `us` and `meta.x`; a base id has no prefix."""
    head, _, tail = name.partition(".")
    return (head, tail) if head in PREFIXES and "." in tail else (None, name)


def read_routes(node: Node, reader: Reader, routes: Routes, models: Mapping[str, Model]) -> None:
    """Add the file's routes to `routes`."""
    items = reader.table(node, _TOP).items
    _once(items, "default_region", routes.default_region is not None, reader)
    _once(items, "regions", bool(routes.regions), reader)
    routes.default_region = routes.default_region or reader.region(items.get("default_region"))
    routes.regions = routes.regions or reader.many(items.get("regions"), reader.region)
    for key, value in reader.entries(items.get("profiles")):
        region = reader.region(value)
        if reader.choice(key, PREFIXES) and region:
            routes.profiles[key.value] = region
    for key, value in reader.entries(items.get("arns")):
        _arn(key, value, reader, routes, models)
    for key, value in reader.entries(items.get("routes")):
        if not _ALIAS.fullmatch(key.value):
            reader.fail(
                key, f"{key.value[:60]!r} is no name of a route: letters, digits and . _ : / - are allowed"
            )
        elif key.value in routes.routes:
            reader.fail(key, f"the route {key.value} is in {routes.routes[key.value].path} too")
        else:
            spec = _route(key, value, reader, models)
            if spec is not None:
                routes.routes[key.value] = spec


def _once(items: Mapping[str, Node], name: str, there: bool, reader: Reader) -> None:
    if there and name in items:
        reader.fail(items[name], f"{name} is in another file of routes/ too")


def _arn(key: Scalar, value: Node, reader: Reader, routes: Routes, models: Mapping[str, Model]) -> None:
    found = ARN.fullmatch(key.value)
    if not found or found["kind"] not in OPAQUE:
        kinds = ", ".join(sorted(OPAQUE))
        reader.fail(key, f"this is no ARN whose model can be named here; the kinds are {kinds}")
        return
    named, rates = value, None
    if isinstance(value, Table):
        items = reader.table(value, ("model", "rates"), ("model",)).items
        named, rates = items.get("model", value), _rates(items.get("rates"), found["kind"], reader)
    name = reader.text(named, 256)
    if name is None:
        return
    if rates is not None:
        routes.rates[key.value] = rates
    if split_prefix(name)[1] not in models:
        reader.fail(value, f"there is no model {name!r}{reader.hint(split_prefix(name)[1], models)}")
    elif key.value in routes.arns:
        reader.fail(key, "this ARN is in another file of routes/ too")
    else:
        routes.arns[key.value] = name


def _route(key: Scalar, node: Node, reader: Reader, models: Mapping[str, Model]) -> RouteSpec | None:
    items = reader.table(node, ("model", "policy", "targets", "fallbacks"), ("model",)).items
    base = _base(reader, models)
    model = base(items["model"]) if "model" in items else None
    word = reader.choice(items.get("policy"), _POLICIES)
    policy: RoutePolicy = next((p for p in _POLICIES if p == word), "order")
    places = tuple(_place(row, reader) for row in reader.rows(items.get("targets"))) or (
        Place(line=key.line),
    )
    fallbacks = reader.many(items.get("fallbacks"), base)
    if model is None:
        return None
    if key.value in models and key.value != model:
        reader.fail(key, f"{key.value} is a model of its own and cannot lead to {model}")
    if model in fallbacks:
        reader.fail(items["fallbacks"], f"{model} cannot be its own fallback")
    if policy == "provisioned_only" and not any(p.arn and ":provisioned-model/" in p.arn for p in places):
        reader.fail(key, "policy provisioned_only needs a target with the ARN of a provisioned model")
    return RouteSpec(
        name=key.value,
        model=model,
        places=places,
        policy=policy,
        fallbacks=fallbacks,
        path=reader.path,
        line=key.line,
    )


def _base(reader: Reader, models: Mapping[str, Model]) -> Callable[[Node], str | None]:
    def read(node: Node) -> str | None:
        word = reader.text(node, 256)
        if word is not None and word not in models:
            reader.fail(node, f"there is no base model {word!r}{reader.hint(word, models)}")
            return None
        return word

    return read


def _place(node: Node, reader: Reader) -> Place:
    items = reader.table(node, ("profile", "region", "arn", "rates", "tier", "latency")).items
    if isinstance(node, Row):
        return Place(line=node.line)
    kind = ""
    arn = reader.text(items.get("arn"), 2048)
    if arn is not None:
        found = ARN.fullmatch(arn)
        if not found or found["kind"] not in {"provisioned-model", "imported-model"}:
            reader.fail(items["arn"], "this is no ARN of a provisioned-model or an imported-model")
            arn = None
        elif "profile" in items:
            reader.fail(items["profile"], "a target is an ARN or a profile, not both")
        elif "tier" in items or "latency" in items:
            reader.fail(items["arn"], "capacity of one's own has no tier and no latency mode")
        else:
            kind = found["kind"]
    return Place(
        prefix=reader.choice(items.get("profile"), PREFIXES),
        region=reader.region(items.get("region")),
        arn=arn,
        rates=_rates(items.get("rates"), kind, reader),
        tier=reader.choice(items.get("tier"), ("flex", "priority")),
        latency=reader.choice(items.get("latency"), ("optimized",)),
        line=node.line,
    )


def _rates(node: Node | None, kind: str, reader: Reader) -> Rates | None:
    """USD per million tokens that tenants are charged for capacity that AWS bills by the hour."""
    if node is None:
        return None
    if kind not in {"provisioned-model", "imported-model"}:
        reader.fail(node, "only an ARN of a provisioned-model or an imported-model has rates of its own")
        return None
    items = reader.table(node, TOKENS, ("input", "output")).items
    return Rates(**{name: reader.rate(items.get(name)) for name in TOKENS})


#: Regions that a geography's profiles can be called from (AWS, inference profile support)
_GEOGRAPHY: Mapping[str, re.Pattern[str]] = {
    "us": re.compile(r"us-(east|west)-[0-9]"),
    "eu": re.compile(r"eu-(?!isoe)[a-z]+-[0-9]"),
    "apac": re.compile(r"ap-[a-z]+-[0-9]"),
    "global": re.compile(r"(?!us-gov|cn-)[a-z]{2}-[a-z]+-[0-9]"),
    "us-gov": re.compile(r"us-gov-[a-z]+-[0-9]"),
    "au": re.compile(r"ap-southeast-[246]"),
    "jp": re.compile(r"ap-northeast-[13]"),
    "in": re.compile(r"ap-south-[0-9]"),
    "ca": re.compile(r"ca-[a-z]+-[0-9]"),
}


def source_region(prefix: str | None, default: str, profiles: Mapping[str, str]) -> str:
    """The Region a profile is called in: the default one where it belongs to the geography."""
    if prefix is None or _GEOGRAPHY[prefix].fullmatch(default):
        return default
    return profiles.get(prefix, default)
