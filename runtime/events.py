# SPDX-License-Identifier: Apache-2.0
"""Kubernetes Events (`events.k8s.io/v1`), written in the background: recording one never waits and never fails.

Equal events become a series: the second one writes a count, later ones are counted and written every 30 minutes and
at the end. A filter for each object lets 25 events pass at once and then one every 5 minutes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Protocol

import anyio

from ..telemetry import Telemetry, names
from ..telemetry.logs import get_logger
from .errors import ApiError, Forbidden, Invalid, NotFound
from .objects import Kind, Object

log = get_logger("events")

EVENT = Kind("events.k8s.io/v1", "events", "Event", namespaced=True)

QUEUE = 1000
NOTE_BYTES = 1024
TRIES = 12
RETRY_PAUSE = 10.0
SERIES_REFRESH = 30 * 60.0
SERIES_IDLE = 6 * 60.0
SWEEP = 60.0
SPAM_BURST = 25.0
SPAM_PERIOD = 5 * 60.0

EventKey = tuple[str, ...]


class Writer(Protocol):
    """The part of a client that is used here."""

    async def create(self, kind: Kind, obj: Object, *, field_manager: str) -> Object:
        """See `Verbs.create`."""

    async def patch(
        self, kind: Kind, name: str, body: Object, *, namespace: str | None = None, field_manager: str
    ) -> Object:
        """See `Verbs.patch`."""


class SpamFilter:
    """A token bucket for each object; pure."""

    def __init__(self, burst: float = SPAM_BURST, period: float = SPAM_PERIOD) -> None:
        self._burst = burst
        self._period = period
        self._buckets: dict[EventKey, tuple[float, float]] = {}

    def allow(self, key: EventKey, now: float) -> bool:
        """Take a token, if there is one."""
        tokens, at = self._buckets.get(key, (self._burst, now))
        tokens = min(self._burst, tokens + (now - at) / self._period)
        allowed = tokens >= 1
        self._buckets[key] = (tokens - 1 if allowed else tokens, now)
        return allowed

    def sweep(self, now: float) -> None:
        """Forget the objects whose bucket is full again."""
        full = [k for k, (tokens, at) in self._buckets.items() if tokens + (now - at) / self._period >= self._burst]
        for key in full:
            del self._buckets[key]


@dataclass
class Series:
    """Equal events: the name of the first one, how many, when the last one came and what was written."""

    name: str
    namespace: str
    count: int
    last: float
    last_iso: str
    written_count: int
    written_at: float


class SeriesCache:
    """Which events are repetitions, and when their count is to be written; pure."""

    def __init__(self) -> None:
        self._series: dict[EventKey, Series] = {}

    def observe(
        self, key: EventKey, name: str, namespace: str, now: float, now_iso: str
    ) -> tuple[Literal["create", "update", "count"], Series]:
        """Note an event: create it, write that there is a series (the second one), or only count it."""
        series = self._series.get(key)
        if series is None or now - series.last > SERIES_IDLE:
            series = Series(name, namespace, 1, now, now_iso, 1, now)
            self._series[key] = series
            return "create", series
        series.count += 1
        series.last, series.last_iso = now, now_iso
        if series.count == 2 or now - series.written_at >= SERIES_REFRESH:
            series.written_count, series.written_at = series.count, now
            return "update", series
        return "count", series

    def sweep(self, now: float) -> list[Series]:
        """Forget the series that have ended; return those whose last count is not written yet."""
        ended = [key for key, series in self._series.items() if now - series.last > SERIES_IDLE]
        finished = [self._series.pop(key) for key in ended]
        return [series for series in finished if series.count != series.written_count]


class EventRecorder:
    """Record Events about objects; `run` writes them.

    Args:
        client: writes.
        component: `reportingController`, for example `wirekube.io/agent`.
        instance: `reportingInstance`, for example the node's name.
        telemetry: counts the events that were dropped.
        clock: monotonic seconds.
        wall: the time now, in UTC.
    """

    def __init__(
        self,
        client: Writer,
        component: str,
        instance: str,
        telemetry: Telemetry,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._client = client
        self._component = component
        self._instance = instance
        self._clock = clock
        self._wall = wall
        self._spam = SpamFilter()
        self._cache = SeriesCache()
        self._pending: deque[Object | Series] = deque()
        self._wake = anyio.Event()
        self._dropped = telemetry.meter.create_counter(names.EVENTS_DROPPED, description="Events that were not written")
        for cause in ("queue", "spam", "api"):
            self._dropped.add(0, {"reason": cause})

    def event(self, regarding: Object, type: Literal["Normal", "Warning"], reason: str, action: str, note: str) -> None:
        """Record a transition of an object; call it in the event loop. Never blocks; drops when 1000 are waiting.

        Args:
            regarding: the object, with apiVersion, kind and metadata.
            type: Normal or Warning.
            reason: CamelCase, why.
            action: CamelCase, what was done.
            note: a sentence for people; cut at 1 kB.
        """
        now, now_iso = self._clock(), self._wall().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        reference = _reference(regarding)
        about = tuple(reference.get(field, "") for field in ("apiVersion", "kind", "namespace", "name", "uid"))
        if not self._spam.allow(about, now):
            self._drop("spam")
            return
        namespace = reference.get("namespace") or "default"
        name = f"{reference['name'][:200]}.{time.time_ns():x}"
        verdict, series = self._cache.observe((*about, type, reason, action, note), name, namespace, now, now_iso)
        if verdict == "update":
            self._queue(series)
        elif verdict == "create":
            self._queue(
                {
                    "metadata": {"name": name, "namespace": namespace},
                    "eventTime": now_iso,
                    "type": type,
                    "reason": reason,
                    "action": action,
                    "note": note.encode()[:NOTE_BYTES].decode(errors="ignore"),
                    "regarding": reference,
                    "reportingController": self._component,
                    "reportingInstance": self._instance,
                }
            )

    async def run(self) -> None:
        """Write until cancelled."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._sweep)
            while True:
                while self._pending:
                    await self._write(self._pending.popleft())
                self._wake = anyio.Event()
                await self._wake.wait()

    def _queue(self, item: Object | Series) -> None:
        if len(self._pending) >= QUEUE:
            self._drop("queue")
            return
        self._pending.append(item)
        self._wake.set()

    def _drop(self, cause: str) -> None:
        self._dropped.add(1, {"reason": cause})

    async def _write(self, item: Object | Series) -> None:
        for _ in range(TRIES):
            try:
                await self._send(item)
            except (Forbidden, Invalid, NotFound) as error:
                log.warning("an Event was refused", error=error.message)
                break
            except ApiError as error:
                await anyio.sleep(max(RETRY_PAUSE, error.retry_after or 0.0))
            else:
                return
        self._drop("api")

    async def _send(self, item: Object | Series) -> None:
        if isinstance(item, Series):
            body = {"series": {"count": item.count, "lastObservedTime": item.last_iso}}
            await self._client.patch(
                EVENT, item.name, body, namespace=item.namespace, field_manager=self._component.replace("/", "-")
            )
        else:
            await self._client.create(EVENT, item, field_manager=self._component.replace("/", "-"))

    async def _sweep(self) -> None:
        while True:
            await anyio.sleep(SWEEP)
            now = self._clock()
            self._spam.sweep(now)
            for series in self._cache.sweep(now):
                self._queue(series)


def _reference(obj: Object) -> dict[str, str]:
    metadata = obj["metadata"]
    reference = {"apiVersion": obj["apiVersion"], "kind": obj["kind"], "name": metadata["name"]}
    for field in ("namespace", "uid", "resourceVersion"):
        if metadata.get(field):
            reference[field] = metadata[field]
    return reference
