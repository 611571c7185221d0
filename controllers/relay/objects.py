# SPDX-License-Identifier: Apache-2.0
"""The objects that a managed relay consists of, all named `wirekube-relay`. Pure.

The Roles behind the two bindings stand in config/rbac: the operator may bind them, and could not write others. The Secret
is made empty; the first relay fills it, and the operator has no right to read it. The ConfigMap is where relays put the
public key.
"""

from __future__ import annotations

from typing import Any, Final

from ...api.constants import RELAY_NAME
from ...runtime.objects import Kind, Object
from ..kinds import (
    CLUSTER_ROLE_BINDING,
    CONFIG_MAP,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    NETWORK_POLICY,
    ROLE_BINDING,
    SERVICE,
    SERVICE_ACCOUNT,
)
from .deployment import METRICS, PORT, deployment
from .settings import NAME_LABEL, Settings

# In the order in which they are made. The ConfigMap tells that the Secret is ours, so it goes last.
KINDS: Final = (
    CONFIG_MAP,
    SERVICE_ACCOUNT,
    ROLE_BINDING,
    CLUSTER_ROLE_BINDING,
    NETWORK_POLICY,
    DISRUPTION_BUDGET,
    SERVICE,
    DEPLOYMENT,
)
DNS_PORT: Final = 53


def desired(settings: Settings) -> list[tuple[Kind, Object]]:
    """Return all objects but the Secret, in the order of `KINDS`."""
    made = {
        CONFIG_MAP: {"metadata": settings.metadata()},
        SERVICE_ACCOUNT: {"metadata": settings.metadata()},
        ROLE_BINDING: _binding(settings, "Role", namespaced=True),
        CLUSTER_ROLE_BINDING: _binding(settings, "ClusterRole", namespaced=False),
        NETWORK_POLICY: _network_policy(settings),
        DISRUPTION_BUDGET: _disruption_budget(settings),
        SERVICE: _service(settings),
        DEPLOYMENT: deployment(settings),
    }
    return [(kind, made[kind]) for kind in KINDS]


def secret(settings: Settings) -> Object:
    """Return the Secret, without data."""
    return {"metadata": settings.metadata(), "type": "Opaque"}


def _binding(settings: Settings, role: str, *, namespaced: bool) -> Object:
    return {
        "metadata": settings.metadata(namespaced=namespaced),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": RELAY_NAME},
        "subjects": [{"kind": "ServiceAccount", "name": RELAY_NAME, "namespace": settings.namespace}],
    }


def _network_policy(settings: Settings) -> Object:
    """Allow what relays do, whatever else is denied in the namespace.

    Ports only, no addresses: agents come from anywhere, kubelets probe from addresses that no selector describes, and a
    CNI may look at the API server's address before or behind its Service, or not know it as a network at all.
    """
    ingress = [_port(PORT), _port(METRICS)]
    egress = [*map(_port, settings.api_ports), _port(DNS_PORT), _port(DNS_PORT, "UDP")]
    return {
        "metadata": settings.metadata(),
        "spec": {
            "podSelector": {"matchLabels": NAME_LABEL},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"ports": ingress}],
            "egress": [{"ports": egress}],
        },
    }


def _port(number: int, protocol: str = "TCP") -> dict[str, Any]:
    return {"port": number, "protocol": protocol}


def _disruption_budget(settings: Settings) -> Object:
    spec = {
        "maxUnavailable": 1,
        "selector": {"matchLabels": NAME_LABEL},
        "unhealthyPodEvictionPolicy": "AlwaysAllow",  # a relay that does not work must not keep a node from its drain
    }
    return {"metadata": settings.metadata(), "spec": spec}


def _service(settings: Settings) -> Object:
    """Return the Service: TCP only, for not every load balancer mixes protocols and agents ask other STUN servers."""
    spec: dict[str, Any] = {
        "type": settings.service_type,
        "selector": NAME_LABEL,
        "ports": [{"name": "relay", "port": settings.port, "targetPort": "relay", "protocol": "TCP"}],
    }
    if settings.service_type != "ClusterIP":
        # One hop less, and a node without a relay is not taken for one.
        spec["externalTrafficPolicy"] = "Local"
    return {"metadata": settings.metadata(), "spec": spec}
