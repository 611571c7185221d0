# SPDX-License-Identifier: Apache-2.0
"""Make the managed relay's objects what the Mesh says, repair them, and take them away."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from pydantic import ValidationError

from ...api.constants import FIELD_MANAGER_OPERATOR, RELAY_NAME
from ...api.v1alpha1 import WireKubeMesh
from ...api.v1alpha1.mesh import ManagedRelay
from ...runtime.controller import Result
from ...runtime.errors import AlreadyExists, Conflict, Forbidden, Invalid, NotFound
from ...runtime.objects import Key, Kind, Object
from ...runtime.reflector import Event
from ...runtime.store import Store
from ...telemetry.logs import get_logger
from ..cluster import ClusterNetworks, Reader
from ..kinds import CONFIG_MAP, DEPLOYMENT, MESH_KEY, SECRET, SERVICE, status_of, uid_of
from ..verdicts import Verdict
from .difference import difference, signed
from .objects import KINDS, desired, secret
from .placement import addresses_of, is_control_plane, is_labelled, named_nodes, place
from .settings import MANAGED_BY, OPERATOR, Settings, image_of, resources_of
from .state import Seen, no_image, no_node, refused

log = get_logger("relay")

REFRESH = 300.0  # seconds; ports of the API server and the operator's image are looked up again
# A Secret cannot be seen: while not all relays are ready, one that is missing may be why.
SECRET_RETRY = 15.0
SECRET_REFRESH = 600.0
REFUSED_RETRY = 30.0


class RelayClient(Reader, Protocol):
    """The part of a client that is used here."""

    async def create(self, kind: Kind, obj: Object, *, field_manager: str) -> Object:
        """See `Verbs.create`."""

    async def apply(self, kind: Kind, obj: Object, *, field_manager: str, force: bool = True) -> Object:
        """See `Verbs.apply`."""

    async def delete(self, kind: Kind, name: str, *, namespace: str | None = None, uid: str | None = None) -> None:
        """See `Verbs.delete`."""


@dataclass
class RelayView:
    """The relay's objects as they are.

    Attributes:
        namespace: of the objects.
        stores: by kind, of `KINDS`.
        slices: EndpointSlices of the relay's Service.
        nodes: all Nodes.
        trouble: what the operator could not do for the relay.
    """

    namespace: str
    stores: Mapping[Kind, Store]
    slices: Store
    nodes: Store
    trouble: Verdict | None = None

    def live(self, kind: Kind) -> Object | None:
        """Return the object of this kind."""
        return self.stores[kind].get((self.namespace if kind.namespaced else "", RELAY_NAME))

    def seen(self) -> Seen:
        """Return what the Mesh's status is made from."""
        deployment, service, config_map = (self.live(kind) for kind in (DEPLOYMENT, SERVICE, CONFIG_MAP))
        slices = list(self.slices.items().values())
        return Seen(
            self.namespace,
            deployment,
            service,
            config_map,
            slices,
            lambda name: self.nodes.get(("", name)),
            self.trouble,
        )


