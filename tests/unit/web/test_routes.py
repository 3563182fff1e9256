"""Raw paths are matched as received; everything else is refused with a reason."""

import pytest

from proxy.domain.ledger import Operation
from proxy.errors import Forbidden, Invalid, NotServed
from proxy.web.routes import match, wire_of

ARN = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/ab12cd34ef56"


@pytest.mark.parametrize(
    ("path", "operation", "model"),
    [
        (
            b"/model/meta.llama3-1-405b-instruct-v1%3A0/invoke",
            Operation.INVOKE_MODEL,
            "meta.llama3-1-405b-instruct-v1:0",
        ),
        (
            b"/model/meta.llama3-1-405b-instruct-v1:0/converse",
            Operation.CONVERSE,
            "meta.llama3-1-405b-instruct-v1:0",
        ),
        (
            b"/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A123456789012%3Aapplication-inference-profile%2Fab12cd34ef56/converse-stream",
            Operation.CONVERSE_STREAM,
            ARN,
        ),
        (
            b"/model/arn:aws:bedrock:us-east-1:123456789012:application-inference-profile%2Fab12cd34ef56/invoke-with-response-stream",
            Operation.INVOKE_MODEL_WITH_RESPONSE_STREAM,
            ARN,
        ),
        (b"/v1/chat/completions", Operation.CHAT_COMPLETIONS, None),
        (b"/openai/v1/chat/completions", Operation.CHAT_COMPLETIONS, None),
        (b"/anthropic/v1/messages", Operation.MESSAGES, None),
    ],
)
def test_every_spelling_that_clients_send(path, operation, model):
    endpoint = match("POST", path)
    assert (endpoint.operation, endpoint.model) == (operation, model)


@pytest.mark.parametrize(
    "path",
    [b"/", b"//model/x/invoke", b"/model//invoke", b"/model/x/invoke/", b"/model/x/Invoke", b"/MODEL/x/invoke",
     b"/model/x/invoke;a=b", b"/%6dodel/x/invoke", b"/model/x/../y/invoke", b"/model/a/b/invoke", b"/v1//messages",
     b"/model/x", b"/anything"],
)  # fmt: skip
def test_other_spellings_are_no_routes(path):
    with pytest.raises(NotServed):
        match("POST", path)


@pytest.mark.parametrize("model", [b"..%2F..%2Fother", b"%2e%2e", b"a%00b", b"a%0d%0ab", b"x" * 3000, b"%ff"])
def test_identifiers_that_are_none(model):
    with pytest.raises(Invalid):
        match("POST", b"/model/" + model + b"/invoke")


@pytest.mark.parametrize(
    "path",
    [
        b"/async-invoke",
        b"/model/x/invoke-with-bidirectional-stream",
        b"/model-invocation-job",
        b"/agents/a/b",
    ],
)
def test_what_cannot_be_governed_is_refused_with_the_reason(path):
    with pytest.raises(Forbidden) as caught:
        match("POST", path)
    assert caught.value.reason == "not_governed"
    assert "cost" in str(caught.value) or "billed" in str(caught.value)


def test_a_route_takes_post_only():
    with pytest.raises(NotServed):
        match("GET", b"/model/x/invoke")


def test_errors_speak_the_dialect_of_the_path():
    paths = (b"/openai/v1/x", b"/v1/messages", b"/nowhere")
    assert [wire_of(p) for p in paths] == ["openai", "anthropic", "bedrock"]
