"""`Idempotency-Key`: done once, answered again; misuse is told apart from repetition."""

import asyncio

from sqlalchemy import text

KEY = {"idempotency-key": "order-1"}


async def test_a_repeated_request_is_done_once_and_answered_the_same(admin) -> None:
    await admin.tenant()
    body = {"tenant": "acme", "name": "ci"}
    first = await admin.ask("POST", "/keys", body, headers=KEY)
    second = await admin.ask("POST", "/keys", body, headers=KEY)
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.content == second.content and first.json()["bearer_token"]
    assert second.headers["idempotent-replayed"] == "true" and "idempotent-replayed" not in first.headers
    for name in ("content-type", "etag", "location"):
        assert first.headers[name] == second.headers[name]
    assert len((await admin.get("/keys"))["items"]) == 1
    other = await admin.ask("POST", "/keys", body, headers={"idempotency-key": "order-2"})
    assert other.json()["id"] != first.json()["id"]


async def test_the_kept_answer_holds_no_readable_secret(admin, engine) -> None:
    await admin.tenant()
    issued = (await admin.ask("POST", "/keys", {"tenant": "acme", "name": "ci"}, headers=KEY)).json()
    async with engine.connect() as db:
        kept = (await db.scalars(text("SELECT to_jsonb(i)::text FROM idempotency i"))).all()
    assert len(kept) == 1 and issued["bearer_token"] not in kept[0] and issued["id"] not in kept[0]


async def test_another_body_or_route_under_the_same_key_is_refused(admin, refused) -> None:
    await admin.tenant()
    await admin.ask("POST", "/keys", {"tenant": "acme", "name": "ci"}, headers=KEY)
    refused(await admin.ask("POST", "/keys", {"tenant": "acme", "name": "cd"}, headers=KEY), 422)
    refused(await admin.ask("POST", "/limits", {"tenant": "acme", "name": "ci"}, headers=KEY), 422)


async def test_keys_of_two_principals_are_strangers(admin) -> None:
    await admin.tenant()
    made = await admin.post("/admins", {"name": "bootstrap", "role": "admin"})
    second = admin.with_key(made["admin_key"])
    body = {"tenant": "acme", "name": "ci"}
    ids = {(await who.ask("POST", "/keys", body, headers=KEY)).json()["id"] for who in (admin, second)}
    assert len(ids) == 2


async def test_a_malformed_key_is_refused(admin, refused) -> None:
    for wrong in ("", "a" * 256, "a b", "a\u00e9".encode()):
        refused(
            await admin.ask("POST", "/tenants", {"id": "a", "name": "A"}, headers={"idempotency-key": wrong}),
            400,
        )


async def test_a_refused_request_keeps_no_key(admin, refused) -> None:
    refused(await admin.ask("POST", "/tenants", {"id": "acme"}, headers=KEY), 400)
    refused(await admin.ask("POST", "/keys", {"tenant": "acme", "name": "ci"}, headers=KEY), 404)
    assert (
        await admin.ask("POST", "/tenants", {"id": "acme", "name": "Acme"}, headers=KEY)
    ).status_code == 201


async def test_at_once_one_is_done_and_the_others_wait_or_repeat(admin, engine) -> None:
    await admin.tenant()
    body = {"tenant": "acme", "name": "ci"}
    answers = await asyncio.gather(*(admin.ask("POST", "/keys", body, headers=KEY) for _ in range(4)))
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses[0] == 201 and set(statuses) <= {201, 409}
    assert len({answer.json()["id"] for answer in answers if answer.status_code == 201}) == 1
    assert len((await admin.get("/keys"))["items"]) == 1


async def test_a_request_whose_process_died_is_told_so_and_forgotten_after_a_day(
    admin, engine, refused
) -> None:
    body = {"id": "acme", "name": "Acme"}
    await admin.ask("POST", "/tenants", body, headers=KEY)
    async with engine.begin() as db:
        await db.execute(text("UPDATE idempotency SET status = NULL, response = NULL"))
    assert "died" in refused(await admin.ask("POST", "/tenants", body, headers=KEY), 409)["detail"]
    async with engine.begin() as db:
        await db.execute(text("UPDATE idempotency SET created_at = now() - interval '25 hours'"))
    assert "tenant" in refused(await admin.ask("POST", "/tenants", body, headers=KEY), 409)["detail"]
