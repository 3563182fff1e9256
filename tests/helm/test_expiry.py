"""What ends soon is counted: keys that somebody uses, and the certificate that is served."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from proxy import telemetry, throughputs, tls
from proxy.domain.usage import Usage
from proxy.errors import ConfigurationError
from proxy.postgres.engine import create_engine
from proxy.postgres.keeper import Keeper
from tests.conftest import execute

TENANT = "INSERT INTO tenants (id, slug, name, status) VALUES (md5('{0}')::uuid, '{0}', '{0}', '{1}')"
KEY = (
    "INSERT INTO keys (id, tenant, name, status, expires_at) "
    "VALUES (md5('{name}')::uuid, md5('{tenant}')::uuid, '{name}', '{status}', now() + interval '{ends}')"
)
#: a row needs every sum
SUMS = (
    "attempts, cost, upstream_cost, saved, refunded, adjusted, overrun, input_tokens, output_tokens, "
    "cache_read_tokens, cache_write_tokens, images, guardrail_units"
)
USED = (
    f"INSERT INTO usage_days (tenant, day, month, project, key, model, target, tags, operation, state, {SUMS}) "
    "VALUES (md5('{tenant}')::uuid, current_date - {ago}, date_trunc('month', now())::date, "
    "'00000000-0000-0000-0000-000000000000', md5('{name}')::uuid, 1, 1, 0, 1, 1"
    + ", 1" * len(SUMS.split(","))
    + ")"
)


def key(
    name: str, ends: str, *, tenant: str = "busy", status: str = "active", ago: int | None = 1
) -> list[str]:
    made = [KEY.format(name=name, tenant=tenant, status=status, ends=ends)]
    return made if ago is None else [*made, USED.format(tenant=tenant, name=name, ago=ago)]


async def test_keys_in_use_are_counted_by_when_they_end(database_url: str) -> None:
    execute(
        database_url, TENANT.format("busy", "active"), TENANT.format("asleep", "suspended"),
        *key("tomorrow", "20 hours"), *key("this-week", "6 days"), *key("this-month", "29 days", ago=7),
        *key("later", "31 days"), *key("over", "-1 hour"), *key("unused", "2 days", ago=None),
        *key("used-long-ago", "2 days", ago=9), *key("revoked", "2 days", status="revoked"),
        *key("of-a-suspended-tenant", "2 days", tenant="asleep"),
    )  # fmt: skip
    engine = create_engine(database_url, pool_size=1)
    try:
        assert await Keeper(engine).keys_expiring() == {"1d": 1, "7d": 2, "30d": 3}
    finally:
        await engine.dispose()


def test_the_end_of_a_certificate(tmp_path: Path) -> None:
    made = tls.init(tmp_path, days=10)
    assert abs(tls.ends_at(str(made.certificate)) - time.time() - 10 * 86_400) < 60
    (tmp_path / "broken.pem").write_text("no certificate")
    for name in ("broken.pem", "absent.pem"):
        with pytest.raises(ConfigurationError, match=name):
            tls.ends_at(str(tmp_path / name))


def _shown() -> dict[tuple[str, str, str | None], float]:
    return {
        (sample.name, sample.labels["target"], sample.labels.get("kind")): sample.value
        for metric in (telemetry.PROVISIONED_TOKENS, telemetry.PROVISIONED_UNITS)
        for family in metric.collect()
        for sample in family.samples
    }


def test_throughputs_have_labels_of_their_own_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughputs, "_units", {})
    counted = "tollhouse_provisioned_tokens_total"
    before = _shown().get((counted, "other", "input"), 0)  # other tests of this process count, too
    throughputs.found({"us-east-1/arn:one": 3})
    throughputs.served("us-east-1/arn:one", Usage(input_tokens=5, cache_read_tokens=2, output_tokens=1))
    for number in range(throughputs.SHOWN_MAX + 10):
        throughputs.served(f"us-east-1/arn:{number}", Usage(input_tokens=1))
    throughputs.found({})
    shown = _shown()
    assert shown[counted, "us-east-1/arn:one", "input"] == 7
    assert shown[counted, "us-east-1/arn:one", "output"] == 1
    assert shown[counted, "other", "input"] - before == 11
    assert shown["tollhouse_provisioned_units", "us-east-1/arn:one", None] == 0
