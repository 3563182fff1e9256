"""Raw price records made into `policies/models/*.yaml` and `policies/prices/<date>.yaml`.

    python -m proxy.pricefile records.json policies 2026-11-23

Deterministic: the same records give the same bytes, so a new collection of prices is reviewed as a diff.
A record is one JSON object per model, profile, Region, kind and variant, with USD amounts as decimal
strings per million tokens (`input_usd_per_million`, ...) or apiece (`unit`), and the model's facts.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]

_RATES = {
    "input_usd_per_million": "input",
    "output_usd_per_million": "output",
    "cache_read_usd_per_million": "cache_read",
    "cache_write_usd_per_million": "cache_write_5m",
    "cache_write_1h_usd_per_million": "cache_write_1h",
}
_CAPACITY = frozenset({"provisioned_throughput", "reserved_tier", "custom_model_unit"})
#: first match wins
_FAMILIES = (
    ("meta.llama", "llama"),
    ("anthropic.claude-v", "anthropic-text"),
    ("anthropic.claude-instant", "anthropic-text"),
    ("anthropic.", "anthropic"),
    ("amazon.nova-canvas", "nova-canvas"),
    ("amazon.nova-reel", "nova-reel"),
    ("amazon.nova-2-multimodal-embeddings", "nova-embed"),
    ("amazon.nova-sonic", "nova-sonic"),
    ("amazon.nova-2-sonic", "nova-sonic"),
    ("amazon.nova-2-5-sonic", "nova-sonic"),
    ("amazon.nova", "nova"),
    ("amazon.titan-image", "titan-image"),
    ("amazon.titan-embed", "titan-embed"),
    ("amazon.titan-text", "titan-text"),
    ("amazon.rerank", "rerank"),
    ("cohere.rerank", "rerank"),
    ("cohere.embed", "cohere-embed"),
    ("cohere.command-r", "cohere-command"),
    ("cohere.command", "cohere-command-text"),
    ("mistral.mistral-7b", "mistral-text"),
    ("mistral.mixtral", "mistral-text"),
    ("mistral.mistral-large-2402", "mistral-text"),
    ("mistral.mistral-small-2402", "mistral-text"),
    ("mistral.", "mistral"),
    ("ai21.jamba", "jamba"),
    ("ai21.", "ai21-j2"),
    ("deepseek.r1", "deepseek"),
    ("openai.", "openai"),
    ("stability.", "stability"),
    ("twelvelabs.", "twelvelabs"),
    ("luma.", "luma"),
)
_OPENAI_FAMILIES = frozenset({"openai", "openai-compatible", "anthropic"})
_NO_STREAM = re.compile(r"meta\.llama4|ai21\.j2|amazon\.rerank|cohere\.rerank|cohere\.embed")
_NO_COUNT = re.compile(r"anthropic\.claude-3-(haiku|opus|sonnet|5-sonnet-20240620)")
_SOURCES = {
    "list": "litellm 1.109.1's price map, whose entries cite AWS's price list and model cards",
    "old": "litellm 1.80.0's price map, for entries that newer maps dropped",
    "page": "AWS's pricing page as of 2026-07-24",
}
_UNBOUNDED = (
    ("query", "it is priced per query, and one request can make many"),
    ("output_video_second", "it is priced per second of video, by an asynchronous call that is not served"),
    ("input_video_second", "it is priced per second of video"),
    ("input_audio_token", "speech is priced apart from text, on a stream that is not served"),
    ("speech_input", "speech is priced apart from text, on a stream that is not served"),
)


def family(model: str) -> str:
    """Name of the dialect of the model's native body; `openai-compatible` where none is of its own."""
    return next((name for prefix, name in _FAMILIES if model.startswith(prefix)), "openai-compatible")


def base_of(record: Record) -> str:
    return str(record.get("base_model_id") or record["model_id"])


