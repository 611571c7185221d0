# SPDX-License-Identifier: Apache-2.0
"""Which pairs of NATs can meet at all. Pure.

    easy (endpoint-independent mapping)   x  easy                            yes, when both start together
    easy, open or address-filtered        x  symmetric                       yes: the easy side learns the new port
    easy, port-restricted                 x  symmetric                       no, without guessing ports
    symmetric                             x  symmetric                       no
    UDP blocked                           x  anything                        no

Where a fact is unknown the pair is tried. Two nodes behind one outside address may be neighbours and are tried too.
"""

from __future__ import annotations

from .model import NatFacts

Reason = tuple[str, str]


def why_not_direct(ours: NatFacts, theirs: NatFacts) -> Reason | None:
    """Return (reason, message) when no direct path can exist, None when it is worth a try."""
    if ours.addresses & theirs.addresses:
        return None
    if ours.udp_blocked:
        return "UDPBlocked", "this node's network blocks UDP"
    if theirs.udp_blocked:
        return "PeerUDPBlocked", "the peer's network blocks UDP"
    if ours.symmetric and theirs.symmetric:
        return "BothSymmetric", "both nodes are behind symmetric NATs"
    if _cannot_learn(ours, theirs):
        return (
            "SymmetricNAT",
            "this node is behind a symmetric NAT and the peer's NAT admits only ports that it has spoken to",
        )
    if _cannot_learn(theirs, ours):
        return (
            "PeerSymmetricNAT",
            "the peer is behind a symmetric NAT and this node's NAT admits only ports that it has spoken to",
        )
    return None


def _cannot_learn(hard: NatFacts, easy: NatFacts) -> bool:
    return hard.symmetric and easy.port_restricted and not easy.public
