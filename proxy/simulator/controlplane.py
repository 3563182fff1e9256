"""The part of the ``bedrock`` control plane that a gateway needs: which models, profiles and capacity exist."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, unquote

from proxy.simulator.account import Seen
from proxy.simulator.catalog import Catalog, base_of, family_of
from proxy.simulator.config import Config
from proxy.simulator.errors import Refusal
from proxy.simulator.families import FAMILIES

_CREATED = "2026-01-01T00:00:00Z"
_GEO_REGIONS = {
    "us": ("us-east-1", "us-east-2", "us-west-2"),
    "eu": ("eu-central-1", "eu-west-1", "eu-west-3", "eu-north-1"),
    "apac": ("ap-northeast-1", "ap-southeast-1", "ap-southeast-2", "ap-south-1"),
    "au": ("ap-southeast-2", "ap-southeast-4"),
    "jp": ("ap-northeast-1", "ap-northeast-3"),
    "us-gov": ("us-gov-west-1", "us-gov-east-1"),
}


class ControlPlane:
    def __init__(self, config: Config, catalog: Catalog) -> None:
        self._config = config
        self._catalog = catalog

    def answer(self, path: str, query: str, seen: Seen) -> Any:
        """None for a path that is not here. Raises Refusal for a resource that does not exist."""
        collection, _, rest = path.removeprefix("/").partition("/")
        name = unquote(rest)
        wanted = parse_qs(query)
        match collection, bool(name):
            case "foundation-models", False:
                seen.operation = "ListFoundationModels"
                return {"modelSummaries": self._foundation_models(wanted)}
            case "foundation-models", True:
                seen.operation = "GetFoundationModel"
                return {"modelDetails": self._foundation_model(name.rpartition("/")[2])}
            case "inference-profiles", False:
                seen.operation = "ListInferenceProfiles"
                return {"inferenceProfileSummaries": self._profiles(wanted)}
            case "inference-profiles", True:
                seen.operation = "GetInferenceProfile"
                return self._profile(name)
            case ("provisioned-model-throughputs", False):
                seen.operation = "ListProvisionedModelThroughputs"
                return {
                    "provisionedModelSummaries": [
                        self._throughput(arn) for arn in self._arns("provisioned-model")
                    ]
                }
            case "provisioned-model-throughput", True:
                seen.operation = "GetProvisionedModelThroughput"
                return self._throughput(self._entry("provisioned-model", name))
            case "imported-models", False:
                seen.operation = "ListImportedModels"
                return {"modelSummaries": [self._imported(arn) for arn in self._arns("imported-model")]}
            case "imported-models", True:
                seen.operation = "GetImportedModel"
                return self._imported(self._entry("imported-model", name))
            case "model-customization", True if name == "custom-model-deployments":
                seen.operation = "ListCustomModelDeployments"
                arns = self._arns("custom-model-deployment")
                return {"modelDeploymentSummaries": [self._deployment(arn) for arn in arns]}
            case "prompt-routers", False:
                seen.operation = "ListPromptRouters"
                return {"promptRouterSummaries": []}
            case "model-customization" | "custom-model-deployments", True:
                seen.operation = "GetCustomModelDeployment"
                return self._deployment(
                    self._entry("custom-model-deployment", name.removeprefix("custom-model-deployments/"))
                )
        if path == "/logging/modelinvocations":
            seen.operation = "GetModelInvocationLoggingConfiguration"
            return {}
        return None

    def _arns(self, kind: str) -> list[str]:
        return [arn for arn in self._catalog.entries if f":{kind}/" in arn]

    def _entry(self, kind: str, name: str) -> str:
        """The ARN of a resource named by its id, its name or its ARN."""
        for arn in self._arns(kind):
            if name in {arn, arn.rpartition("/")[2]}:
                return arn
        raise Refusal("ResourceNotFoundException", f"The {kind} {name} could not be found.")

    def _model_arn(self, base: str, region: str | None = None) -> str:
        return f"arn:aws:bedrock:{region or self._config.region}::foundation-model/{base}"

    def _foundation_models(self, wanted: Mapping[str, list[str]]) -> list[dict[str, Any]]:
        bases = dict.fromkeys(base_of(name) for name in self._catalog.ids())
        models = [self._summary(base) for base in bases]
        for key, member in (("byProvider", "providerName"), ("byOutputModality", "outputModalities")):
            if key in wanted:
                value = wanted[key][0].lower()
                models = [model for model in models if value in str(model[member]).lower()]
        return models

    def _foundation_model(self, base: str) -> dict[str, Any]:
        if base not in {base_of(name) for name in self._catalog.ids()}:
            raise Refusal("ResourceNotFoundException", f"The model {base} could not be found.")
        return self._summary(base)

    def _summary(self, base: str) -> dict[str, Any]:
        names = [name for name in self._catalog.ids() if base_of(name) == base]
        name = base if base in names else names[0]
        record = self._catalog.resolve(name, self._config.region).price.record
        modality = str(record.get("modality", "text->text"))
        before, _, after = modality.partition("->")
        pictures = modality.startswith("image")
        outputs = (
            ["IMAGE"]
            if pictures
            else ["EMBEDDING"]
            if modality == "embedding"
            else [(after or "text").upper()]
        )
        ended = "end_of_life" in record
        lifecycle: dict[str, Any] = {"status": "LEGACY" if ended else "ACTIVE"}
        if ended:
            lifecycle["endOfLifeTime"] = f"{record['end_of_life']}T00:00:00Z"
        return {
            "modelArn": self._model_arn(base),
            "modelId": base,
            "modelName": record.get("name", base),
            "providerName": record.get("provider", base.partition(".")[0]),
            "inputModalities": ["TEXT"] if not after else [part.upper() for part in before.split("+")],
            "outputModalities": outputs,
            "responseStreamingSupported": FAMILIES[family_of(base)].chats,
            "customizationsSupported": [],
            "inferenceTypesSupported": ["ON_DEMAND"] if base in names else ["INFERENCE_PROFILE"],
            "modelLifecycle": lifecycle,
        }

    def _profiles(self, wanted: Mapping[str, list[str]]) -> list[dict[str, Any]]:
        kind = wanted.get("type", wanted.get("typeEquals", [""]))[0]
        profiles: list[dict[str, Any]] = []
        if kind in {"", "SYSTEM_DEFINED"}:
            profiles += [self._system_profile(name) for name in self._catalog.ids() if base_of(name) != name]
        if kind in {"", "APPLICATION"}:
            profiles += [
                self._application_profile(arn) for arn in self._arns("application-inference-profile")
            ]
        return profiles

    def _profile(self, name: str) -> dict[str, Any]:
        short = name.rpartition("/")[2]
        if (
            ":application-inference-profile/" not in name
            and base_of(short) != short
            and short in self._catalog.ids()
        ):
            return self._system_profile(short)
        return self._application_profile(self._entry("application-inference-profile", name))

    def _members(self, price_id: str) -> list[dict[str, str]]:
        """One model ARN for an in-Region profile, one per destination Region for a geography's."""
        base = base_of(price_id)
        if base == price_id:
            return [{"modelArn": self._model_arn(base)}]
        geography = price_id.removesuffix(f".{base}")
        regions = _GEO_REGIONS.get(geography, (self._config.region,))
        return [{"modelArn": self._model_arn(base, region)} for region in regions]

    def _described(self, name: str, arn: str, price_id: str, kind: str) -> dict[str, Any]:
        return {
            "inferenceProfileName": name,
            "description": f"Simulated profile of {price_id}",
            "createdAt": _CREATED,
            "updatedAt": _CREATED,
            "inferenceProfileArn": arn,
            "models": self._members(price_id),
            "inferenceProfileId": arn.rpartition("/")[2],
            "status": "ACTIVE",
            "type": kind,
        }

    def _system_profile(self, name: str) -> dict[str, Any]:
        arn = f"arn:aws:bedrock:{self._config.region}:{self._config.account}:inference-profile/{name}"
        return self._described(name, arn, name, "SYSTEM_DEFINED")

    def _application_profile(self, arn: str) -> dict[str, Any]:
        price_id = str(self._catalog.entries[arn]["model"])
        return self._described(arn.rpartition("/")[2], arn, price_id, "APPLICATION")

    def _throughput(self, arn: str) -> dict[str, Any]:
        entry = self._catalog.entries[arn]
        model_arn = self._model_arn(base_of(str(entry["model"])))
        units = int(entry.get("units", 1))
        return {
            "provisionedModelName": arn.rpartition("/")[2],
            "provisionedModelArn": arn,
            "modelArn": model_arn,
            "desiredModelArn": model_arn,
            "foundationModelArn": model_arn,
            "modelUnits": units,
            "desiredModelUnits": units,
            "status": entry.get("status", "InService"),
            "commitmentDuration": entry.get("commitment", "OneMonth"),
            "commitmentExpirationTime": "2030-01-01T00:00:00Z",
            "creationTime": _CREATED,
            "lastModifiedTime": _CREATED,
        }

    def _imported(self, arn: str) -> dict[str, Any]:
        entry = self._catalog.entries[arn]
        return {
            "modelArn": arn,
            "modelName": arn.rpartition("/")[2],
            "creationTime": _CREATED,
            "modelArchitecture": str(entry.get("architecture", "llama")),
            "instructSupported": True,
            "customModelUnits": {
                "customModelUnitsPerModelCopy": int(entry.get("units", 1)),
                "customModelUnitsVersion": "v1.0",
            },
        }

    def _deployment(self, arn: str) -> dict[str, Any]:
        entry = self._catalog.entries[arn]
        return {
            "customModelDeploymentArn": arn,
            "modelDeploymentName": arn.rpartition("/")[2],
            "customModelDeploymentName": arn.rpartition("/")[2],
            "modelArn": self._model_arn(base_of(str(entry["model"]))),
            "createdAt": _CREATED,
            "status": "Active",
        }
