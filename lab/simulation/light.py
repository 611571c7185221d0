# SPDX-License-Identifier: Apache-2.0
"""An agent's control side in few kilobytes: the same requests as `agent/` makes, the decoding shared by all of them.

list, watch Mesh ────┐
list, watch slices ──┴─> own entry seen ─> GET own Peer ─> PATCH its status ─> (key accepted, others known)
every 15 s at most: PATCH status when the counts differ; every 20 s: PATCH Lease
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from ...api.constants import (
    FIELD_MANAGER_AGENT,
    GROUP_VERSION,
    LEASE_RENEW_SECONDS,
    LEASE_STALE_SECONDS,
    NODE_LEASE_NAMESPACE,
)
from ...api.slices import Entry, entries
from .wire import APPLY, HttpError, Wire

BASE: Final = f"/apis/{GROUP_VERSION}"
LEASES: Final = f"/apis/coordination.k8s.io/v1/namespaces/{NODE_LEASE_NAMESPACE}/leases"
RETRY_SECONDS: Final = 2.0
MIN_SECONDS: Final = 15.0  # between writes of a status that nobody waits for
WATCH_SECONDS: Final = (300, 600)


@dataclass(frozen=True)
class Decoded:
    """One event of a watch on slices.

    Attributes:
        type: ADDED, MODIFIED, DELETED, BOOKMARK or ERROR.
        name: of the slice.
        version: resourceVersion to go on from.
        known: entries whose key is accepted, by name, and the first endpoint of each.
        own: all entries, by name.
    """

    type: str
    name: str
    version: str
    known: dict[str, str]
    own: dict[str, Entry]


class Decoder:
    """Decodes each event once for all agents of a process: they get the very same bytes."""

    def __init__(self, most: int = 64) -> None:
        self._most = most
        self._seen: dict[bytes, Decoded] = {}

    def decode(self, line: bytes) -> Decoded:
        """Return what the line says."""
        found = self._seen.get(line)
        if found is None:
            event = json.loads(line)
            found = self._seen[line] = decoded(event["type"], event["object"])
            while len(self._seen) > self._most:
                del self._seen[next(iter(self._seen))]
        return found


def decoded(type: str, obj: Any) -> Decoded:
    """Read one event's object."""
    metadata, listed = obj.get("metadata") or {}, {each["name"]: each for each in entries(obj)}
    known = {name: _endpoint(each) for name, each in listed.items() if (each.get("status") or {}).get("keyAccepted")}
    return Decoded(type, metadata.get("name") or "", metadata.get("resourceVersion") or "", known, listed)


def _endpoint(entry: Entry) -> str:
    candidates = (entry.get("status") or {}).get("candidates") or [{}]
    return str(candidates[0].get("endpoint") or "")


