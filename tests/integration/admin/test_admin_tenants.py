"""Tenants and projects over the admin REST."""

TENANT = {"id", "name", "plan", "time_zone", "status", "overrides", "created_at"}


async def test_a_tenant_is_made_with_defaults(admin) -> None:
    answer = await admin.ask("POST", "/tenants", {"id": "acme", "name": "Acme"})
    assert answer.status_code == 201
    assert answer.headers["etag"] == '"1"' and answer.headers["location"] == "/admin/v1/tenants/acme"
    body = answer.json()
    assert set(body) == TENANT
    assert (body["plan"], body["time_zone"], body["status"], body["overrides"]) == (
        "default",
        "UTC",
        "active",
        None,
    )
    assert body["created_at"].endswith("Z")
    assert await admin.get("/tenants/acme") == body


WRONG_FIELDS_ARE_NAMED = [
    ({"name": "Acme"}, "id"),
    ({"id": "Acme", "name": "Acme"}, "id"),
    ({"id": "a" * 64, "name": "Acme"}, "id"),
    ({"id": "acme\n", "name": "Acme"}, "id"),
    ({"id": "a\u017fe", "name": "Acme"}, "id"),
    ({"id": "acme", "name": ""}, "name"),
    ({"id": "acme", "name": "a\u0000b"}, "name"),
    ({"id": "acme", "name": 5}, "name"),
    ({"id": "acme", "name": "Acme", "time_zone": "Mars/Olympus"}, "time_zone"),
    ({"id": "acme", "name": "Acme", "role": "admin"}, "role"),
    ({"id": "acme", "name": "Acme", "status": "active"}, "status"),
]


async def test_wrong_fields_are_named(admin, refused) -> None:
    for body, field in WRONG_FIELDS_ARE_NAMED:
        told = refused(await admin.ask("POST", "/tenants", body), 400)
        assert field in told["errors"][0]["field"] or field in told["errors"][0]["message"]


async def test_an_unknown_plan_and_a_wrong_override_are_refused(admin, refused) -> None:
    base = {"id": "acme", "name": "Acme"}
    assert "nope" in refused(await admin.ask("POST", "/tenants", base | {"plan": "nope"}), 400)["detail"]
    wrong = {"max_output_tokens": "many", "unheard_of": 1}
    refused(await admin.ask("POST", "/tenants", base | {"overrides": wrong}), 400)
    good = await admin.post("/tenants", base | {"overrides": {"max_output_tokens": 100}})
    assert good["overrides"] == {"max_output_tokens": 100}


BROKEN_JSON_IS_REFUSED = [
    b"{",
    b"[]",
    b"nul",
    b"\xff",
    b"[" * 100_000,
    b'{"id": NaN}',
    b'"acme"',
    b"\xef\xbb\xbf{}",
]


async def test_broken_json_is_refused(admin, refused) -> None:
    for body in BROKEN_JSON_IS_REFUSED:
        refused(await admin.ask("POST", "/tenants", body), 400)


async def test_a_body_that_is_too_large_is_refused(admin, refused) -> None:
    refused(await admin.ask("POST", "/tenants", b'{"id":"' + b"a" * 300_000 + b'"}'), 413)


async def test_a_slug_is_taken_for_ever(admin, refused) -> None:
    await admin.tenant()
    refused(await admin.ask("POST", "/tenants", {"id": "acme", "name": "Other"}), 409)
    await admin.delete("/tenants/acme")
    refused(await admin.ask("GET", "/tenants/acme"), 404)
    refused(await admin.ask("POST", "/tenants", {"id": "acme", "name": "Other"}), 409)


