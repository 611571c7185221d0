# SPDX-License-Identifier: Apache-2.0
"""Keep a local copy of all objects of a kind: list, watch, and list again when the watch has lost the thread."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import aclosing

import anyio

from ..telemetry import Telemetry, names, noop
from ..telemetry.logs import get_logger
from .errors import ApiError, Gone, NotFound, Throttled, Unavailable
from .objects import Key, Kind, Object, key_of
from .store import Event, Store
from .verbs import Verbs

__all__ = ["Event", "Pause", "Reflector", "Store"]

log = get_logger("reflector")

ListFilter = Callable[[dict[Key, Object]], bool]

WATCH_SECONDS = (300.0, 600.0)
# A watch that ends sooner, and without an event, is a failure: some proxies close every stream at once.
SHORTEST_WATCH = 1.0
# One that has stood for so long was well: its end is a new trouble, not more of an old one.
STABLE_WATCH = 10.0
FIRST_PAUSE = 0.8
# A server that answers again is to be followed within 10 s, however long it was away or had nothing but errors.
LONGEST_PAUSE = 8.0
LONGEST_PAUSE_UNREACHABLE = 5.0
# A CRD is usually installed within seconds of its first reader.
LONGEST_PAUSE_UNSERVED = 5.0


class Pause:
    """Exponential back-off with jitter; pure but for the random numbers that it is given."""

    def __init__(self, rng: random.Random, first: float = FIRST_PAUSE, longest: float = LONGEST_PAUSE) -> None:
        self._rng = rng
        self._first = first
        self._longest = longest
        self._failures = 0

    def next(self) -> float:
        """Return the seconds to wait after one more failure: between once and twice 0.8 s * 2^n or half the longest."""
        base = min(self._longest / 2, self._first * 2 ** min(self._failures, 16))
        self._failures += 1
        return float(base * (1 + self._rng.random()))

    def reset(self) -> None:
        """Forget the failures."""
        self._failures = 0


class Reflector:
    """Mirror one kind into `store` and tell handlers of changes.

    Args:
        client: what to list and watch with.
        kind: of the objects.
        namespace: None for cluster-scoped kinds and for all namespaces.
        label_selector: which objects, in the API's syntax.
        field_selector: which objects, in the API's syntax.
        resync: seconds between replays of the store to the handlers (SYNC events); None for never.
        telemetry: counts lists, watches and errors.
        list_filter: is asked about every complete list; when it returns False the old store is kept, and the list is
            repeated after a pause. So a list that cannot be true removes nothing.
        pause: the waiting times; None takes the usual ones.

    Attributes:
        store: the objects.
        synced: set after the first accepted list.
        last_error: why the last request failed; None while all is well.
        following_since: monotonic seconds since when the store follows the server without a gap; None while it does not.
    """

    def __init__(
        self,
        client: Verbs,
        kind: Kind,
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
        resync: float | None = None,
        telemetry: Telemetry | None = None,
        list_filter: ListFilter | None = None,
        pause: Pause | None = None,
    ) -> None:
        self.kind = kind
        self.store = Store()
        self.synced = anyio.Event()
        self.last_error: ApiError | None = None
        self.following_since: float | None = None
        self._client = client
        self._namespace = namespace
        self._label_selector = label_selector
        self._field_selector = field_selector
        self._resync = resync
        self._filter = list_filter
        self._rng = random.Random()  # noqa: S311 - spreads requests, hides nothing
        self._pause = pause or Pause(self._rng)
        self._pause_unreachable = pause or Pause(self._rng, longest=LONGEST_PAUSE_UNREACHABLE)
        self._handlers: list[Callable[[Event], None]] = []
        self._unserved = False
        self._version: str | None = None
        self._fruitless = 0
        self._step_scope = anyio.CancelScope()
        self._listed = anyio.Event()
        meter = (telemetry or noop()).meter
        self._lists = meter.create_counter(names.REFLECTOR_LISTS, description="complete lists")
        self._watches = meter.create_counter(names.REFLECTOR_WATCHES, description="watches that were opened")
        self._errors = meter.create_counter(names.REFLECTOR_ERRORS, description="failed lists and watches")

    def add_handler(self, handler: Callable[[Event], None]) -> None:
        """Call `handler` for every event, in the loop; it must not block. Add handlers before `run`."""
        self._handlers.append(handler)

    def fresh(self) -> bool:
        """Whether the store follows the server now: the last list was accepted and a watch is open or about to be."""
        return self.following_since is not None

    async def run(self) -> None:
        """List and watch until cancelled; no failure of the API ends it."""
        async with anyio.create_task_group() as group:
            if self._resync is not None:
                group.start_soon(self._replay, self._resync)
            while True:
                await self._step()

    async def refresh(self) -> None:
        """List anew and return when that is done: the store then has all that was written before the call."""
        self._version = None
        self._listed = anyio.Event()
        self._step_scope.cancel()
        await self._listed.wait()

    async def _step(self) -> None:
        """Run one list or one watch, and wait if it failed; `refresh` cuts it short."""
        with anyio.CancelScope() as self._step_scope:
            try:
                if self._version is None:
                    await self._list()
                else:
                    await self._watch(self._version)
            except ApiError as error:
                wait = self._failed(error)
                if wait > 0:
                    await anyio.sleep(wait)

    async def _list(self) -> None:
        items, version = await self._client.list(
            self.kind,
            namespace=self._namespace,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
        )
        objects = {key_of(obj): obj for obj in items}
        if self._filter is not None and not self._filter(objects):
            raise Unavailable(200, "the list was refused as implausible; the old objects are kept")
        self._lists.add(1, self._labels())
        self._answered()
        self._emit(self.store.replace(objects, low=not self.synced.is_set()))
        self._version = version
        self.synced.set()
        self._listed.set()

    async def _watch(self, version: str) -> None:
        opened = time.monotonic()
        events = 0
        stream = self._client.watch(
            self.kind,
            resource_version=version,
            namespace=self._namespace,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
            timeout_seconds=self._rng.uniform(*WATCH_SECONDS),
            on_open=self._watching,
        )
        try:
            async with aclosing(stream):
                async for change, obj in stream:
                    events += 1
                    self._take(change, obj)
                    self._fruitless = 0
                    self._pause.reset()
        finally:
            if time.monotonic() - opened >= STABLE_WATCH:
                self._fruitless = 0
                self._pause.reset()
        if not events and time.monotonic() - opened < SHORTEST_WATCH:
            raise Unavailable(0, "the server closed the watch at once")
        self._pause.reset()

    def _watching(self) -> None:
        self._watches.add(1, self._labels())
        self._answered()

    def _take(self, type: str, obj: Object) -> None:
        self._version = obj["metadata"]["resourceVersion"]
        if type == "DELETED":
            self._emit(self.store.remove(key_of(obj), obj))
        elif type != "BOOKMARK":
            self._emit(self.store.put(obj))

    def _answered(self) -> None:
        if self.following_since is None:
            self.following_since = time.monotonic()
        self._pause_unreachable.reset()
        self.last_error = None
        if self._unserved:
            self._unserved = False
            log.info("the kind is served now", kind=self.kind.kind)

    def _failed(self, error: ApiError) -> float:
        """Note a failure, decide whether to list next, and return the seconds to wait."""
        self._errors.add(1, {**self._labels(), "reason": type(error).__name__})
        if isinstance(error, Gone):
            # Once at once. A server that answers every watch so would otherwise be asked at full speed.
            self._version = None
            self._fruitless += 1
            if self._fruitless == 1:
                return 0.0
        nobody_answers = error.status == 0 and self.following_since is None
        self.following_since = None
        self.last_error = error
        if not (isinstance(error, Throttled) or error.status == 0):
            self._version = None
        wait = max((self._pause_unreachable if nobody_answers else self._pause).next(), error.retry_after or 0.0)
        if isinstance(error, NotFound) and error.whole_resource:
            self._say_unserved()
            return min(wait, LONGEST_PAUSE_UNSERVED)
        log.warning("list or watch failed", kind=self.kind.kind, error=error.message, wait=round(wait, 1))
        return wait

    def _say_unserved(self) -> None:
        if not self._unserved:
            self._unserved = True
            log.warning("the API server does not serve this kind; waiting for its CRD", kind=self.kind.kind)

    def _emit(self, events: list[Event]) -> None:
        for event in events:
            for handler in self._handlers:
                try:
                    handler(event)
                except Exception:
                    log.exception("a handler failed", kind=self.kind.kind, name=event.key[1])

    async def _replay(self, period: float) -> None:
        while True:
            await anyio.sleep(period)
            self._emit(self.store.replay())

    def _labels(self) -> dict[str, str]:
        return {"kind": self.kind.kind}
