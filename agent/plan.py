# SPDX-License-Identifier: Apache-2.0
"""From facts to the desired state of one host: WireGuard's peers, routes, and the steering table. Pure.

    facts (mesh, own Peer, peers) ──┐
    legs (from the path machine) ───┼──> device_config, host_plan, steering_plan ──> the backends compare and act
    proxies, ports (from the host) ─┘

WireGuard's endpoint of a peer is a constant documentation address, 192.0.2.1:PORT(peer). Which leg its packets take is a
matter of the steering table alone, so a change of path never touches WireGuard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address, ip_interface, ip_network

from ..api.claims import covering
from ..api.constants import FWMARK, RELAY_NAME, VIRTUAL_IPV4
from ..wire.endpoint import Endpoint, IPAddress
from .facts import MeshFacts, OwnFacts, PeerFacts, keepalive_of
from .relayclient import opens
from .routing.model import HostPlan
from .steering.plan import Inside, PeerSteering, SteeringPlan, plan_of
from .wireguard.device import DeviceConfig, PeerConfig, PeerStats, public_key_of

FIRST_PORT = 1024
LAST_PORT = 65535
VIRTUAL = ip_address(VIRTUAL_IPV4)


@dataclass(frozen=True)
class Legs:
    """What the path machine wants for one peer.

    Attributes:
        direct: confirmed address to send to; None sends to the local proxy (relay, or hold back).
        accept: confirmed addresses whose packets are this peer's.
    """

    direct: Endpoint | None = None
    accept: frozenset[Endpoint] = frozenset()


def virtual_endpoint(port: int) -> Endpoint:
    """Return WireGuard's constant endpoint for the peer that holds this port."""
    return Endpoint(VIRTUAL, port)


def allocate_ports(keys: Iterable[bytes], held: Mapping[bytes, int]) -> dict[bytes, int]:
    """Give each key a port of its own; a key that holds one alone keeps it, so that no endpoint moves.

    Raises:
        OverflowError: more keys than ports.
    """
    wanted = sorted(keys)
    holders = Counter(held.values())
    ports = {key: held[key] for key in wanted if key in held and holders[held[key]] == 1}
    used = set(held.values())
    free = (port for port in range(FIRST_PORT, LAST_PORT + 1) if port not in used)
    for key in wanted:
        if key not in ports:
            port = next(free, None)
            if port is None:
                raise OverflowError(f"more than {LAST_PORT - FIRST_PORT + 1} peers")
            ports[key] = port
    return ports


def held_ports(endpoints: Mapping[bytes, Endpoint | None]) -> dict[bytes, int]:
    """Read the allocation back from WireGuard: what an adopted interface says is what was promised."""
    return {
        key: endpoint.port for key, endpoint in endpoints.items() if endpoint is not None and endpoint.ip == VIRTUAL
    }


def keepalive(own: bytes, peer: PeerFacts, legs: Legs, *, shaken: bool) -> int:
    """Seconds between keepalives: a direct path must keep its NAT mapping, a relayed one has none to keep.

    Setting one makes WireGuard send at once, so the side that does not open waits for the first handshake.
    """
    if legs.direct is None or not (shaken or opens(own, peer.key)):
        return 0
    return keepalive_of(peer)


def device_config(
    private_key: bytes,
    mesh: MeshFacts,
    peers: Iterable[PeerFacts],
    ports: Mapping[bytes, int],
    legs: Mapping[str, Legs],
    observed: Mapping[bytes, PeerStats],
) -> DeviceConfig:
    """Return what WireGuard shall be configured to; `observed` is what it counts now.

    An endpoint that WireGuard itself moved (a peer's NAT rebound) is left alone until the path machine has confirmed
    it: until then it is the only address that is known to work.
    """
    configured, own = {}, public_key_of(private_key)
    for peer in peers:
        mine, stats = legs.get(peer.name, Legs()), observed.get(peer.key)
        seen = stats.endpoint if stats is not None else None
        roamed = seen is not None and seen.ip != VIRTUAL and seen not in mine.accept
        configured[peer.key] = PeerConfig(
            public_key=peer.key,
            endpoint=None if roamed else virtual_endpoint(ports[peer.key]),
            allowed_ips=peer.networks,
            keepalive=keepalive(own, peer, mine, shaken=stats is not None and stats.last_handshake > 0),
        )
    return DeviceConfig(private_key=private_key, listen_port=mesh.listen_port, fwmark=FWMARK, peers=configured)


