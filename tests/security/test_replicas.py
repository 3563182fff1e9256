"""Two replicas: a revoked key ends on both, and a new master key is put in with nobody noticing."""

from __future__ import annotations

import base64
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from tests.conftest import APPLICATION
from tests.security.raw import BODY, INVOKE, free_port
from tests.support.stack import LLAMA, Key, Proxy

FRESH = {"Cache-Control": "no-store"}
DECLARED_SECONDS = 1.0
NOISE_SECONDS = 1.0


@pytest.fixture(scope="module")
def replica(
    module_owner_url: str,
    as_role: Callable[[str, str], str],
    session_redis_url: str,
    simulator_server: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., Proxy]]:
    """Makes one more replica on the module's database; started by the test, killed at the end."""
    made: list[Proxy] = []

    def make(**fields: Any) -> Proxy:
        state = tmp_path_factory.mktemp("proxy") / "state"
        redis = fields.pop("redis_url", session_redis_url)
        proxy = Proxy(as_role(module_owner_url, APPLICATION), redis, simulator_server.url, state, **fields)
        made.append(proxy)
        return proxy

    yield make
    for proxy in made:
        proxy.kill()


def statuses(proxy: Proxy, key: Key) -> dict[str, int]:
    """What the key gets on a paid route, on a free one, as bearer and as signature."""
    found = {
        "call": proxy.request("POST", INVOKE, BODY, key=key.bearer_token, headers=FRESH)[0],
        "cached": proxy.request("POST", INVOKE, BODY, key=key.bearer_token)[0],
        "list": proxy.request("GET", "/v1/models", key=key.bearer_token)[0],
        "me": proxy.request("GET", "/me", key=key.bearer_token)[0],
    }
    try:
        proxy.boto3(key).invoke_model(modelId=LLAMA, body=BODY)
        found["signed"] = 200
    except Exception as error:
        found["signed"] = error.response["ResponseMetadata"]["HTTPStatusCode"]  # type: ignore[attr-defined]
    return found


def test_a_revoked_key_ends_on_every_replica_while_redis_is_down(
    replica: Callable[..., Proxy], simulator: Any
) -> None:
    dead = f"redis://127.0.0.1:{free_port()}/0"
    master = base64.b64encode(secrets.token_bytes(32)).decode()
    both = [replica(redis_url=dead, master_key=master) for _ in range(2)]
    for one in both:
        one.start()
    key = both[0].key()
    both[1].await_key(key)
    for one in both:
        assert set(statuses(one, key).values()) == {200}
    both[0].admin("POST", f"/keys/{key.id}/revoke", {})
    began = time.monotonic()
    for one in both:
        while one.request("GET", "/v1/models", key=key.bearer_token)[0] == 200:
            assert time.monotonic() - began < DECLARED_SECONDS + NOISE_SECONDS
            time.sleep(0.02)
    simulator.reset()
    for _ in range(3):
        for one in both:
            assert set(statuses(one, key).values()) <= {401, 403}
    assert simulator.requests() == []
    for one in both:
        one.kill()


class Client:
    """Calls without a pause, whichever replica is there, with the same bearer token and key pair."""

    def __init__(self, key: Key) -> None:
        self.key = key
        self.replicas: list[Proxy] = []
        self.seen: list[int | str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        turn = 0
        while not self._stop.is_set():
            replica = self.replicas[turn % len(self.replicas)]
            turn += 1
            try:
                if turn % 2:
                    self.seen.append(
                        replica.request("POST", INVOKE, BODY, key=self.key.bearer_token, headers=FRESH)[0]
                    )
                else:
                    replica.boto3(self.key).invoke_model(modelId=LLAMA, body=BODY)
                    self.seen.append(200)
            except Exception as error:
                self.seen.append(repr(error)[:200])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def _rewrap(proxy: Proxy) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "proxy", "rewrap"],
        env=proxy.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_new_master_key_is_put_in_with_no_call_refused_and_no_client_changed(
    replica: Callable[..., Proxy], simulator: Any
) -> None:
    """First every replica learns the new key as the other one, then they change places one by one, then the
    signing secrets are sealed anew, and once the bearer tokens are rotated the old key goes."""
    old, new = (base64.b64encode(secrets.token_bytes(32)).decode() for _ in range(2))
    before = [replica(master_key=old, settings={"TOLLHOUSE_PREVIOUS_MASTER_KEY": new}) for _ in range(2)]
    after = [replica(master_key=new, settings={"TOLLHOUSE_PREVIOUS_MASTER_KEY": old}) for _ in range(2)]
    for one in before:
        one.start()
    key = before[0].key()
    before[1].await_key(key)
    admin = before[0].admin("POST", "/admins", {"name": "rotating", "role": "admin"}, expect=201)["admin_key"]
    client = Client(key)
    client.replicas = list(before)
    with client:
        for stopping, starting in zip(before, after, strict=True):
            starting.start()
            starting.await_key(key)
            client.replicas = [starting if one is stopping else one for one in client.replicas]
            time.sleep(0.3)
            fresh = starting.key(
                key.tenant
            )  # issued under the new key, good on replicas that still use the old one
            for one in client.replicas:
                one.await_key(fresh)
                assert one.request("GET", "/admin/v1/tenants", key=admin)[0] == 200
            stopping.stop()
        _rewrap(after[0])
        time.sleep(0.5)
    assert len(client.seen) > 10
    assert set(client.seen) == {200}
    rotated = after[0].admin("POST", f"/keys/{key.id}/rotate", {"grace_seconds": 0})
    for one in after:
        one.stop()
    alone = replica(master_key=new)
    alone.start()
    assert alone.request("POST", INVOKE, BODY, key=rotated["bearer_token"], headers=FRESH)[0] == 200
    assert alone.request("POST", INVOKE, BODY, key=fresh.bearer_token, headers=FRESH)[0] == 200
    alone.boto3(fresh).invoke_model(modelId=LLAMA, body=BODY)
    assert alone.request("POST", INVOKE, BODY, key=key.bearer_token, headers=FRESH)[0] == 403
    assert old not in Path(str(alone.log)).read_text()
