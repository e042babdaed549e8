"""Checks of Kubernetes manifests, without a cluster."""

import functools
import json
from collections.abc import Iterable
from typing import Any

import jsonschema
import kubernetes_validate

Resource = dict[str, Any]

NAMED = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"type": "string"}},
    "additionalProperties": False,
}
COUNT = {"type": "integer", "minimum": 0}
TEXT = {"type": "string"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
SHARED = ("username", "enableTLS", "databaseIndex", "listName", "listLength")
SENTINELS = ("addresses", "sentinelMaster", "sentinelUsername", *SHARED)


def _trigger(kind: str, required: list[str], names: Iterable[str]) -> Resource:
    metadata = {
        "type": "object",
        "required": [*required, "listName", "listLength"],
        "additionalProperties": False,
        "properties": dict.fromkeys(names, TEXT),
    }
    return {
        "type": "object",
        "required": ["type", "metadata"],
        "additionalProperties": False,
        "properties": {"type": {"const": kind}, "metadata": metadata, "authenticationRef": NAMED},
    }


# The parts of the definitions of KEDA 2 and the Prometheus Operator for the fields in use. They
# refuse misspelt fields.
CUSTOM = {
    "keda.sh/v1alpha1/TriggerAuthentication": {
        "type": "object",
        "required": ["secretTargetRef"],
        "additionalProperties": False,
        "properties": {
            "secretTargetRef": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "required": ["parameter", "name", "key"],
                    "additionalProperties": False,
                    "properties": dict.fromkeys(("parameter", "name", "key"), TEXT),
                },
            }
        },
    },
    "keda.sh/v1alpha1/ScaledObject": {
        "type": "object",
        "required": ["scaleTargetRef", "triggers"],
        "additionalProperties": False,
        "properties": {
            "scaleTargetRef": NAMED,
            "minReplicaCount": COUNT,
            "maxReplicaCount": COUNT,
            "pollingInterval": COUNT,
            "fallback": {
                "type": "object",
                "required": ["failureThreshold", "replicas"],
                "additionalProperties": False,
                "properties": {"failureThreshold": COUNT, "replicas": COUNT},
            },
            "advanced": {
                "type": "object",
                "additionalProperties": False,
                "properties": {"horizontalPodAutoscalerConfig": {"type": "object"}},
            },
            "triggers": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "oneOf": [
                        _trigger("redis", ["address"], ("address", *SHARED)),
                        _trigger("redis-sentinel", ["addresses", "sentinelMaster"], SENTINELS),
                    ]
                },
            },
        },
    },
    "monitoring.coreos.com/v1/PrometheusRule": {
        "type": "object",
        "required": ["groups"],
        "additionalProperties": False,
        "properties": {
            "groups": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "required": ["name", "rules"],
                    "additionalProperties": False,
                    "properties": {
                        "name": TEXT,
                        "rules": {
                            "type": "array",
                            "minItems": 1,
                            "items": {
                                "type": "object",
                                "required": ["alert", "expr"],
                                "additionalProperties": False,
                                "properties": {
                                    **dict.fromkeys(("alert", "expr", "for"), TEXT),
                                    **dict.fromkeys(("labels", "annotations"), TEXTS),
                                },
                            },
                        },
                    },
                },
            },
        },
    },
    "monitoring.coreos.com/v1/PodMonitor": {
        "type": "object",
        "required": ["selector", "podMetricsEndpoints"],
        "additionalProperties": False,
        "properties": {
            "selector": {
                "type": "object",
                "required": ["matchLabels"],
                "additionalProperties": False,
                "properties": {"matchLabels": TEXTS},
            },
            "podMetricsEndpoints": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "required": ["port"],
                    "additionalProperties": False,
                    "properties": {
                        "port": TEXT,
                        "interval": TEXT,
                        "relabelings": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "additionalProperties": False,
                                "properties": {
                                    "sourceLabels": {"type": "array", "items": TEXT},
                                    "regex": TEXT,
                                    "targetLabel": TEXT,
                                    "replacement": TEXT,
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}


def check_fields(resource: Resource) -> None:
    """Compare a resource with Kubernetes' own schemas, or with those above for custom resources."""
    kind = f"{resource['apiVersion']}/{resource['kind']}"
    if kind in CUSTOM:
        jsonschema.validate(resource["spec"], CUSTOM[kind])
    else:
        _compare(json.dumps(resource))
    if resource["kind"] == "ScaledObject":
        _compare(json.dumps(_autoscaler(resource["spec"])))


@functools.cache
def _compare(resource: str) -> None:
    version = kubernetes_validate.latest_version()
    kubernetes_validate.validate(json.loads(resource), version, strict=True)


def _autoscaler(scaled: Resource) -> Resource:
    """Return the autoscaler that KEDA makes of a ScaledObject."""
    target = {"apiVersion": "apps/v1", "kind": "Deployment", **scaled["scaleTargetRef"]}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "made"},
        "spec": {
            "scaleTargetRef": target,
            "maxReplicas": scaled["maxReplicaCount"],
            **scaled["advanced"]["horizontalPodAutoscalerConfig"],
        },
    }


def pod_of(deployment: Resource) -> Resource:
    return deployment["spec"]["template"]["spec"]


def container_of(deployment: Resource) -> Resource:
    (container,) = pod_of(deployment)["containers"]
    return container


def check_confinement(deployment: Resource) -> None:
    """Check that a pod of the deployment may do no more than its work."""
    pod, container = pod_of(deployment), container_of(deployment)
    assert pod["automountServiceAccountToken"] is False
    # Otherwise the Services of the namespace bring variables that Veil refuses.
    assert pod["enableServiceLinks"] is False
    # As process 1, Python would ignore a SIGTERM that comes before it has a handler.
    assert pod["shareProcessNamespace"] is True
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001  # the user of the image
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"startupProbe", "livenessProbe"} <= container.keys()
    assert {"cpu", "memory"} <= container["resources"]["limits"].keys()


def select(policy: Resource, labels: dict[str, str]) -> bool:
    """Return whether a NetworkPolicy applies to pods with these labels."""
    selector = policy["spec"]["podSelector"]
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return True
