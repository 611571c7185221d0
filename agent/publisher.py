# SPDX-License-Identifier: Apache-2.0
"""Writes this node's status when the budget allows it: the only writer of our Peer's status beside the operator."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable

from ..runtime.conditions import readable
from ..runtime.errors import ApiError
from ..runtime.objects import Object
from ..telemetry.logs import get_logger
from . import report
from .nat.report import Behaviour, Udp
from .peersource import PeerSource, Snapshot
from .publish import MIN_SECONDS, Status, StatusBudget
from .report import NodeView

log = get_logger("agent.status")

RETRY_SECONDS = 5.0
MEASURE_SECONDS = 3.0  # STUN has answered by then, or will not soon
NOBODY_SECONDS = 1.0  # there is no API server, or no Peer, to take a status


class Publisher:
    """Compares what should be shown with what was written last.

    Args:
        source: takes the status.
        view: this node.

    Attributes:
        due: set it when something that the status shows may have changed.
    """

    def __init__(self, source: PeerSource, view: Callable[[], NodeView]) -> None:
        self._source, self._view = source, view
        self._budget = StatusBudget()
        self._uid = ""
        self._said = ""
        self._started = time.monotonic()
        self._shown = False  # the watch has shown what we wrote last
        self._repaired = float("-inf")
        self.due = asyncio.Event()

    def forget(self) -> None:
        """Our Peer went: what was written last went with it."""
        self._budget.forget()

    async def run(self) -> None:
        """Write until cancelled."""
        wait: float | None = None
        while True:
            try:
                async with asyncio.timeout(wait):
                    await self.due.wait()
            except TimeoutError:
                pass
            self.due.clear()
            wait = await self._publish(self._source.snapshot())

    async def _publish(self, snapshot: Snapshot) -> float | None:
        """Write if it is time; return seconds until the next look, None for the next change."""
        own = snapshot.own
        if own is None or not snapshot.live:
            return NOBODY_SECONDS
        if own["metadata"].get("uid") != self._uid:
            self._uid = own["metadata"].get("uid", "")
            self._budget.forget()
        now = time.monotonic()
        again = self._notice_others(own, now)
        if (wait := self._until_measured(own, now)) > 0:
            return wait
        wanted = self._wanted(own)
        at = self._budget.due(wanted, now)
        if at is None:
            return again
        if at > now:
            return at - now
        try:
            if not await self._source.publish(wanted):
                return NOBODY_SECONDS
        except ApiError as error:
            if error.message != self._said:
                self._said = error.message
                log.warning("the status cannot be written; trying again", error=error.message)
            return RETRY_SECONDS
        self._said, self._shown = "", False
        self._budget.done(wanted, now)
        return 0.0  # what changed while it was written

    def _notice_others(self, own: Object, now: float) -> float | None:
        """Write again what somebody else has changed; others act on our key. Return seconds until that may be done."""
        if self._budget.applied is None:
            return None
        if _has_all(own.get("status"), self._budget.applied):
            self._shown = True
        elif self._shown:
            if now < self._repaired + MIN_SECONDS:
                return self._repaired + MIN_SECONDS - now  # who does it again and again is not to be raced
            log.warning("somebody else has changed this node's status; it is written again")
            self._budget.forget()
            self._shown, self._repaired = False, now
        return None

    def _until_measured(self, own: Object, now: float) -> float:
        """Return how long to hold the first write of a restarted agent back.

        What its predecessor wrote is better than what this one knows before STUN has answered, and everybody acts on it.
        """
        view, status = self._view(), own.get("status")
        shown = status.get("publicKey") if isinstance(status, dict) else None
        key = base64.b64encode(view.key.public).decode() if view.key else shown
        measured = view.nat.filtering is not Behaviour.UNKNOWN or view.nat.udp is Udp.BLOCKED
        if self._budget.applied is not None or shown is None or shown != key or measured:
            return 0.0
        return self._started + MEASURE_SECONDS - now

    def _wanted(self, own: Object) -> Status:
        status = own.get("status")
        shown = status if isinstance(status, dict) else {}
        applied = self._budget.applied or shown
        wanted = report.status(
            self._view(), readable(applied.get("conditions")), own["metadata"].get("generation", 0), report.now_iso()
        )
        if "publicKey" not in wanted and shown.get("publicKey"):
            # The key is not loaded yet. Leaving it out would take it away from everybody.
            wanted["publicKey"] = shown["publicKey"]
        return wanted


def _has_all(shown: object, applied: Status) -> bool:
    """Tell whether an object's status has all that we wrote; conditions of others may stand beside ours."""
    if not isinstance(shown, dict):
        return False
    there = readable(shown.get("conditions"))
    fields = all(shown.get(name) == value for name, value in applied.items() if name != "conditions")
    return fields and all(each in there for each in applied.get("conditions") or [])
