"""Writes tollhouse/values.schema.json: what the chart's values may be. Anything else is refused.

    python helm/schema.py          write it
    python helm/schema.py --check  fail when the file in the chart is not what would be written

`config` is made from the proxy's own settings, so that a typo or a wrong type is refused before a pod starts.
"""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from proxy.settings import Settings  # noqa: E402 (the package may not be installed)

TARGET = Path(__file__).resolve().parent / "tollhouse" / "values.schema.json"

#: Settings that the chart works out from other values, or that mean nothing to `serve` and `worker`.
OWNED = {
    "host", "port", "admin_port", "metrics_port", "surface", "workers", "replicas", "shutdown_seconds", "state_dir",
    "policies_dir", "tls_certificate", "tls_key", "aws_region", "bedrock_endpoint_url",
    "bedrock_control_endpoint_url", "upstream",
}  # fmt: skip

Schema = dict[str, Any]
STRING: Schema = {"type": "string"}
TEXT: Schema = {"type": "string", "minLength": 1}
BOOLEAN: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 1}
WHOLE: Schema = {"type": "integer", "minimum": 0}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
#: objects of the Kubernetes API, which checks them itself
KUBERNETES: Schema = {"type": "object"}
KUBERNETES_LIST: Schema = {"type": "array", "items": {"type": "object"}}
WORDS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
QUANTITY: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|Ki|Mi|Gi|Ti|M|G|T)?$"}
INTERVAL: Schema = {"type": "string", "pattern": "^[0-9]+(ms|s|m)$"}
FILE = r"^(models|prices|plans|routes|rules)/[A-Za-z0-9][-._A-Za-z0-9]*\.ya?ml$"


def closed(**properties: Schema) -> Schema:
    """An object with these properties and no others."""
    return {"type": "object", "additionalProperties": False, "properties": properties}


def listed(item: Schema) -> Schema:
    return {"type": "array", "items": item}


def setting(kind: Any, about: str) -> Schema:
    """The schema of one setting, by its type."""
    if kind is bool:
        return {**BOOLEAN, "description": about}
    if kind is int:
        return {**WHOLE, "description": about}
    if kind is float:
        return {"type": "number", "minimum": 0, "maximum": 1, "description": about}
    if get_origin(kind) is Literal:
        return {"enum": list(get_args(kind)), "description": about}
    return {**STRING, "description": about}


def config() -> Schema:
    hints = get_type_hints(Settings)
    names = [f for f in fields(Settings) if f.name not in OWNED and not f.metadata["secret"]]
    return closed(**{f.name: setting(hints[f.name], str(f.metadata["about"])) for f in names})


def secret() -> Schema:
    return {
        **closed(key=TEXT, existingSecret=STRING, value=STRING),
        "required": ["key", "existingSecret", "value"],
    }


def pod(**more: Schema) -> Schema:
    """What proxy and worker have in common."""
    return closed(
        replicas=WHOLE,
        resources=KUBERNETES,
        nodeSelector=WORDS,
        tolerations=KUBERNETES_LIST,
        affinity=KUBERNETES,
        topologySpreadConstraints=KUBERNETES_LIST,
        priorityClassName=STRING,
        podAnnotations=WORDS,
        podLabels=WORDS,
        extraEnv=KUBERNETES_LIST,
        extraVolumes=KUBERNETES_LIST,
        extraVolumeMounts=KUBERNETES_LIST,
        **more,
    )


def proxy() -> Schema:
    probe = closed(
        periodSeconds=COUNT,
        failureThreshold=COUNT,
        timeoutSeconds=COUNT,
        initialDelaySeconds=WHOLE,
        successThreshold=COUNT,
    )
    return pod(
        workers=COUNT,
        preStopSeconds=COUNT,
        settleSeconds=COUNT,
        terminationGracePeriodSeconds={"type": ["integer", "null"], "minimum": 1},
        state=closed(sizeLimit=QUANTITY),
        tmp=closed(sizeLimit=QUANTITY),
        maxSurge={"anyOf": [COUNT, {"type": "string", "pattern": "^[1-9][0-9]?[0-9]?%$"}]},
        probes=closed(startup=probe, liveness=probe, readiness=probe),
    )


def exposure() -> dict[str, Schema]:
    """How clients come in."""
    return {
        "service": closed(
            type={"enum": ["ClusterIP", "LoadBalancer", "NodePort"]},
            port=PORT,
            appProtocol=STRING,
            annotations=WORDS,
            loadBalancerSourceRanges=listed(TEXT),
        ),
        "networkPolicy": closed(
            enabled=BOOLEAN,
            proxyFrom=KUBERNETES_LIST,
            adminFrom=KUBERNETES_LIST,
            metricsFrom=KUBERNETES_LIST,
            databasePorts=listed(PORT),
            databaseTo=KUBERNETES_LIST,
            redisPorts=listed(PORT),
            redisTo=KUBERNETES_LIST,
            httpsCidrs=listed(TEXT),
            collectorTo=KUBERNETES_LIST,
            extraEgress=KUBERNETES_LIST,
        ),
        "ingress": closed(
            enabled=BOOLEAN,
            className=STRING,
            controller={"enum": ["", "alb", "nginx"]},
            annotations=WORDS,
            hosts=listed(TEXT),
            tls=KUBERNETES_LIST,
        ),
        "httpRoute": closed(
            enabled=BOOLEAN,
            parentRefs=KUBERNETES_LIST,
            hostnames=listed(TEXT),
            annotations=WORDS,
            timeouts=BOOLEAN,
        ),
    }


