"""Quotas per sliding minute and the prompt cache's memory."""

import pytest

from proxy.simulator.capacity import PromptCache, Quotas, burndown
from proxy.simulator.catalog import Catalog, Model
from proxy.simulator.config import PRICES, Config, Quota
from proxy.simulator.errors import Refusal
from proxy.simulator.families.base import Prompt
from proxy.simulator.prices import Usage, load

LLAMA = "meta.llama3-1-405b-instruct-v1:0"
CLAUDE = "anthropic.claude-sonnet-4-5-20250929-v1:0"


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog(Config(), load(PRICES))


@pytest.fixture
def llama(catalog: Catalog) -> Model:
    return catalog.resolve(LLAMA, "us-east-1")


def test_requests_per_minute_slide(llama, monkeypatch):
    now = [1_000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    quotas = Quotas({LLAMA: Quota(requests_per_minute=2)})
    quotas.take(llama, 10)
    now[0] += 30
    quotas.take(llama, 10)
    with pytest.raises(Refusal, match="Too many requests"):
        quotas.take(llama, 10)
    now[0] += 30
    assert quotas.take(llama, 10) is not None


def test_tokens_are_taken_at_the_limit_and_corrected_to_what_was_used(llama):
    quotas = Quotas({LLAMA: Quota(tokens_per_minute=1_000)})
    lease = quotas.take(llama, 900)
    assert lease is not None
    with pytest.raises(Refusal, match="Too many tokens"):
        quotas.take(llama, 200)
    lease.end(LLAMA, Usage(input=100, output=50, cache_read=5_000))
    assert quotas.take(llama, 850) is not None


def test_no_quota_no_lease(llama):
    assert Quotas({}).take(llama, 10**9) is None


def test_concurrency_of_provisioned_capacity(catalog):
    arn = "arn:aws:bedrock:us-east-1:123456789012:provisioned-model/aaaabbbbcccc"
    catalog.add({"arn": arn, "model": LLAMA, "concurrency": 1})
    model = catalog.resolve(arn, "us-east-1")
    assert not model.per_token
    quotas = Quotas({})
    lease = quotas.take(model, 10)
    assert lease is not None
    with pytest.raises(Refusal, match="ThrottlingException"):
        quotas.take(model, 10)
    lease.end(model.base, Usage())
    assert quotas.take(model, 10) is not None


def test_burndown():
    assert burndown(LLAMA) == 1
    assert burndown("anthropic.claude-opus-4-8") == 15
    assert burndown("anthropic.claude-opus-5-5") == 10
    assert burndown(CLAUDE) == 5


def marked(*parts: tuple[str, str | None]) -> Prompt:
    prompt = Prompt()
    for text, ttl in parts:
        prompt.add(text)
        if ttl:
            prompt.mark(ttl)
    return prompt


def test_a_prefix_is_written_once_and_read_until_it_expires(catalog, monkeypatch):
    now = [1_000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    model = catalog.resolve(CLAUDE, "us-east-1")
    cache = PromptCache(min_tokens=1)
    prompt = marked(("abcd " * 50, "1h"), ("efgh " * 30, "5m"), ("tail", None))
    first = cache.split(model, prompt.tokens, prompt.marks)
    assert (first.input, first.cache_read, first.cache_write, first.cache_write_1h) == (1, 0, 30, 50)
    second = cache.split(model, prompt.tokens, prompt.marks)
    assert (second.input, second.cache_read, second.cache_write, second.cache_write_1h) == (1, 80, 0, 0)
    now[0] += 301
    third = cache.split(model, prompt.tokens, prompt.marks)
    assert (third.cache_read, third.cache_write) == (50, 30)


def test_another_prefix_or_model_is_not_read(catalog):
    model = catalog.resolve(CLAUDE, "us-east-1")
    cache = PromptCache(min_tokens=1)
    prompt = marked(("abcd " * 50, "5m"))
    cache.split(model, prompt.tokens, prompt.marks)
    other = marked(("abce " * 50, "5m"))
    assert cache.split(model, other.tokens, other.marks).cache_read == 0
    nova = catalog.resolve("amazon.nova-lite-v1:0", "us-east-1")
    assert cache.split(nova, prompt.tokens, prompt.marks).cache_read == 0


def test_short_prefixes_are_not_cached(catalog):
    model = catalog.resolve(CLAUDE, "us-east-1")
    prompt = marked(("abcd", "5m"), ("efgh", None))
    assert PromptCache(min_tokens=10).split(model, prompt.tokens, prompt.marks) == Usage(input=2)
