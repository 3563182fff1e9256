"""Names of models, in every form that Bedrock takes them."""

import pytest

from proxy.simulator.catalog import Catalog, base_of, family_of
from proxy.simulator.config import PRICES, Config
from proxy.simulator.errors import Refusal
from proxy.simulator.families import FAMILIES
from proxy.simulator.prices import load

LLAMA = "meta.llama3-1-405b-instruct-v1:0"
ACCOUNT = "arn:aws:bedrock:us-east-1:123456789012"


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog(Config(), load(PRICES))


@pytest.mark.parametrize(
    ("name", "price_id", "per_token"),
    [
        (LLAMA, LLAMA, True),
        (f"us.{LLAMA}", f"us.{LLAMA}", True),
        (f"arn:aws:bedrock:us-west-2::foundation-model/{LLAMA}", LLAMA, True),
        (f"{ACCOUNT}:inference-profile/us.{LLAMA}", f"us.{LLAMA}", True),
        (f"{ACCOUNT}:application-inference-profile/llama405bapp", f"us.{LLAMA}", True),
        (f"{ACCOUNT}:provisioned-model/llama31405b0", LLAMA, False),
        (f"{ACCOUNT}:custom-model-deployment/deployllama0", "meta.llama3-3-70b-instruct-v1:0", True),
        (f"{ACCOUNT}:imported-model/importllama0", "meta.llama3-1-8b-instruct-v1:0", False),
    ],
)
def test_resolve(catalog, name, price_id, per_token):
    model = catalog.resolve(name, "us-east-1")
    assert (model.requested, model.price_id, model.per_token) == (name, price_id, per_token)
    assert model.base == price_id.removeprefix("us.")
    assert catalog.family(name) == model.family == "llama"


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("meta.llama3-1-405b-instruct-v10", "The provided model identifier is invalid."),
        ("openai.gpt-5.6-sol", "Retry your request with the ID or ARN of an inference profile"),
        ("", "The provided model identifier is invalid."),
        ("arn:aws:sagemaker:us-east-1:123456789012:endpoint/x", "The provided model identifier is invalid."),
        ("twelvelabs.pegasus-1-2-v1:0", "The provided model identifier is invalid."),
        (f"{ACCOUNT}:prompt/ABCDEFGHIJ", "The provided model identifier is invalid."),
        (f"{ACCOUNT}:application-inference-profile/unknown00000", "ResourceNotFoundException"),
        (f"{ACCOUNT}:provisioned-model/notready0000", "429 ModelNotReadyException"),
    ],
)
def test_resolve_refuses(catalog, name, error):
    with pytest.raises(Refusal, match=error):
        catalog.resolve(name, "us-east-1")


def test_every_model_on_offer_has_a_family_and_resolves(catalog):
    for name in catalog.ids():
        assert catalog.resolve(name, "us-east-1").family in FAMILIES


def test_every_family_is_somebodys(catalog):
    assert {family_of(base_of(name)) for name in catalog.ids()} == set(FAMILIES)


@pytest.mark.parametrize(
    "entry", [{}, {"arn": "x", "model": LLAMA}, {"arn": f"{ACCOUNT}:provisioned-model/x"}]
)
def test_entries_that_make_no_sense(catalog, entry):
    with pytest.raises(ValueError):
        catalog.add(entry)
