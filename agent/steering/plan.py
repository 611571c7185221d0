# SPDX-License-Identifier: Apache-2.0
"""The desired steering table and its text. Pure.

WireGuard's endpoint of a peer is the constant 192.0.2.1:PORT(peer). The table turns it into the leg in use and back:

    WireGuard ── 192.0.2.1:PORT ──> out (output, raw): maps `leg_src`, `leg_addr`, `leg_port` ──> direct address, or
                                    local proxy
    WireGuard <── 192.0.2.1:PORT ── inp (input, mangle): map `back` <── confirmed direct address, or local proxy

    probe socket ── sport PROBE -> LISTEN (out)          STUN answers and probes to LISTEN -> dport PROBE (inp)

Both rewrites stand where conntrack has them on the wire's side: before it on the way out, after it on the way in. So
STUN, probes and WireGuard share one conntrack entry, and a host firewall that keeps state lets the answers in. Input,
not prerouting, so that a strict rp_filter judges the real source. A packet from an address that is not in `back` is left
alone, and WireGuard answers there: a peer whose NAT rebound stays reachable until the agent has confirmed the address.

`leg_src` is there for nodes with several addresses: WireGuard's socket chose its source for 192.0.2.1, and the kernel,
which looks the route up again after `out`, keeps it. The packet must leave with the address that a probe to the same
leg leaves with, for that is the one that the peer knows.

`answers` is there on a host that has an address which is *outside*: others do not have it in the mesh (an API server is
reached there, say), although they themselves are in the mesh by such addresses. What answers to it must leave as it came,
or the other side's WireGuard would refuse it for its source. For this host's own sockets a routing rule sees to that
(`routing/plan.py`); where kube-proxy passed a packet on to a pod, routing cannot tell to which address it was sent, but
conntrack can: the answer gets our fwmark, and takes table main.

`tunnels` is there while Nodes' addresses go through the mesh. An overlay CNI such as flannel binds its VXLAN to the uplink,
and the kernel then looks for a route over that link alone. A change of the mark makes it look again, by the rules.

`relays` is there for a managed relay whose Service has plain addresses. kube-proxy knows them, and sends what a node itself
connects there straight to a pod: no way for a node that reaches pods through the mesh, which needs the relay. The kernel
translates a connection once: a translation of an address to itself, before kube-proxy's, keeps it as it is. Only our own
sockets have our mark. An address of this host is kube-proxy's: nobody but it serves a node port.

`unmark` clears our fwmark once routing is decided: it contains 0x4000, kube-proxy's masquerade bit, which would give
WireGuard a random source port.

Kernel 6.1 refuses a map as a plain set ("is this key in the map?"), so no rule asks: a map statement whose key is missing
ends the rule.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address

from ...api.constants import FWMARK, VIRTUAL_IPV4
from ...wire.endpoint import Endpoint

TABLE = "wirekube"
PROBE_MAGIC = 0x574B5002  # `paths.probe.MAGIC`; its first byte is above 4, so that no WireGuard message can match

REROUTED = FWMARK + 1  # no rule asks for it: it only has to differ from what a packet had

Elements = dict[str, dict[str, str]]


@dataclass(frozen=True)
class PeerSteering:
    """One peer's entry.

    Attributes:
        virtual_port: the port of its constant endpoint.
        send_to: where its packets go; None drops them.
        send_from: our address on the way there; without one they are dropped, for there is no route.
        accept: addresses whose packets are this peer's.
    """

    virtual_port: int
    send_to: Endpoint | None
    send_from: IPv4Address | None
    accept: frozenset[Endpoint] = frozenset()


@dataclass(frozen=True)
class Inside:
    """What goes through the mesh by the addresses of Nodes.

    Attributes:
        interface: the mesh's.
        nodes: addresses of other Nodes that are reached through it.
        outside: addresses of this host whose answers stay outside.
    """

    interface: str = ""
    nodes: frozenset[IPv4Address] = frozenset()
    outside: frozenset[IPv4Address] = frozenset()


@dataclass(frozen=True)
class SteeringPlan:
    """The whole table.

    Attributes:
        listen_port: WireGuard's port.
        probe_port: the port of the agent's probe socket.
        peers: entries, by virtual port.
        inside: what goes through the mesh by the addresses of Nodes.
        relays: what our own connections reach as it is, whatever kube-proxy knows of it; IPv4.
    """

    listen_port: int
    probe_port: int
    peers: Mapping[int, PeerSteering]
    inside: Inside = Inside()
    relays: frozenset[Endpoint] = frozenset()

    @cached_property
    def maps(self) -> Elements:
        """Its `elements`, made once: each plan is compared with the one before and the one after."""
        return elements(self)


def plan_of(
    listen_port: int,
    probe_port: int,
    peers: Iterable[PeerSteering],
    inside: Inside | None = None,
    relays: Iterable[Endpoint] = (),
) -> SteeringPlan:
    """Make a plan of entries in any order."""
    entries = {peer.virtual_port: peer for peer in peers}
    kept = frozenset(relay for relay in relays if relay.ip.version == 4)
    return SteeringPlan(listen_port, probe_port, entries, inside or Inside(), kept)


def elements(plan: SteeringPlan) -> Elements:
    """Return the four maps, key to value, as nft writes them.

    An address that two peers claim stays with the lower port: a map has one value for a key.
    """
    sending = {}
    for port in sorted(plan.peers):
        send_to, send_from = plan.peers[port].send_to, plan.peers[port].send_from
        if send_to is not None and send_to.ip.version == 4 and send_from is not None:
            sending[port] = send_to, send_from
    back: dict[str, str] = {}
    for port in sorted(plan.peers):
        for source in sorted(source for source in plan.peers[port].accept if source.ip.version == 4):
            back.setdefault(f"{source.ip} . {source.port}", str(port))
    return {
        "leg_src": {str(port): str(source) for port, (_, source) in sending.items()},
        "leg_addr": {str(port): str(to.ip) for port, (to, _) in sending.items()},
        "leg_port": {str(port): str(to.port) for port, (to, _) in sending.items()},
        "back": back,
    }


def render(plan: SteeringPlan) -> str:
    """Return one transaction that replaces the whole table."""
    maps = plan.maps
    return f"""\
