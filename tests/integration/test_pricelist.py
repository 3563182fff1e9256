"""`tollhouse prices update` against a small Price List API of our own: units told apart, jumps refused."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy import cli, policyfile
from proxy.bedrock.pricelist import PriceList, read_product
from proxy.domain.catalogue import Target
from proxy.domain.pricelist import Listed

RAISED = 'input: "3", output: "2.4", tiers: {batch: {input: "1.2", output: "1.2"}}'
LLAMA, HAIKU = "meta.llama3-1-405b-instruct-v1:0", "anthropic.claude-3-haiku-20240307-v1:0"


def product(
    usage: str, amount: str, unit: str, description: str = "", region: str = "us-west-2", **more: str
) -> Any:
    """A product as the Price List API gives it (format aws_v1)."""
    dimension = {"unit": unit, "pricePerUnit": {"USD": amount}, "description": description, "beginRange": "0",
                 "endRange": "Inf", "appliesTo": [], "rateCode": "SKU.TERM.RATE"}  # fmt: skip
    return {
        "product": {"productFamily": "Amazon Bedrock", "sku": "SKU",
                    "attributes": {"usagetype": usage, "regionCode": region, **more}},
        "terms": {"OnDemand": {"SKU.TERM": {"priceDimensions": {"SKU.TERM.RATE": dimension}, "sku": "SKU"}}},
        "version": "20261123000000", "publicationDate": "2026-11-23T00:00:00Z",
    }  # fmt: skip


def llama(kind: str, amount: str, rest: str = "", description: str = "", unit: str = "1K tokens") -> Any:
    return product(
        f"USW2-Llama3-1-405B-{kind}-tokens{rest}", amount, unit, description, model="Llama 3.1 405B Instruct"
    )


def haiku(
    what: str, amount: str, description: str = "AWS Marketplace software usage|us-west-2|Million Input Tokens"
) -> Any:
    return product(f"USW2-MP:USW2_{what}-Units", amount, "Units", description,
                   servicename="Claude 3 Haiku (Amazon Bedrock Edition)")  # fmt: skip


@pytest.mark.parametrize(
    ("item", "service", "expected"),
    [
        (llama("input", "0.0024000000"), "AmazonBedrock", ("input", 2_400_000_000, None, None, "standard")),
        (llama("output", "0.0012", "-batch"), "AmazonBedrock", ("output", 1_200_000_000, None, "batch", "standard")),
        (llama("output", "0.003", "-latency-optimized"), "AmazonBedrock",
         ("output", 3_000_000_000, None, None, "optimized")),
        (llama("input", "0.0024", description="$0.0024 per 1,000 input tokens"), "AmazonBedrock",
         ("input", 2_400_000_000, None, None, "standard")),
        (haiku("InputTokenCount", "0.25"), "AmazonBedrockFoundationModels",
         ("input", 250_000_000, None, None, "standard")),
        (haiku("CacheWrite1hInputTokenCount_Global", "2"), "AmazonBedrockFoundationModels",
         ("cache_write_1h", 2_000_000_000, "global", None, "standard")),
        (haiku("input_tokens_global_standard", "1", ""), "AmazonBedrockFoundationModels",
         ("input", 1_000_000_000, "global", None, "standard")),
        (haiku("MillionBatchInputTokens", "0.125", ""), "AmazonBedrockFoundationModels",
         ("input", 125_000_000, None, "batch", "standard")),
        (product("USE1-Claude4Sonnet-output-tokens-cross-region-global", "0.015", "1K tokens"), "AmazonBedrockService",
         ("output", 15_000_000_000, "global", None, "standard")),
    ],
)  # fmt: skip
def test_a_line_is_read_with_its_unit(item, service, expected):
    line = read_product(item, service)
    assert isinstance(line, Listed), line
    assert (line.kind, line.rate, line.prefix, line.tier, line.latency) == expected


@pytest.mark.parametrize(
    ("item", "service", "why"),
    [
        (llama("input", "2.4", unit="1M tokens"), "AmazonBedrock", "usually per 1K"),
        (llama("input", "2.4", description="$2.4 per million tokens"), "AmazonBedrock", "named as 1K and 1M"),
        (haiku("InputTokenCount", "0.00025", "per 1K input tokens"), "AmazonBedrockFoundationModels", "usually per 1M"),
        (llama("output", "0.0048", "-long-context"), "AmazonBedrock", "'-long-context' is not understood"),
        (product("USE1-openai.gpt-oss-120b-mantle-input-tokens-standard", "0.0001", "1K tokens"), "AmazonBedrock",
         "another endpoint"),
        (haiku("SearchUnits", "2"), "AmazonBedrockFoundationModels", "not understood"),
        (product("USE1-Guardrail-ContentPolicy", "0.1", "1K units"), "AmazonBedrock", "no price of tokens"),
        (llama("input", "0.0000000000001"), "AmazonBedrock", "more decimals"),
    ],
)  # fmt: skip
def test_a_line_that_is_not_certain_is_left_out(item, service, why):
    read = read_product(item, service)
    assert not isinstance(read, Listed)
    usage, reason = read
    assert usage == item["product"]["attributes"]["usagetype"]
    assert why in reason


class Api(http.server.ThreadingHTTPServer):
    """GetProducts, two to a page; `products` by service code."""

    def __init__(self) -> None:
        self.products: dict[str, list[Any]] = {}
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        api = self.server
        assert isinstance(api, Api)
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert self.headers["x-amz-target"] == "AWSPriceListService.GetProducts"
        region = asked["Filters"][0]["Value"]
        listed = [
            item for item in api.products.get(asked["ServiceCode"], [])
            if item["product"]["attributes"]["regionCode"] == region
        ]  # fmt: skip
        at = int(asked.get("NextToken", "0"))
        answer = {"FormatVersion": "aws_v1", "PriceList": [json.dumps(item) for item in listed[at : at + 2]]}
        if at + 2 < len(listed):
            answer["NextToken"] = str(at + 2)
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/x-amz-json-1.1")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(policyfile.directory(), tmp_path / "policies"))


def update(api: Api, folder: Path, *more: str) -> int:
    return cli.main(
        [
            "prices",
            "update",
            "--policies",
            str(folder),
            "--endpoint-url",
            api.url,
            "--region",
            "us-west-2",
            *more,
        ]
    )


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "prices").iterdir())


def rates(folder: Path, model: str, region: str, at: float = 4e9) -> tuple[int | None, int | None]:
    policies = policyfile.load(folder)
    found = policies.priced(policies.models[model], Target(model=model, model_id=model, region=region)).rates(
        at
    )
    return found.rates.input, found.rates.output


def test_every_page_is_read(api):
    api.products["AmazonBedrock"] = [
        llama("input", "0.0024"),
        llama("output", "0.0024"),
        llama("input", "0.0012", "-batch"),
    ]
    lines, skipped = PriceList(endpoint_url=api.url).read(["us-west-2", "eu-west-1"])
    assert (len(lines), skipped) == (3, {})


def test_nothing_is_written_when_nothing_changed(api, folder, capsys):
    api.products["AmazonBedrock"] = [
        llama("input", "0.0024"),
        llama("output", "0.0024"),
        llama("output", "0.0012", "-batch"),
    ]
    before = files(folder)
    assert update(api, folder) == 0
    assert "3 as in the book, 0 otherwise" in capsys.readouterr().out
    assert files(folder) == before


def test_a_change_becomes_a_sparse_version_from_its_date_on(api, folder, capsys):
    api.products["AmazonBedrock"] = [llama("input", "0.0030"), llama("output", "0.0024")]
    api.products["AmazonBedrockFoundationModels"] = [haiku("OutputTokenCount", "1.5")]
    assert update(api, folder, "--check") == 1
    assert len(files(folder)) == 1
    assert update(api, folder, "--effective-from", "2030-01-01T00:00:00Z") == 0
    said = capsys.readouterr().out
    assert f"{LLAMA} us-west-2 input: 2.4 -> 3 USD per million" in said
    written = (folder / "prices" / "2030-01-01.yaml").read_text()
    assert written.splitlines()[4:] == [
        "prices:",
        f"  {HAIKU}:",
        '    - {regions: [us-west-2], input: "0.25", output: "1.5", source: aws}',
        f"  {LLAMA}:",
        f"    - {{regions: [us-west-2], {RAISED}, source: aws}}",
    ]
    assert rates(folder, LLAMA, "us-west-2") == (3_000_000_000, 2_400_000_000)
    assert rates(folder, LLAMA, "us-west-2", 1.79e9) == (2_400_000_000, 2_400_000_000), "before its date"
    assert rates(folder, LLAMA, "us-east-1") == (2_400_000_000, 2_400_000_000), "in the other Regions"
    assert update(api, folder) == 0
    assert len(files(folder)) == 2


def test_a_thousandfold_price_cannot_be_written_unnoticed(api, folder, capsys):
    """No text names the unit, so the service's holds, and it was another."""
    wrong = product("USW2-Llama3-1-405B-input-tokens", "2.4", "Units", model="Llama 3.1 405B Instruct")
    api.products["AmazonBedrock"] = [wrong]
    assert update(api, folder) == 1
    told = capsys.readouterr()
    assert "2.4 -> 2400 USD per million   [it changes by more than 5 times: a wrong unit?]" in told.out
    assert "nothing is written: 1 doubtful changes" in told.err
    assert len(files(folder)) == 1
    assert update(api, folder, "--accept", "amazon.*") == 1
    assert update(api, folder, "--accept", LLAMA) == 0
    assert rates(folder, LLAMA, "us-west-2")[0] == 2400 * 10**9


