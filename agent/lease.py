# SPDX-License-Identifier: Apache-2.0
"""This agent's Lease: a sign of life for the operator, never a lock.

It is renewed while the node is in the mesh and the agent's loops turn. A stuck event loop renews nothing by itself; work
that does not end is noticed by `Turns`. Who stops renewing is called silent by the operator after 50 s of its own clock.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

from ..api.constants import LEASE_RENEW_SECONDS, LEASE_STALE_SECONDS, NODE_LEASE_NAMESPACE
from ..runtime.errors import ApiError
from ..runtime.objects import Kind, Object
from ..telemetry.logs import get_logger

log = get_logger("agent.lease")

LEASE: Final = Kind("coordination.k8s.io/v1", "leases", "Lease", namespaced=True)
STUCK_SECONDS = 20.0  # much longer than any turn of a loop takes on a slow host
LOOK_SECONDS = 1.0  # while there is nothing to renew, or nobody to take it
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 1.0, 5.0

Renew = Callable[[Object], Awaitable[bool]]


class Turns:
    """Watches a loop: use it as a context around each turn.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None

    def __enter__(self) -> None:
        self._since = self._clock()

    def __exit__(self, *_error: object) -> None:
        self._since = None

    def stuck(self) -> bool:
        """Whether a turn has begun long ago and not ended."""
        return self._since is not None and self._clock() - self._since >= STUCK_SECONDS


def lease_of(node: str, now: datetime) -> Object:
    """Return the Lease as the agent owns it; a MicroTime has exactly six digits."""
    return {
        "metadata": {"name": node, "namespace": NODE_LEASE_NAMESPACE},
        "spec": {
            "holderIdentity": node,
            "leaseDurationSeconds": int(LEASE_STALE_SECONDS),
            "renewTime": now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        },
    }


def retry_after(failures: int, noise: float) -> float:
    """Return the seconds until the next try: 1 s, doubled with each failure up to 5 s, less up to a quarter.

    Args:
        failures: in a row, at least one.
        noise: between 0 and 1; after an outage not all agents come at one moment.
    """
    longest: float = min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** min(failures - 1, 8))
    return longest * (1 - noise / 4)


class LeaseKeeper:
    """Renews the Lease.

    The first renewal comes at once, so that a new agent is known early; the second after a random part of the interval,
    so that agents that were started together do not write together.

    Args:
        node: name of the Node.
        renew: writes the Lease; returns False when there is nobody to take it, or the node is not in the mesh.
        stuck: whether the agent no longer does its work.
        every: seconds between renewals.
        noise: gives numbers between 0 and 1.
    """

    def __init__(
        self,
        node: str,
        renew: Renew,
        stuck: Callable[[], bool],
        *,
        every: float = LEASE_RENEW_SECONDS,
        noise: Callable[[], float] = random.random,
    ) -> None:
        self._node, self._renew, self._stuck = node, renew, stuck
        self._every, self._noise = every, noise
        self._first = True
        self._failures = 0
        self._said = ""

    async def run(self) -> None:
        """Renew until cancelled."""
        while True:
            wait = await self._once()
            await asyncio.sleep(wait)

    async def _once(self) -> float:
        """Renew if this agent lives; return the seconds until the next time."""
        if self._stuck():
            self._say("the agent's work does not end; the Lease is not renewed")
            return LOOK_SECONDS
        try:
            if not await self._renew(lease_of(self._node, datetime.now(UTC))):
                self._first = True
                return LOOK_SECONDS
        except ApiError as error:
            self._failures += 1
            self._say("the Lease cannot be renewed; trying again", error.message)
            return max(retry_after(self._failures, self._noise()), error.retry_after or 0.0)
        first, self._first, self._failures, self._said = self._first, False, 0, ""
        return self._every * (self._noise() if first else 1.0)

    def _say(self, line: str, error: str = "") -> None:
        if self._said != line + error:
            self._said = line + error
            log.warning(line, error=error)
