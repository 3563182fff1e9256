"""The document says what the routes do: which fields there are, that no others are taken, and an example."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from proxy.web.admin import openapi_document
from proxy.web.admin.core import Page
from proxy.web.admin.shapes import PromptCachingOut
from proxy.web.schemas import nanos

DOCUMENT = openapi_document()
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
OPERATIONS = [
    (f"{method.upper()} {path}", method, operation)
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
]
WITH_BODY = [(name, method, one) for name, method, one in OPERATIONS if "requestBody" in one]


def schema_of(operation: dict[str, Any]) -> dict[str, Any]:
    reference: str = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    found: dict[str, Any] = SCHEMAS[reference.rpartition("/")[2]]
    return found


@pytest.mark.parametrize(
    ("method", "operation"), [one[1:] for one in WITH_BODY], ids=[o[0] for o in WITH_BODY]
)
def test_a_body_takes_the_fields_that_are_listed(method: str, operation: dict[str, Any]) -> None:
    schema = schema_of(operation)
    assert schema["additionalProperties"] is False
    assert operation["requestBody"]["required"] == (bool(schema["required"]) or method == "patch")
    assert schema.get("minProperties") == (1 if method == "patch" else None)


def test_every_reference_leads_somewhere_and_names_are_names() -> None:
    def references(node: Any) -> set[str]:
        if isinstance(node, dict):
            own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
            return own.union(*(references(value) for value in node.values()))
        return set().union(*(references(item) for item in node)) if isinstance(node, list) else set()

    found = references(DOCUMENT)
    assert len(found) > 40
    assert {reference.rpartition("/")[2] for reference in found} <= set(SCHEMAS)
    assert all(name.isidentifier() for name in SCHEMAS)


def test_constraints_of_lists_are_told() -> None:
    thresholds = SCHEMAS["BudgetIn"]["properties"]["thresholds"]
    assert thresholds["maxItems"] == 20 and thresholds["items"]["pattern"]
    assert SCHEMAS["BudgetIn"]["properties"]["floor_output_tokens"]["minimum"] == 1


def test_every_operation_has_a_name_a_summary_and_an_error() -> None:
    names = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(set(names)) == len(names) > 55
    for _, _, operation in OPERATIONS:
        assert operation["summary"] and operation["tags"]
        assert "application/problem+json" in operation["responses"]["default"]["content"]


def test_the_example_of_advice_is_an_answer_whose_sums_are_right() -> None:
    operation = DOCUMENT["paths"]["/admin/v1/reports/prompt-caching"]["get"]
    [example] = operation["responses"]["200"]["content"]["application/json"]["examples"].values()
    [item] = msgspec.convert(example["value"], Page[PromptCachingOut]).items
    assert item.best == item.options[0]
    for option in item.options:  # 3 USD per million tokens, 0.30 read from the cache, 3.75 written to it
        assert nanos(option.saved_usd) == option.read_tokens * 2_700 - option.write_tokens * 750