table ip {TABLE}
delete table ip {TABLE}
table ip {TABLE} {{
 map leg_src {{
  type inet_service : ipv4_addr
{_elements(maps["leg_src"])} }}
 map leg_addr {{
  type inet_service : ipv4_addr
{_elements(maps["leg_addr"])} }}
 map leg_port {{
  type inet_service : inet_service
{_elements(maps["leg_port"])} }}
 map back {{
  type ipv4_addr . inet_service : inet_service
{_elements(maps["back"])} }}
 chain out {{
  type route hook output priority raw; policy accept;
  ip daddr {VIRTUAL_IPV4} udp sport {plan.listen_port} ip saddr set udp dport map @leg_src ip daddr set udp dport map @leg_addr udp dport set udp dport map @leg_port
  ip daddr {VIRTUAL_IPV4} drop
  udp sport {plan.probe_port} udp sport set {plan.listen_port}
 }}
 chain inp {{
  type filter hook input priority mangle; policy accept;
  udp dport {plan.listen_port} @th,96,32 0x2112a442 @th,64,16 {{ 0x0101, 0x0111 }} udp dport set {plan.probe_port}
  udp dport {plan.listen_port} @th,64,32 {PROBE_MAGIC:#x} udp dport set {plan.probe_port}
  udp dport {plan.listen_port} udp sport set ip saddr . udp sport map @back ip saddr set {VIRTUAL_IPV4}
 }}
 chain unmark {{
  type filter hook postrouting priority srcnat - 1; policy accept;
  meta mark {FWMARK:#x} meta mark set 0
 }}
{_answers(plan.inside)}{_tunnels(plan.inside)}{_relays(plan.relays)}}}
"""


def _answers(inside: Inside) -> str:
    # Without such an address there is no chain: it would make the kernel track connections, which not every host does.
    if not inside.outside:
        return ""
    return f""" chain answers {{
  type filter hook prerouting priority mangle; policy accept;
  ct direction reply ct original ip daddr {_set(inside.outside)} meta mark set {FWMARK:#x}
 }}
"""


def _tunnels(inside: Inside) -> str:
    if not inside.nodes:
        return ""
    return f""" chain tunnels {{
  type route hook output priority mangle; policy accept;
  oifname != "{inside.interface}" meta mark != {FWMARK:#x} ip daddr {_set(inside.nodes)} meta mark set {REROUTED:#x}
 }}
 chain tunnels_unmark {{
  type filter hook postrouting priority srcnat - 1; policy accept;
  meta mark {REROUTED:#x} meta mark set 0
 }}
"""


def _relays(relays: Collection[Endpoint]) -> str:
    if not relays:
        return ""
    lines = (
        f"  meta mark {FWMARK:#x} ip daddr {relay.ip} tcp dport {relay.port} dnat to {relay}\n"
        for relay in sorted(relays)
    )
    return f""" chain relays {{
  type nat hook output priority -101; policy accept;
  fib daddr type local return
{"".join(lines)} }}
"""


def _set(addresses: Collection[IPv4Address]) -> str:
    return f"{{ {', '.join(map(str, sorted(addresses)))} }}"


def render_change(old: SteeringPlan, new: SteeringPlan) -> str | None:
    """Return one transaction from one table to the other by its elements alone.

    Empty when they are equal; None when the rules differ, which takes a replacement of the whole.
    """
    if _rules(old) != _rules(new):
        return None
    before, after = old.maps, new.maps
    lines = []
    for name in before:
        gone = [key for key, value in before[name].items() if after[name].get(key) != value]
        come = {key: value for key, value in after[name].items() if before[name].get(key) != value}
        if gone:
            lines.append(f"delete element ip {TABLE} {name} {{ {', '.join(gone)} }}")
        if come:
            lines.append(f"add element ip {TABLE} {name} {{ {_pairs(come)} }}")
    return "\n".join(lines) + "\n" if lines else ""


def _rules(plan: SteeringPlan) -> object:
    return plan.listen_port, plan.probe_port, plan.inside, plan.relays


def _elements(entries: Mapping[str, str]) -> str:
    return f"  elements = {{ {_pairs(entries)} }}\n" if entries else ""


def _pairs(entries: Mapping[str, str]) -> str:
    return ", ".join(f"{key} : {value}" for key, value in entries.items())
