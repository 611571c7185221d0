# SPDX-License-Identifier: Apache-2.0
"""The work queue of a controller: a key is in it once, is worked on once at a time, and real changes go first."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

import anyio
from opentelemetry.metrics import CallbackOptions, Observation

from ..telemetry import Telemetry, names

K = TypeVar("K", bound=Hashable)

HIGH = 0
# For the first list and for replays.
LOW = -100


@dataclass(frozen=True)
class _Entry:
    ready_at: float
    priority: int
    order: int
    version: int


class QueueState(Generic[K]):
    """The queue without waiting: every method takes the time `now`, in monotonic seconds.

    One entry a key: adding a key again keeps the earliest time and the highest priority. An entry of a key that is
    being worked on waits for `done`. Order: priority, then time, then first come.
    """

    def __init__(self) -> None:
        self.processing: dict[K, float] = {}
        self.closed = False
        self._entries: dict[K, _Entry] = {}
        # Both heaps keep outdated items; an item counts only if its version is the entry's.
        self._waiting: list[tuple[float, int, K]] = []
        self._ready: list[tuple[int, float, int, int, K]] = []
        self._numbers = itertools.count()

    def add(self, key: K, now: float, priority: int = HIGH) -> bool:
        """Add a key that is ready now; returns whether that changed anything. Does nothing after `close`."""
        return self.add_after(key, 0.0, now, priority)

    def add_after(self, key: K, delay: float, now: float, priority: int = HIGH) -> bool:
        """Add a key that is ready after `delay` seconds."""
        if self.closed:
            return False
        ready_at = now + max(0.0, delay)
        old = self._entries.get(key)
        if old is not None:
            ready_at, priority = min(ready_at, old.ready_at), max(priority, old.priority)
            if (ready_at, priority) == (old.ready_at, old.priority):
                return False
        number = next(self._numbers)
        entry = _Entry(ready_at, priority, number if old is None else old.order, number)
        self._entries[key] = entry
        heapq.heappush(self._waiting, (ready_at, number, key))
        return True

    def get(self, now: float) -> tuple[K, float] | None:
        """Take the first ready key, for work; return it and the seconds since it was ready."""
        self._promote(now)
        while self._ready:
            *_, version, key = heapq.heappop(self._ready)
            entry = self._entries.get(key)
            if entry is not None and entry.version == version and key not in self.processing:
                del self._entries[key]
                self.processing[key] = now
                return key, now - entry.ready_at
        return None

    def done(self, key: K, now: float) -> float:
        """End the work on a key, which may be ready again; return the seconds that it took."""
        started = self.processing.pop(key)
        entry = self._entries.get(key)
        if entry is not None:
            heapq.heappush(self._waiting, (entry.ready_at, entry.version, key))
        return now - started

    def close(self, now: float) -> None:
        """Take no more keys, and drop those that are not ready; the ready ones can still be taken."""
        self.closed = True
        for key in [key for key, entry in self._entries.items() if entry.ready_at > now]:
            del self._entries[key]

    def next_time(self) -> float | None:
        """Return when a waiting key will be ready, or None; a moment too early is possible."""
        return self._waiting[0][0] if self._waiting else None

    def depth(self, now: float) -> int:
        """Return how many keys are ready or wait only for `done`; may be called from another thread."""
        return sum(1 for entry in list(self._entries.values()) if entry.ready_at <= now)

    def _promote(self, now: float) -> None:
        while self._waiting and self._waiting[0][0] <= now:
            ready_at, version, key = heapq.heappop(self._waiting)
            entry = self._entries.get(key)
            if entry is not None and entry.version == version and key not in self.processing:
                heapq.heappush(self._ready, (-entry.priority, ready_at, entry.order, version, key))


class ItemBackoff(Generic[K]):
    """Delay of a key that fails: 5 ms * 2^n up to 1000 s, n = failures since `forget`."""

    def __init__(self, first: float = 0.005, longest: float = 1000.0) -> None:
        self._first = first
        self._longest = longest
        self._failures: dict[K, int] = {}

    def next(self, key: K) -> float:
        """Count a failure and return the seconds to wait."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        return float(min(self._longest, self._first * 2 ** min(failures, 60)))

    def failures(self, key: K) -> int:
        """Return the failures since the last `forget`."""
        return self._failures.get(key, 0)

    def forget(self, key: K) -> None:
        """Start over."""
        self._failures.pop(key, None)


