"""Collected records become price files and come back out of the price book unchanged."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from proxy import policyfile, pricefile
from proxy.domain.rates import MILLION, Price, PriceKey, Rates, usd

REPOSITORY = Path(__file__).parents[2]
RECORDS = json.loads((REPOSITORY / "tests" / "policies" / "data" / "records.json").read_text("utf-8"))
#: digest of `raw_lines` over all 680 collected records
COLLECTED = "fed460afc2bf2855db164e167aef9b7af77bca5106507530bc58f4d4cb7c6a81"
CAPACITY = {"provisioned_throughput", "reserved_tier", "custom_model_unit", "guardrail"}
TOKENS = ("input", "output", "cache_read", "cache_write", "cache_write_1h")


def shown(rates: Iterable[str | None]) -> str:
    return "/".join("-" if rate is None else rate for rate in rates)


def raw_rates(record: dict[str, Any]) -> str:
    return shown(record.get(f"{kind}_usd_per_million") for kind in TOKENS)


def raw_units(record: dict[str, Any]) -> dict[str, str]:
    listed = record["unit"] if isinstance(record.get("unit"), dict) else {}
    found = {key.removeprefix("usd_per_"): value for key, value in listed.items()}
    for key in ("output_image", "output_video_second"):
        found |= {key: record[f"usd_per_{key}"]} if f"usd_per_{key}" in record else {}
    for key in ("speech_input", "speech_output"):
        name = f"{key}_usd_per_million"
        found |= {f"{key}_million": record[name]} if name in record else {}
    return found


def raw_lines(records: Iterable[dict[str, Any]]) -> Iterator[str]:
    """One line per place that records price, without the converter: rates, modifiers, units apiece."""
    places: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if record["kind"] in CAPACITY:
            continue
        for region in record["region"].split(","):
            place = [record.get("base_model_id") or record["model_id"], record.get("profile_prefix") or ""]
            latency = "optimized" if record["kind"] == "latency_optimized" else "standard"
            places.setdefault(" ".join([*place, region, record["endpoint"], latency]), []).append(record)
    for name, group in places.items():
        main = group[0]
        parts = [name, raw_rates(main)]
        parts += [f"{tier}={raw_rates(rates)}" for tier, rates in sorted(main.get("tiers", {}).items())]
        for step in main.get("long_context", []):
            parts.append(f">{step['applies_when_input_tokens_over']}={raw_rates(step)}")
        units = [(key, usd) for record in group for key, usd in raw_units(record).items()]
        yield " ".join(parts + dearest(units))


def dearest(units: Iterable[tuple[str, str]]) -> list[str]:
    found: dict[str, Decimal] = {}
    for key, amount in units:
        found[key] = max(found.get(key, Decimal(0)), Decimal(amount))
    return [f"{key}:{found[key].normalize():f}" for key in sorted(found)]


def book_rates(rates: Rates) -> str:
    listed = (rates.input, rates.output, rates.cache_read, rates.cache_write_5m, rates.cache_write_1h)
    return shown(None if rate is None else usd(rate) for rate in listed)


def book_lines(policies: policyfile.PolicySet) -> Iterator[str]:
    (version,) = policies.prices.versions
    for key, price in version.prices.items():
        parts = [key.model, key.prefix or "", key.region, f"bedrock-{key.endpoint}", key.latency]
        parts.append(book_rates(price.rates))
        units = [(unit, usd(rate // MILLION)) for unit, rate in price.units.items()]
        yield " ".join(parts + list(modifiers(price)) + dearest(units))


def modifiers(price: Price) -> Iterator[str]:
    for name, rates in sorted(price.tiers.items()):
        yield f"{name}={book_rates(rates)}"
    for step in price.long_context:
        yield f">{step.over}={book_rates(step.rates)}"


def digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


@pytest.fixture(scope="module")
def packaged():
    return policyfile.load()


def test_every_collected_price_is_in_the_packaged_book(packaged):
    assert digest(book_lines(packaged)) == COLLECTED


def test_the_variants_of_generated_images_are_kept_apart(packaged):
    canvas = packaged.prices.versions[0].prices[PriceKey("amazon.nova-canvas-v1:0")]
    assert {name: usd(rate // MILLION) for name, rate in canvas.images.items()} == {
        "": "0.06",
        "1024x1024/50-steps": "0.06",
        "up-to-1024x1024/standard": "0.04",
        "up-to-1024x1024/premium": "0.06",
        "up-to-2048x2048/standard": "0.06",
        "up-to-2048x2048/premium": "0.08",
    }


def test_sample_records_are_in_the_packaged_book(packaged):
    missing = set(raw_lines(RECORDS)) - set(book_lines(packaged))
    assert not missing


def test_records_round_trip_through_files(tmp_path):
    written = pricefile.write(RECORDS, tmp_path, "2026-11-23")
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "default.yaml").write_text("plan: default\n")
    assert policyfile.check(tmp_path) == []
    policies = policyfile.load(tmp_path)
    assert sorted(book_lines(policies)) == sorted(set(raw_lines(RECORDS)))
    texts = [path.read_text() for path in written]
    assert pricefile.write(list(reversed(RECORDS)), tmp_path, "2026-11-23") == written
    assert [path.read_text() for path in written] == texts  # the order of records does not matter


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("meta.llama3-1-405b-instruct-v1:0", "llama"),
        ("anthropic.claude-opus-5", "anthropic"),
        ("anthropic.claude-v2:1", "anthropic-text"),
        ("amazon.nova-pro-v1:0", "nova"),
        ("amazon.nova-canvas-v1:0", "nova-canvas"),
        ("amazon.titan-embed-text-v2:0", "titan-embed"),
        ("mistral.mixtral-8x7b-instruct-v0:1", "mistral-text"),
        ("mistral.mistral-large-2407-v1:0", "mistral"),
        ("deepseek.r1-v1:0", "deepseek"),
        ("deepseek.v3.2", "openai-compatible"),
        ("qwen.qwen3-32b-v1:0", "openai-compatible"),
        ("openai.gpt-oss-120b-1:0", "openai"),
        ("stability.sd3-5-large-v1:0", "stability"),
    ],
)
def test_families(packaged, model, family):
    assert packaged.models[model].family == family


def test_words_that_yaml_could_misread_are_quoted():
    words = {"no": "no", "v": "1.5", "t": "true", "c": "a: b", "n": 5, "b": False, "l": ["x y"]}
    assert pricefile.flow(words) == '{no: no, v: "1.5", t: "true", c: "a: b", n: 5, b: false, l: ["x y"]}'
