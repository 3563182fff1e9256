"""Calls of tests about traces."""

from __future__ import annotations

from typing import Any

from tests.support.stack import LLAMA, Key, Proxy

PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
INVOKE, STREAM = f"/model/{LLAMA}/invoke", f"/model/{LLAMA}/invoke-with-response-stream"


def body(prompt: str) -> dict[str, Any]:
    return {"prompt": prompt, "max_gen_len": 64}


def ask(
    proxy: Proxy, key: Key, path: str, said: dict[str, Any], **headers: str
) -> tuple[int, dict[str, str], Any]:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return proxy.request(
        "POST", path, said, key=key.bearer_token, headers={"Cache-Control": "no-store", **sent}
    )
