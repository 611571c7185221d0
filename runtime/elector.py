# SPDX-License-Identifier: Apache-2.0
"""Take part in an election by Lease: reads and writes what `election.Candidate` decides."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Protocol

import anyio
from opentelemetry.metrics import CallbackOptions, Observation

from ..telemetry import Telemetry, names
from ..telemetry.logs import get_logger
from .election import Candidate, Claim, Timing, spec_of
from .errors import ApiError, Conflict, NotFound
from .identity import new_identity
from .objects import Kind, Object

log = get_logger("election")

LEASE = Kind("coordination.k8s.io/v1", "leases", "Lease", namespaced=True)
# Pauses are shorter than Timing.retry by up to this part, so that candidates do not ask in step.
JITTER = 0.4
RELEASE_SECONDS = 5.0


class LeadershipLost(Exception):
    """The Lease is somebody else's, or could not be renewed in time; the message says which. The process must end."""


class LeaseClient(Protocol):
    """The part of a client that is used here."""

    async def get(self, kind: Kind, name: str, namespace: str | None = None) -> Object:
        """See `Verbs.get`."""

    async def create(self, kind: Kind, obj: Object, *, field_manager: str) -> Object:
        """See `Verbs.create`."""

    async def patch(
        self, kind: Kind, name: str, body: Object, *, namespace: str | None = None, field_manager: str
    ) -> Object:
        """See `Verbs.patch`."""


class Elector:
    """One candidate's part in an election.

    Args:
        client: reads and writes the Lease.
        namespace: of the Lease; it must be there.
        name: of the Lease.
        telemetry: `leader_election_master_status`.
        identity: ours, which no other living candidate has; None makes one.
        timing: the same for all candidates.
        clock: monotonic seconds.
        wall: the time now, in UTC.
        rng: spreads the pauses; None makes one.

    Attributes:
        elected: set once we lead.
    """

    def __init__(
        self,
        client: LeaseClient,
        namespace: str,
        name: str,
        telemetry: Telemetry,
        *,
        identity: str | None = None,
        timing: Timing | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
        rng: random.Random | None = None,
    ) -> None:
        self.elected = anyio.Event()
        self._client = client
        self._namespace, self._name = namespace, name
        self._candidate = Candidate(identity or new_identity(), timing)
        self._timing = self._candidate.timing
        self._clock, self._wall = clock, wall
        self._rng = rng or random.Random()  # noqa: S311 - spreads requests, hides nothing
        self._current = False  # whether the candidate has seen our last write
        self._claimed = False  # whether a Lease may bear our name
        self._said = ""  # the last trouble that was logged
        self._said_holder: str | None = None
        telemetry.meter.create_observable_gauge(
            names.LEADER, [self._observe], description="1 for the leader, 0 for one that waits"
        )

    async def run(self) -> None:
        """Wait for the Lease, then keep it; no failure of the API alone ends this.

        Raises:
            LeadershipLost: we led and lead no more.
        """
        while True:
            wait = await self._try()
            if self.elected.is_set():
                wait = min(wait, self._left())
            elif self._candidate.leads(self._clock()):
                log.info("leading", lease=self._title(), identity=self._candidate.identity)
                self.elected.set()
            await anyio.sleep(wait)
            if self.elected.is_set():
                self._left()

    async def release(self) -> None:
        """Give the Lease up if it is ours; call it once nothing that needs it runs any more. Never raises."""
        claimed, self._claimed = self._claimed, False
        if not claimed:
            return
        with anyio.move_on_after(RELEASE_SECONDS):
            try:
                self._candidate.saw(await self._client.get(LEASE, self._name, self._namespace), self._clock())
                claim = self._candidate.resign(self._now())
                if claim is not None:
                    await self._write(claim)
                    log.info("released", lease=self._title())
            except ApiError as error:
                log.warning("cannot release the Lease; the next one waits until it expires", error=error.message)

    def _left(self) -> float:
        """Return the seconds until we must have renewed.

        Raises:
            LeadershipLost: there are none.
        """
        left = self._candidate.left(self._clock())
        if left > 0:
            return left
        holder = self._candidate.holder
        if holder != self._candidate.identity:
            raise LeadershipLost(f"lost the Lease {self._title()}: {holder or 'nobody'} holds it now")
        reason = f": {self._said}" if self._said else ""
        raise LeadershipLost(f"lost the Lease {self._title()}: not renewed for {self._timing.renew:g} s{reason}")

    async def _try(self) -> float:
        """Look, and claim what can be claimed; return the seconds to wait before the next try."""
        wait = self._timing.retry * (1 - JITTER * self._rng.random())
        # A try that hangs must leave time for another one.
        limit = self._timing.renew / 2
        if self.elected.is_set():
            limit = min(limit, self._left())
        with anyio.move_on_after(limit) as scope:
            try:
                await self._look_and_claim()
            except ApiError as error:
                self._say(error.message)
                return max(wait, error.retry_after or 0.0)
            self._said = ""
        if scope.cancelled_caught:
            self._say(f"no answer within {limit:.0f} s")
        return wait

    async def _look_and_claim(self) -> None:
        try:
            await self._claim()
        except (Conflict, NotFound):
            # Somebody has written or deleted the Lease since we looked. Once more at once: it may be ours no longer.
            await self._claim()

    async def _claim(self) -> None:
        if not self._current:
            self._candidate.saw(await self._read(), self._clock())
        claim = self._candidate.claim(self._clock(), self._now())
        if claim is None:
            self._wait_for(self._candidate.holder)
            return
        # Until the answer is here, the Lease may be either.
        sent, self._current, self._claimed = self._clock(), False, True
        self._candidate.confirmed(await self._write(claim), sent, self._clock())
        self._current = True

    async def _read(self) -> Object | None:
        try:
            return await self._client.get(LEASE, self._name, self._namespace)
        except NotFound:
            return None

    async def _write(self, claim: Claim) -> Object:
        spec, manager = spec_of(claim.record), self._name
        if claim.version is None:
            metadata = {"name": self._name, "namespace": self._namespace}
            return await self._client.create(LEASE, {"metadata": metadata, "spec": spec}, field_manager=manager)
        body = {"metadata": {"resourceVersion": claim.version}, "spec": spec}
        return await self._client.patch(LEASE, self._name, body, namespace=self._namespace, field_manager=manager)

    def _wait_for(self, holder: str) -> None:
        self._claimed = False
        if self._said_holder != holder and not self.elected.is_set():
            self._said_holder = holder
            log.info("waiting", lease=self._title(), leader=holder)

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            log.warning("cannot use the Lease; trying again", lease=self._title(), error=text)

    def _title(self) -> str:
        return f"{self._namespace}/{self._name}"

    def _now(self) -> str:
        return self._wall().strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def _observe(self, _options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(int(self._candidate.leads(self._clock())), {"name": self._name})]
