"""`models/*.yaml`: the base models of one provider per file."""

from __future__ import annotations

import re
from datetime import date

from proxy.domain.catalogue import Model
from proxy.policyfile.schema import Reader
from proxy.policyfile.strict import Node, Scalar

_ID = re.compile(r"[a-z0-9][A-Za-z0-9._-]*(:[0-9]+)*")
_KEYS = (
    *("name", "family", "context_tokens", "max_output_tokens", "default_output_tokens"),
    *("native_max_output_tokens", "modality", "streaming", "openai", "count_tokens", "end_of_life"),
)
_REQUIRED = ("name", "family", "context_tokens", "max_output_tokens", "modality")


def read_models(node: Node, reader: Reader, models: dict[str, Model]) -> None:
    """Add the file's models to `models`."""
    top = reader.table(node, ("provider", "models"), ("provider", "models"))
    provider = reader.text(top.items.get("provider"), 100) or ""
    for key, value in reader.entries(top.items.get("models")):
        if not _ID.fullmatch(key.value) or "." not in key.value:
            reader.fail(key, f"{key.value!r} is no model id, such as meta.llama3-1-8b-instruct-v1:0")
        elif key.value in models:
            reader.fail(key, f"the model {key.value} is in another file too")
        else:
            models[key.value] = _model(key, provider, value, reader)


def _model(key: Scalar, provider: str, node: Node, reader: Reader) -> Model:
    items = reader.table(node, _KEYS, _REQUIRED).items
    return Model(
        id=key.value,
        provider=provider,
        name=reader.text(items.get("name"), 100) or key.value,
        family=reader.name(items.get("family")) or "",
        context_tokens=reader.integer(items.get("context_tokens"), 0, 100_000_000) or 0,
        max_output_tokens=reader.integer(items.get("max_output_tokens"), 0, 100_000_000) or 0,
        default_output_tokens=reader.integer(items.get("default_output_tokens"), 1),
        native_max_output_tokens=reader.integer(items.get("native_max_output_tokens"), 1),
        modality=reader.text(items.get("modality"), 100) or "text->text",
        streaming=reader.boolean(items.get("streaming")) is not False,
        openai=reader.boolean(items.get("openai")) is True,
        count_tokens=reader.boolean(items.get("count_tokens")) is True,
        end_of_life=_day(items.get("end_of_life"), reader),
    )


def _day(node: Node | None, reader: Reader) -> str | None:
    word = reader.text(node, 10)
    if word is None or node is None:
        return None
    try:
        return date.fromisoformat(word).isoformat()
    except ValueError:
        reader.fail(node, f"{word!r} is no date, such as 2026-07-07")
        return None
