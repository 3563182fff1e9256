"""FOCUS: what the check demands of columns, types and rows."""

import pytest

from proxy.domain import focus

HEADER = [column.name for column in focus.COLUMNS] + ["x_KeyId"]
ROW = dict.fromkeys(HEADER, "") | {
    "BilledCost": "1.5", "EffectiveCost": "1.5", "ListCost": "1.5", "ContractedCost": "1.5", "BillingAccountId": "acme",
    "BillingCurrency": "USD", "BillingPeriodStart": "2026-11-01T00:00:00Z", "BillingPeriodEnd": "2026-12-01T00:00:00Z",
    "ChargePeriodStart": "2026-11-05T00:00:00Z", "ChargePeriodEnd": "2026-11-06T00:00:00Z", "ChargeCategory": "Usage",
    "ChargeFrequency": "Usage-Based", "ConsumedQuantity": "3", "ConsumedUnit": "Tokens", "PricingQuantity": "3",
    "PricingUnit": "Tokens", "PricingCategory": "Standard", "ListUnitPrice": "0.5", "ContractedUnitPrice": "0.5",
    "InvoiceIssuerName": "us", "ProviderName": "AWS", "PublisherName": "Meta", "ServiceName": "Amazon Bedrock",
    "ServiceCategory": "AI and Machine Learning", "SkuId": "m", "SkuPriceId": "p", "Tags": '{"a": "b"}',
}  # fmt: skip


def test_the_columns_of_the_version():
    assert len(focus.COLUMNS) == 43
    assert focus.violations(HEADER, [ROW]) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"BilledCost": ""}, "must not be null"),
        ({"BilledCost": "1,000"}, "no number"),
        ({"BilledCost": "$1"}, "no number"),
        ({"ChargePeriodStart": "2026-11-05"}, "no UTC time"),
        ({"ChargePeriodStart": "2026-11-05T00:00:00+01:00"}, "no UTC time"),
        ({"ChargePeriodEnd": "2026-11-05T00:00:00Z"}, "not before"),
        ({"ChargePeriodEnd": "2026-12-02T00:00:00Z"}, "outside of the billing period"),
        ({"ChargeCategory": "usage"}, "is none of"),
        ({"BillingCurrency": "usd"}, "ISO 4217"),
        ({"Tags": "{'a': 1}"}, "no JSON"),
        ({"Tags": '{"a": {"b": 1}}'}, "simple values"),
        ({"PricingUnit": ""}, "together"),
        ({"PricingQuantity": "", "PricingUnit": ""}, "needs PricingQuantity"),
        ({"ListUnitPrice": "0.4"}, "ListCost is 1.5"),
        ({"ServiceName": " x"}, "spaces"),
        ({"CommitmentDiscountStatus": "Used"}, "without CommitmentDiscountId"),
    ],
)
def test_a_row_that_is_wrong(change, told):
    problem, *_ = focus.violations(HEADER, [ROW | change])
    assert problem.startswith("row 1: ") and told in problem


def test_a_header_that_is_wrong():
    assert focus.violations(HEADER[1:], []) == [f"the column {HEADER[0]} is missing"]
    assert "begin with x_" in focus.violations([*HEADER, "KeyId"], [])[0]
    assert focus.violations([*HEADER, "SkuId"], []) == ["a column stands twice"]


def test_a_correction_needs_no_units():
    empty = (
        "PricingQuantity",
        "PricingUnit",
        "ConsumedQuantity",
        "ConsumedUnit",
        "ListUnitPrice",
        "ContractedUnitPrice",
    )
    assert focus.violations(HEADER, [ROW | dict.fromkeys(empty, "") | {"ChargeClass": "Correction"}]) == []
    assert len(focus.violations(HEADER, [ROW | {"BilledCost": ""}] * 500)) == 100
