# SPDX-License-Identifier: Apache-2.0
"""How a pair is reached, in a word and with the reason, as people read it. Pure."""

from __future__ import annotations

from . import keep
from .model import Mode, State
from .node import Node
from .possible import Reason
from .record import Path

UNANSWERED: Reason = ("DirectPathLost", "the direct path stopped answering; packets go over the relay")
SILENT: Reason = (
    "WireGuardSilent",
    "the direct path answers probes but carries no WireGuard packets; packets go over the relay",
)


def verdict(node: Node, path: Path, now: float) -> tuple[State, Reason]:
    """Return the state of a pair and why it is that."""
    if keep.silent(path):
        return State.DIRECT, ("ProbesUnanswered", f"sends directly to {path.direct}; the peer's agent does not answer")
    if path.direct is not None:
        return State.DIRECT, ("ProbeAnswered", f"sends directly to {path.direct}")
    if node.policy.mode is Mode.NEVER:
        why = node.why_not(path)
        waiting = State.CONNECTING if now < path.deadline and not why and path.lost is None else State.UNREACHABLE
        return waiting, why or ("RelayModeNever", "no direct path was found, and the Mesh's relay.mode is never")
    why = _why_not_direct_now(node, path)
    if path.present:
        return (State.CONNECTING if why is None and now < path.deadline else State.RELAYED), why or (
            "NoDirectPath",
            "no candidate of the peer has answered; packets go over the relay",
        )
    if now < path.deadline and path.lost is None:
        return State.CONNECTING, why or ("Probing", "looking for a direct path")
    if not node.relay_up:
        return State.UNREACHABLE, ("RelayDown", f"no direct path, and {node.relay_reason}")
    return State.UNREACHABLE, ("PeerNotAtRelay", "no direct path, and the relay does not have the peer")


def _why_not_direct_now(node: Node, path: Path) -> Reason | None:
    if node.policy.mode is Mode.ALWAYS:
        return "RelayModeAlways", "the Mesh's relay.mode is always"
    if path.lost is not None:
        return path.lost
    return node.why_not(path)