class RelayReconciler:
    """Keeps the managed relay of the one Mesh.

    Args:
        client: writes the objects; reads the operator's Deployment and the API server's ports.
        meshes: the Mesh.
        view: the relay's objects; `trouble` is written here.
        image: of relays, unless the Mesh names one; empty for the operator's own.
        changed: called when `trouble` is another one.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        client: RelayClient,
        meshes: Store,
        view: RelayView,
        *,
        image: str = "",
        changed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client, self._meshes, self._view = client, meshes, view
        self._image, self._changed, self._clock = image, changed, clock
        self._cluster = ClusterNetworks(client, clock)
        self._operator: tuple[float, Object | None] = (float("-inf"), None)
        self._secret: tuple[str, float] = ("", 0.0)  # of which Mesh, and when it is made sure of again

    async def reconcile(self, key: Key) -> Result:
        """Apply what differs, or remove everything."""
        obj = self._meshes.get(key)
        if key != MESH_KEY or (obj is not None and obj["metadata"].get("deletionTimestamp")):
            return Result()
        try:
            mesh = WireKubeMesh.model_validate(obj) if obj is not None else None
        except ValidationError:
            return Result()  # the Mesh's condition says so; what runs stays
        if obj is None or mesh is None or mesh.spec.relay.mode == "never" or mesh.spec.relay.provider != "managed":
            await self._remove()
            self._say(None)
            return Result()
        settings = await self._settings(mesh.spec.relay.managed or ManagedRelay(), uid_of(obj))
        if settings is None:
            self._say(no_image())
            return Result(REFUSED_RETRY)
        trouble = await self._apply(settings)
        self._say(trouble or (None if settings.placement.possible else no_node()))
        again = await self._keep_secret(settings)
        return Result(min(again, REFUSED_RETRY if trouble else REFRESH))

    async def _settings(self, managed: ManagedRelay, owner: str) -> Settings | None:
        image = image_of(managed, self._image, await self._own())
        if image is None:
            return None
        nodes = list(self._view.nodes.items().values())
        named = named_nodes(self._view.live(DEPLOYMENT))
        return Settings(
            self._view.namespace,
            owner,
            managed.replicas,
            managed.service_type,
            managed.port,
            image,
            resources_of(managed),
            place(nodes, managed.service_type, managed.replicas, named),
            (await self._cluster.services()).api_ports,
        )

    async def _own(self) -> Object | None:
        """Return the operator's Deployment; None where it does not run in one."""
        due, found = self._operator
        if due <= self._clock():
            found = None
            with contextlib.suppress(NotFound):
                found = await self._client.get(DEPLOYMENT, OPERATOR, self._view.namespace)
            self._operator = self._clock() + REFRESH, found
        return found

    async def _apply(self, settings: Settings) -> Verdict | None:
        """Apply each object that differs; return what the API server refused first."""
        trouble = None
        for kind, plain in desired(settings):
            wanted = signed(plain)
            live = self._view.live(kind)
            where = difference(wanted, live)
            if not where:
                continue
            try:
                await self._client.apply(kind, wanted, field_manager=FIELD_MANAGER_OPERATOR)
            except (Forbidden, Invalid) as error:
                trouble = trouble or refused(kind.kind, error.message)
            else:
                log.info("relay applied", kind=kind.kind, field=where if live is not None else "everything")
        return trouble

    async def _keep_secret(self, settings: Settings) -> float:
        """Make sure now and then that there is a Secret; return the seconds until the next time."""
        ready = status_of(self._view.live(DEPLOYMENT) or {}).get("readyReplicas") or 0
        pause = SECRET_REFRESH if ready >= settings.replicas else SECRET_RETRY
        owner, since = self._secret
        if owner != settings.owner or since + pause <= self._clock():
            with contextlib.suppress(AlreadyExists):
                await self._client.create(SECRET, secret(settings), field_manager=FIELD_MANAGER_OPERATOR)
                log.info("relay applied", kind=SECRET.kind, field="everything")
            self._secret = settings.owner, self._clock()
        return pause

    async def _remove(self) -> None:
        """Delete what carries our label; the ConfigMap last, which tells that the Secret is ours."""
        for kind in reversed(KINDS):
            live = self._view.live(kind)
            if live is None or live["metadata"].get("deletionTimestamp"):
                continue
            if (live["metadata"].get("labels") or {}).get(MANAGED_BY) != OPERATOR:
                continue
            if kind == CONFIG_MAP:
                await self._delete(SECRET, None)
            await self._delete(kind, uid_of(live))
            log.info("relay removed", kind=kind.kind)
        self._secret = "", 0.0

    async def _delete(self, kind: Kind, uid: str | None) -> None:
        namespace = self._view.namespace if kind.namespaced else None
        with contextlib.suppress(NotFound, Conflict):
            await self._client.delete(kind, RELAY_NAME, namespace=namespace, uid=uid)

    def _say(self, trouble: Verdict | None) -> None:
        if trouble != self._view.trouble:
            self._view.trouble = trouble
            self._changed()


def node_to_relay(event: Event) -> tuple[Key, ...]:
    """Map a Node to the Mesh when it is another place for relays than before."""
    old, new = (_as_place(obj) for obj in (event.old, event.new))
    return (MESH_KEY,) if old != new else ()


def _as_place(node: Object | None) -> object:
    if node is None:
        return None
    going = bool(node["metadata"].get("deletionTimestamp"))
    return going, is_labelled(node), is_control_plane(node), addresses_of(node, "ExternalIP")
