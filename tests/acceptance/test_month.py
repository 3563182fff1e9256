"""A month in the life of a company of forty tenants, driven through REST and CLI alone, in shifted time.

Onboarding, a key's rotation, a team that overspends, a top-up, a price change, month end: at the end the
statements are the ledger, and the ledger is what the simulated Bedrock put on its bill.
"""

from __future__ import annotations

import contextlib
import csv
import datetime as dt
import http.server
import io
import json
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from proxy import policyfile
from proxy.cli import main
from proxy.domain import focus
from proxy.embedded import Postgres
from proxy.postgres.migrate import upgrade
from proxy.simulator import config as simulator_config
from proxy.simulator.launch import Simulator
from proxy.simulator.launch import start as start_simulator
from tests.conftest import APPLICATION, BOOTSTRAP, OWNER
from tests.support.clock import Clock, library
from tests.support.stack import Proxy, nano

MODEL = "meta.llama3-1-8b-instruct-v1:0"
OTHER = "anthropic.claude-3-haiku-20240307-v1:0"
ZONES = ("UTC", "Europe/Berlin", "America/Los_Angeles", "Pacific/Auckland")
TENANTS = 40
REAL_MONTH = dt.datetime.now(dt.UTC).replace(day=1, hour=12, minute=0, second=0, microsecond=0)
#: the month that is lived: the next one, so that time only goes forward
FIRST = (REAL_MONTH + dt.timedelta(days=32)).replace(day=1)
NEXT = (FIRST + dt.timedelta(days=32)).replace(day=1)
MONTH = f"{FIRST:%Y-%m}"

pytestmark = [
    pytest.mark.skipif(
        library() is None, reason="libfaketime (Debian: faketime) shifts the time, and is not here"
    ),
    pytest.mark.slow,
    pytest.mark.timeout(300),
]


@dataclass
class Issuer:
    """An identity provider of the company's own, on this machine."""

    url: str = ""
    key: rsa.RSAPrivateKey = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))

    def token(self, at: dt.datetime, *groups: str) -> str:
        now = int(at.timestamp())
        claims = {"iss": self.url, "aud": "tollhouse", "sub": "u1", "email": "ann@example.com", "iat": now,
                  "exp": now + 600, "groups": list(groups)}  # fmt: skip
        return jwt.encode(claims, self.key, algorithm="RS256", headers={"kid": "k1"})


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    made = Issuer()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            jwk = jwt.get_algorithm_by_name("RS256").to_jwk(made.key.public_key(), as_dict=True)
            documents = {
                "/.well-known/openid-configuration": {"issuer": made.url, "jwks_uri": f"{made.url}/keys"},
                "/keys": {"keys": [{**jwk, "kid": "k1", "alg": "RS256", "use": "sig"}]},
            }
            body = json.dumps(documents[self.path]).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


