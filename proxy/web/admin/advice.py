"""`/reports/prompt-caching`: what Bedrock's own prompt cache would have saved or lost, and where to put
cache points. Sums of all workers over the last day; never a word of a prompt.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import cast

from litestar import Controller, Response, get
from litestar.openapi import ResponseSpec
from litestar.openapi.spec import Example

from proxy.advice import ModelAdvice
from proxy.domain.control import TenantRecord
from proxy.domain.prefix import Advice
from proxy.errors import Unavailable
from proxy.web.admin import paging
from proxy.web.admin.access import Principal
from proxy.web.admin.calls import Slug
from proxy.web.admin.core import PAGE, Cursor, Limit, Office, Page
from proxy.web.admin.shapes import CachePlace, CacheTtl, PromptCachingOptionOut, PromptCachingOut
from proxy.web.admin.tenants import own_tenant
from proxy.web.schemas import usd

_EXAMPLE = {
    "items": [
        {
            "tenant": "acme", "model": "anthropic.claude-sonnet-4-20250514-v1:0", "calls": 10,
            "input_tokens": 15_000, "cached_tokens": 0, "repeated_share_5m": "0.8533",
            "repeated_share_1h": "0.8533", "minimum_tokens": 1024,
            "advice": "Place a cache point at the end of the system prompt (ttl 5m).",
            "best": {"place": "system", "ttl": "5m", "read_tokens": 12_600, "write_tokens": 1_400, "saved_usd": "0.03297"},
            "options": [
                {"place": "system", "ttl": "5m", "read_tokens": 12_600, "write_tokens": 1_400, "saved_usd": "0.03297"},
                {"place": "messages", "ttl": "5m", "read_tokens": 0, "write_tokens": 15_000, "saved_usd": "-0.01125"},
            ],
        }
    ],
    "next": None,
}  # fmt: skip
_REPORT = ResponseSpec(
    Page[PromptCachingOut],
    generate_examples=False,
    description="the last day by tenant and model, the best saving of each tenant first",
    examples=[Example(summary="a long system prompt that comes back", value=_EXAMPLE)],
)


@dataclass(frozen=True, slots=True)
class AdviceDesk:
    office: Office

    async def report(
        self, who: Principal, tenant: str | None, limit: int, cursor: str | None
    ) -> Page[PromptCachingOut]:
        """A page is so many tenants, with all of their models. Raises `Unavailable` while Redis is away."""
        after = paging.decode(cursor, str)
        async with self.office.store.reading() as db:
            if tenant is not None:
                found = [await own_tenant(db, who, tenant)]
            else:
                found = await db.list_tenants(after=after, limit=limit + 1, only=who.tenant)
        told = await asyncio.gather(*(self._of(one) for one in found[:limit]))
        return Page(
            items=[item for items in told for item in items],
            next=paging.encode(found[limit - 1].slug) if len(found) > limit else None,
        )

    async def _of(self, tenant: TenantRecord) -> list[PromptCachingOut]:
        advice = await self.office.advice().report(tenant.id)
        if advice is None:
            raise Unavailable("Redis did not answer: it adds up what workers measure", reason="cache_away")
        return [_out(tenant.slug, one) for one in advice]


def _out(tenant: str, one: ModelAdvice) -> PromptCachingOut:
    tally = one.tally
    options = [_option(option) for option in one.options]
    return PromptCachingOut(
        tenant=tenant,
        model=one.model,
        calls=tally.calls,
        input_tokens=tally.tokens,
        cached_tokens=tally.cached,
        repeated_share_5m=_share(tally.repeated_5m, tally.tokens),
        repeated_share_1h=_share(tally.repeated_1h, tally.tokens),
        minimum_tokens=one.minimum_tokens,
        advice=one.sentence,
        best=options[0] if options else None,
        options=options,
    )


def _option(option: Advice) -> PromptCachingOptionOut:
    return PromptCachingOptionOut(
        place=cast("CachePlace", option.place),
        ttl=cast("CacheTtl", option.ttl),
        read_tokens=option.read_tokens,
        write_tokens=option.write_tokens,
        saved_usd=usd(option.saved),
    )


def _share(part: int, whole: int) -> str:
    """Four decimals, cut: a share is never shown larger than it is."""
    return f"0.{min(part * 10_000 // whole, 9_999):04d}" if part < whole else "1.0000"


class AdviceController(Controller):
    path = "/reports"
    tags = ("reports",)

    @get(
        "/prompt-caching",
        summary="Say what prompt cache points would have saved or lost in the last day, and where to put them",
        responses={200: _REPORT},
    )
    async def prompt_caching(
        self,
        desk_of_advice: AdviceDesk,
        who: Principal,
        tenant: Slug = None,
        limit: Limit = PAGE,
        cursor: Cursor = None,
    ) -> Response[Page[PromptCachingOut]]:
        page = await desk_of_advice.report(who, tenant, limit, cursor)
        return Response(page, headers={"Cache-Control": "no-store"})
