"""The directory's snapshot over an honest in-memory source."""

import asyncio
import logging
from typing import Any
from uuid import UUID, uuid4

import pytest

from proxy.directory import Directory
from proxy.domain.policy import Limit, Policy
from proxy.domain.roster import CredentialRow, KeyRow, ProjectRow, Roster, TenantRow
from proxy.errors import BankAway, ConfigurationError
from proxy.keys import AccessKey, Keyring, Minted, Place

KEYRING = Keyring(bytes(32))


class Source:
    """Rows in memory; every put is a change with a number of its own."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, UUID], tuple[int, object]] = {}
        self.mark = 0
        self.away = self.closed = False
        self.reads = 0
        self.announced = asyncio.Event()

    def put(self, table: str, row: object, gone: UUID | None = None) -> None:
        self.mark += 1
        self.rows[table, gone or row.id] = (self.mark, row if gone is None else gone)  # type: ignore[attr-defined]
        self.announced.set()

    async def load(self) -> Roster:
        return await self.changes(0)

    async def changes(self, mark: int) -> Roster:
        self.reads += 1
        if self.away:
            raise BankAway("no answer")
        tables: dict[str, list[object]] = {}
        for (table, _), (changed, row) in self.rows.items():
            if changed > mark:
                tables.setdefault(table, []).append(row)
        return Roster(mark=self.mark, **{name: tuple(rows) for name, rows in tables.items()})  # type: ignore[arg-type]

    async def wait(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self.announced.wait(), seconds)
        except TimeoutError:
            pass
        self.announced.clear()

    async def close(self) -> None:
        self.closed = True


class Plans:
    """Policies whose version says what they were made of."""

    def __init__(self) -> None:
        self.made = 0
        self.tag = "v1"

    def effective(self, plan, tenant_overrides, key_overrides, limits, *, scopes=None) -> Policy:
        if plan == "broken":
            raise ConfigurationError("no such plan")
        self.made += 1
        if plan == "rated" and scopes is not None:
            limits = [*limits, Limit(id=uuid4(), scope="key", subject=scopes[2], requests_per_minute=9)]
        return Policy(
            plan=plan, version=f"{self.tag}|{tenant_overrides}|{key_overrides}", limits=tuple(limits)
        )


class World:
    def __init__(self) -> None:
        self.source, self.plans = Source(), Plans()
        self.time, self.monotonic = 1_000.0, 50.0
        self.directory = Directory(
            self.source, KEYRING, self.plans, clock=lambda: self.time, monotonic=lambda: self.monotonic
        )
        self.tenant = TenantRow(id=uuid4(), slug="acme", plan="default")
        self.project = ProjectRow(id=uuid4(), tenant=self.tenant.id, slug="search")
        self.source.put("tenants", self.tenant)
        self.source.put("projects", self.project)

    def key(self, **facts: Any) -> KeyRow:
        values: dict[str, Any] = {
            "id": uuid4(),
            "tenant": self.tenant.id,
            "project": self.project.id,
            "name": "ci",
        }
        row = KeyRow(**values | facts)
        self.source.put("keys", row)
        return row

    def credential(self, key: KeyRow, **facts: Any) -> tuple[CredentialRow, Minted, AccessKey]:
        minted, pair = KEYRING.mint_bearer(), KEYRING.mint_access_key()
        place = Place(tenant=key.tenant, key=key.id, credential=uuid4(), version=1)
        values: dict[str, Any] = {
            "id": place.credential,
            "key": key.id,
            "digest": minted.digest,
            "access_key_id": pair.id,
            "sealed": KEYRING.seal(pair.secret, place),
        }
        row = CredentialRow(**values | facts)
        self.source.put("credentials", row)
        return row, minted, pair


@pytest.fixture
def world() -> World:
    return World()


async def test_a_credential_is_found_by_token_and_by_access_key_id(world: World) -> None:
    key = world.key()
    row, minted, pair = world.credential(key)
    await world.directory.load()
    caller = world.directory.by_token(minted.token)
    assert caller is not None
    assert (caller.tenant_slug, caller.project_slug, caller.key, caller.credential) == (
        "acme",
        "search",
        key.id,
        row.id,
    )
    assert caller.refusal is None
    assert world.directory.by_access_key_id(pair.id) == (caller, pair.secret)
    assert world.directory.by_token(minted.token) is caller
    assert len(world.directory) == 1


async def test_unknown_credentials_are_nobody(world: World) -> None:
    world.credential(world.key())
    await world.directory.load()
    assert world.directory.by_token(KEYRING.mint_bearer().token) is None
    assert world.directory.by_token("' OR '1'='1") is None
    assert world.directory.by_access_key_id("THAKAAAAAAAAAAAAAAAA") is None


async def test_expired_credentials_look_unknown(world: World) -> None:
    key = world.key(expires_at=2_000)
    _, graced, graced_pair = world.credential(key, expires_at=1_500)
    _, fresh, _ = world.credential(key)
    await world.directory.load()
    assert world.directory.by_token(graced.token) is not None
    world.time = 1_500.0
    assert world.directory.by_token(graced.token) is None
    assert world.directory.by_access_key_id(graced_pair.id) is None
    caller = world.directory.by_token(fresh.token)
    assert caller is not None and caller.expires_at == 2_000
    world.time = 2_000.0
    assert world.directory.by_token(fresh.token) is None


@pytest.mark.parametrize(
    ("key", "credential", "status", "reason"),
    [
        ({"status": "disabled"}, {}, "active", "key_disabled"),
        ({"status": "revoked"}, {}, "active", "key_revoked"),
        ({}, {"revoked": True}, "active", "key_revoked"),
        ({}, {}, "suspended", "tenant_suspended"),
        ({"status": "revoked"}, {}, "suspended", "key_revoked"),
    ],
)
async def test_the_true_reason_is_told(world: World, key, credential, status, reason) -> None:
    world.source.put("tenants", TenantRow(id=world.tenant.id, slug="acme", plan="default", status=status))
    _, minted, _ = world.credential(world.key(**key), **credential)
    await world.directory.load()
    caller = world.directory.by_token(minted.token)
    assert caller is not None and caller.refusal == reason


async def test_keys_of_a_deleted_tenant_are_nobody(world: World) -> None:
    _, minted, pair = world.credential(world.key())
    world.source.put("tenants", TenantRow(id=world.tenant.id, slug="acme", plan="default", status="deleted"))
    await world.directory.load()
    assert world.directory.by_token(minted.token) is None
    assert world.directory.by_access_key_id(pair.id) is None


async def test_limits_a_plan_gives_each_key_are_not_shared(world: World) -> None:
    world.source.put("tenants", TenantRow(id=world.tenant.id, slug="acme", plan="rated"))
    keys = [world.key(), world.key()]
    tokens = [world.credential(key)[1].token for key in keys]
    await world.directory.load()
    for key, token in zip(keys, tokens * 2, strict=False):
        caller = world.directory.by_token(token)
        assert caller is not None and [limit.subject for limit in caller.policy.limits] == [key.id]
    assert world.plans.made == 2


async def test_a_plan_that_is_no_more_closes_its_keys(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.source.put("tenants", TenantRow(id=world.tenant.id, slug="acme", plan="broken"))
    _, minted, _ = world.credential(world.key())
    await world.directory.load()
    with caplog.at_level(logging.ERROR):
        caller = world.directory.by_token(minted.token)
    assert caller is not None and caller.refusal == "plan_unusable"
    assert not caller.policy.allows("meta.llama3-1-405b-instruct-v1:0")
    assert "broken" not in caplog.text or minted.token not in caplog.text


async def test_deltas_change_what_is_known(world: World) -> None:
    key = world.key()
    row, minted, pair = world.credential(key)
    await world.directory.load()
    assert world.directory.by_token(minted.token) is not None

    world.key(id=key.id, status="disabled")
    await world.directory.refresh()
    assert world.directory.by_token(minted.token).refusal == "key_disabled"  # type: ignore[union-attr]

    world.key(id=key.id)
    replaced = KEYRING.mint_bearer()
    world.source.put("credentials", CredentialRow(id=row.id, key=key.id, digest=replaced.digest))
    await world.directory.refresh()
    assert world.directory.by_token(minted.token) is None
    assert world.directory.by_access_key_id(pair.id) is None
    assert world.directory.by_token(replaced.token) is not None


async def test_limits_of_every_scope_reach_the_policy_and_leave_it(world: World) -> None:
    key, other = world.key(), world.key(project=None)
    _, minted, _ = world.credential(key)
    _, second, _ = world.credential(other)
    limits = [
        Limit(id=uuid4(), scope="tenant", subject=world.tenant.id, requests_per_minute=1),
        Limit(id=uuid4(), scope="project", subject=world.project.id, requests_per_minute=2),
        Limit(id=uuid4(), scope="key", subject=key.id, requests_per_minute=3),
    ]
    for limit in limits:
        world.source.put("limits", limit)
    await world.directory.load()

    def rates(token: str) -> list[int | None]:
        caller = world.directory.by_token(token)
        assert caller is not None
        return [limit.requests_per_minute for limit in caller.policy.limits]

    assert rates(minted.token) == [1, 2, 3]
    assert rates(second.token) == [1]
    world.source.rows.pop(("limits", limits[1].id))
    world.source.put("limits_gone", None, gone=limits[1].id)
    await world.directory.refresh()
    assert rates(minted.token) == [1, 3]


async def test_keys_without_facts_of_their_own_share_a_policy(world: World) -> None:
    tokens = [world.credential(world.key())[1].token for _ in range(5)]
    _, special, _ = world.credential(world.key(overrides={"max_output_tokens": 5}))
    await world.directory.load()
    policies = {id(world.directory.by_token(token).policy) for token in tokens}  # type: ignore[union-attr]
    assert len(policies) == 1 and world.plans.made == 1
    assert "max_output_tokens" in world.directory.by_token(special.token).policy.version  # type: ignore[union-attr]


async def test_reloaded_policies_rebuild_callers(world: World) -> None:
    _, minted, _ = world.credential(world.key())
    await world.directory.load()
    world.directory.by_token(minted.token)
    after = Plans()
    after.tag = "v2"
    world.directory.use_policies(after)
    assert world.directory.by_token(minted.token).policy.version.startswith("v2")  # type: ignore[union-attr]


async def test_staleness_is_counted_from_the_last_good_question(world: World) -> None:
    assert world.directory.stale
    await world.directory.load()
    assert not world.directory.stale
    world.monotonic += 1.0
    assert not world.directory.stale
    world.monotonic += 0.01
    assert world.directory.stale
    world.source.away = True
    with pytest.raises(BankAway):
        await world.directory.refresh()
    assert world.directory.stale
    world.source.away = False
    await world.directory.refresh()
    assert not world.directory.stale


async def test_the_task_survives_an_absence_and_follows_announcements(world: World) -> None:
    key = world.key()
    _, minted, _ = world.credential(key)
    await world.directory.start()
    try:
        world.source.away = True
        world.source.announced.set()
        await asyncio.sleep(0.01)
        world.source.away = False
        world.key(id=key.id, status="revoked")
        async with asyncio.timeout(2):
            while world.directory.by_token(minted.token).refusal is None:  # type: ignore[union-attr]
                await asyncio.sleep(0.005)
    finally:
        await world.directory.stop()
    assert world.source.closed
    reads = world.source.reads
    await asyncio.sleep(0.3)
    assert world.source.reads == reads


async def test_a_secret_moved_to_another_row_does_not_sign(world: World) -> None:
    row, _, _ = world.credential(world.key())
    thief = world.key(name="thief")
    stolen, minted, pair = world.credential(thief, sealed=row.sealed)
    await world.directory.load()
    assert world.directory.by_access_key_id(pair.id) is None
    assert world.directory.by_token(minted.token) is not None
    assert stolen.sealed == row.sealed


async def test_a_previous_pepper_still_finds_its_tokens(world: World) -> None:
    _, minted, pair = world.credential(world.key())
    keyring = Keyring(bytes([1] * 32), previous=bytes(32))
    directory = Directory(world.source, keyring, world.plans, clock=lambda: 0.0)
    await directory.load()
    assert directory.by_token(minted.token) is not None
    found = directory.by_access_key_id(pair.id)
    assert found is not None and found[1] == pair.secret
