# SPDX-License-Identifier: Apache-2.0
"""What is watched for the managed relay, and its controller.

Its objects are watched by name, which RBAC can limit; EndpointSlices by the label of their Service.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ...api.constants import RELAY_NAME
from ...runtime.client import Client
from ...runtime.controller import Controller
from ...runtime.objects import Key, Kind
from ...runtime.reflector import Event, Reflector
from ...runtime.store import Store
from ...runtime.verbs import Verbs
from ...telemetry import Telemetry
from ..kinds import CONFIG_MAP, DEPLOYMENT, ENDPOINT_SLICE, MESH_KEY, SERVICE
from .objects import KINDS
from .reconciler import RelayReconciler, RelayView, node_to_relay

RESYNC: Final = 600.0


@dataclass(frozen=True)
class RelayReflectors:
    """The reflectors of the managed relay.

    Attributes:
        namespace: of the objects.
        objects: by kind, each of one object.
        slices: EndpointSlices of the relay's Service.
    """

    namespace: str
    objects: Mapping[Kind, Reflector]
    slices: Reflector

    def view(self, nodes: Store) -> RelayView:
        """Return what their stores show."""
        stores = {kind: reflector.store for kind, reflector in self.objects.items()}
        return RelayView(self.namespace, stores, self.slices.store, nodes)

    def all(self) -> list[Reflector]:
        """Return all reflectors."""
        return [*self.objects.values(), self.slices]


def relay_reflectors(client: Verbs, telemetry: Telemetry, namespace: str) -> RelayReflectors:
    """Make the reflectors."""
    objects = {
        kind: Reflector(
            client,
            kind,
            namespace=namespace if kind.namespaced else None,
            field_selector=f"metadata.name={RELAY_NAME}",
            resync=RESYNC,
            telemetry=telemetry,
        )
        for kind in KINDS
    }
    slices = Reflector(
        client,
        ENDPOINT_SLICE,
        namespace=namespace,
        label_selector=f"kubernetes.io/service-name={RELAY_NAME}",
        telemetry=telemetry,
    )
    return RelayReflectors(namespace, objects, slices)


def relay_controller(
    client: Client,
    telemetry: Telemetry,
    relay: RelayReflectors,
    view: RelayView,
    meshes: Reflector,
    nodes: Reflector,
    mesh_controller: Controller,
    image: str,
) -> Controller:
    """Return the controller that keeps the relay, and let the Mesh's status follow what becomes of it."""

    def changed() -> None:
        mesh_controller.enqueue(MESH_KEY)

    reconciler = RelayReconciler(client, meshes.store, view, image=image, changed=changed)
    controller = Controller("relay", reconciler, telemetry=telemetry)
    controller.watches(meshes)
    controller.watches(nodes, node_to_relay)
    for reflector in relay.objects.values():
        controller.watches(reflector, _to_mesh)
    for reflector in (relay.objects[DEPLOYMENT], relay.objects[SERVICE], relay.objects[CONFIG_MAP], relay.slices):
        mesh_controller.watches(reflector, _to_mesh)
    return controller


def _to_mesh(_event: Event) -> tuple[Key]:
    return (MESH_KEY,)