@dataclass
class Company:
    """The running world. `tokens` are the keys in use, by tenant."""

    proxy: Proxy
    clock: Clock
    policies: Path
    simulators: list[Simulator]
    new_simulator: Callable[..., Simulator]
    tokens: dict[str, str] = field(default_factory=dict)
    key_ids: dict[str, str] = field(default_factory=dict)

    def cli(self, *words: str, code: int = 0) -> Any:
        """What `tollhouse ... --json` prints."""
        text = self.cli_text(*words, "--json", code=code)
        return json.loads(text) if text.strip() else None

    def cli_text(self, *words: str, code: int = 0) -> str:
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
            patch.setenv("TOLLHOUSE_URL", self.proxy.url)
            patch.setenv("TOLLHOUSE_ADMIN_KEY", self.proxy.admin_key)
            with contextlib.redirect_stderr(io.StringIO()) as err:
                assert main(words) == code, err.getvalue() + out.getvalue()
        return out.getvalue()

    def ask(
        self, token: str, model: str = MODEL, words: int = 10, team: str | None = None
    ) -> tuple[int, Any]:
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": [{"text": "word " * words}]}],
            "inferenceConfig": {"maxTokens": 40},
        }
        if team is not None:
            body["requestMetadata"] = {"team": team}
        for _ in range(40):  # what was refused for now is asked again, as every SDK does
            status, _, answer = self.proxy.request("POST", f"/model/{model}/converse", body, key=token)
            if status != 503:
                break
            time.sleep(0.5)
        return status, answer

    def await_token(self, token: str) -> None:
        """A fresh key is known everywhere within a second; a busy machine may take longer."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            status, _, answer = self.proxy.request("GET", "/v1/models", key=token)
            if status == 200:
                return
            time.sleep(0.05)
        raise AssertionError(f"an issued key was not accepted within 30 s: {status} {answer}")

    def work(self, calls: int) -> None:
        """Every tenant makes so many calls, of differing size; they must all succeed."""
        jobs = [(slug, n) for n in range(calls) for slug in self.tokens]

        def one(job: tuple[str, int]) -> int:
            slug, n = job
            size = 5 + zlib.crc32(f"{slug}/{n}".encode()) % 60
            return self.ask(self.tokens[slug], MODEL if n % 3 else OTHER, size, team=slug[-1])[0]

        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(one, jobs)) == {200}

    def day(self, moment: dt.datetime) -> None:
        """Let time pass; the world is open again when everybody agrees about the time."""
        self.clock.set(moment)
        self.proxy.await_ready(seconds=60)
        assert self.ask(self.tokens["team-00"], model="no.such-model")[0] == 400, self.log()

    def log(self) -> str:
        """What the processes said, and how they are."""
        assert self.proxy.log is not None
        ended = [process.poll() for process in self.proxy.processes]
        return f"ended: {ended}\n{self.proxy.log.read_text()[-4000:]}"

    def bill(self) -> int:
        return sum(nano(simulator.bill()["total_usd"]) for simulator in self.simulators)


@pytest.fixture(scope="module")
def company(
    tmp_path_factory: pytest.TempPathFactory, server_dir: Path, session_redis_url: str, issuer: Issuer
) -> Iterator[Company]:
    folder = tmp_path_factory.mktemp("month")
    preload = library()
    assert preload is not None
    clock = Clock(server_dir, preload)
    policies = folder / "policies"
    shutil.copytree(policyfile.directory(), policies)
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        bin_dir = clock.postgres(server_dir / "shifted")
        server = Postgres.start(server_dir / "month", bootstrap=BOOTSTRAP, bin_dir=bin_dir, throwaway=True)
        stack.enter_context(server)
        upgrade(server.url_for(role=OWNER), application_role=APPLICATION)
        for name, value in clock.environment.items():
            patch.setenv(name, value)  # only processes that are started from here on

        def new_simulator(**settings: Any) -> Simulator:
            made = start_simulator(**settings)
            stack.callback(made.stop)
            return made

        first = new_simulator()
        settings = {
            "TOLLHOUSE_POLICIES_DIR": str(policies), "TOLLHOUSE_OIDC_ISSUER": issuer.url,
            "TOLLHOUSE_ADMIT_TIMEOUT_MS": "20000", "TOLLHOUSE_OIDC_AUDIENCE": "tollhouse",
            "TOLLHOUSE_OIDC_ROLES": "admin=platform; auditor=finance",
        }  # fmt: skip
        proxy = Proxy(
            server.url_for(role=APPLICATION), session_redis_url, first.url, folder / "state", settings
        )
        stack.callback(proxy.kill)
        clock.set(FIRST + dt.timedelta(days=1))
        proxy.start()
        proxy.start("worker", wait=False)
        yield Company(proxy, clock, policies, [first], new_simulator)


def onboard(company: Company) -> None:
    """Half of them through the CLI, half through REST."""
    for n in range(TENANTS):
        slug, zone = f"team-{n:02}", ZONES[n % len(ZONES)]
        if n % 2:
            company.cli("tenants", "create", slug, f"Team {n}", "--time-zone", zone)
            company.cli("projects", "create", slug, "app", "App")
            key = company.cli("keys", "issue", slug, "app", "--project", "app")
            company.cli("budgets", "create", f"tenant:{slug}", "month", "5")
        else:
            company.proxy.tenant(slug, time_zone=zone)
            company.proxy.admin("POST", f"/tenants/{slug}/projects", {"id": "app", "name": "App"}, expect=201)
            key = company.proxy.admin(
                "POST", "/keys", {"tenant": slug, "name": "app", "project": "app"}, expect=201
            )
            company.proxy.budget(f"tenant:{slug}", "5")
        company.tokens[slug], company.key_ids[slug] = key["bearer_token"], key["id"]
    assert len(company.cli("tenants", "list")["items"]) == TENANTS
    assert "team-07" in company.cli_text("tenants", "list", "--limit", "50")
    for token in company.tokens.values():
        company.await_token(token)


def rotate(company: Company) -> str:
    """Returns the token that was replaced."""
    old = company.tokens["team-03"]
    fresh = company.cli("keys", "rotate", company.key_ids["team-03"], "--grace-seconds", "86400")
    company.tokens["team-03"] = fresh["bearer_token"]
    company.await_token(fresh["bearer_token"])
    assert (company.ask(old)[0], company.ask(fresh["bearer_token"])[0]) == (200, 200)
    return old


def overspend(company: Company) -> None:
    """A team with too small a budget is stopped, its threshold is told once, and a top-up lets it go on."""
    company.cli("tenants", "create", "spender", "Big Spender")
    key = company.cli("keys", "issue", "spender", "batch")
    budget = company.cli("budgets", "create", "tenant:spender", "month", "0.0005", "--thresholds", "0.5")
    token = key["bearer_token"]
    company.await_token(token)
    statuses = [company.ask(token, words=200 + n)[0] for n in range(60)]
    assert statuses[0] == 200 and statuses[-1] in (400, 429), statuses
    stopped = company.cli("budgets", "show", budget["id"])
    assert nano(stopped["settled_usd"]) + nano(stopped["reserved_usd"]) <= nano("0.0005")
    deadline = time.monotonic() + 90
    while not (told := company.cli("alerts", "list", "--kind", "threshold", "--tenant", "spender")["items"]):
        assert time.monotonic() < deadline, company.log()
        time.sleep(0.2)
    assert len(told) == 1 and "50 %" in told[0]["message"]
    company.cli("budgets", "adjust", budget["id"], "1", "launch week")
    assert company.ask(token, words=300)[0] == 200
    company.tokens["spender"] = token


def change_prices(company: Company, since: dt.datetime) -> None:
    """Bedrock doubles a price; the book says so before, in a file that is taken over while running."""
    (company.policies / "prices" / f"{since:%Y-%m-%d}.yaml").write_text(
        f'effective_from: "{since:%Y-%m-%dT%H:%M:%SZ}"\nprices:\n  {MODEL}:\n    - {{input: "0.44", output: "0.44"}}\n'
    )
    version = policyfile.load(company.policies).version
    for _ in range(300):
        if company.cli("policies", "show")["version"] == version:
            break
        time.sleep(0.05)
    assert company.cli("policies", "show")["version"] == version
    assert f"{since:%Y-%m-%d}" in [one["id"] for one in company.cli("prices", "list")["items"]]


def move_to_dearer_bedrock(company: Company) -> None:
    records = json.loads(simulator_config.PRICES.read_text())
    for record in records:
        if record["id"] == MODEL:
            record |= {"in": "0.44", "out": "0.44"}
    prices = company.policies.parent / "dearer.json"
    prices.write_text(json.dumps(records))
    company.simulators.append(company.new_simulator(prices=str(prices)))
    company.proxy.stop()
    company.proxy.upstream_url = company.simulators[-1].url
    company.proxy.start()
    company.proxy.start("worker", wait=False)


def test_a_month(company: Company, issuer: Issuer) -> None:
    onboard(company)
    company.work(3)
    ann = issuer.token(company.clock.now(), "people", "platform")
    made = company.proxy.request(
        "POST", "/admin/v1/tenants/team-00/projects", {"id": "oidc", "name": "By Ann"}, key=ann
    )
    assert made[0] == 201
    finance = issuer.token(company.clock.now(), "finance")
    assert company.proxy.request("GET", "/admin/v1/reports/spend", key=finance)[0] == 200
    assert company.proxy.request("POST", "/admin/v1/tenants", {"id": "x", "name": "X"}, key=finance)[0] == 403
    assert company.proxy.request("GET", "/admin/v1/tenants", key=issuer.token(FIRST, "platform"))[0] == 401

    company.day(FIRST + dt.timedelta(days=8))
    old = rotate(company)
    overspend(company)
    change = FIRST.replace(day=15, hour=0)
    change_prices(company, change)

    company.day(change + dt.timedelta(hours=20))
    assert company.ask(old)[0] == 403  # the grace is over
    move_to_dearer_bedrock(company)
    company.work(2)
    [newest] = company.cli("calls", "list", "--model", MODEL, "--limit", "1")["items"]
    assert newest["price_version"] == f"{change:%Y-%m-%d}"

    company.day(NEXT)  # noon UTC of the first: the month is over in Los Angeles too
    assert_month_end(company)


def assert_month_end(company: Company) -> None:
    slugs = [one["id"] for one in company.cli("tenants", "list")["items"]]
    assert len(slugs) == TENANTS + 1
    company.proxy.settled_calls()
    issued = [company.cli("statements", "issue", slug, MONTH) for slug in slugs]
    assert company.cli_text("statements", "issue", slugs[0], MONTH, code=1) == ""
    total = sum(nano(one["total_usd"]) for one in issued)
    assert total == sum(nano(line["cost_usd"]) for one in issued for line in one["lines"])
    ledger = company.proxy.calls()
    assert total == sum(nano(call["cost_usd"]) for call in ledger) == company.bill()
    assert {call["outcome"] for call in ledger} <= {"POST", "HIT"}
    report = company.cli("reports", "spend", "--group-by", "tenant,month")
    assert nano(report["total_usd"]) == total and {one["month"] for one in report["items"]} == {MONTH}
    by_tag = company.cli("reports", "spend", "--group-by", "tag:team")
    assert nano(by_tag["total_usd"]) == total and len(by_tag["items"]) == 12
    exported = company.cli_text("reports", "spend", "--format", "focus")
    rows = list(csv.DictReader(io.StringIO(exported)))
    assert focus.violations(list(rows[0]), rows) == []
    assert sum(nano(row["BilledCost"]) for row in rows) == total
    assert company.cli("audit", "verify") == {"intact": True, "first_bad": None}

    assert company.ask(company.tokens["spender"], words=7)[0] == 200  # a new month, a new budget
    [fresh] = company.cli("budgets", "list", "--tenant", "spender")["items"]
    assert nano(fresh["effective_limit_usd"]) == nano("0.0005")
    tested = company.cli(
        "policies", "backtest", str(company.policies), "--since", f"{FIRST:%Y-%m-%d}T00:00:00Z"
    )
    assert tested["complete"] and tested["cost_usd"] == tested["new_cost_usd"]
