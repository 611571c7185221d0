# SPDX-License-Identifier: Apache-2.0
"""The kinds that the operator reads and writes, and the few questions that every controller asks of an object."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from ..api.constants import GROUP_VERSION, MESH_NAME
from ..runtime.conditions import readable
from ..runtime.objects import Key, Kind, Object

MESH: Final = Kind(GROUP_VERSION, "wirekubemeshes", "WireKubeMesh")
PEER: Final = Kind(GROUP_VERSION, "wirekubepeers", "WireKubePeer")
SLICE: Final = Kind(GROUP_VERSION, "wirekubepeerslices", "WireKubePeerSlice")
NODE: Final = Kind("v1", "nodes", "Node")
SERVICE: Final = Kind("v1", "services", "Service", namespaced=True)
SECRET: Final = Kind("v1", "secrets", "Secret", namespaced=True)
CONFIG_MAP: Final = Kind("v1", "configmaps", "ConfigMap", namespaced=True)
SERVICE_ACCOUNT: Final = Kind("v1", "serviceaccounts", "ServiceAccount", namespaced=True)
DEPLOYMENT: Final = Kind("apps/v1", "deployments", "Deployment", namespaced=True)
_RBAC: Final = "rbac.authorization.k8s.io"
ROLE_BINDING: Final = Kind(f"{_RBAC}/v1", "rolebindings", "RoleBinding", namespaced=True)
CLUSTER_ROLE_BINDING: Final = Kind(f"{_RBAC}/v1", "clusterrolebindings", "ClusterRoleBinding")
NETWORK_POLICY: Final = Kind("networking.k8s.io/v1", "networkpolicies", "NetworkPolicy", namespaced=True)
DISRUPTION_BUDGET: Final = Kind("policy/v1", "poddisruptionbudgets", "PodDisruptionBudget", namespaced=True)
ENDPOINT_SLICE: Final = Kind("discovery.k8s.io/v1", "endpointslices", "EndpointSlice", namespaced=True)
LEASE: Final = Kind("coordination.k8s.io/v1", "leases", "Lease", namespaced=True)
SERVICE_CIDR: Final = Kind("networking.k8s.io/v1", "servicecidrs", "ServiceCIDR")

MESH_KEY: Final[Key] = ("", MESH_NAME)


def spec_of(obj: Object) -> dict[str, Any]:
    """Return the spec, empty when there is none, or none that can be read."""
    return _mapping(obj.get("spec"))


def status_of(obj: Object) -> dict[str, Any]:
    """Return the status, empty when there is none, or none that can be read."""
    return _mapping(obj.get("status"))


def conditions_of(obj: Object) -> list[dict[str, Any]]:
    """Return those of status.conditions that can be read."""
    return readable(status_of(obj).get("conditions"))


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def uid_of(obj: Object) -> str:
    """Return metadata.uid."""
    return str(obj["metadata"].get("uid") or "")


def generation_of(obj: Object) -> int:
    """Return metadata.generation."""
    return int(obj["metadata"].get("generation") or 0)


def seniority(obj: Object) -> tuple[str, str]:
    """Return the sort key of age: creation time (RFC 3339 in UTC sorts as text), then name."""
    return obj["metadata"].get("creationTimestamp") or "~", obj["metadata"]["name"]


def now_iso() -> str:
    """Return the time now as metav1.Time has it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
