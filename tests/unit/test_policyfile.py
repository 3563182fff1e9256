"""The packaged policies, what names mean, effective policies, reloading, and files that mean harm."""

import os
import shutil
import time
import tracemalloc
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pytest

from proxy import policyfile
from proxy.domain.policy import Limit
from proxy.errors import ConfigurationError, Refusal, UnboundedCost, UnknownModel
from proxy.policyfile import strict

REPOSITORY = Path(__file__).parents[2]
POLICIES = policyfile.load()
SEED = "meta.llama3-1-405b-instruct-v1:0"
ARN = "arn:aws:bedrock:us-west-2:123456789012:"
TENANT, PROJECT, KEY = UUID(int=1), UUID(int=2), UUID(int=3)


class TestPackaged:
    def test_loads_without_a_problem_within_a_second(self):
        started = time.process_time()
        assert policyfile.check() == []
        assert time.process_time() - started < 1

    def test_the_seed_model(self):
        model = POLICIES.models[SEED]
        assert (model.family, model.provider, model.name) == ("llama", "Meta", "Llama 3.1 405B Instruct")
        assert (model.context_tokens, model.max_output_tokens) == (128_000, 4_096)
        assert (model.default_output_tokens, model.native_max_output_tokens) == (512, 2_048)
        assert (model.end_of_life, model.streaming, model.count_tokens) == ("2026-07-07", True, False)

    def test_llama_4_does_not_stream(self):
        assert not POLICIES.models["meta.llama4-scout-17b-instruct-v1:0"].streaming

    def test_every_listed_name_resolves_to_targets_with_prices(self):
        assert len(POLICIES.ids) > 350
        for name in POLICIES.ids:
            route = POLICIES.resolve(name)
            for target in route.targets:
                assert POLICIES.priced(route.model, target).version(0)

    def test_the_default_plan_limits_nothing_and_caches_for_an_hour(self):
        plan = POLICIES.plan("default")
        assert (plan.limits, plan.budgets) == ((), ())
        policy = POLICIES.effective("default", None, None, ())
        assert policy.allows(SEED)
        assert policy.allows("anthropic.claude-opus-5")
        assert (policy.cache.enabled, policy.cache.ttl_seconds, policy.max_output_tokens) == (
            True,
            3_600,
            None,
        )

    def test_the_example_plan_has_limits_and_budgets(self):
        plan = POLICIES.plan("team")
        assert [budget.limit for budget in plan.budgets] == [500 * 10**9, 50 * 10**9]
        assert plan.budgets[0].thresholds == (Decimal("0.5"), Decimal("0.8"), Decimal(1))
        own = plan.limits_for(TENANT, None, KEY)
        assert [(limit.scope, limit.subject) for limit in own] == [("tenant", TENANT), ("key", KEY)]
        assert own == plan.limits_for(TENANT, PROJECT, KEY)
        assert not POLICIES.effective("team", None, None, ()).allows("anthropic.claude-opus-5")

    def test_a_budget_template_says_how_far_answers_are_clamped(self, tmp_path):
        folder = tmp_path / "policies"
        shutil.copytree(policyfile.directory(), folder)
        plan = folder / "plans" / "careful.yaml"
        budget = '{scope: key, period: day, limit_usd: "5", on_short: clamp, floor_output_tokens: %s}'
        plan.write_text(f"plan: careful\nbudgets:\n  - {budget % 64}\n  - {budget % 'null'}\n")
        given, absent = policyfile.load(folder).plan("careful").budgets
        assert (given.on_short, given.floor_output_tokens, absent.floor_output_tokens) == ("clamp", 64, 1)
        plan.write_text(f"plan: careful\nbudgets:\n  - {budget % 0}\n")
        [problem] = policyfile.check(folder)
        assert "0 is outside 1 to 10000000" in str(problem)

    def test_capacity_prices_are_kept_for_reports(self):
        kinds = [price.kind for price in POLICIES.capacity]
        assert [kinds.count(kind) for kind in ("provisioned", "reserved", "custom_model_units")] == [
            61,
            20,
            3,
        ]

    def test_an_installed_wheel_has_its_own_copy(self, tmp_path, monkeypatch):
        package = tmp_path / "proxy" / "policyfile"
        shutil.copytree(REPOSITORY / "policies", tmp_path / "proxy" / "_data" / "policies")
        monkeypatch.setattr("proxy.policyfile.loading.__file__", str(package / "loading.py"))
        assert policyfile.directory() == tmp_path / "proxy" / "_data" / "policies"
        assert policyfile.load().version == POLICIES.version


