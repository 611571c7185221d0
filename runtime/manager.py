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
    not wait: what a process can do without the API server it must be able to do.

    End: what has a `stop` method (controllers) gets `grace` seconds to finish, while the rest still runs; then the
    rest is cancelled. A second signal cuts that short.

    Args:
        telemetry: shut down last.
        health: started and closed with the manager; gets the checks `caches` (ready) and `loop` (live).
        grace: seconds.
    """

    def __init__(self, telemetry: Telemetry, health: HealthServer | None = None, *, grace: float = GRACE) -> None:
        self._telemetry = telemetry
        self._health = health
        self._grace = grace
        self._reflectors: list[Reflector] = []
        self._runnables: list[tuple[str, Runnable]] = []
        self._ended: dict[str, anyio.Event] = {}
        self._stopping = anyio.Event()
        self._failure: Exception | None = None
        self._beat = time.monotonic()

    def add(self, name: str, runnable: Runnable) -> None:
        """Run this as well; the name must be free.

        Raises:
            ValueError: the name is taken.
        """
        if name in self._ended:
            raise ValueError(f"two runnables are called {name!r}")
        self._runnables.append((name, runnable))
        self._ended[name] = anyio.Event()

    def add_reflector(self, reflector: Reflector) -> None:
        """Run a reflector; the process is ready once all are synced."""
        self._reflectors.append(reflector)
        self.add(f"reflector {reflector.kind.kind} {len(self._reflectors)}", reflector)

    def add_controller(self, controller: Controller) -> None:
        """Run a controller."""
        self.add(f"controller {controller.name}", controller)

    def cancel(self) -> None:
        """End in order, as a signal does; call it in the event loop."""
        self._stopping.set()

    async def run(self) -> None:
        """Run until the end.

        Raises:
            OSError: the health server cannot listen.
            Exception: what made a runnable fail, after everything has stopped.
        """
        self._add_checks()
        if self._health is not None:
            self._health.start()
        try:
            async with anyio.create_task_group() as group:
                self._start(group)
                await self._stopping.wait()
                await self._drain()
                group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._close)
        if self._failure is not None:
            raise self._failure

    def _start(self, group: TaskGroup) -> None:
        group.start_soon(self._heartbeat)
        # Only the main thread can receive signals; tests and the lab run managers in others.
        if threading.current_thread() is threading.main_thread():
            group.start_soon(self._signals, group)
        for name, runnable in self._runnables:
            group.start_soon(self._run_one, name, runnable)

    async def _run_one(self, name: str, runnable: Runnable) -> None:
        try:
            await runnable.run()
        except Exception as error:
            # A host or credentials that cannot be used is the caller's to tell, in one line; anything else is a bug.
            if not isinstance(error, Misconfigured | OSError):
                log.exception("a part of the process failed; stopping", part=name)
            self._failure = self._failure or error
            self._stopping.set()
        finally:
            self._ended[name].set()

    async def _signals(self, group: TaskGroup) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
            async for number in received:
                log.info("stopping", signal=signal.Signals(number).name)
                if self._stopping.is_set():
                    group.cancel_scope.cancel()
                self._stopping.set()

    async def _drain(self) -> None:
        stoppable = [(name, runnable) for name, runnable in self._runnables if isinstance(runnable, Stoppable)]
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
