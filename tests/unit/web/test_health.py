"""Health answers need no key and tell an outsider nothing but why not."""

from typing import Any, cast

import httpx
from litestar import Litestar

from proxy.web.health import health_routes


async def test_ready_says_why_not() -> None:
    state: dict[str, str | None] = {"why": "recovering"}
    app = Litestar(route_handlers=health_routes(lambda: state["why"]), openapi_config=None)
    transport = httpx.ASGITransport(cast("Any", app))
    async with httpx.AsyncClient(transport=transport, base_url="http://tollhouse") as client:
        live = await client.get("/health/live")
        assert (live.status_code, live.json()) == (200, {"status": "live"})
        wait = await client.get("/health/ready")
        assert (wait.status_code, wait.json()) == (503, {"status": "not ready", "reason": "recovering"})
        state["why"] = None
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()) == (200, {"status": "ready"})
        assert ready.headers["cache-control"] == "no-store"
