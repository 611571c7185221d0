# SPDX-License-Identifier: Apache-2.0
"""Ready of a Peer and AgentsReporting of the Mesh: what the agents say, and whether they still say anything. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Protocol

from ..api.constants import LEASE_STALE_SECONDS
from ..runtime.conditions import find_condition, is_true
from ..runtime.objects import Object
from .kinds import conditions_of
from .liveness import Census
from .verdicts import Verdict

READY = "Ready"
DATA_PLANE_READY = "DataPlaneReady"  # the agent's
AGENTS_REPORTING = "AgentsReporting"
AGENT_SILENT = "AgentSilent"

READY_MESSAGE = "the node's agent reported that it takes part in the mesh, and is not known to be silent since"
REPORT_SECONDS = 20.0  # from a Peer's creation until its agent should have reported; a started one takes about two


class Silence(Protocol):
    """Knows which agents have fallen silent."""

    def silent(self, name: str, *, shown: bool) -> bool:
        """See `Tracker.silent`."""


def time_to_report(peer: Object, now: float) -> float:
    """Return the seconds that its agent has left for its first report; 0 when they are over or it has reported.

    Args:
        peer: with its conditions.
        now: Unix seconds.
    """
    created = peer["metadata"].get("creationTimestamp")
    if created is None or find_condition(conditions_of(peer), DATA_PLANE_READY) is not None:
        return 0.0
    age = now - datetime.fromisoformat(created).timestamp()
    return min(REPORT_SECONDS, max(0.0, REPORT_SECONDS - age))


def shows_silence(peer: Object) -> bool:
    """Whether the Peer says that its agent is silent."""
    found = find_condition(conditions_of(peer), READY)
    return found is not None and found.get("reason") == AGENT_SILENT


def judge_ready(
    name: str, key: Verdict, present: list[dict[str, Any]], *, overdue: bool, silent: bool, namespace: str
) -> Verdict:
    """Return Ready: the key is accepted, the agent says that its data plane is ready, and it is still there.

    Args:
        name: of the Peer and its Node.
        key: KeyAccepted.
        present: the Peer's conditions.
        overdue: an agent that has not reported yet should have by now.
        silent: the agent has stopped renewing its Lease.
        namespace: where the agents' pods are, for people.
    """
    if key.status == "False":
        return Verdict(READY, "False", key.reason, key.message)
    found = find_condition(present, DATA_PLANE_READY)
    if found is None:
        return Verdict(READY, "False" if overdue else "Unknown", "AgentNotReported", _not_reported(name, namespace))
    if silent:
        return Verdict(READY, "False", AGENT_SILENT, _silent(name, namespace))
    if found.get("status") == "False":
        return Verdict(READY, "False", found.get("reason") or "DataPlaneNotReady", found.get("message") or "")
    if key.status != "True":
        return Verdict(READY, key.status, key.reason, key.message)
    if is_true(present, DATA_PLANE_READY):
        return Verdict(READY, "True", "Ready", READY_MESSAGE)
    return Verdict(READY, "Unknown", found.get("reason") or "DataPlaneNotReady", found.get("message") or "")


def _not_reported(name: str, namespace: str) -> str:
    return f"the node's agent has not reported yet; is its pod running? {_pods(name, namespace)}"


def _silent(name: str, namespace: str) -> str:
    return (
        f"the node's agent has not renewed its Lease for {LEASE_STALE_SECONDS:.0f} s: the node is off or cut off from the"
        f" API server, or the agent has stopped; what its pod does: {_pods(name, namespace)}"
    )


def _pods(name: str, namespace: str) -> str:
    return f"kubectl -n {namespace} get pods --field-selector spec.nodeName={name}"


def judge_agents(census: Census | None, present: Iterable[dict[str, Any]], namespace: str) -> Verdict:
    """Return AgentsReporting of the Mesh.

    Args:
        census: of the agents; None while nobody has counted them.
        present: the Mesh's conditions: what is shown stays until it is known better.
        namespace: where the agents' pods are, for people.
    """
    most_silent = census.most_silent if census is not None else None
    if census is not None and most_silent:
        message = (
            f"{census.silent} of {census.total} agents have not renewed their Leases for {LEASE_STALE_SECONDS:.0f} s;"
            " no Peer is called silent while most are. Do the nodes reach the API server?"
            f" kubectl -n {namespace} get pods -o wide"
        )
        return Verdict(AGENTS_REPORTING, "False", "MostAgentsSilent", message)
    if most_silent is False:
        message = f"agents renew their Leases; the Peer of one that does not is {AGENT_SILENT}"
        return Verdict(AGENTS_REPORTING, "True", "AgentsReport", message)
    shown = find_condition(present, AGENTS_REPORTING)
    if shown is not None and (census is None or census.total):
        return Verdict(AGENTS_REPORTING, shown["status"], shown["reason"], shown["message"])
    return Verdict(AGENTS_REPORTING, "Unknown", "NoAgents", "no agent has renewed a Lease yet")
