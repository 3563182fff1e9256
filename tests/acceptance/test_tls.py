"""TLS with a CA of one's own: the newest AWS SDK with a bearer key, HTTP/2 and 1.1, and `tollhouse run`."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from proxy import tls
from tests.acceptance.test_run import Run
from tests.support.stack import LLAMA, Key, Proxy, running

MESSAGES = [{"role": "user", "content": [{"text": "hello"}]}]


class SecureProxy(Proxy):
    """Spoken to over https."""

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def request(
        self, method: str, path: str, body: Any = None, *, key: str | None = "",
        headers: dict[str, str] | None = None,
    ) -> tuple[int, dict[str, str], Any]:  # fmt: skip
        context = ssl.create_default_context(
            cafile=Path(self.settings["TOLLHOUSE_TLS_CERTIFICATE"]).with_name("ca.pem")
        )
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=60, context=context)
        sent = dict(headers or {}) | (
            {"Authorization": f"Bearer {key or self.admin_key}"} if key is not None else {}
        )
        try:
            connection.request(method, path, None if body is None else json.dumps(body), sent)
            response = connection.getresponse()
            raw = response.read()
            return (
                response.status,
                {k.lower(): v for k, v in response.getheaders()},
                json.loads(raw or b"null"),
            )
        finally:
            connection.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tls.Files:
    folder = tmp_path_factory.mktemp("tls")
    command = [sys.executable, "-m", "proxy", "tls", "init", str(folder), "--host", "gateway.internal"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    assert f"export AWS_CA_BUNDLE={folder}/ca-bundle.pem" in said
    return tls.Files(folder)


@pytest.fixture(scope="module")
def proxy(
    module_database_url: str, session_redis_url: str, simulator_server: Any, files: tls.Files,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Proxy]:  # fmt: skip
    settings = {"TOLLHOUSE_TLS_CERTIFICATE": str(files.certificate), "TOLLHOUSE_TLS_KEY": str(files.key)}
    state = tmp_path_factory.mktemp("secure") / "state"
    with running(
        SecureProxy(module_database_url, session_redis_url, simulator_server.url, state, settings)
    ) as started:
        yield started


@pytest.fixture(scope="module")
def key(proxy: Proxy) -> Key:
    return proxy.key()


@pytest.fixture
def client(proxy: Proxy, key: Key, files: tls.Files, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a person gets who sets three variables: no AWS credentials at all."""
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", key.bearer_token)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(files.bundle))
    monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", proxy.url)
    made = boto3.client(
        "bedrock-runtime", region_name="us-east-1", config=Config(retries={"total_max_attempts": 1})
    )
    yield made
    made.close()


def test_the_newest_sdk_with_a_bearer_key_does_all_four_operations(client):
    body = json.dumps({"prompt": "hello", "max_gen_len": 20})
    whole = json.loads(client.invoke_model(modelId=LLAMA, body=body)["body"].read())
    assert whole["generation_token_count"] > 0
    streamed = client.invoke_model_with_response_stream(modelId=LLAMA, body=body)["body"]
    last = [json.loads(event["chunk"]["bytes"]) for event in streamed][-1]
    assert last["amazon-bedrock-invocationMetrics"]["outputTokenCount"] > 0
    limits = {"maxTokens": 20}
    said = client.converse(modelId=LLAMA, messages=MESSAGES, inferenceConfig=limits)
    assert said["usage"]["outputTokens"] > 0
    events = list(client.converse_stream(modelId=LLAMA, messages=MESSAGES, inferenceConfig=limits)["stream"])
    assert events[-1]["metadata"]["usage"]["outputTokens"] > 0


def test_a_refusal_says_its_reason_over_tls_too(client):
    with pytest.raises(ClientError, match=r"there is no model 'no\.such-model'"):
        client.converse(modelId="no.such-model", messages=MESSAGES)


@pytest.mark.parametrize(
    ("offered", "agreed"), [(["h2", "http/1.1"], "h2"), (["http/1.1"], "http/1.1"), (["h2"], "h2")]
)
def test_both_versions_of_http_are_offered(proxy, files, offered, agreed):
    context = ssl.create_default_context(cafile=files.ca)
    context.set_alpn_protocols(offered)
    with socket.create_connection(("127.0.0.1", proxy.port), 10) as plain:
        with context.wrap_socket(plain, server_hostname="gateway.internal") as secure:
            assert secure.selected_alpn_protocol() == agreed


def test_older_clients_get_tls_1_2(proxy, files):
    context = ssl.create_default_context(cafile=files.ca)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(("127.0.0.1", proxy.port), 10) as plain:
        with context.wrap_socket(plain, server_hostname="localhost") as secure:
            assert secure.version() == "TLSv1.2"


def test_the_one_command_serves_tls_and_writes_what_clients_must_trust(tmp_path, files):
    run = Run(tmp_path)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("TOLLHOUSE_", "AWS_"))}
    clean |= {"TOLLHOUSE_PORT": str(run.port), "TOLLHOUSE_TLS_CERTIFICATE": str(files.certificate),
              "TOLLHOUSE_TLS_KEY": str(files.key)}  # fmt: skip
    log = tmp_path / "out.txt"
    with log.open("wb") as out:
        run.process = subprocess.Popen(
            [sys.executable, "-m", "proxy", "run"], cwd=tmp_path, stdout=out, stderr=out, env=clean,
            start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while "Ctrl-C stops everything" not in log.read_text() and time.monotonic() < deadline:
            assert run.process.poll() is None, log.read_text()
            time.sleep(0.05)
        env = run.env("client.env")
        assert env["TOLLHOUSE_URL"] == f"https://127.0.0.1:{run.port}"
        assert (env["AWS_CA_BUNDLE"], env["SSL_CERT_FILE"]) == (str(files.bundle), str(files.bundle))
        assert env["NODE_EXTRA_CA_CERTS"] == str(files.ca)
        listed = subprocess.run(
            [sys.executable, "-m", "proxy", "keys", "list"], cwd=tmp_path, capture_output=True, text=True,
            env={k: v for k, v in clean.items() if not k.startswith("TOLLHOUSE_")}, check=True, timeout=30,
        )  # fmt: skip
        assert "demo" in listed.stdout
    finally:
        run.kill_everything()
