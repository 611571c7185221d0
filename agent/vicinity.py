# SPDX-License-Identifier: Apache-2.0
"""What NAT reports and addresses say about two nodes that may be neighbours. Pure.

Two nodes behind one NAT reach each other on their own network whatever the NAT does. They are recognised by a common
outside address, or by a peer's host address that lies in a network of ours; home networks all look alike, so the second
is a reason to try and no more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from .facts import PeerFacts
from .nat.report import Behaviour, NatReport, Udp
from .paths.model import NatFacts
from .routing.model import Interface

NEIGHBOUR = "attached network"  # stands beside addresses, so that the two sides have it in common


def local_nat(report: NatReport) -> NatFacts:
    """Return our own NAT for the path machine."""
    return NatFacts(
        udp_blocked=report.udp is Udp.BLOCKED,
        symmetric=report.symmetric,
        port_restricted=report.filtering is Behaviour.ADDRESS_AND_PORT_DEPENDENT,
        public=report.no_nat,
        addresses=frozenset({NEIGHBOUR, *(str(mapped.ip) for mapped in report.mapped)}),
    )


def seen_nat(peer: PeerFacts, attached: Iterable[Interface]) -> NatFacts:
    """Return a peer's NAT as it is from here: a neighbour's counts for nothing."""
    networks = [each.network for each in attached]
    near = any(ip in network for ip in peer.hosts for network in networks if ip.version == network.version)
    return replace(peer.nat, addresses=peer.nat.addresses | {NEIGHBOUR}) if near else peer.nat
