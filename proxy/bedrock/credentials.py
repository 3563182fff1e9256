"""AWS credentials of the proxy itself, from boto3's chain, refreshed in the background.

Refreshing may call the metadata service or STS, so it never happens on a call's path: a call signs
with the credentials last read. Endpoint overrides from the environment are ignored and credentials
that Tollhouse issued are refused, so that the proxy can never call itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Protocol

import boto3
import botocore.session
from botocore.exceptions import BotoCoreError

from proxy.bedrock.signing import SigningCredentials, StaticCredentials
from proxy.errors import ConfigurationError

log = logging.getLogger(__name__)

#: botocore renews temporary credentials 10 to 15 minutes before they end
REFRESH_SECONDS = 60.0
#: how Tollhouse's own bearer tokens and access key ids begin; no AWS access key id does
OWN_PREFIXES = ("th_", "tha_", "THAK")


class CredentialSource(Protocol):
    def current(self) -> SigningCredentials:
        """Credentials to sign with now. Raises `ConfigurationError` when there are none."""
        ...


class FixedCredentials:
    """A source of credentials that never change. Raises `ConfigurationError` for Tollhouse's own."""

    def __init__(self, access_key: str, secret_key: str, token: str | None = None) -> None:
        refuse_own(access_key)
        self._credentials = StaticCredentials(access_key, secret_key, token)

    def current(self) -> SigningCredentials:
        return self._credentials


def refuse_own(access_key: str) -> None:
    if access_key.startswith(OWN_PREFIXES):
        raise ConfigurationError(
            "The AWS credentials found are a Tollhouse key: the proxy would call itself. "
            "Give it credentials of the AWS account that runs Bedrock."
        )


def aws_session() -> boto3.Session:
    """A boto3 session that ignores `AWS_ENDPOINT_URL` and its per-service kin."""
    session = botocore.session.Session()
    session.set_config_variable("ignore_configured_endpoint_urls", True)
    return boto3.Session(botocore_session=session)


class AwsCredentials:
    """boto3's credential chain. `start` reads it once, then a task keeps it fresh."""

    def __init__(self, session: boto3.Session | None = None) -> None:
        self._session = session
        self._frozen: SigningCredentials | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises `ConfigurationError` when the chain has no credentials, or Tollhouse's own."""
        await self._read()
        if self._frozen is None:
            raise ConfigurationError("No AWS credentials found in the environment, profile or instance role.")
        self._task = asyncio.create_task(self._keep_fresh())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    def current(self) -> SigningCredentials:
        if self._frozen is None:
            raise ConfigurationError("AWS credentials have not been read yet.")
        return self._frozen

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                await self._read()
            except (BotoCoreError, ConfigurationError, OSError) as error:
                log.warning("AWS credentials could not be refreshed: %s", type(error).__name__)

    async def _read(self) -> None:
        frozen = await asyncio.to_thread(self._from_chain)
        if frozen is not None:
            refuse_own(frozen.access_key)
            self._frozen = frozen

    def _from_chain(self) -> SigningCredentials | None:
        if self._session is None:
            self._session = aws_session()
        credentials = self._session.get_credentials()
        if credentials is None:
            return None
        frozen = credentials.get_frozen_credentials()
        if not frozen.access_key or not frozen.secret_key:
            return None
        return StaticCredentials(frozen.access_key, frozen.secret_key, frozen.token)
