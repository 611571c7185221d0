# SPDX-License-Identifier: Apache-2.0
"""Run the parts of one process together: start, signals, readiness, an orderly end."""

from __future__ import annotations

import signal
import threading
import time
from typing import Protocol, runtime_checkable

import anyio
from anyio.abc import TaskGroup

from ..telemetry import Telemetry
from ..telemetry.logs import get_logger
from .controller import Controller
from .elector import Elector, LeadershipLost
from .errors import Misconfigured
from .health import HealthServer
from .reflector import Reflector

log = get_logger("manager")

GRACE = 30.0
HEARTBEAT = 1.0
STUCK_AFTER = 30.0


class Runnable(Protocol):
    """Something that runs until it is cancelled."""

    async def run(self) -> None:
        """Run; an exception ends the process, a return does not."""


@runtime_checkable
class Stoppable(Protocol):
    """A runnable that can end in order."""

    def stop(self) -> None:
        """Make `run` return soon."""


class Manager:
    """Run everything until a signal, `cancel`, or a failure.

    Start: health server, then reflectors and runnables together; a controller waits for its reflectors. Runnables do
    not wait: what a process can do without the API server it must be able to do. With an election, controllers and
    what was added with `leader` wait for it and then for a list of every reflector that is newer: the one that led
    before may have written until a moment ago. All else runs before, so that a process that waits is warm, and ready.

    End: what has a `stop` method (controllers) gets `grace` seconds to finish, while the rest still runs; then the
    rest is cancelled, and leadership given up. A second signal cuts that short, and so does the loss of leadership.

    Args:
        telemetry: shut down last.
        health: started and closed with the manager; gets the checks `caches` (ready) and `loop` (live). One that is
            started already stays so.
        election: None leads without one.
        grace: seconds.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        health: HealthServer | None = None,
        *,
        election: Elector | None = None,
        grace: float = GRACE,
    ) -> None:
        self._telemetry = telemetry
        self._health = health
        self._election = election
        self._grace = grace
        self._reflectors: list[Reflector] = []
        self._runnables: list[tuple[str, Runnable]] = []
        self._leaders: set[str] = set()
        self._started: set[str] = set()
        self._ended: dict[str, anyio.Event] = {}
        self._stopping = anyio.Event()
        self._failure: Exception | None = None
        self._beat = time.monotonic()

    def add(self, name: str, runnable: Runnable, *, leader: bool = False) -> None:
        """Run this as well, with `leader` only while this process leads; the name must be free.

        Raises:
            ValueError: the name is taken.
        """
        if name in self._ended:
            raise ValueError(f"two runnables are called {name!r}")
        self._runnables.append((name, runnable))
        self._ended[name] = anyio.Event()
        if leader:
            self._leaders.add(name)

    def add_reflector(self, reflector: Reflector) -> None:
        """Run a reflector; the process is ready once all are synced."""
        self._reflectors.append(reflector)
        self.add(f"reflector {reflector.kind.kind} {len(self._reflectors)}", reflector)

    def add_controller(self, controller: Controller) -> None:
        """Run a controller, while this process leads."""
        self.add(f"controller {controller.name}", controller, leader=True)

    def cancel(self) -> None:
        """End in order, as a signal does; call it in the event loop."""
        self._stopping.set()

    async def run(self) -> None:
        """Run until the end.

        Raises:
            OSError: the health server cannot listen.
            LeadershipLost: this process led and leads no more.
            Exception: what made a runnable fail, after everything has stopped.
        """
        self._add_checks()
        if self._health is not None:
            self._health.start()
        try:
            async with anyio.create_task_group() as group:
                self._start(group)
                await self._stopping.wait()
                if not isinstance(self._failure, LeadershipLost):
                    await self._drain()
                group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                if self._election is not None:
                    await self._election.release()
                await anyio.to_thread.run_sync(self._close)
        if self._failure is not None:
            raise self._failure

    def _start(self, group: TaskGroup) -> None:
        group.start_soon(self._heartbeat)
        # Only the main thread can receive signals; tests and the lab run managers in others.
        if threading.current_thread() is threading.main_thread():
            group.start_soon(self._signals, group)
        if self._election is not None:
            group.start_soon(self._run_one, "election", self._election)
        self._start_parts(group, leaders=False)
        group.start_soon(self._lead, group)

    def _start_parts(self, group: TaskGroup, *, leaders: bool) -> None:
        for name, runnable in self._runnables:
            if (name in self._leaders) == leaders:
                self._started.add(name)
                group.start_soon(self._run_one, name, runnable)

    async def _lead(self, group: TaskGroup) -> None:
        """Start what only a leader may do, once this process leads."""
        if self._election is not None:
            await self._election.elected.wait()
            async with anyio.create_task_group() as lists:
                for reflector in self._reflectors:
                    lists.start_soon(reflector.refresh)
        if not self._stopping.is_set():
            self._start_parts(group, leaders=True)

    async def _run_one(self, name: str, runnable: Runnable) -> None:
        try:
            await runnable.run()
        except Exception as error:
            # What is no bug is the caller's to tell, in one line.
            if not isinstance(error, Misconfigured | OSError | LeadershipLost):
                log.exception("a part of the process failed; stopping", part=name)
            self._failure = self._failure or error
            self._stopping.set()
        finally:
            if name in self._ended:
                self._ended[name].set()

    async def _signals(self, group: TaskGroup) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
            async for number in received:
                log.info("stopping", signal=signal.Signals(number).name)
                if self._stopping.is_set():
                    group.cancel_scope.cancel()
                self._stopping.set()

    async def _drain(self) -> None:
        running = [(name, runnable) for name, runnable in self._runnables if name in self._started]
        stoppable = [(name, runnable) for name, runnable in running if isinstance(runnable, Stoppable)]
        for _, runnable in stoppable:
            runnable.stop()
        with anyio.move_on_after(self._grace) as scope:
            for name, _ in stoppable:
                await self._ended[name].wait()
        if scope.cancelled_caught:
            late = [name for name, _ in stoppable if not self._ended[name].is_set()]
            log.warning("not everything ended in time", parts=late, seconds=self._grace)

    async def _heartbeat(self) -> None:
        while True:
            self._beat = time.monotonic()
            await anyio.sleep(HEARTBEAT)

    def _add_checks(self) -> None:
        if self._health is not None:
            self._health.add_check("caches", self._unsynced, "ready")
            self._health.add_check("loop", self._stuck, "live")

    def _unsynced(self) -> str | None:
        waiting = [r.kind.kind for r in self._reflectors if not r.synced.is_set()]
        return f"not synced: {', '.join(waiting)}" if waiting else None

    def _stuck(self) -> str | None:
        silence = time.monotonic() - self._beat
        return f"the event loop has not turned for {silence:.0f} s" if silence > STUCK_AFTER else None

    def _close(self) -> None:
        if self._health is not None:
            self._health.close()
        self._telemetry.shutdown()
