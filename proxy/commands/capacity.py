"""`tollhouse prices capacity`: hours of provisioned throughput that are paid, and what they were used for."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from urllib.parse import urlencode

from proxy import policyfile, settings
from proxy.adminclient import Access
from proxy.domain.capacity import Use, used
from proxy.domain.rates import NANO, usd
from proxy.errors import ConfigurationError

_PAGE = 200


def run(options: argparse.Namespace) -> int:
    from proxy.bedrock.control import ControlPlane  # noqa: PLC0415 (boto3 is slow to import)

    loaded = settings.load()
    policies = policyfile.load(loaded.policies_dir, region=loaded.aws_region)
    now = datetime.now(UTC)
    since = moment(options.since, now.replace(day=1, hour=0, minute=0, second=0, microsecond=0))
    until = moment(options.until, now)
    plane = ControlPlane(endpoint_url=loaded.bedrock_control_endpoint_url or None)
    held = asyncio.run(plane.look(policies.regions_used)).capacity
    access = Access.find()
    uses = []
    for capacity in held:
        calls = served(access, capacity.arn, capacity.model, since, until)
        bounds = int(since.timestamp()), int(until.timestamp())
        uses.append(used(capacity, calls, policies.capacity, *bounds))
    print("\n".join(shown(uses)))
    return 0


def moment(text: str | None, otherwise: datetime) -> datetime:
    """Raises `ConfigurationError` for what is no time with a zone."""
    if text is None:
        return otherwise
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(f"{text!r} is no time") from None
    if at.tzinfo is None:
        raise ConfigurationError(f"{text!r}: say the zone, such as 2026-11-23T00:00:00Z")
    return at.astimezone(UTC)


def served(
    access: Access, arn: str, model: str, since: datetime, until: datetime
) -> Iterator[tuple[float, int]]:
    """When the calls that the ARN served were admitted, and what they were charged, nano-dollars. Raises
    `ConfigurationError` when the server refuses.
    """
    asked = {"model": model, "outcome": "POST", "since": since.isoformat(), "until": until.isoformat(),
             "limit": str(_PAGE)}  # fmt: skip
    while True:
        status, page = access.get(f"/admin/v1/calls?{urlencode(asked)}")
        if status != 200:
            raise ConfigurationError(f"the server refused to show its calls: {page}")
        for item in page["items"]:
            if str(item["target"]).partition("/")[2] == arn:
                yield (
                    datetime.fromisoformat(item["admitted_at"]).timestamp(),
                    int(Decimal(item["cost_usd"]) * NANO),
                )
        if not page.get("next"):
            return
        asked["cursor"] = page["next"]


def shown(uses: Iterable[Use]) -> Iterator[str]:
    yield (f"{'THROUGHPUT':<24}{'MODEL':<38}{'STATUS':<11}{'UNITS':>6}{'HOURS':>7}{'USED':>6}{'CALLS':>8}"
           f"{'PAID USD':>14}{'CHARGED USD':>14}")  # fmt: skip
    for use in uses:
        capacity, paid = use.capacity, "-" if use.paid is None else usd(use.paid)
        name = capacity.arn.rpartition("/")[2]
        yield (f"{name:<24}{capacity.model:<38}{capacity.status:<11}{capacity.units:>6}{use.hours:>7}"
               f"{use.used_hours:>6}{use.calls:>8}{paid:>14}{usd(use.charged):>14}")  # fmt: skip