def operations() -> dict[str, Schema]:
    """Migration, scaling, disruption, monitoring."""
    monitor = closed(enabled=BOOLEAN, interval=INTERVAL, labels=WORDS)
    return {
        "migration": closed(
            enabled=BOOLEAN,
            backoffLimit=WHOLE,
            activeDeadlineSeconds=COUNT,
            resources=KUBERNETES,
            podAnnotations=WORDS,
            extraEnv=KUBERNETES_LIST,
            extraVolumes=KUBERNETES_LIST,
            extraVolumeMounts=KUBERNETES_LIST,
        ),
        "autoscaling": closed(
            enabled=BOOLEAN,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            targetCPUUtilizationPercentage={"type": "integer", "minimum": 1, "maximum": 100},
            inFlight=closed(enabled=BOOLEAN, averageValue=QUANTITY),
            scaleDownStabilizationSeconds={"type": "integer", "minimum": 0, "maximum": 3600},
        ),
        "podDisruptionBudget": closed(
            enabled=BOOLEAN,
            maxUnavailable={"anyOf": [COUNT, {"type": "string", "pattern": "^[1-9][0-9]?%$"}]},
        ),
        "metrics": closed(port=PORT),
        "monitoring": closed(
            serviceMonitor=monitor,
            podMonitor=monitor,
            rules=closed(enabled=BOOLEAN, labels=WORDS),
            dashboards=closed(enabled=BOOLEAN, labels=WORDS, annotations=WORDS),
            runbooksUrl={"type": "string", "minLength": 1, "pattern": "[^/]$"},
            grafanaUrl={"type": "string", "pattern": "^$|[^/]$"},
        ),
        "test": closed(enabled=BOOLEAN),
    }


def schema() -> Schema:
    names = (
        "databaseUrl", "migrationDatabaseUrl", "redisUrl", "masterKey", "previousMasterKey", "adminKey", "otlpHeaders",
    )  # fmt: skip
    policies = closed(
        files={
            "type": "object",
            "additionalProperties": False,
            "patternProperties": {FILE: TEXT},
        },
        existingConfigMap=STRING,
        items=listed(closed(key=TEXT, path={"type": "string", "pattern": FILE})),
        reload={"enum": ["hot", "restart"]},
    )
    image = closed(
        repository=TEXT,
        tag=STRING,
        digest={"type": "string", "pattern": "^$|^sha256:[0-9a-f]{64}$"},
        pullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
    )
    values = closed(
        nameOverride=STRING,
        fullnameOverride=STRING,
        image=image,
        imagePullSecrets=KUBERNETES_LIST,
        existingSecret=STRING,
        secrets=closed(**{name: secret() for name in names}),
        config=config(),
        aws=closed(
            region={"type": "string", "pattern": "^[a-z]{2}(-[a-z]+)+-[0-9]$"},
            roleArn={"type": "string", "pattern": "^$|^arn:aws[a-z-]*:iam::[0-9]{12}:role/"},
            podIdentity=BOOLEAN,
            credentialsSecret=STRING,
            endpointUrl={"type": "string", "pattern": "^$|^https?://"},
            controlEndpointUrl={"type": "string", "pattern": "^$|^https?://"},
        ),
        serviceAccount=closed(create=BOOLEAN, name=STRING, annotations=WORDS),
        listenAddress={"enum": ["0.0.0.0", "::"]},  # noqa: S104 (inside a pod)
        proxy=proxy(),
        worker=pod(),
        admin=closed(separatePort=BOOLEAN, port=PORT),
        tls=closed(existingSecret=STRING),
        policies=policies,
        podSecurityContext=KUBERNETES,
        securityContext=KUBERNETES,
        **exposure(),
        **operations(),
    )
    # Parent charts pass `global`, which is read by nobody here.
    values["properties"]["global"] = {"type": "object"}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the tollhouse chart",
        **values,
    }


def rendered() -> str:
    return json.dumps(schema(), indent=1) + "\n"


def main(arguments: list[str]) -> int:
    text = rendered()
    if arguments == ["--check"]:
        if TARGET.read_text(encoding="utf-8") == text:
            return 0
        print(f"{TARGET} is not what the settings say; run python helm/schema.py", file=sys.stderr)
        return 1
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