def quote(value: Any) -> str:
    """A scalar as YAML: words bare, everything that could be read otherwise in double quotes."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9_./-]*", value) and value not in {"true", "false", "null"}:
        return str(value)
    return json.dumps(value, ensure_ascii=False)


def flow(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow, value)) + "]"
    return quote(value)


def rates(record: Record) -> dict[str, str]:
    return {short: record[name] for name, short in _RATES.items() if record.get(name) is not None}


def units(record: Record) -> dict[str, str]:
    """USD apiece of whatever is not priced per million tokens."""
    listed = record.get("unit")
    found = (
        {key.removeprefix("usd_per_"): usd for key, usd in listed.items()}
        if isinstance(listed, Mapping)
        else {}
    )
    for key in ("output_image", "output_video_second"):
        if record.get(f"usd_per_{key}") is not None:
            found[key] = record[f"usd_per_{key}"]
    for key in ("speech_input", "speech_output"):
        if record.get(f"{key}_usd_per_million") is not None:
            found[f"{key}_million"] = record[f"{key}_usd_per_million"]
    return dict(sorted(found.items()))


def variant(record: Record) -> str | None:
    """Size and quality (or steps) of a generated image, or the height of a video, as one word."""
    named = record.get("variant")
    if named:
        size = re.sub(r"[^0-9a-z]+", "-", str(named["size"]).replace("-x-", "x"))
        return f"{size}/{named.get('quality') or named.get('steps')}"
    if record["kind"] == "async_video":
        return str(record["note"]).split(" ", 1)[0]
    return None


def _unbounded(found: Mapping[str, str], listed: Mapping[str, str]) -> str | None:
    for unit, reason in _UNBOUNDED:
        usd = found.get(unit) or found.get(f"{unit}_million")
        if usd is None or usd == "0":
            continue
        if unit == "input_video_second" and "input" in listed:
            continue
        if unit == "input_audio_token" and _per_million(usd) == listed.get("input"):
            continue
        return reason
    return None


def _per_million(usd: str) -> str:
    whole, _, rest = usd.partition(".")
    digits = rest.ljust(6, "0")
    shifted = f"{int(whole + digits[:6])}.{digits[6:]}"
    return shifted.rstrip("0").rstrip(".")


def entry(record: Record) -> dict[str, Any]:
    """One record as one line of the price file."""
    line: dict[str, Any] = {}
    if record.get("profile_prefix"):
        line["profile"] = record["profile_prefix"]
    if record["region"] != "*":
        line["regions"] = record["region"].split(",")
    if record["endpoint"] != "bedrock-runtime":
        line["endpoint"] = record["endpoint"].removeprefix("bedrock-")
    if record["kind"] == "latency_optimized":
        line["latency"] = "optimized"
    if name := variant(record):
        line["variant"] = name
    listed, found = rates(record), units(record)
    line |= listed
    if found:
        line["units"] = found
    if record.get("tiers"):
        line["tiers"] = {name: rates(tier) for name, tier in sorted(record["tiers"].items())}
    if record.get("long_context"):
        line["long_context"] = [
            {"over": step["applies_when_input_tokens_over"], **rates(step)} for step in record["long_context"]
        ]
    if reason := _unbounded(found, listed):
        line["unbounded"] = reason
    return line | _remarks(record)


def _remarks(record: Record) -> dict[str, Any]:
    line: dict[str, Any] = {}
    doubt = str(record.get("doubt") or "")
    if record.get("stale"):
        line["doubt"] = "no longer listed"
    elif doubt.startswith("Bare in-region ID"):
        line["reserve_as"] = "us"
        line["doubt"] = "listed at the Global rate; AWS may charge the Geo rate in-region"
    elif doubt.startswith("Doubles"):
        line["doubt"] = f"Public Extended Access rate since {record['effective_from']}"
    elif doubt:
        line["doubt"] = "AWS's page (Geo and In-region) over the list's Global rate"
    source = str(record["source"])
    line["source"] = "page" if source.startswith("AWS") else "old" if "1.80.0" in source else "list"
    return line


def _order(record: Record) -> tuple[Any, ...]:
    return (
        *(
            record["endpoint"] != "bedrock-runtime",
            record.get("profile_prefix") or "",
            record["region"] != "*",
        ),
        *(record["region"], record["kind"], variant(record) or ""),
    )


def capacity(records: Iterable[Record]) -> dict[str, list[dict[str, Any]]]:
    """What is paid by the hour or minute, whether used or not."""
    sections: dict[str, list[dict[str, Any]]] = {"provisioned": [], "reserved": [], "custom_model_units": []}
    for record in records:
        place = {} if record["region"] == "*" else {"region": record["region"]}
        if record["kind"] == "provisioned_throughput":
            line = {"model": record["model_id"], **place, "commitment": record["commitment"]}
            sections["provisioned"].append({**line, "model_unit_hour": record["usd_per_model_unit_hour"]})
        elif record["kind"] == "reserved_tier":
            line = {
                "model": record["model_id"],
                "routing": record["routing"],
                "commitment": record["commitment"],
            }
            line["input_1k_tpm_hour"] = record["usd_per_hour_per_1k_input_tpm"]
            line["output_1k_tpm_hour"] = record["usd_per_hour_per_1k_output_tpm"]
            sections["reserved"].append(line)
        elif record["kind"] == "custom_model_unit":
            line = {"version": record["model_id"].rsplit(" ", 1)[-1], "minute": record["usd_per_cmu_minute"]}
            line["storage_month"] = record["usd_per_cmu_month_storage"]
            sections["custom_model_units"].append(
                {**line, "window_minutes": record["billing_window_minutes"]}
            )
    return {
        name: sorted(lines, key=lambda line: tuple(map(str, line.values())))
        for name, lines in sections.items()
    }


def price_file(records: Iterable[Record], version: str) -> str:
    """The text of `prices/<version>.yaml`."""
    rows = list(records)
    lines = [
        "# On-demand prices of Amazon Bedrock in USD per million tokens; `units` are USD apiece.",
        "# Written by proxy/pricefile.py from collected records. Correct a price by adding a later file that",
        "# names only what changes. `regions` absent: every Region. `doubt` says what is not certain.",
        f'effective_from: "{version}T00:00:00Z"',
        "sources:",
        *(f"  {name}: {quote(about)}" for name, about in sorted(_SOURCES.items())),
    ]
    for record in rows:
        if record["kind"] == "guardrail":
            lines.append("# USD per unit; the names are the members of GuardrailUsage")
            lines += [
                "guardrails:",
                *(f"  {k}: {quote(v)}" for k, v in sorted(record["usd_per_unit"].items())),
            ]
    by_model: dict[str, list[Record]] = defaultdict(list)
    for record in rows:
        if record["kind"] not in _CAPACITY and record["kind"] != "guardrail":
            by_model[base_of(record)].append(record)
    lines.append("prices:")
    for model in sorted(by_model):
        lines.append(f"  {model}:")
        lines += [f"    - {flow(entry(record))}" for record in sorted(by_model[model], key=_order)]
    lines += ["# paid by the hour or the minute, used or not; for reports", "capacity:"]
    for section, items in capacity(rows).items():
        lines += [f"  {section}:", *(f"    - {flow(item)}" for item in items)]
    return "\n".join(lines) + "\n"


def model_entry(model: str, records: list[Record]) -> dict[str, Any]:
    """Facts of a base model, the widest where records disagree (a bound must not be too small)."""
    main = next(
        (r for r in records if r["kind"] == "on_demand" and r["endpoint"] == "bedrock-runtime"), records[0]
    )

    def most(name: str) -> int:
        return max((r[name] for r in records if r.get(name) is not None), default=0)

    kind = family(model)
    facts: dict[str, Any] = {"name": main["name"] if main["name"] != model else _title(model), "family": kind}
    facts["context_tokens"] = most("context_window")
    default = most("default_max_output_tokens")
    facts["max_output_tokens"] = max(most("max_output_tokens"), default)
    if default:
        facts["default_output_tokens"] = default
    if native := most("documented_native_max"):
        facts["native_max_output_tokens"] = native
    facts["modality"] = main["modality"]
    makes_text = str(main["modality"]).endswith("->text")
    if not makes_text or _NO_STREAM.match(model):
        facts["streaming"] = False
    if kind in _OPENAI_FAMILIES or any(r["endpoint"] == "bedrock-mantle" for r in records):
        facts["openai"] = True
    if kind == "anthropic" and not _NO_COUNT.match(model):
        facts["count_tokens"] = True
    if main.get("deprecation_date"):
        facts["end_of_life"] = main["deprecation_date"]
    return facts


def _title(model: str) -> str:
    words = model.split(".", 1)[-1].rsplit("-v", 1)[0].split("-")
    return " ".join(word.capitalize() for word in words)


def model_files(records: Iterable[Record]) -> dict[str, str]:
    """Text of each `models/<provider>.yaml`, by file name."""
    providers: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record["kind"] not in _CAPACITY and record["kind"] != "guardrail":
            providers[record["provider"]][base_of(record)].append(record)
    files = {}
    for provider, models in sorted(providers.items()):
        lines = [
            "# Written by proxy/pricefile.py. Tokens; 0 where no figure is known.",
            f"provider: {quote(provider)}",
        ]
        lines.append("models:")
        for model in sorted(models):
            lines.append(f"  {model}:")
            lines += [
                f"    {key}: {quote(value)}" for key, value in model_entry(model, models[model]).items()
            ]
        name = re.sub(r"[^a-z0-9]+", "-", provider.lower()).strip("-")
        files[f"{name}.yaml"] = "\n".join(lines) + "\n"
    return files


def write(records: list[Record], directory: Path, version: str) -> list[Path]:
    """Write every file; returns their paths. Files of earlier price versions are left alone."""
    texts = {directory / "models" / name: text for name, text in model_files(records).items()}
    texts[directory / "prices" / f"{version}.yaml"] = price_file(records, version)
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return sorted(texts)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: python -m proxy.pricefile RECORDS.json POLICIES_DIR YYYY-MM-DD")
    for written in write(json.loads(Path(sys.argv[1]).read_text("utf-8")), Path(sys.argv[2]), sys.argv[3]):
        print(written)
