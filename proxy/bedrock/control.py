"""The control plane (boto3 `bedrock`): what opaque ARNs run, which capacity is paid for, what ends when.

Only lists are read, never on a call's path. An ARN that cannot be priced from what they say stays
unknown to the policies, which refuse it: a router chooses its model by itself, an imported model has no
base model, and a profile over models of no known profile has no price.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from proxy.bedrock.credentials import aws_session
from proxy.domain.discovery import NOTHING_FOUND, Capacity, Found, Lifecycle
from proxy.errors import ConfigurationError

log = logging.getLogger(__name__)

_PAGE, _PAGES_MAX = 1000, 100
_CONFIG = Config(
    connect_timeout=5, read_timeout=20, retries={"total_max_attempts": 3, "mode": "standard"},
    user_agent_extra="tollhouse",
)  # fmt: skip
_ROUTER = "a prompt router chooses its model by itself, so its price is known only afterwards"
_IMPORTED = "an imported model has no price per token; name its model and rates under `arns` in routes/"


class ControlPlane:
    """`endpoint_url` overrides AWS's address (`{region}` in it is replaced); then a machine without AWS
    credentials signs with dummies. `session` is boto3's chain unless one is given.
    """

    def __init__(self, *, endpoint_url: str | None = None, session: boto3.Session | None = None) -> None:
        self._endpoint_url = endpoint_url
        self._session = session
        self._clients: dict[str, Any] = {}

    async def look(self, regions: Iterable[str]) -> Found:
        """What these Regions have. One that does not answer adds nothing and is logged. Raises
        `ConfigurationError` when none answered.
        """
        asked = list(dict.fromkeys(regions))
        answers = await asyncio.gather(*(asyncio.to_thread(self._region, region) for region in asked))
        found, answered = NOTHING_FOUND, 0
        for answer in answers:
            if answer is not None:
                found, answered = found.and_also(answer), answered + 1
        if not answered:
            raise ConfigurationError(f"the Bedrock control plane does not answer in {', '.join(asked)}")
        return found

    def _region(self, region: str) -> Found | None:
        try:
            client = self._client(region)
            lifecycles = _lifecycles(client)
        except (BotoCoreError, ClientError) as error:
            log.warning("control plane of %s: %s", region, _told(error))
            return None
        arns: dict[str, str] = {}
        refused: dict[str, str] = {}
        _profiles(client, arns, refused)
        capacity = _throughputs(client, arns)
        _deployments(client, arns, refused)
        for arn in _arns(_listed(client, "list_imported_models", "modelSummaries"), "modelArn"):
            refused[arn] = _IMPORTED
        for arn in _arns(_listed(client, "list_prompt_routers", "promptRouterSummaries"), "promptRouterArn"):
            refused[arn] = _ROUTER
        return Found(arns=arns, refused=refused, capacity=capacity, lifecycles=lifecycles)

    def _client(self, region: str) -> Any:
        client = self._clients.get(region)
        if client is None:
            session = self._session or aws_session()
            given: dict[str, str] = {}
            if self._endpoint_url is not None:
                given["endpoint_url"] = self._endpoint_url.replace("{region}", region)
                if session.get_credentials() is None:
                    given |= {"aws_access_key_id": "AKIDDUMMY", "aws_secret_access_key": "dummy"}
            client = self._clients[region] = session.client(
                "bedrock", region_name=region, config=_CONFIG, **given
            )  # type: ignore[call-overload]
        return client


def _listed(client: Any, operation: str, member: str, **asked: Any) -> list[Mapping[str, Any]]:
    """Every item of a paged list. An operation that is refused (no permission, unknown here) has none."""
    items: list[Mapping[str, Any]] = []
    token: dict[str, Any] = {}
    try:
        for _ in range(_PAGES_MAX):
            page = getattr(client, operation)(**asked, **token)
            items += page.get(member) or []
            if not page.get("nextToken"):
                break
            token = {"nextToken": page["nextToken"]}
    except (BotoCoreError, ClientError) as error:
        log.info("%s: %s", operation, _told(error))
    return items


def _lifecycles(client: Any) -> dict[str, Lifecycle]:
    """Raises what boto3 raises: who may not even list the models has no control plane."""
    found = {}
    for item in client.list_foundation_models()["modelSummaries"]:
        said = item.get("modelLifecycle") or {}
        model = _base(item["modelId"])
        found[model] = Lifecycle(
            model=model, status=said.get("status", "ACTIVE"), legacy_at=_seconds(said.get("legacyTime")),
            extended_at=_seconds(said.get("publicExtendedAccessTime")), end_at=_seconds(said.get("endOfLifeTime")),
        )  # fmt: skip
    return found


def _profiles(client: Any, arns: dict[str, str], refused: dict[str, str]) -> None:
    """An application profile runs what the system profile over the same model ARNs runs, or, over one
    model ARN, that model in its Region (AWS user guide, inference profiles).
    """
    system = {
        _members(item): str(item["inferenceProfileId"])
        for item in _listed(client, "list_inference_profiles", "inferenceProfileSummaries",
                            typeEquals="SYSTEM_DEFINED", maxResults=_PAGE)
    }  # fmt: skip
    for item in _listed(client, "list_inference_profiles", "inferenceProfileSummaries",
                        typeEquals="APPLICATION", maxResults=_PAGE):  # fmt: skip
        arn, members = str(item["inferenceProfileArn"]), _members(item)
        known = system.get(members)
        if known is not None:
            arns[arn] = known
        elif len(members) == 1:
            arns[arn] = _model_of(next(iter(members)))
        else:
            refused[arn] = (
                "it runs on models that no profile of AWS's has together, so its price is not known"
            )


def _throughputs(client: Any, arns: dict[str, str]) -> tuple[Capacity, ...]:
    found = []
    for item in _listed(client, "list_provisioned_model_throughputs", "provisionedModelSummaries",
                        maxResults=_PAGE):  # fmt: skip
        arn, model = str(item["provisionedModelArn"]), _model_of(str(item["foundationModelArn"]))
        arns[arn] = model
        found.append(
            Capacity(
                arn=arn, model=model, units=int(item["modelUnits"]), status=str(item["status"]),
                commitment=item.get("commitmentDuration"), since=_seconds(item.get("creationTime")) or 0,
            )
        )  # fmt: skip
    return tuple(found)


def _deployments(client: Any, arns: dict[str, str], refused: dict[str, str]) -> None:
    """A deployed custom model costs per token what its base model does (facts are thin: marked unsure)."""
    for item in _listed(
        client, "list_custom_model_deployments", "modelDeploymentSummaries", maxResults=_PAGE
    ):
        arn, model_arn = str(item["customModelDeploymentArn"]), str(item["modelArn"])
        try:
            if ":foundation-model/" not in model_arn:
                model_arn = str(client.get_custom_model(modelIdentifier=model_arn)["baseModelArn"])
            arns[arn] = _model_of(model_arn)
        except (BotoCoreError, ClientError, KeyError) as error:
            refused[arn] = f"its base model cannot be found out: {_told(error)}"


def _arns(items: Iterable[Mapping[str, Any]], member: str) -> Iterator[str]:
    return (str(item[member]) for item in items)


def _members(item: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(str(model["modelArn"]) for model in item.get("models") or [])


def _model_of(arn: str) -> str:
    return _base(arn.rpartition("/")[2])


def _base(model: str) -> str:
    """The id without the variant that only matters when capacity is bought (`...-v1:0:128k`)."""
    parts = model.split(":")
    return ":".join(parts[:2]) if len(parts) > 2 else model


def _seconds(at: Any) -> int | None:
    return int(at.timestamp()) if isinstance(at, datetime) else None


def _told(error: Exception) -> str:
    """What went wrong, without account ids."""
    if isinstance(error, ClientError):
        return str(error.response.get("Error", {}).get("Code", "ClientError"))
    return type(error).__name__
