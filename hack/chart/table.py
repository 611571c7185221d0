# SPDX-License-Identifier: Apache-2.0
"""The chart's values: what each is called, says, may be, and which fields of the manifests it fills."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from templates import Block, items, mapping, scalar, variable

Schema = dict[str, Any]
OPERATOR, AGENT = "Deployment/wirekube-operator", "DaemonSet/wirekube-agent"
POD = "spec.template.spec"
IMAGES = {"wirekube": "image", "wirekube-wireguard": "wireguardImage"}
"""By the name that manifests use, the value that says what image it is."""
LOG_LEVEL = "WIREKUBE_LOG_LEVEL"


class FromManifest:
    """A default: what the manifests have at the value's first place."""


@dataclass(frozen=True)
class Place:
    """A field that a value fills: KIND/NAME, the path in it, and what makes the template of it."""

    workload: str
    path: str
    fill: Callable[[str], Block]
    adds: bool = False


@dataclass(frozen=True)
class Value:
    """A value: its dotted name, one sentence, its JSON schema, its default, its places."""

    name: str
    description: str
    schema: Schema
    default: Any = FromManifest
    places: Sequence[Place] = ()


def record(properties: Mapping[str, Schema], *, required: Sequence[str] = ()) -> Schema:
    """Return the schema of an object that has these properties and no others."""
    found: Schema = {"type": "object", "additionalProperties": False, "properties": dict(properties)}
    return found | ({"required": list(required)} if required else {})


def _list(item: Schema) -> Schema:
    return {"type": "array", "items": item}


