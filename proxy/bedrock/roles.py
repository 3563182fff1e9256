"""One role session per tenant, so that AWS's own cost reports carry the tenant.

The proxy assumes `role` with the tenant's slug as session name and as the session tag `tollhouse-tenant`;
AWS shows both in CUR 2.0 (`iamPrincipal/...`) and in CloudTrail. Sessions are kept and renewed before
they end; a tenant's first call waits for its session. The role must allow `sts:AssumeRole` and
`sts:TagSession` to the proxy's own credentials.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from proxy.bedrock.credentials import aws_session
from proxy.bedrock.signing import SigningCredentials, StaticCredentials
from proxy.errors import ConfigurationError

log = logging.getLogger(__name__)

#: the shortest that every role allows, and the longest that a chained role may have
SESSION_SECONDS = 3600
#: a session with less left is renewed while it is still used
RENEW_SECONDS = 900.0
#: one with less left is not used: its signature might reach AWS too late
LAST_SECONDS = 60.0
_SESSIONS_MAX = 10_000
TAG = "tollhouse-tenant"
_NOT_IN_NAMES = re.compile(r"[^\w+=,.@-]")


@dataclass(slots=True)
class _Session:
    credentials: SigningCredentials | None = None
    ends: float = 0.0
    renewal: asyncio.Task[None] | None = None


class TenantRoles:
    """Sessions of `role` by tenant. `endpoint_url` overrides the address of STS."""

    def __init__(
        self, role: str, region: str, *, endpoint_url: str | None = None, session: boto3.Session | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._role = role
        self._region = region
        self._endpoint_url = endpoint_url
        self._session = session
        self._now = now
        self._client: Any = None
        self._sessions: dict[str, _Session] = {}

    async def of(self, tenant: str) -> SigningCredentials:
        """Credentials of the tenant's session. Raises `ConfigurationError` when there is none to be had."""
        session = self._sessions.get(tenant)
        if session is None:
            while len(self._sessions) >= _SESSIONS_MAX:
                del self._sessions[next(iter(self._sessions))]
            session = self._sessions[tenant] = _Session()
        left = session.ends - self._now()
        if left < RENEW_SECONDS and session.renewal is None:
            session.renewal = asyncio.create_task(self._renew(tenant, session))
        if left < LAST_SECONDS and session.renewal is not None:
            await asyncio.shield(session.renewal)
        if session.credentials is None or session.ends - self._now() < LAST_SECONDS:
            raise ConfigurationError("the tenant's role session could not be had")
        return session.credentials

    async def _renew(self, tenant: str, session: _Session) -> None:
        try:
            answer = await asyncio.to_thread(self._assume, tenant)
            session.credentials = StaticCredentials(
                answer["AccessKeyId"], answer["SecretAccessKey"], answer["SessionToken"]
            )
            session.ends = answer["Expiration"].timestamp()
        except (BotoCoreError, ClientError) as error:
            code = error.response["Error"]["Code"] if isinstance(error, ClientError) else type(error).__name__
            log.warning("AssumeRole for tenant %s: %s", tenant, code)
        finally:
            session.renewal = None

    def _assume(self, tenant: str) -> Any:
        if self._client is None:
            session = self._session or aws_session()
            config = Config(
                connect_timeout=3, read_timeout=5, retries={"total_max_attempts": 2, "mode": "standard"}
            )
            self._client = session.client(
                "sts", region_name=self._region, endpoint_url=self._endpoint_url, config=config
            )
        name = _NOT_IN_NAMES.sub("-", f"tollhouse-{tenant}")[:64]
        return self._client.assume_role(
            RoleArn=self._role, RoleSessionName=name, DurationSeconds=SESSION_SECONDS,
            Tags=[{"Key": TAG, "Value": tenant}],
        )["Credentials"]  # fmt: skip
