# SPDX-License-Identifier: Apache-2.0
"""WireKubePeerSlice: what agents read of many Peers at once, as EndpointSlices are what nodes read of many Pods.

N agents that watch N Peers turn each write of a status into N events, though hardly one of them matters to others. So
the operator copies what does matter into a few objects, and agents watch only those.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AwareDatetime, Field

from .base import Metadata, Model, PublicKey
from .peer import Candidate, NatStatus, PeerSpec

MOST_SLICE_PEERS = 100


class SlicedStatus(Model):
    """What others act on in the status of a Peer."""

    public_key: PublicKey | None = None
    """WireGuard public key of the node, in base64."""
    key_accepted: bool | None = None
    """Whether the operator has accepted the key, as the Peer's condition KeyAccepted says. Absent until it has judged."""
    candidates: Annotated[tuple[Candidate, ...], Field(max_length=8)] = ()
    """All addresses under which the node may be reached, best first."""
    nat: NatStatus | None = None
    """The NAT in front of the node."""


class SlicedPeer(Model):
    """One Peer."""

    name: Annotated[str, Field(max_length=253)]
    """Name of the Peer and its Node."""
    uid: Annotated[str, Field(max_length=64)] = ""
    """UID of the Peer: one that was made anew has another."""
    generation: int = 0
    """Generation of the Peer's spec."""
    creation_timestamp: AwareDatetime | None = None
    """When the Peer was made: of two that claim the same, the older has it."""
    spec: PeerSpec = PeerSpec()
    """The Peer's spec."""
    status: SlicedStatus = SlicedStatus()
    """What others act on in its status."""


class WireKubePeerSlice(Model):
    """A part of all Peers, for agents. The operator keeps it; changes by others are undone."""

    metadata: Metadata
    peers: Annotated[
        tuple[SlicedPeer, ...],
        Field(max_length=MOST_SLICE_PEERS, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = ()
    """The Peers, by name."""