class LightAgent:
    """One simulated agent.

    Args:
        name: of the Node.
        wire: its connections.
        decoder: shared.
        changed: called after each event with the agent.
    """

    def __init__(self, name: str, wire: Wire, decoder: Decoder, changed: Callable[[LightAgent], None]) -> None:
        self.name, self._wire, self._decoder, self._changed = name, wire, decoder, changed
        self.slices: dict[str, Decoded] = {}
        self.known = 0
        self.endpoint = endpoint_of(name, 0)
        self.ready = asyncio.Event()  # both lists are there
        self._own: Entry | None = None
        self._due = asyncio.Event()
        self._applied: tuple[str, str, int] | None = None
        self._written = float("-inf")

    def endpoint_seen(self, name: str) -> str | None:
        """Return the endpoint that it knows of another node."""
        return next((each.known[name] for each in self.slices.values() if name in each.known), None)

    def move(self, endpoint: str) -> None:
        """Get another address."""
        self.endpoint = endpoint
        self._due.set()

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as group:
            listed = [asyncio.Event(), asyncio.Event()]
            group.create_task(self._follow("wirekubemeshes", lambda _: None, listed[0]))
            group.create_task(self._follow("wirekubepeerslices", self._take, listed[1]))
            group.create_task(self._publish())
            group.create_task(self._renew())
            for each in listed:
                await each.wait()
            self.ready.set()

    async def _follow(self, plural: str, take: Callable[[Decoded], None], listed: asyncio.Event) -> None:
        """List, and watch from there, for ever."""
        version = ""
        while True:
            try:
                if not version:
                    found = await self._wire.request("GET", f"{BASE}/{plural}?limit=500")
                    for obj in found["items"]:
                        take(decoded("ADDED", obj))
                    version = found["metadata"]["resourceVersion"]
                    listed.set()
                version = await self._watch(plural, take, version)
            except HttpError as error:
                version = "" if error.status else version
                await asyncio.sleep(RETRY_SECONDS * (0.5 + random.random()))  # noqa: S311 - spreads requests

    async def _watch(self, plural: str, take: Callable[[Decoded], None], version: str) -> str:
        seconds = random.randint(*WATCH_SECONDS)  # noqa: S311 - spreads requests
        query = f"watch=true&allowWatchBookmarks=true&resourceVersion={version}&timeoutSeconds={seconds}"
        async with self._wire.watch(f"{BASE}/{plural}?{query}") as lines:
            async for line in lines:
                event = self._decoder.decode(line)
                if event.type == "ERROR":
                    return ""
                version = event.version
                if event.type != "BOOKMARK":
                    take(event)
        return version

    def _take(self, event: Decoded) -> None:
        old = self.slices.pop(event.name, None)
        if event.type != "DELETED":
            self.slices[event.name] = event
            self._own = event.own.get(self.name, self._own)
        self.known += (len(event.known) if event.type != "DELETED" else 0) - (len(old.known) if old else 0)
        self._due.set()
        self._changed(self)

    async def _publish(self) -> None:
        wait: float | None = None
        while True:
            try:
                async with asyncio.timeout(wait):
                    await self._due.wait()
            except TimeoutError:
                pass
            self._due.clear()
            wait = await self._write()

    async def _write(self) -> float | None:
        """Write the status when it is time; return seconds until the next look."""
        if self._own is None:
            return None
        wanted = (str(self._own.get("uid")), self.endpoint, max(0, self.known - 1))
        now = time.monotonic()
        urgent = self._applied is None or self._applied[:2] != wanted[:2]
        if wanted == self._applied:
            return None
        if not urgent and now < self._written + MIN_SECONDS:
            return self._written + MIN_SECONDS - now
        path = f"{BASE}/wirekubepeers/{self.name}"
        try:
            if self._applied is None:
                await self._wire.request("GET", path)
            query = f"fieldManager={FIELD_MANAGER_AGENT}&force=true"
            await self._wire.request("PATCH", f"{path}/status?{query}", status_body(self.name, *wanted[1:]), APPLY)
        except HttpError:
            return RETRY_SECONDS
        self._applied, self._written = wanted, now
        return 0.0

    async def _renew(self) -> None:
        await asyncio.sleep(LEASE_RENEW_SECONDS * random.random())  # noqa: S311 - spreads requests
        while True:
            if self._own is not None:
                query = f"fieldManager={FIELD_MANAGER_AGENT}&force=true"
                try:
                    await self._wire.request("PATCH", f"{LEASES}/{self.name}?{query}", lease_body(self.name), APPLY)
                except HttpError:
                    await asyncio.sleep(1)
                    continue
            await asyncio.sleep(LEASE_RENEW_SECONDS)


def endpoint_of(name: str, move: int) -> str:
    """Return the address that a node has after so many moves."""
    number = int.from_bytes(hashlib.sha256(f"{name} {move}".encode()).digest()[:3])
    return f"11.{number >> 16}.{(number >> 8) & 255}.{number & 255}:51820"


def key_of(name: str) -> str:
    """Return a node's public key; nobody has the private one."""
    return base64.b64encode(hashlib.sha256(name.encode()).digest()).decode()


def status_body(name: str, endpoint: str, direct: int) -> dict[str, Any]:
    """Return what an agent applies: as large as a real one's."""
    nat = {"mapping": "EndpointIndependent", "filtering": "AddressAndPortDependent", "udp": "Open", "summary": "Easy"}
    candidates = [
        {"endpoint": endpoint, "type": "serverReflexive"},
        {"endpoint": endpoint_of(name, -1), "type": "host"},
        {"endpoint": endpoint_of(name, -2), "type": "host"},
    ]
    conditions = [
        {"type": kind, "status": "True", "reason": "Simulated", "message": "no data plane", "observedGeneration": 1}
        | {"lastTransitionTime": "2026-01-01T00:00:00Z"}
        for kind in ("DataPlaneReady", "EndpointDiscovered", "RelayConnected", "PeersReachable", "KeyPersisted")
    ]
    status = {
        "publicKey": key_of(name),
        "listenPort": 51820,
        "endpoint": endpoint,
        "candidates": candidates,
        "nat": nat,
    }
    status |= {"peers": {"direct": direct, "relayed": 0, "unreachable": 0}, "conditions": conditions}
    return {"apiVersion": GROUP_VERSION, "kind": "WireKubePeer", "metadata": {"name": name}, "status": status}


def lease_body(name: str) -> dict[str, Any]:
    """Return what an agent applies to its Lease."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    metadata = {"name": name, "namespace": NODE_LEASE_NAMESPACE}
    spec = {"holderIdentity": name, "leaseDurationSeconds": int(LEASE_STALE_SECONDS), "renewTime": now}
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