class RetryBudget:
    """Spread the retries of all keys together: a burst at once, then so many in a second; pure."""

    def __init__(self, rate: float = 10.0, burst: float = 100.0) -> None:
        self._rate = rate
        self._burst = burst
        self._next = float("-inf")

    def reserve(self, now: float) -> float:
        """Take the next free place; return the seconds until then."""
        self._next = max(self._next, now - self._burst / self._rate) + 1 / self._rate
        return max(0.0, self._next - now)


class WorkQueue(Generic[K]):
    """A `QueueState` that workers of one event loop can wait on, with client-go's metrics.

    Args:
        name: for metrics.
        telemetry: where the metrics go.
        backoff: delays of `add_rate_limited`.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        name: str,
        telemetry: Telemetry,
        *,
        backoff: ItemBackoff[K] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state: QueueState[K] = QueueState()
        self.backoff = backoff or ItemBackoff()
        self._budget = RetryBudget()
        self._clock = clock
        self._wake = anyio.Event()
        self._labels = {"name": name, "controller": name}
        meter = telemetry.meter
        self._adds = meter.create_counter(names.WORKQUEUE_ADDS)
        self._retries = meter.create_counter(names.WORKQUEUE_RETRIES)
        self._queue_time = meter.create_histogram(names.WORKQUEUE_QUEUE_DURATION, unit="s")
        self._work_time = meter.create_histogram(names.WORKQUEUE_WORK_DURATION, unit="s")
        for counter in (self._adds, self._retries):
            counter.add(0, self._labels)
        meter.create_observable_gauge(names.WORKQUEUE_DEPTH, [self._observe(lambda: self.state.depth(clock()))])
        meter.create_observable_gauge(names.WORKQUEUE_UNFINISHED, [self._observe(lambda: sum(self._running()))])
        longest = self._observe(lambda: max(self._running(), default=0.0))
        meter.create_observable_gauge(names.WORKQUEUE_LONGEST_RUNNING, [longest])

    def add(self, key: K, priority: int = HIGH) -> None:
        """Add a key that is ready now."""
        self.add_after(key, 0.0, priority)

    def add_after(self, key: K, delay: float, priority: int = HIGH) -> None:
        """Add a key that is ready after `delay` seconds."""
        if self.state.add_after(key, delay, self._clock(), priority):
            self._adds.add(1, self._labels)
            self._notify()

    def add_rate_limited(self, key: K, at_least: float = 0.0, at_most: float = float("inf")) -> float:
        """Add a key that has failed; return the seconds until it is ready.

        Args:
            key: to add.
            at_least: seconds.
            at_most: cuts the key's back-off, but neither `at_least` nor what many keys that fail wait for each other.
        """
        delay = max(min(self.backoff.next(key), at_most), at_least, self._budget.reserve(self._clock()))
        self._retries.add(1, self._labels)
        self.add_after(key, delay)
        return delay

    async def get(self) -> K | None:
        """Wait for a key and take it; None once the queue is shut down and drained. Call `done` afterwards."""
        while True:
            now = self._clock()
            taken = self.state.get(now)
            if taken is not None:
                self._queue_time.record(taken[1], self._labels)
                return taken[0]
            if self.state.closed:
                return None
            due = self.state.next_time()
            with anyio.move_on_after(None if due is None else max(0.0, due - now)):
                await self._wake.wait()

    def done(self, key: K) -> None:
        """End the work on a key."""
        self._work_time.record(self.state.done(key, self._clock()), self._labels)
        self._notify()

    def shut_down(self) -> None:
        """Take no more keys; workers finish what is ready."""
        self.state.close(self._clock())
        self._notify()

    def _notify(self) -> None:
        self._wake.set()
        self._wake = anyio.Event()

    def _running(self) -> list[float]:
        now = self._clock()
        return [now - started for started in list(self.state.processing.values())]

    def _observe(self, value: Callable[[], float]) -> Callable[[CallbackOptions], Iterable[Observation]]:
        return lambda _options: [Observation(value(), self._labels)]