def test_a_price_with_nothing_to_compare_needs_a_yes_too(api, folder, capsys):
    api.products["AmazonBedrock"] = [llama("cache-read", "0.0002")]
    assert update(api, folder) == 1
    assert "none -> 0.2 USD per million   [there is nothing to compare it with]" in capsys.readouterr().out


def test_two_lines_that_contradict_each_other_are_both_left_out(api, folder, capsys):
    api.products["AmazonBedrock"] = [llama("input", "0.0030"), llama("input", "0.0029")]
    assert update(api, folder) == 0
    assert "0 as in the book, 0 otherwise" in capsys.readouterr().out


def test_names_of_no_model_are_told_and_can_be_given(api, folder, capsys):
    api.products["AmazonBedrock"] = [
        product("USW2-Wonder-input-tokens", "0.003", "1K tokens", model="Wonder 9000")
    ]
    assert update(api, folder) == 0
    assert "no model: Wonder 9000" in capsys.readouterr().out
    assert update(api, folder, "--name", f"Wonder 9000={LLAMA}", "--check") == 1
    assert "2.4 -> 3" in capsys.readouterr().out


def test_an_api_that_is_away_is_told(folder, capsys, unused_tcp_port):
    options = [
        "prices",
        "update",
        "--policies",
        str(folder),
        "--endpoint-url",
        f"http://127.0.0.1:{unused_tcp_port}",
    ]
    assert cli.main(options) == 2
    assert "AWS's price list cannot be read" in capsys.readouterr().err