class TestResolve:
    @pytest.mark.parametrize(
        ("name", "model_id", "region", "kind", "prefix"),
        [
            (SEED, SEED, "us-east-1", "on_demand", None),
            (f"us.{SEED}", f"us.{SEED}", "us-east-1", "profile", "us"),
            (f"arn:aws:bedrock:us-west-2::foundation-model/{SEED}", None, "us-west-2", "on_demand", None),
            (f"{ARN}inference-profile/us.{SEED}", None, "us-west-2", "profile", "us"),
            ("eu.amazon.nova-lite-v1:0", "eu.amazon.nova-lite-v1:0", "eu-central-1", "profile", "eu"),
            ("global.anthropic.claude-opus-5", None, "us-east-1", "profile", "global"),
            ("us-gov.anthropic.claude-opus-5", None, "us-gov-west-1", "profile", "us-gov"),
            ("jp.anthropic.claude-opus-5", None, "ap-northeast-1", "profile", "jp"),
        ],
    )
    def test_ids_profiles_and_arns(self, name, model_id, region, kind, prefix):
        route = POLICIES.resolve(name)
        (target,) = route.targets
        assert (target.model_id, target.region, target.kind, target.prefix) == (
            model_id or name,
            region,
            kind,
            prefix,
        )
        assert route.name == name
        assert target.model == route.model.id
        assert name.endswith(route.model.id)

    def test_the_default_region_stays_where_the_geography_allows_it(self):
        europe = policyfile.load(region="eu-west-1")
        assert europe.resolve(SEED).targets[0].region == "eu-west-1"
        assert europe.resolve("eu.amazon.nova-lite-v1:0").targets[0].region == "eu-west-1"
        assert europe.resolve(f"us.{SEED}").targets[0].region == "us-east-1"

    def test_an_alias_has_ordered_targets_and_fallbacks(self):
        route = POLICIES.resolve("llama-405b")
        assert [target.label for target in route.targets] == [f"us-east-2/us.{SEED}", f"us-west-2/{SEED}"]
        assert route.fallbacks[0] == "meta.llama3-1-70b-instruct-v1:0"

    @pytest.mark.parametrize(
        ("name", "meant"),
        [
            ("meta.llama3-1-405b-instruct-v10", SEED),
            ("us.meta.llama3-1-405b-instruct-v10", f"us.{SEED}"),
            ("us.meta.llama3-1-405b-instruct-v1:00", f"us.{SEED}"),
            ("zai.glm-5.3", "us.zai.glm-5.3"),
            ("gpt-oss-120b", "openai.gpt-oss-120b"),
            ("anthropic.claude-opus5", "anthropic.claude-opus-5"),
            (f"{ARN}inference-profile/us.meta.llama3-1-405b-instruct-v10", f"us.{SEED}"),
        ],
    )
    def test_a_near_miss_is_told_what_was_meant(self, name, meant):
        with pytest.raises(UnknownModel) as caught:
            POLICIES.resolve(name)
        assert str(caught.value).endswith(f"did you mean {meant}?")

    @pytest.mark.parametrize(
        "name",
        [
            *("", "x" * 3_000, "us.", "us.us.amazon.nova-lite-v1:0", "\x1b[31mred", "../../other", "中文"),
            *(
                "arn:",
                "arn:aws:s3:::bucket",
                f"{ARN}foundation-model/us.{SEED}",
                f"{ARN}inference-profile/{SEED}",
            ),
            *(f"arn:aws:bedrock:moon-1::foundation-model/{SEED}", f"{SEED}:128k", SEED.upper()),
            f"arn:aws:bedrock:us-west-2.evil.example::foundation-model/{SEED}",
        ],
    )
    def test_what_is_no_model_is_refused(self, name):
        with pytest.raises(UnknownModel) as caught:
            POLICIES.resolve(name)
        assert len(str(caught.value)) < 400
        assert "\x1b" not in str(caught.value)

    @pytest.mark.parametrize(
        ("rest", "reason"),
        [
            ("application-inference-profile/abcdefghij12", "what it runs is not known here"),
            ("provisioned-model/abcdefghij12", "what it runs is not known here"),
            ("imported-model/abcdefghij12", "what it runs is not known here"),
            ("prompt-router/anthropic.claude:1", "chooses its model by itself"),
            ("prompt/ABCDEFGHIJ:1", "inside the prompt"),
            ("custom-model/abc", "deployment"),
        ],
    )
    def test_an_opaque_arn_is_refused_with_its_reason(self, rest, reason):
        with pytest.raises(UnboundedCost, match=reason):
            POLICIES.resolve(ARN + rest)

    def test_arns_from_the_control_plane(self):
        arns = {
            f"{ARN}application-inference-profile/a": f"us.{SEED}",
            f"{ARN}application-inference-profile/b": SEED,
            f"{ARN}provisioned-model/c": SEED,
            f"{ARN}imported-model/d": "no.such-model",
        }
        known = POLICIES.with_arns(arns)
        kinds = [known.resolve(arn).targets[0] for arn in list(arns)[:3]]
        assert [(t.kind, t.prefix, t.region) for t in kinds] == [
            ("profile", "us", "us-west-2"),
            ("on_demand", None, "us-west-2"),
            ("provisioned", None, "us-west-2"),
        ]
        assert known.priced(POLICIES.models[SEED], kinds[2]).upstream_free
        with pytest.raises(UnboundedCost, match="has no price"):
            known.resolve(f"{ARN}imported-model/d")
        with pytest.raises(UnboundedCost):
            POLICIES.resolve(f"{ARN}provisioned-model/c")

    def test_invented_names_fill_no_memory(self):
        for i in range(5_000):
            with pytest.raises(Refusal):
                POLICIES.resolve(f"{i}" * 40)
        for i in range(5_000):
            POLICIES.resolve(f"arn:aws:bedrock:us-west-2:{i:012}:inference-profile/us.{SEED}")
        assert len(POLICIES._resolved) <= 4_096