def _enum(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


TEXT: Schema = {"type": "string"}
FREE: Schema = {"type": "object"}
NAME: Schema = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", "maxLength": 253}
WORDS: Schema = {"type": "object", "additionalProperties": TEXT}
QUANTITY: Schema = {"type": ["string", "number"], "pattern": "^[0-9]+(\\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"}
QUANTITIES: Schema = {"type": "object", "additionalProperties": QUANTITY}
SHARE: Schema = {"type": ["string", "integer"], "pattern": "^[0-9]+%?$", "minimum": 0}
RESOURCES = record({"requests": QUANTITIES, "limits": QUANTITIES})
AFFINITY = record({"nodeAffinity": FREE, "podAffinity": FREE, "podAntiAffinity": FREE})
TOLERATION = record(
    {
        "key": TEXT,
        "operator": _enum("Exists", "Equal", "Lt", "Gt"),
        "value": TEXT,
        "effect": _enum("NoSchedule", "PreferNoSchedule", "NoExecute"),
        "tolerationSeconds": {"type": "integer"},
    }
)
ROLLING = record({"maxUnavailable": SHARE, "maxSurge": SHARE})
UPDATE_STRATEGY = record({"type": _enum("RollingUpdate", "OnDelete"), "rollingUpdate": ROLLING})
REPOSITORY: Schema = {"type": "string", "pattern": "^[a-z0-9][a-zA-Z0-9._:/-]*[a-z0-9]$"}
TAG: Schema = {"type": "string", "pattern": "^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$"}


def _variables(taken: Sequence[str]) -> Schema:
    """Return the schema of more environment variables: a name that the manifest has would stand there twice."""
    name = {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$", "not": {"enum": list(taken)}}
    return _list(record({"name": name, "value": TEXT, "valueFrom": FREE}, required=["name"]))


def _image(key: str, what: str) -> list[Value]:
    return [
        Value(f"{key}.repository", f"Image of {what}.", REPOSITORY, None),
        Value(f"{key}.tag", "Its tag.", TAG, None),
        Value(
            f"{key}.pullPolicy", "Empty: the API server's default.", _enum("", "Always", "IfNotPresent", "Never"), ""
        ),
    ]


def _field(workload: str, path: str, fill: Callable[[str], Block] = mapping) -> tuple[Place]:
    return (Place(workload, path, fill),)


def _added(workload: str, *paths: str, fill: Callable[[str], Block] = items) -> tuple[Place, ...]:
    return tuple(Place(workload, path, fill, adds=True) for path in paths)


def _log_level(value: str) -> Block:
    return variable(LOG_LEVEL, value)


def _number(value: str) -> Block:
    return scalar(value, quote=False)


def _pod(key: str, workload: str, who: str, environments: Sequence[str], taken: Sequence[str]) -> list[Value]:
    """Return what every pod has; `taken` are the environment variables that the manifest sets."""
    annotations = "spec.template.metadata.annotations"
    return [
        Value(f"{key}.nodeSelector", f"Labels of the nodes that {who} runs on; merged with the default.", WORDS, places=_field(workload, f"{POD}.nodeSelector")),
        Value(f"{key}.affinity", "Kubernetes' affinity; each of its three parts replaces the default's.", AFFINITY, places=_field(workload, f"{POD}.affinity")),
        Value(f"{key}.priorityClassName", "Empty: none.", {**NAME, "pattern": f"^$|{NAME['pattern']}"}, places=_field(workload, f"{POD}.priorityClassName", scalar)),
        Value(f"{key}.podAnnotations", "Annotations of its pods; merged with the default.", WORDS, places=_field(workload, annotations)),
        Value(f"{key}.env", "More environment variables, as a container has them, such as `OTEL_*`.", _variables([*taken, LOG_LEVEL]), [], _added(workload, *environments)),
    ]  # fmt: skip


def values(taken: Mapping[str, Sequence[str]], mesh: Schema) -> list[Value]:
    """Return all values, in the order of values.yaml.

    Args:
        taken: by workload, the environment variables that its manifest sets.
        mesh: the schema of a WireKubeMesh's spec.
    """
    cleanup, agent, operator = f"{POD}.initContainers.cleanup", f"{POD}.containers.agent", f"{POD}.containers.operator"
    helper = f"{POD}.containers.wireguard"
    environments = {OPERATOR: [f"{operator}.env"], AGENT: [f"{cleanup}.env", f"{agent}.env"]}
    logs = [place for who, paths in environments.items() for place in _added(who, *paths, fill=_log_level)]
    return [
        *_image("image", "operator, agents and relay"),
        *_image("wireguardImage", "the container that runs WireGuard where the kernel has none"),
        Value("imagePullSecrets", "Secrets of the release's namespace, `- name: ...`.", _list(record({"name": NAME}, required=["name"])), []),
        Value("logLevel", "Of operator and agents; empty: info.", _enum("", "debug", "info", "warning", "error"), "", logs),
        Value("operator.replicas", "Number of operators.", {"type": "integer", "minimum": 1}, places=_field(OPERATOR, "spec.replicas", _number)),
        Value("operator.resources", "Its requests and limits; merged with the default.", RESOURCES, places=_field(OPERATOR, f"{operator}.resources")),
        *_pod("operator", OPERATOR, "the operator", environments[OPERATOR], taken[OPERATOR]),
        Value("operator.tolerations", "Added to those that it has for control planes and new nodes.", _list(TOLERATION), [], _added(OPERATOR, f"{POD}.tolerations")),
        Value("agent.resources", "Requests and limits of an agent; merged with the default.", RESOURCES, places=_field(AGENT, f"{agent}.resources")),
        Value("agent.wireguard.resources", "The same of the container that runs wireguard-go.", RESOURCES, places=_field(AGENT, f"{helper}.resources")),
        *_pod("agent", AGENT, "an agent", environments[AGENT], taken[AGENT]),
        Value("agent.updateStrategy", "How an upgrade goes over the nodes; `type: OnDelete` needs `rollingUpdate: null`.", UPDATE_STRATEGY, places=_field(AGENT, "spec.updateStrategy")),
        Value("mesh.create", "Whether the release has the WireKubeMesh `default`.", {"type": "boolean"}, False),
        Value("mesh.spec", "Its spec, see `kubectl explain wirekubemesh.spec`.", mesh, {}),
    ]  # fmt: skip
