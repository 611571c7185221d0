# SPDX-License-Identifier: Apache-2.0
"""What the relay's objects are made from: the Mesh, the operator's own image, the cluster. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from ...api.constants import GROUP_VERSION, MESH_NAME, RELAY_NAME
from ...api.v1alpha1.mesh import ManagedRelay
from ...runtime.objects import Object
from ..kinds import spec_of
from .placement import Placement

OPERATOR: Final = "wirekube-operator"
NAME_LABEL: Final = {"app.kubernetes.io/name": RELAY_NAME}
MANAGED_BY: Final = "app.kubernetes.io/managed-by"
_USUAL: Final = {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}}


@dataclass(frozen=True)
class Image:
    """An image and how it is pulled; an empty policy leaves that to Kubernetes."""

    name: str
    pull_policy: str = ""
    pull_secrets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """All that the relay's objects depend on.

    Attributes:
        namespace: the operator's.
        owner: UID of the Mesh; with it everything goes.
        replicas: how many relays.
        service_type: LoadBalancer, NodePort or ClusterIP.
        port: of the Service.
        image: of the relays.
        resources: of a relay's container, as in a pod.
        placement: on which nodes relays may run.
        api_ports: TCP ports of the API server, before and behind its Service.
    """

    namespace: str
    owner: str
    replicas: int
    service_type: str
    port: int
    image: Image
    resources: dict[str, Any]
    placement: Placement
    api_ports: tuple[int, ...]

    def metadata(self, *, namespaced: bool = True) -> dict[str, Any]:
        """Return the metadata that all the objects have."""
        owner = {
            "apiVersion": GROUP_VERSION,
            "kind": "WireKubeMesh",
            "name": MESH_NAME,
            "uid": self.owner,
            "controller": True,
        }
        metadata = {
            "name": RELAY_NAME,
            "labels": self.pod_labels() | {MANAGED_BY: OPERATOR},
            "ownerReferences": [owner],
        }
        return metadata | ({"namespace": self.namespace} if namespaced else {})

    def pod_labels(self) -> dict[str, str]:
        """Return the labels that the pods have too."""
        return NAME_LABEL | {"app.kubernetes.io/part-of": "wirekube"}


def resources_of(managed: ManagedRelay) -> dict[str, Any]:
    """Return the resources of a relay's container: what the Mesh says and no more, or the usual."""
    if managed.resources is None:
        return _USUAL
    said: dict[str, Any] = managed.resources.model_dump(exclude_none=True)
    return said


def image_of(managed: ManagedRelay, override: str, operator: Object | None) -> Image | None:
    """Return the relay's image: the Mesh's, else the override, else the operator's own; None when none is known.

    Args:
        managed: from the Mesh.
        override: WIREKUBE_RELAY_IMAGE, or empty.
        operator: the operator's Deployment, if there is one; how its image is pulled counts for the others too.
    """
    pod: dict[str, Any] = (spec_of(operator or {}).get("template") or {}).get("spec") or {}
    own: dict[str, Any] = next((each for each in pod.get("containers") or [] if each.get("name") == "operator"), {})
    name = managed.image or override or own.get("image")
    if not name:
        return None
    secrets = tuple(each["name"] for each in pod.get("imagePullSecrets") or [] if each.get("name"))
    return Image(name, own.get("imagePullPolicy") or "", secrets)