class TestEffective:
    def make(self, tenant=None, key=None, limits=(), plan="default", **more):
        return POLICIES.effective(plan, tenant, key, limits, **more)

    def test_a_tenant_replaces_and_a_key_narrows(self):
        tenant = {
            "models_allowed": ["meta.*", "amazon.nova-*"],
            "max_output_tokens": 1_000,
            "cache": {"ttl_seconds": 60},
        }
        key = {
            "models_allowed": ["meta.llama3-*", "*"],
            "models_denied": [SEED],
            "max_output_tokens": 5_000,
            "cache": {"ttl_seconds": 600, "enabled": False},
        }
        assert self.make(tenant).models_allowed == ("meta.*", "amazon.nova-*")
        policy = self.make(tenant, key)
        assert set(policy.models_allowed) == {"meta.llama3-*", "meta.*", "amazon.nova-*"}
        assert not policy.allows(SEED)
        assert (policy.max_output_tokens, policy.default_output_tokens) == (1_000, 1_000)
        assert (policy.cache.ttl_seconds, policy.cache.enabled) == (60, False)

    def test_a_key_cannot_widen(self):
        tenant = {
            "models_allowed": ["meta.*"],
            "arns_allowed": [f"{ARN}guardrail/a"],
            "cache": {"enabled": False},
        }
        key = {
            "models_allowed": ["anthropic.*", "meta.llama3-3*"],
            "arns_allowed": ["*"],
            "cache": {"enabled": True},
            "max_body_bytes": 99_000_000,
        }
        policy = self.make(tenant, key)
        assert policy.models_allowed == ("meta.llama3-3*",)
        assert policy.arns_allowed == (f"{ARN}guardrail/a",)
        assert not policy.cache.enabled
        assert policy.max_body_bytes == 25_000_000
        assert self.make({"models_allowed": ["meta.*"]}, {"models_allowed": ["*.llama"]}).models_allowed == ()

    def test_equal_policies_have_equal_versions_and_limits_do_not_count(self):
        limit = Limit(id=UUID(int=9), scope="key", subject=KEY, requests_per_minute=1)
        one, same = self.make(), self.make({}, {}, [limit])
        assert one.version == same.version
        assert same.limits == (limit,)
        assert one.version != self.make({"cache": {"ttl_seconds": 3_601}}).version

    def test_a_plans_own_limits_come_with_the_scopes(self):
        policy = self.make(plan="team", scopes=(TENANT, PROJECT, KEY))
        assert [limit.subject for limit in policy.limits] == [TENANT, KEY]
        assert self.make(plan="team").limits == ()

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            ({"max_output": 5}, "there is no key 'max_output' here"),
            ({"max_output_tokens": "5"}, "whole number"),
            ({"max_output_tokens": 5.5}, "whole number"),
            ({"max_output_tokens": True}, "whole number"),
            ({"models_allowed": "meta.*"}, "a list is expected"),
            ({"models_allowed": ["meta.llama3-1-405b-instruct-v10"]}, "did you mean"),
            ({"cache": {"enabled": "yes"}}, "true or false"),
            ({"limits": []}, "there is no key 'limits' here"),
            ({"cache": {"cache": {}}}, "there is no key 'cache' here"),
        ],
    )
    def test_wrong_overrides_are_refused(self, overrides, message):
        with pytest.raises(ConfigurationError, match=message):
            POLICIES.check_overrides(overrides)
        with pytest.raises(ConfigurationError, match=message):
            self.make(None, overrides)

    def test_null_says_nothing(self):
        assert self.make({"max_output_tokens": None, "models_allowed": None}) == self.make()

    def test_an_unknown_plan_is_refused(self):
        with pytest.raises(ConfigurationError, match="no plan 'gold'"):
            self.make(plan="gold")


