"""The raw application in front of the pipeline, without a server."""

from __future__ import annotations

import asyncio
import gc
from types import SimpleNamespace
from typing import Any

from proxy.errors import UpstreamUnavailable
from proxy.web.inference import Inference

INVOKE = "/model/meta.llama3-1-8b-instruct-v1:0/invoke"


class Refusing:
    """Raises as an exchange does: what it raises is named by an object that its frame keeps."""

    max_calls = 10

    async def handle(self, *_: object) -> None:
        ending = SimpleNamespace(refusal=UpstreamUnavailable("slow down"))
        raise ending.refusal


async def test_a_refusal_leaves_nothing_to_collect() -> None:
    statuses: list[int] = []

    async def send(message: dict[str, Any]) -> None:
        statuses.append(message.get("status", 0))

    application = Inference(Refusing(), lambda *_: b"", 1.0)  # type: ignore[arg-type]
    scope = {"type": "http", "method": "POST", "raw_path": INVOKE.encode(), "path": INVOKE, "headers": []}
    never = asyncio.Event().wait
    await application(scope, never, send)
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            await application(scope, never, send)
        assert gc.collect() == 0
    finally:
        gc.enable()
    assert statuses == [503, 0] * 11
