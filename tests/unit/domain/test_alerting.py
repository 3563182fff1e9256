"""When somebody is told, by table; where a webhook may go, by list."""

import datetime as dt
import ipaddress
import json
from typing import Any
from uuid import UUID, uuid4

import pytest

from proxy.domain.alerting import (
    BudgetFacts,
    CeilingFacts,
    KeyFacts,
    SpendFacts,
    back_off_seconds,
    of_budget,
    of_ceilings,
    of_key,
    of_spend,
)
from proxy.domain.delivery import (
    Parcel,
    UnsafeUrlError,
    allowed_networks,
    body_of,
    check_addresses,
    check_url,
    signature,
)

USD = 10**9
BEGAN = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
ENDS = dt.datetime(2026, 12, 1, tzinfo=dt.UTC)
NIL = UUID(int=0)


def budget(spent: int, limit: int = 100 * USD, **more) -> BudgetFacts:
    values: dict[str, Any] = {
        "budget": NIL, "account": 7, "tenant": NIL, "scope": "tenant:acme", "period": "month", "limit": limit,
        "spent": spent, "starts_at": BEGAN, "ends_at": ENDS, "thresholds": ("0.5", "0.8", "1"),
    }  # fmt: skip
    return BudgetFacts(**values | more)


def whats(facts: BudgetFacts, day: int) -> list[str]:
    return [one.what for one in of_budget(facts, BEGAN + dt.timedelta(days=day))]


@pytest.mark.parametrize(
    ("spent", "day", "expected"),
    [
        (0, 15, []),
        (49 * USD, 29, []),
        (50 * USD, 29, ["threshold:0.5"]),
        (80 * USD, 29, ["threshold:0.5", "threshold:0.8"]),
        (100 * USD, 2, ["threshold:0.5", "threshold:0.8", "threshold:1"]),
        (40 * USD, 10, ["forecast:spent-early"]),
        (40 * USD, 13, []),
        (9 * USD, 2, []),  # too little of the limit
        (40 * USD, 1, []),  # too little of the month
    ],
)
def test_thresholds_and_forecasts(spent, day, expected):
    assert whats(budget(spent), day) == expected


def test_a_forecast_says_when():
    [one] = of_budget(budget(40 * USD), BEGAN + dt.timedelta(days=10))
    assert one.data["reached_at"].startswith("2026-11-26")
    assert "2026-11-26" in one.message and one.subject == f"budget:{NIL}/7"


def test_a_budget_without_an_end_or_a_limit_has_no_forecast():
    assert whats(budget(40 * USD, ends_at=None), 10) == []
    assert whats(budget(1, limit=0), 10) == ["threshold:0.5", "threshold:0.8", "threshold:1"]


@pytest.mark.parametrize(
    ("history", "spent", "told"),
    [
        ([USD] * 6, 100 * USD, False),  # too young
        ([USD] * 7, 3 * USD, False),
        ([USD] * 7, 3 * USD + 1, True),
        ([0] * 28, USD // 2, False),  # too little money
        ([0] * 28, 2 * USD, True),
        ([USD, 9 * USD] * 14, 20 * USD, False),  # four deviations are 21
        ([USD, 9 * USD] * 14, 22 * USD, True),
    ],
)
def test_anomalies(history, spent, told):
    facts = SpendFacts(tenant=NIL, tenant_slug="acme", today="2026-11-24", spent=spent, history=history)
    assert (of_spend(facts) is not None) is told


def test_a_key_is_told_of_twice_before_it_ends():
    facts = KeyFacts(key=NIL, name="ci", tenant=NIL, tenant_slug="acme", expires_at=ENDS)
    days = {n: [c.detail[-2:] for c in of_key(facts, ENDS - dt.timedelta(days=n))] for n in (8, 7, 2, 1, 0)}
    assert days == {8: [], 7: ["7d"], 2: ["7d"], 1: ["7d", "1d"], 0: []}


def test_ceilings_name_their_target():
    facts = CeilingFacts(tenant=NIL, tenant_slug="acme", target="us-east-1/m", attempts=3, charged=3 * USD)
    one = of_ceilings(facts)
    assert (one.what, one.data["charged_usd"]) == ("ceilings:us-east-1/m", "3.00")


def test_pauses_grow_and_end():
    steps = [back_off_seconds(n) for n in range(1, 11)]
    assert steps[:2] == [10, 30] and steps == [*sorted(s for s in steps if s), None]


PRIVATE = [
    "https://169.254.169.254/latest/meta-data", "https://[::ffff:169.254.169.254]/", "https://127.0.0.1/",
    "https://10.0.0.1/", "https://[::1]/", "https://[fd00::1]/", "https://[fe80::1]/", "https://0.0.0.0/",
    "https://[::127.0.0.1]/", "https://[64:ff9b::10.0.0.1]/", "https://[2002:7f00:1::]/", "https://224.0.0.1/",
    "https://100.64.0.1/", "https://192.0.2.1/", "https://255.255.255.255/",
]  # fmt: skip


@pytest.mark.parametrize(
    "url",
    [
        *PRIVATE, "http://example.com/", "ftp://example.com/", "file:///etc/passwd", "https://", "https://a b/",
        "https://user:pw@example.com/", "https://example.com/#x", "https://example.com\\@10.0.0.1/",
        "gopher://x", "https://example.com:99999/", "https://exämple.com/", "https://x/\n", "javascript:alert(1)",
    ],
)  # fmt: skip
def test_urls_that_no_webhook_has(url):
    with pytest.raises(UnsafeUrlError):
        check_url(url, ())


def test_urls_that_a_webhook_may_have():
    assert check_url("https://hooks.example.com/x?y=1", ()) == ("hooks.example.com", 443)
    assert check_url("https://8.8.8.8:8443/", ()) == ("8.8.8.8", 8443)
    inside = allowed_networks("10.0.0.0/8, fd00::/8")
    assert check_url("http://10.2.3.4/", inside) == ("10.2.3.4", 80)
    check_url("https://[fd00::1]/", inside)
    with pytest.raises(UnsafeUrlError):
        check_url("http://8.8.8.8/", inside)


def test_every_address_of_a_name_is_judged():
    public, private = ipaddress.ip_address("8.8.8.8"), ipaddress.ip_address("::ffff:10.0.0.1")
    check_addresses([public], "https", ())
    for bad in ([public, private], []):
        with pytest.raises(UnsafeUrlError):
            check_addresses(bad, "https", ())
    with pytest.raises(UnsafeUrlError):
        check_addresses([public], "http", allowed_networks("10.0.0.0/8"))


def test_what_is_sent_and_how_it_is_signed():
    parcel = Parcel(
        id=uuid4(), tries=1, webhook=NIL, url="https://x", format="json", sealed=b"", off=False, alert=NIL,
        kind="threshold", at=BEGAN, subject="budget:x", message="half", tenant="acme", data={"a": 1},
    )  # fmt: skip
    body = json.loads(body_of(parcel))
    assert (
        body["kind"] == "threshold" and body["at"] == "2026-11-01T00:00:00+00:00" and body["data"] == {"a": 1}
    )
    slack = Parcel(**{f: getattr(parcel, f) for f in Parcel.__dataclass_fields__} | {"format": "slack"})
    assert json.loads(body_of(slack)) == {"text": "half"}
    # printf '5.{}' | openssl dgst -sha256 -hmac secret
    expected = "f18d2fcd9a24151471e3e2d71bc7ce901fb7b89b341918a08f95e9ffc497ea26"
    assert signature(b"secret", 5, b"{}") == f"t=5,v1={expected}"
