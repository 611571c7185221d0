# SPDX-License-Identifier: Apache-2.0
"""Typed models of version v1alpha1."""

from .base import Condition, Metadata, Model
from .mesh import MeshSpec, MeshStatus, RelaySpec, RelayStatus, WireKubeMesh
from .peer import Candidate, NatStatus, NotDirect, PathCounts, PeerSpec, PeerStatus, WireKubePeer
from .slice import SlicedPeer, SlicedStatus, WireKubePeerSlice

__all__ = [
    "Candidate",
    "Condition",
    "MeshSpec",
    "MeshStatus",
    "Metadata",
    "Model",
    "NatStatus",
    "NotDirect",
    "PathCounts",
    "PeerSpec",
    "PeerStatus",
    "RelaySpec",
    "RelayStatus",
    "SlicedPeer",
    "SlicedStatus",
    "WireKubeMesh",
    "WireKubePeer",
    "WireKubePeerSlice",
]
