from typing import Any

import pytest

from proxy.bedrock.credentials import AwsCredentials, aws_session
from proxy.bedrock.places import Endpoints
from proxy.errors import ConfigurationError


def test_places_follow_the_region_and_nothing_but_a_region() -> None:
    assert Endpoints(None).place("us-west-2").origin == "https://bedrock-runtime.us-west-2.amazonaws.com"
    assert Endpoints(None).place("cn-north-1").host == "bedrock-runtime.cn-north-1.amazonaws.com.cn"
    assert Endpoints(None).place("us-gov-west-1").host == "bedrock-runtime.us-gov-west-1.amazonaws.com"
    assert Endpoints("https://h:443/x/{region}/").place("eu-west-1").prefix == "/x/eu-west-1"
    assert Endpoints("https://h:443").place("eu-west-1").host == "h"
    for wrong in ("", "evil.example/", "us-east-1.evil.example#", "US-EAST-1"):
        with pytest.raises(ConfigurationError):
            Endpoints(None).place(wrong)
    for wrong in ("h:80", "ftp://h", "http://user@h", "http://"):
        with pytest.raises(ConfigurationError):
            Endpoints(wrong)


@pytest.fixture
def aws_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> pytest.MonkeyPatch:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return monkeypatch


async def test_the_chain_is_read_once_and_then_in_memory(aws_environment: pytest.MonkeyPatch) -> None:
    aws_environment.setenv("AWS_ACCESS_KEY_ID", "AKIDCHAIN")
    aws_environment.setenv("AWS_SECRET_ACCESS_KEY", "chain-secret")
    chain = AwsCredentials()
    await chain.start()
    try:
        assert chain.current().access_key == "AKIDCHAIN"
        assert chain.current().token is None
    finally:
        await chain.close()


def test_endpoints_of_the_environment_are_ignored(aws_environment: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_STS", "AWS_ENDPOINT_URL_BEDROCK"):
        aws_environment.setenv(name, "http://127.0.0.1:9")
    session = aws_session()
    assert session.client("sts", region_name="us-east-1").meta.endpoint_url.startswith("https://sts.")
    assert session.client("bedrock", region_name="us-east-1").meta.endpoint_url.startswith("https://bedrock.")
