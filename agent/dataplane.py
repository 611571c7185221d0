# SPDX-License-Identifier: Apache-2.0
"""The host's side of the mesh: interface, peers, routes, steering table. Compares what is with what should be, and acts.

    Desired ──> steering table ──> WireGuard ──> addresses, routes, rules
                (nft, atomic)      (differences)  (differences)

The table comes first: WireGuard's constant endpoints lead nowhere without it. What an agent before us left is adopted:
key, virtual ports, legs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..api.constants import FWMARK, VIRTUAL_IPV4
from ..telemetry.logs import get_logger
from ..wire.endpoint import Endpoint, IPAddress
from .facts import MeshFacts, OwnFacts, PeerFacts
from .plan import Legs, allocate_ports, covered_endpoints, device_config, held_ports, host_plan, steering_plan
from .routing.host import HostNetwork
from .routing.source import Sources
from .steering import table
from .steering.plan import PeerSteering
from .wireguard.backend import Backend, BackendError, ForeignInterface
from .wireguard.choose import choose_backend
from .wireguard.device import Device, PeerStats, diff
from .wireguard.helper import FIFO
from .wireguard.kernel import KernelBackend
from .wireguard.rtnl import NetlinkError
from .wireguard.userspace import UserspaceBackend

log = get_logger("agent.dataplane")


class HostRefused(Exception):
    """The kernel refused what a clean-up needs; the message has every refusal."""


Failure = (BackendError, table.SteeringError, NetlinkError, OSError, HostRefused)
"""What the host may answer: reported, and tried again."""


@dataclass(frozen=True)
class Desired:
    """What the host should be.

    Attributes:
        mesh: port, interface, MTU.
        own: our addresses.
        peers: all other nodes.
        legs: by peer name.
        proxies: the relay client's proxy of each key.
        probe_port: port of the probe socket.
        outside: our addresses that the others do not have in the mesh.
    """

    mesh: MeshFacts
    own: OwnFacts
    peers: tuple[PeerFacts, ...]
    legs: Mapping[str, Legs]
    proxies: Mapping[bytes, Endpoint]
    probe_port: int
    outside: frozenset[IPAddress] = frozenset()


@dataclass(frozen=True)
class Adopted:
    """What was found at the start.

    Attributes:
        private_key: of the running interface; None when it has none, or there is no interface.
        ports: virtual port by public key.
        steering: entries of the table by virtual port.
    """

    private_key: bytes | None
    ports: Mapping[bytes, int]
    steering: Mapping[int, PeerSteering]

    def legs(self, key: bytes, own: Iterable[str]) -> Legs | None:
        """Return what the table has of a peer; None when that is nothing.

        Proxies died with their agent. Where our packets went to one, the peer may still send to us directly.
        """
        entry = self.steering.get(self.ports.get(key, 0))
        if entry is None:
            return None
        mine = frozenset(own)
        direct = entry.send_to if entry.send_to is not None and str(entry.send_to.ip) not in mine else None
        accept = frozenset(e for e in entry.accept if str(e.ip) not in mine) | ({direct} if direct else set())
        return Legs(direct, accept) if accept else None

    def without(self, keys: Iterable[bytes]) -> Adopted:
        """Return what is still to be adopted once these peers are."""
        done = frozenset(keys)
        return Adopted(
            self.private_key, {key: port for key, port in self.ports.items() if key not in done}, self.steering
        )


NOTHING = Adopted(None, {}, {})


class DataPlane:
    """Owns interface, table and routes of this node.

    Args:
        host: routing of this network namespace.
        fifo: where a helper is asked for a WireGuard process; see `choose_backend`.

    Attributes:
        ports: virtual port by public key.
        stats: WireGuard's counters at the last `read_stats`.
        interface: name of the interface while it exists.
        problems: what the host refused, for people; the rest works.
    """

    def __init__(self, host: HostNetwork, fifo: Path = FIFO) -> None:
        self._host, self._fifo = host, fifo
        self._steering = table.Steering()
        self._sources = Sources()
        self._backend: Backend | None = None
        self._private = b""
        self.ports: dict[bytes, int] = {}
        self.stats: Mapping[bytes, PeerStats] = {}
        self.interface: str | None = None
        self.problems: tuple[str, ...] = ()

    @property
    def kind(self) -> str | None:
        """`kernel` or `userspace`, once that is known."""
        return self._backend.kind if self._backend is not None else None

    @property
    def ipv4_only(self) -> bool:
        """Whether there is an interface without IPv6, because the host has it switched off."""
        return self.interface is not None and not self._host.ipv6

    def use_key(self, private_key: bytes) -> None:
        """Configure this key from now on."""
        self._private = private_key

    async def open(self, interface: str, mtu: int) -> Adopted:
        """Make the interface, or adopt it with all that an agent before us left.

        Raises:
            BackendError: there is no WireGuard, no permission, or the name is somebody else's.
            SteeringError: nft is missing or not permitted.
        """
        backend = await choose_backend(interface, self._fifo)
        if await _is_foreign(backend, interface):
            raise ForeignInterface(interface, "a WireGuard that was set up by somebody else")
        self._backend = backend
        self._host.interface = interface
        found = await table.read()  # before the interface: without nft none is left half-made
        created = await backend.ensure(interface, mtu)
        self.interface = interface
        log.info("interface ready", name=interface, backend=backend.kind, adopted=not created)
        if created:
            return NOTHING
        device = await backend.read(interface)
        self.ports = held_ports(_endpoints(device))
        return Adopted(
            private_key=device.private_key if any(device.private_key) else None,
            ports=dict(self.ports),
            steering=table.adopted(found) if found is not None else {},
        )

    async def apply(self, desired: Desired) -> None:
        """Make everything as desired; writes only differences.

        Raises:
            BackendError: WireGuard refuses, or is gone.
            SteeringError: nft refuses the table.
            OSError: the kernel cannot be asked.
        """
        self._sources.forget()  # routes may have changed: that is one reason to be here
        await self.steer(desired)
        await self.configure(desired)
        arriving = Sources().of(covered_endpoints(desired.peers, desired.legs)).values()
        plan = host_plan(desired.mesh, desired.own, desired.peers, desired.outside, frozenset(arriving))
        done = await self._host.reconcile(plan)
        self.problems = self._host.problems
        if done:
            log.info("host changed", actions=done)

    async def steer(self, desired: Desired) -> None:
        """Write the steering table alone: a change of path is no more than this.

        Raises:
            SteeringError: nft refuses the table.
            OSError: no route can be asked for.
        """
        self.ports = allocate_ports((peer.key for peer in desired.peers), self.ports)
        sources = self._sources.of({legs.direct.ip for legs in desired.legs.values() if legs.direct is not None})
        mesh, peers, legs, proxies = desired.mesh, desired.peers, desired.legs, desired.proxies
        plan = steering_plan(mesh, peers, self.ports, legs, proxies, sources, desired.probe_port, desired.outside)
        await self._steering.apply(plan)

    async def configure(self, desired: Desired) -> None:
        """Compare WireGuard's peers and write what differs: keepalives follow the legs.

        Raises:
            BackendError: WireGuard refuses, or is gone.
        """
        backend, name = self._ready(desired.mesh)
        if await backend.ensure(name, desired.mesh.mtu):
            log.warning("the interface was gone and has been made again", name=name)
        device = await backend.read(name)
        wanted = device_config(self._private, desired.mesh, desired.peers, self.ports, desired.legs, device.stats)
        change = diff(wanted, device)
        if change:
            await backend.apply(name, change)
            log.info("wireguard changed", peers=len(change.peers), listen_port=change.listen_port)

    def _ready(self, mesh: MeshFacts) -> tuple[Backend, str]:
        if self._backend is None or self.interface is None:
            raise BackendError(f"the interface {mesh.interface} is not open")
        return self._backend, self.interface

    async def verify_table(self) -> bool:
        """Restore the steering table if somebody changed it; True when that was needed.

        Raises:
            SteeringError: nft refuses the table.
        """
        restored = await self._steering.verify()
        if restored:
            log.warning("the nftables table was changed by somebody else and has been restored")
        return restored

    async def read_stats(self) -> Mapping[bytes, PeerStats]:
        """Read WireGuard's counters.

        Raises:
            BackendError: WireGuard is gone.
        """
        if self._backend is not None and self.interface is not None:
            self.stats = await self._backend.stats(self.interface)
        return self.stats

    async def link_index(self) -> int:
        """Return the index of the interface, 0 when there is none."""
        if self.interface is None:
            return 0
        return (await self._host.observe(self.interface)).link or 0

    async def close(self, interface: str | None = None) -> None:
        """Take everything of ours off the host: rules, routes, sysctls, interface, table. Safe to repeat.

        Args:
            interface: its name, where no interface was opened before.

        Raises:
            BackendError: the interface cannot be removed.
            SteeringError: nft is missing or not permitted.
            HostRefused: a rule, a route or a sysctl could not be put back; the rest was.
        """
        name = self.interface or interface
        if name is not None:
            for action in await self._host.remove(name):
                log.info("removed", what=action)
            for backend in (KernelBackend(), UserspaceBackend()):
                if not await _is_foreign(backend, name):
                    await backend.remove(name)
        await table.remove()
        self._steering = table.Steering()
        self._backend, self.interface, self.ports, self.stats = None, None, {}, {}
        if self._host.problems:
            raise HostRefused("; ".join(self._host.problems))


async def _is_foreign(backend: Backend, interface: str) -> bool:
    """Tell whether there is a WireGuard interface of that name that is not ours: a person's own VPN, say wg0.

    Ours has our fwmark, or a constant endpoint, or no key yet.
    """
    try:
        device = await backend.read(interface)
    except BackendError:
        return False  # none at all, or no WireGuard: `ensure` looks at that
    endpoints = (str(stats.endpoint.ip) for stats in device.stats.values() if stats.endpoint is not None)
    return any(device.private_key) and device.fwmark != FWMARK and VIRTUAL_IPV4 not in endpoints


def _endpoints(device: Device) -> dict[bytes, Endpoint | None]:
    return {key: stats.endpoint for key, stats in device.stats.items()}


def roamed(stats: Mapping[bytes, PeerStats]) -> dict[bytes, Endpoint]:
    """Return the peers that WireGuard heard from an address that is not in the table, with that address."""
    return {
        key: each.endpoint
        for key, each in stats.items()
        if each.endpoint is not None and str(each.endpoint.ip) != VIRTUAL_IPV4
    }


def problem_of(error: Exception) -> tuple[str, str]:
    """Return reason and message of a failure, for a condition."""
    reason = "HostRefused"
    if isinstance(error, ForeignInterface):
        reason = "ForeignInterface"
    elif isinstance(error, BackendError):
        reason = "WireGuardUnavailable"
    elif isinstance(error, table.SteeringError):
        reason = "NftablesFailed"
    return reason, str(error)
