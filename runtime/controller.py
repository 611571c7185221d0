# SPDX-License-Identifier: Apache-2.0
"""Reconcile keys from a work queue: four outcomes, back-off, metrics, one root span for each run."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import anyio
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, Status, StatusCode

from ..telemetry import Telemetry, names
from ..telemetry.logs import get_logger
from .errors import ApiError, Forbidden, Throttled, Unauthorized, Unavailable
from .objects import Key
from .queue import HIGH, LOW, WorkQueue
from .reflector import Event, Reflector

log = get_logger("controller")

# Links of one span: a key that many things have touched keeps the latest.
MOST_CAUSES = 8
# What is wrong with the server or with our rights, and not with the key, ends without an event that would queue it.
_SERVER_TROUBLE = (Forbidden, Throttled, Unauthorized, Unavailable)
LONGEST_SERVER_PAUSE = 8.0


@dataclass(frozen=True)
class Result:
    """The run went well; run again after `after` seconds, or when something changes (None)."""

    after: float | None = None


class TerminalError(Exception):
    """Trying again cannot help: the key is not queued again until something changes."""


class Reconciler(Protocol):
    """The logic of a controller."""

    async def reconcile(self, key: Key) -> Result:
        """Bring the world of this key to what it should be, from what is there now; must be idempotent."""


Mapper = Callable[[Event], Iterable[Key]]


def own_key(event: Event) -> Iterable[Key]:
    """Map an event to the key of its object."""
    return (event.key,)


class Controller:
    """Run a reconciler for every key that changes; never twice at once for a key.

    Args:
        name: for spans, logs and metrics.
        reconciler: the logic.
        telemetry: where spans and metrics go.
        workers: how many keys at once.
    """

    def __init__(self, name: str, reconciler: Reconciler, *, telemetry: Telemetry, workers: int = 1) -> None:
        self.name = name
        self.queue: WorkQueue[Key] = WorkQueue(name, telemetry)
        self._reconciler = reconciler
        self._tracer = telemetry.tracer
        self._workers = workers
        self._reflectors: list[Reflector] = []
        self._causes: dict[Key, deque[SpanContext]] = {}
        self._stopping = anyio.Event()
        self._metrics = _Metrics(name, telemetry, workers)

    def watches(self, reflector: Reflector, mapper: Mapper = own_key) -> None:
        """Queue the keys that `mapper` gives for each event; call it before the reflector runs."""
        self._reflectors.append(reflector)

        def handle(event: Event) -> None:
            for key in mapper(event):
                self.queue.add(key, LOW if event.low else HIGH)

        reflector.add_handler(handle)

    def enqueue(self, key: Key, cause: SpanContext | None = None) -> None:
        """Queue a key now; the span of its run links to `cause`."""
        if cause is not None:
            self._causes.setdefault(key, deque(maxlen=MOST_CAUSES)).append(cause)
        self.queue.add(key)

    def stop(self) -> None:
        """Let `run` return once the ready keys are done."""
        self._stopping.set()
        self.queue.shut_down()

    async def run(self) -> None:
        """Wait until all watched reflectors are synced, then work until `stop`."""
        if await self._wait_for_sync():
            async with anyio.create_task_group() as group:
                for _ in range(self._workers):
                    group.start_soon(self._work)

    async def _wait_for_sync(self) -> bool:
        """Return False when `stop` comes first."""
        async with anyio.create_task_group() as group:

            async def give_up() -> None:
                await self._stopping.wait()
                group.cancel_scope.cancel()

            group.start_soon(give_up)
            for reflector in self._reflectors:
                await reflector.synced.wait()
            group.cancel_scope.cancel()
        return not self._stopping.is_set()

    async def _work(self) -> None:
        while (key := await self.queue.get()) is not None:
            try:
                await self._run_one(key)
            finally:
                self.queue.done(key)

    async def _run_one(self, key: Key) -> None:
        links = [Link(cause) for cause in self._causes.pop(key, ())]
        attributes = {"controller": self.name, "namespace": key[0], "name": key[1]}
        # An empty context makes a root: a run has many causes and is the child of none.
        span = self._tracer.start_as_current_span(
            f"reconcile {self.name}", context=Context(), links=links, attributes=attributes, record_exception=False
        )
        with span as current, self._metrics.running():
            result = await self._outcome(key, current)
            current.set_attribute("result", result)
            self._metrics.count(result)

    async def _outcome(self, key: Key, span: Span) -> str:
        """Reconcile once and queue the key again as the outcome asks; return the outcome's name."""
        try:
            result = await self._reconciler.reconcile(key)
        except TerminalError as error:
            self.queue.backoff.forget(key)
            self._failed(key, span, error, None)
            return "terminal"
        except Exception as error:
            at_least = error.retry_after or 0.0 if isinstance(error, ApiError) else 0.0
            at_most = LONGEST_SERVER_PAUSE if isinstance(error, _SERVER_TROUBLE) else float("inf")
            self._failed(key, span, error, self.queue.add_rate_limited(key, at_least, at_most))
            return "error"
        self.queue.backoff.forget(key)
        if result.after is None:
            return "success"
        self.queue.add_after(key, result.after)
        return "requeue_after" if result.after > 0 else "requeue"

    def _failed(self, key: Key, span: Span, error: Exception, wait: float | None) -> None:
        span.record_exception(error)
        span.set_status(Status(StatusCode.ERROR, str(error)))
        fields = {"controller": self.name, "namespace": key[0], "name": key[1], "error": str(error), "retry_in": wait}
        if isinstance(error, ApiError | TerminalError):
            # Expected kinds: the message says it all, a traceback would only hide it.
            log.warning("reconcile failed", **fields)
        else:
            log.error("reconcile failed", **fields, exc_info=error)


class _Metrics:
    """controller-runtime's metrics of one controller."""

    def __init__(self, name: str, telemetry: Telemetry, workers: int) -> None:
        meter = telemetry.meter
        self._labels = {"controller": name}
        self._total = meter.create_counter(names.RECONCILE_TOTAL)
        self._errors = meter.create_counter(names.RECONCILE_ERRORS)
        self._terminal = meter.create_counter(names.RECONCILE_TERMINAL_ERRORS)
        self._active = meter.create_up_down_counter(names.RECONCILE_ACTIVE_WORKERS)
        self._time = meter.create_histogram(names.RECONCILE_TIME, unit="s")
        meter.create_up_down_counter(names.RECONCILE_MAX_WORKERS).add(workers, self._labels)
        for result in ("success", "error", "requeue", "requeue_after"):
            self._total.add(0, {**self._labels, "result": result})
        for instrument in (self._errors, self._terminal, self._active):
            instrument.add(0, self._labels)

    def running(self) -> _Running:
        """Return a context manager around one run."""
        return _Running(
            partial(self._active.add, attributes=self._labels), partial(self._time.record, attributes=self._labels)
        )

    def count(self, result: str) -> None:
        """Count one outcome; a terminal one is an error too."""
        failed = result in {"error", "terminal"}
        self._total.add(1, {**self._labels, "result": "error" if failed else result})
        if failed:
            self._errors.add(1, self._labels)
        if result == "terminal":
            self._terminal.add(1, self._labels)


class _Running:
    def __init__(self, active: Callable[[int], None], record: Callable[[float], None]) -> None:
        self._active = active
        self._record = record
        self._started = 0.0

    def __enter__(self) -> None:
        self._started = time.monotonic()
        self._active(1)

    def __exit__(self, *_error: object) -> None:
        self._active(-1)
        self._record(time.monotonic() - self._started)
