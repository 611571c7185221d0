# SPDX-License-Identifier: Apache-2.0
"""What the agent tells a tracing back end: one span for each search for a path, and the metrics of the pairs.

A span `path` starts when a peer becomes known, or loses its direct path, and ends when the pair is Direct, Relayed or
Unreachable; each probe and answer in between is an event on it. So one question is answered by one trace: why did this
pair take so long to go direct?
"""

from __future__ import annotations

from opentelemetry.context import Context
from opentelemetry.metrics import Meter
from opentelemetry.trace import Span, Status, StatusCode, Tracer

from ..telemetry import names

SEARCHING = "Connecting"
MAX_EVENTS = 64  # of one span; a peer that stays away for a day must not fill the memory


class PathTraces:
    """Open spans by peer, and the counters beside them."""

    def __init__(self, tracer: Tracer, meter: Meter, node: str) -> None:
        self._tracer, self._node = tracer, node
        self._open: dict[str, tuple[Span, float]] = {}
        self._events: dict[str, int] = {}
        self._transitions = meter.create_counter(names.PATH_TRANSITIONS, description="changes of a pair's path state")
        self._seconds = meter.create_histogram(names.PATH_SEARCH, unit="s", description="from known to a path")

    def search(self, peer: str, cause: str, now: float) -> None:
        """Start the span of a search, unless one runs."""
        if peer not in self._open:
            attributes = {"wirekube.node": self._node, "wirekube.peer": peer, "wirekube.cause": cause}
            self._open[peer] = (self._tracer.start_span("path", context=Context(), attributes=attributes), now)
            self._events[peer] = 0

    def event(self, peer: str, name: str, **attributes: str | int | float | bool) -> None:
        """Note a step of a running search."""
        if peer in self._open and self._events[peer] < MAX_EVENTS:
            self._events[peer] += 1
            self._open[peer][0].add_event(name, attributes)

    def transition(self, peer: str, old: str, new: str, reason: str, now: float) -> None:
        """Count the change; end the search that it concludes, or start the one that it causes."""
        self._transitions.add(1, {"from": old, "to": new, "reason": reason})
        if new == SEARCHING:
            self.search(peer, reason, now)
            return
        self.search(peer, reason, now)
        self._end(peer, new, reason, now)
        if new != "Direct":
            self.search(peer, f"retry after {reason}", now)

    def forget(self, peer: str, now: float) -> None:
        """End what runs for a peer that left."""
        self._end(peer, "Gone", "PeerRemoved", now)

    def close(self, now: float) -> None:
        """End all open spans, so that a stop loses none."""
        for peer in list(self._open):
            self._end(peer, "Stopped", "AgentStopped", now)

    def _end(self, peer: str, outcome: str, reason: str, now: float) -> None:
        if peer not in self._open:
            return
        span, since = self._open.pop(peer)
        self._events.pop(peer, None)
        span.set_attributes({"wirekube.outcome": outcome, "wirekube.reason": reason})
        if outcome == "Unreachable":
            span.set_status(Status(StatusCode.ERROR, reason))
        span.end()
        if outcome in ("Direct", "Relayed"):
            self._seconds.record(max(0.0, now - since), {"path": outcome})