async def test_changes_need_the_version_that_was_read(admin, refused) -> None:
    await admin.tenant()
    first = await admin.ask("PATCH", "/tenants/acme", {"status": "suspended"}, headers={"if-match": '"1"'})
    assert first.status_code == 200 and first.headers["etag"] == '"2"'
    assert first.json()["status"] == "suspended"
    for tag in ('"1"', '"7"', "nonsense", '""'):
        refused(await admin.ask("PATCH", "/tenants/acme", {"name": "New"}, headers={"if-match": tag}), 412)
    renamed = await admin.patch(
        "/tenants/acme", {"name": "New", "status": "active"}, headers={"if-match": "*"}
    )
    assert (renamed["name"], renamed["status"]) == ("New", "active")
    refused(await admin.ask("PATCH", "/tenants/acme", {}), 400)
    refused(await admin.ask("PATCH", "/tenants/acme", {"time_zone": "UTC"}), 400)
    refused(await admin.ask("PATCH", "/tenants/nobody", {"name": "New"}), 404)


async def test_lists_are_paged(admin, refused) -> None:
    for number in range(5):
        await admin.tenant(f"t{number}")
    seen, path = [], "/tenants?limit=2"
    for _ in range(3):
        page = await admin.get(path)
        seen += [item["id"] for item in page["items"]]
        path = f"/tenants?limit=2&cursor={page['next']}"
    assert seen == [f"t{number}" for number in range(5)] and page["next"] is None
    for wrong in (
        "limit=0",
        "limit=201",
        "limit=x",
        "cursor=%00",
        "cursor=abc",
        "cursor=" + "a" * 600,
        "limits=3",
    ):
        refused(await admin.ask("GET", f"/tenants?{wrong}"), 400)


async def test_projects(admin, refused) -> None:
    await admin.tenant()
    await admin.tenant("other")
    made = await admin.post("/tenants/acme/projects", {"id": "search", "name": "Search"})
    assert (made["id"], made["tenant"], made["name"]) == ("search", "acme", "Search")
    assert await admin.get("/tenants/acme/projects/search") == made
    refused(await admin.ask("POST", "/tenants/acme/projects", {"id": "search", "name": "Again"}), 409)
    await admin.post("/tenants/other/projects", {"id": "search", "name": "Search"})
    assert [item["id"] for item in (await admin.get("/tenants/acme/projects"))["items"]] == ["search"]
    refused(await admin.ask("GET", "/tenants/acme/projects/none"), 404)
    refused(await admin.ask("POST", "/tenants/none/projects", {"id": "x", "name": "X"}), 404)


async def test_a_plan_gives_its_budgets_to_every_scope(admin) -> None:
    await admin.tenant(plan="team")
    await admin.post("/tenants/acme/projects", {"id": "search", "name": "Search"})
    key = await admin.key(project="search")
    found = {one["scope"]: one for one in (await admin.get("/budgets"))["items"]}
    assert set(found) == {"tenant:acme", "project:acme/search", f"key:{key['id']}"}
    assert found["tenant:acme"]["limit_usd"] == "100.00" and found["tenant:acme"]["origin"] == "team@7"
    assert found["tenant:acme"]["thresholds"] == ["0.8"]
    assert found["project:acme/search"]["models"] == ["meta.llama-a-v1:0"]
    assert found[f"key:{key['id']}"]["resets_at"] is None

    await admin.patch("/tenants/acme", {"plan": "larger"})
    raised = await admin.get(f"/budgets/{found['tenant:acme']['id']}")
    assert (raised["limit_usd"], raised["origin"]) == ("200.00", "larger@2")
    await admin.patch("/tenants/acme", {"plan": "team"})
    kept = await admin.get(f"/budgets/{found['tenant:acme']['id']}")
    assert kept["limit_usd"] == "200.00"


async def test_what_is_no_route_is_told_as_a_problem(admin, refused) -> None:
    refused(await admin.ask("GET", "/nowhere"), 404)
    refused(await admin.ask("GET", "/tenants/acme/nothing/here"), 404)
    refused(await admin.ask("PUT", "/tenants/acme", {}), 405)
    assert (await admin.http.get("/model/x/invoke")).status_code == 299
