"""The join of ledger and bill, and the arithmetic of the table."""

import dataclasses

import pytest

from proxy.replay.report import (
    Billed,
    Entry,
    billed,
    compare,
    difference_lines,
    entry,
    ledger_table,
    nano,
    unrecorded,
    usd,
)

ROW = Entry("call-1", "attempt-1", "acme", "POST", "request-1", (374, 44, 0, 0), 1_003_200, 1_003_200)
BILL = Billed("request-1", (374, 44, 0, 0), 1_003_200, "call-1", "attempt-1")


def changed(thing, **fields):
    return dataclasses.replace(thing, **fields)


def kinds(entries, bill):
    return [d.kind for d in compare(entries, bill).differences]


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.001003200", 1_003_200), ("12.50", 12_500_000_000), ("0", 0), ("-0.5", -500_000_000),
     ("999999999.999999999", 999_999_999_999_999_999)],
)  # fmt: skip
def test_money_is_read_exactly(text, value):
    assert nano(text) == value


@pytest.mark.parametrize(
    "text", ["", "x", "0.0000000001", 0.1, 1, None, "NaN", "Infinity", "1E-9", "+1", "1.", "1,5"]
)
def test_what_is_no_money_is_refused(text):
    with pytest.raises(ValueError):
        nano(text)


def test_money_is_shown_with_all_its_decimals():
    assert [usd(n) for n in (0, 1, -1, 12_500_000_000)] == [
        "0.000000000",
        "0.000000001",
        "-0.000000001",
        "12.500000000",
    ]


ITEM = {
    "id": "call-1", "attempt": "attempt-1", "tenant": "acme", "outcome": "POST", "cost_usd": "0.0010032",
    "upstream_request_id": "request-1",
    "usage": {"input_tokens": 374, "output_tokens": 44, "cache_read_tokens": 0, "cache_write_tokens": 0},
}  # fmt: skip


def test_items_of_the_admin_rest_and_of_the_bill():
    assert entry(ITEM) == ROW
    assert entry(ITEM | {"upstream_cost_usd": "0"}) == changed(ROW, upstream_nano=0)
    still_open = entry(ITEM | {"outcome": "OPEN", "cost_usd": None, "upstream_request_id": None})
    assert (still_open.request_id, still_open.cost_nano) == ("", 0)
    stamp = {"tollhouse-call": "call-1", "tollhouse-attempt": "attempt-1"}
    call = {"request_id": "request-1", "metadata": stamp, "input_tokens": 374, "output_tokens": 44,
            "cost_usd": "0.001003200"}  # fmt: skip
    assert billed(call) == BILL
    assert billed(call | {"metadata": None, "cache_read_tokens": 7}) == Billed(
        "request-1", (374, 44, 7, 0), 1_003_200
    )


def test_equal_is_equal():
    second = changed(ROW, call="call-2", attempt="attempt-2", request_id="request-2")
    bill = [BILL, changed(BILL, request_id="request-2", attempt="")]
    result = compare([ROW, second], bill)
    assert (result.compared, result.differences) == (2, [])
    assert result.billed_nano == {"acme": 2_006_400}


def test_one_nano_dollar_and_one_token_are_seen():
    assert kinds([ROW], [changed(BILL, cost_nano=1_003_201)]) == ["different cost"]
    assert kinds([ROW], [changed(BILL, tokens=(374, 45, 0, 0))]) == ["different tokens"]
    assert kinds([ROW], [changed(BILL, tokens=(373, 44, 1, 0))]) == ["different tokens"]


def test_missing_either_way():
    assert kinds([], [BILL]) == ["billed, not in the ledger"]
    assert kinds([ROW], []) == ["in the ledger, not billed"]


def test_the_bill_is_compared_with_what_aws_is_owed_not_with_what_the_tenant_pays():
    assert kinds([changed(ROW, cost_nano=5)], [BILL]) == []
    assert kinds([changed(ROW, upstream_nano=5)], [BILL]) == ["different cost"]


def test_void_and_hit_owe_nothing_unless_they_were_billed():
    void = changed(ROW, outcome="VOID", cost_nano=0, upstream_nano=0, tokens=(0, 0, 0, 0))
    hit = changed(void, outcome="HIT", request_id="fresh")
    assert kinds([void, hit], []) == []
    assert kinds([void], [BILL]) == ["different tokens", "different cost"]
    assert kinds([changed(hit, request_id="request-1")], [BILL]) == ["billed, not in the ledger"]


def test_a_ceiling_is_a_difference_billed_or_not():
    ceiling = changed(ROW, outcome="CEILING", request_id="", tokens=(0, 0, 0, 0), upstream_nano=9_000_000)
    assert kinds([ceiling], []) == ["in the ledger, not billed"]
    assert kinds([ceiling], [BILL]) == ["different request id", "different tokens", "different cost"]


def test_an_open_call_is_reported_once():
    waiting = changed(ROW, outcome="OPEN", request_id="", cost_nano=0, upstream_nano=0)
    assert kinds([waiting], [BILL]) == ["still open"]


def test_a_second_sending_under_one_attempt_is_found():
    assert kinds([ROW], [BILL, changed(BILL, request_id="request-2")]) == ["billed twice for one attempt"]


def test_an_answer_that_a_client_has_seen_needs_its_row():
    assert unrecorded({"call-1": "acme"}, [ROW]) == []
    (missing,) = unrecorded({"call-1": "acme", "call-9": "umbra"}, [ROW])
    assert (missing.kind, missing.what, missing.tenant) == ("answered, not in the ledger", "call-9", "umbra")


def test_the_table_adds_up():
    hit = changed(ROW, outcome="HIT", cost_nano=0, upstream_nano=0, call="call-3", attempt="attempt-3")
    other = changed(
        ROW, tenant="umbra", attempt="attempt-2", tokens=(1, 2, 3, 4), cost_nano=7, upstream_nano=7
    )
    counts = {
        "acme": {"answered": 2, "refused": 1, "failed": 0},
        "umbra": {"answered": 1, "refused": 0, "failed": 4},
    }
    head, acme, umbra, total = ledger_table(
        ["acme", "umbra"], counts, [ROW, hit, other], {"acme": 1_003_200, "umbra": 6}
    )
    assert head.split()[:2] == ["tenant", "calls"]
    assert acme.split() == [
        "acme",
        "3",
        "2",
        "1",
        "0",
        "1",
        "374",
        "44",
        "0.001003200",
        "0.001003200",
        "0.000000000",
    ]
    assert umbra.split() == [
        "umbra",
        "5",
        "1",
        "0",
        "4",
        "0",
        "8",
        "2",
        "0.000000007",
        "0.000000006",
        "0.000000001",
    ]
    assert total.split() == [
        "all",
        "8",
        "3",
        "1",
        "4",
        "1",
        "382",
        "46",
        "0.001003207",
        "0.001003206",
        "0.000000001",
    ]
    assert len({len(line) for line in (head, acme, umbra, total)}) == 1


def test_without_a_bill_the_table_shows_what_the_tenant_pays():
    _, acme, _ = ledger_table(["acme"], {"acme": {"answered": 1}}, [changed(ROW, upstream_nano=0)], None)
    assert acme.split() == ["acme", "1", "1", "0", "0", "0", "374", "44", "0.001003200"]


def test_many_differences_are_counted_and_the_first_shown():
    found = compare([], [changed(BILL, request_id=f"request-{n}") for n in range(30)]).differences
    lines = difference_lines(found)
    assert lines[0] == "30 billed, not in the ledger"
    assert lines[-1] == "  and 10 more"
    assert "request-19" in lines[-2]
