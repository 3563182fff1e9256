"""A real Valkey cluster on loopback: masters that share the slots, without replicas."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

import redis

from proxy.embedded import Valkey

SLOTS = 16_384


@contextmanager
def cluster(
    folder: Path, free_port: Callable[[], int], masters: int, settings: Mapping[str, str] | None = None
) -> Iterator[list[Valkey]]:
    """Yields the masters once every one of them says that the cluster is whole."""
    buses = [free_port() for _ in range(masters)]
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                Valkey.start(
                    folder / f"cluster-{uuid4().hex[:8]}",
                    with_password=False,
                    settings={
                        "cluster-enabled": "yes", "cluster-port": str(bus), "cluster-node-timeout": "1500",
                        **(settings or {}),
                    },
                )
            )
            for bus in buses
        ]  # fmt: skip
        clients = [stack.enter_context(redis.Redis.from_url(server.url)) for server in servers]
        bounds = [SLOTS * n // masters for n in range(masters + 1)]
        for client, low, high in zip(clients, bounds, bounds[1:], strict=False):
            client.execute_command("CLUSTER ADDSLOTSRANGE", str(low), str(high - 1))
        for server, bus in zip(servers[1:], buses[1:], strict=True):
            clients[0].execute_command("CLUSTER MEET", "127.0.0.1", str(server.port), str(bus))
        await_whole(clients)
        yield servers


def await_whole(clients: list[redis.Redis], seconds: float = 15.0) -> None:
    began = time.monotonic()
    while any("ok" not in str(c.execute_command("CLUSTER INFO")["cluster_state"]) for c in clients):
        assert time.monotonic() - began < seconds, "the cluster did not form"
        time.sleep(0.05)


def cluster_url(server: Valkey) -> str:
    """What a proxy is given to know the cluster by."""
    return server.url.replace("redis://", "redis+cluster://").removesuffix("/0")