def steering_plan(
    mesh: MeshFacts,
    peers: Collection[PeerFacts],
    ports: Mapping[bytes, int],
    legs: Mapping[str, Legs],
    proxies: Mapping[bytes, Endpoint],
    sources: Mapping[IPAddress, IPv4Address],
    probe_port: int,
    outside: Iterable[IPAddress] = (),
) -> SteeringPlan:
    """Return the steering table: the leg in use for each peer, and whose packets are taken for whose.

    `sources` has our address on the way to each direct leg; a proxy gets its packets from its own address. `outside` are
    our addresses that others do not have in the mesh.
    """
    entries = []
    for peer in peers:
        mine, proxy = legs.get(peer.name, Legs()), proxies.get(peer.key)
        source = sources.get(mine.direct.ip) if mine.direct is not None else proxy.ip if proxy is not None else None
        entries.append(
            PeerSteering(
                virtual_port=ports[peer.key],
                send_to=mine.direct or proxy,
                send_from=source if isinstance(source, IPv4Address) else None,
                accept=mine.accept | ({proxy} if proxy else set()),
            )
        )
    # One that has a name, or stands outside, has no address that kube-proxy knows.
    relays = [endpoint for relay in mesh.relays if relay.name == RELAY_NAME for endpoint in relay.endpoints]
    return plan_of(mesh.listen_port, probe_port, entries, _inside(mesh, peers, outside), relays)


def _inside(mesh: MeshFacts, peers: Iterable[PeerFacts], outside: Iterable[IPAddress]) -> Inside:
    nodes = {network.network_address for peer in peers for network in peer.preferred if network.num_addresses == 1}
    return Inside(mesh.interface if nodes else "", _ipv4(nodes), _ipv4(outside))


def _ipv4(addresses: Iterable[IPAddress]) -> frozenset[IPv4Address]:
    return frozenset(ip for ip in addresses if isinstance(ip, IPv4Address))


def covered_endpoints(peers: Collection[PeerFacts], legs: Mapping[str, Legs]) -> set[IPAddress]:
    """Return the addresses at which peers are or may be reached that lie in networks which are routed into the mesh."""
    if not any(len(peer.networks) > len(peer.addresses) for peer in peers):
        return set()
    routed = covering(network for peer in peers for network in peer.networks)
    endpoints = {each for peer in peers for each in (*peer.candidates, peer.endpoint) if each is not None}
    endpoints |= {each for mine in legs.values() for each in mine.accept}
    return {ip for ip in {each.ip for each in endpoints} if routed.overlapping(ip_network(ip)) is not None}


def host_plan(
    mesh: MeshFacts,
    own: OwnFacts,
    peers: Collection[PeerFacts],
    outside: frozenset[IPAddress] = frozenset(),
    loose: frozenset[IPAddress] = frozenset(),
) -> HostPlan:
    """Return interface, addresses and routes. Each mesh address is a host address: routes come from peers alone.

    Args:
        mesh: interface and MTU.
        own: our addresses.
        peers: what is reached through them.
        outside: our addresses that others do not have in the mesh.
        loose: our addresses at which packets arrive from `covered_endpoints`.
    """
    addresses = tuple(ip_interface(address) for address in own.addresses)
    return HostPlan(
        interface=mesh.interface,
        mtu=mesh.mtu,
        addresses=addresses,
        routes=frozenset(network for peer in peers for network in peer.networks),
        preferred=frozenset(network for peer in peers for network in peer.preferred),
        outside=outside,
        loose=loose,
        source4=next((a.ip for a in addresses if isinstance(a.ip, IPv4Address)), None),
        source6=next((a.ip for a in addresses if not isinstance(a.ip, IPv4Address)), None),
    )
