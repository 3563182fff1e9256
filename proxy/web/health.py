"""`/health/live` and `/health/ready`: no key, no detail that would help an outsider."""

from __future__ import annotations

from collections.abc import Callable

from litestar import MediaType, Response, get
from litestar.handlers import HTTPRouteHandler

_HEADERS = {"Cache-Control": "no-store"}


def health_routes(ready: Callable[[], str | None]) -> list[HTTPRouteHandler]:
    """`ready` says why no call may be admitted now, None when all is well; it must not block."""

    @get("/health/live", media_type=MediaType.JSON, summary="Is the process alive?", sync_to_thread=False)
    def live() -> Response[dict[str, str]]:
        return Response({"status": "live"}, headers=_HEADERS)

    @get("/health/ready", media_type=MediaType.JSON, summary="May calls be sent here?", sync_to_thread=False)
    def readiness() -> Response[dict[str, str]]:
        why = ready()
        if why is None:
            return Response({"status": "ready"}, headers=_HEADERS)
        return Response({"status": "not ready", "reason": why}, status_code=503, headers=_HEADERS)

    return [live, readiness]
