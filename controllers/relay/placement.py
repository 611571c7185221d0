# SPDX-License-Identifier: Apache-2.0
"""On which nodes relays may run. Pure.

A load balancer reaches every node, so the label `wirekube.io/relay=true` is a wish there. A NodePort is reached at the
node itself: only nodes that somebody outside can reach will do. Those that a person has labelled come first; without any,
control planes (agents reach the API server there already) and nodes with an ExternalIP.

Kubernetes has no selector for "has an ExternalIP", so such nodes are named one by one. Each change of that list would
replace all relays: it is changed only when too few of the named ones are left.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from ...api.constants import LABEL_RELAY
from ...runtime.objects import Object
from ..kinds import seniority, spec_of, status_of
from ..nodes import networks

CONTROL_PLANE: Final = "node-role.kubernetes.io/control-plane"
MOST_NAMED: Final = 16
_LABELLED: Final = {"matchExpressions": [{"key": LABEL_RELAY, "operator": "In", "values": ["true"]}]}
_CONTROL_PLANES: Final = {"matchExpressions": [{"key": CONTROL_PLANE, "operator": "Exists"}]}


@dataclass(frozen=True)
class Placement:
    """Where relays may run.

    Attributes:
        affinity: the pods' nodeAffinity.
        possible: whether there is a node that will do.
        spread: whether two relays on one node are refused (True) or only avoided (False) where there is another node.
    """

    affinity: dict[str, Any]
    possible: bool
    spread: bool


def place(nodes: Iterable[Object], service_type: str, replicas: int, named: tuple[str, ...] = ()) -> Placement:
    """Decide where relays may run.

    Args:
        nodes: all Nodes.
        service_type: of the relay's Service.
        replicas: how many relays are wanted.
        named: the nodes that the relays' Deployment names now, see `named_nodes`.
    """
    there = sorted((node for node in nodes if not node["metadata"].get("deletionTimestamp")), key=seniority)
    if service_type != "NodePort":
        wish = {"weight": 100, "preference": _LABELLED}
        return Placement({"preferredDuringSchedulingIgnoredDuringExecution": [wish]}, True, False)
    if any(is_labelled(node) for node in there):
        return Placement(_required([_LABELLED]), True, True)
    control_planes = any(is_control_plane(node) for node in there)
    external = [node["metadata"]["name"] for node in there if has_external(node) and not is_control_plane(node)]
    names = _names(external, replicas, named)
    terms: list[dict[str, Any]] = [_CONTROL_PLANES] if control_planes else []
    terms += [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]} for name in names]
    # Without any node the pods wait for the label that the condition asks for.
    return Placement(_required(terms or [_LABELLED]), bool(terms), True)


def _names(external: list[str], replicas: int, named: tuple[str, ...]) -> tuple[str, ...]:
    left = [name for name in named if name in external]
    enough = min(replicas + 1, len(external))  # one more, so that the loss of a node leaves a place
    return named if left and len(left) >= enough else tuple(external[:MOST_NAMED])


def _required(terms: list[dict[str, Any]]) -> dict[str, Any]:
    return {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}


def named_nodes(deployment: Object | None) -> tuple[str, ...]:
    """Return the nodes that a Deployment of ours names, in its order."""
    spec: Any = spec_of(deployment or {})
    for key in ("template", "spec", "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution"):
        spec = (spec.get(key) if isinstance(spec, dict) else None) or {}
    fields = [field for term in spec.get("nodeSelectorTerms") or [] for field in term.get("matchFields") or []]
    return tuple(name for field in fields for name in field.get("values") or [])


def is_labelled(node: Object) -> bool:
    """Whether a person wants relays on the node."""
    return _labels(node).get(LABEL_RELAY) == "true"


def is_control_plane(node: Object) -> bool:
    """Whether the node carries the label of control planes."""
    return CONTROL_PLANE in _labels(node)


def has_external(node: Object) -> bool:
    """Whether the Node has an ExternalIP."""
    return bool(addresses_of(node, "ExternalIP"))


def addresses_of(node: Object, kind: str) -> list[str]:
    """Return the Node's addresses of one type that are IP addresses, IPv4 first."""
    listed = [each for each in status_of(node).get("addresses") or [] if isinstance(each, dict)]
    found = networks(each.get("address") for each in listed if each.get("type") == kind)
    return [str(network.network_address) for network in sorted(found, key=lambda each: each.version)]


def _labels(node: Object) -> dict[str, str]:
    return node["metadata"].get("labels") or {}