class TestReload:
    @pytest.fixture
    def folder(self, tmp_path):
        shutil.copytree(REPOSITORY / "tests" / "policies" / "base", tmp_path / "policies")
        return tmp_path / "policies"

    def write(self, path, text):
        path.write_text(text)
        stat = path.stat()
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))

    def test_whole_or_not_at_all(self, folder):
        watch = policyfile.Watch(folder)
        first, plan = watch.current, folder / "plans" / "default.yaml"
        assert watch.reload_if_changed() is None
        self.write(plan, "plan: default\nmax_output_tokens: 7\n")
        second = watch.reload_if_changed()
        assert second is watch.current is not first
        assert second.effective("default", None, None, ()).max_output_tokens == 7
        self.write(plan, "plan: default\nmax_output_tokens: seven\n")
        assert watch.reload_if_changed() is None
        assert watch.current is second
        assert [problem.line for problem in watch.problems] == [2]
        self.write(plan, "plan: default\nmax_output_tokens: 8\n")
        assert watch.reload_if_changed() is watch.current
        assert watch.problems == ()

    def test_a_touched_file_changes_nothing(self, folder):
        watch = policyfile.Watch(folder)
        self.write(folder / "plans" / "default.yaml", (folder / "plans" / "default.yaml").read_text())
        assert watch.reload_if_changed() is None

    def test_a_folder_that_is_wrong_says_so(self, folder, tmp_path):
        assert next(str(p) for p in policyfile.check(tmp_path / "nowhere")).endswith(
            "there is no such folder"
        )
        (folder / "plan").mkdir()
        (folder / "prices" / "notes.yaml~").write_text("")
        (folder / "models" / "sub").mkdir()
        (folder / "plans" / "default.yaml").unlink()
        assert [str(problem) for problem in policyfile.check(folder)] == [
            "models/sub:1:1: this is no file",
            "plan:1:1: policies are in the folders models, prices, plans, routes, rules and nowhere else",
            "plans:1:1: there are no plans in this folder",
            "prices/notes.yaml~:1:1: policy files end in .yaml",
        ]


HOSTILE = {
    "deep": b"[" * 1_900_000,
    "deep block": b"".join(b" " * i + b"a:\n" for i in range(1_500)),
    "wide": b"[" + b"a," * 900_000 + b"]",
    "many keys": b"".join(b"k%d: 1\n" % i for i in range(150_000)),
    "unknown keys": b"plan: default\n" + b"".join(b"models_alowed%d: 1\n" % i for i in range(29_000)),
    "unknown models": b"models_allowed: [" + b"meta.llama3-1-405b-instruct-v10," * 50_000 + b"]",
    "laughs": b"a: &a [x,x]\n" + b"".join(b"b%d: [*a,*a]\n" % i for i in range(50_000)),
    "long scalar": b'a: "' + b"x" * 1_900_000 + b'"',
    "long key": b"x" * 1_900_000 + b": 1",
    "too large": b"a" * 3_000_000,
    "not utf-8": b"plan: \xff\xfe\n",
    "utf-16": "plan: default\n".encode("utf-16"),
    "nul": b"plan: a\0b\n",
    "question marks": b"? " * 500_000,
    "comments": b"#\n" * 900_000,
    "surrogate": b'a: "\\ud800"\n',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_end_in_a_problem_within_a_second_and_64_megabytes(name, tmp_path):
    shutil.copytree(REPOSITORY / "tests" / "policies" / "base", tmp_path / "policies")
    (tmp_path / "policies" / "plans" / "default.yaml").write_bytes(HOSTILE[name])
    started = time.process_time()
    problems = policyfile.check(tmp_path / "policies")
    assert time.process_time() - started < 1
    assert 0 < len(problems) < 60
    assert all(str(problem).isprintable() and len(str(problem)) < 500 for problem in problems)
    tracemalloc.start()
    try:
        strict.parse(HOSTILE[name])
    except strict.BrokenFileError as broken:
        assert broken.line >= 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20
