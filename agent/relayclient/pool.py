# SPDX-License-Identifier: Apache-2.0
"""A session with each process of the configured relays: one task that searches for each relay, one that pings each session.

Two agents meet on any process that both have a session with, so each agent has one with all of them, and when a process
dies the others are warm. A second session of ours would replace the first: before its proof a search claims the process,
and leaves it where the claim fails.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from opentelemetry.trace import StatusCode, Tracer

from ...wire import relay as wire
from ...wire.endpoint import Endpoint
from .dialplan import DialPlan, Rng
from .events import RelayServer
from .session import HeldAlready, Registered, Session, register


class Listener(Protocol):
    """Who is told what happens to sessions."""

    def session_up(self, session: Session) -> None:
        """A session stands; what it is sent now goes first."""

    def session_down(self, session: Session, reason: str) -> None:
        """A session is over, and not among the pool's any more."""

    def unreachable(self, server: RelayServer, reason: str) -> None:
        """None of a relay's addresses led to a relay."""

    def frame(self, session: Session, kind: int, body: memoryview) -> None:
        """A frame came; the body is valid during the call."""

    def rtt(self, session: Session, seconds: float) -> None:
        """A ping came back."""


class _Search:
    """The search for the processes of one relay.

    Attributes:
        met: processes that have answered at the relay's addresses and may have a session.
        claimed: the one that is being registered with.
        changed: the plan may say something else now.
    """

    def __init__(self, server: RelayServer, rng: Rng) -> None:
        self.server = server
        self.plan = DialPlan(rng)
        self.met: set[bytes] = set()
        self.claimed: bytes | None = None
        self.changed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class Pool:
    """All sessions. Belongs to the event loop's thread.

    Args:
        private: the node's 32-byte WireGuard private key.
        mark: SO_MARK of the sessions' sockets, or None.
        listener: is told.
        tracer: gets a span for each attempt, or None.
        clock: monotonic seconds.
        rng: jitter only.

    Attributes:
        sessions: by the name of the process.
    """

    def __init__(
        self,
        private: bytes,
        mark: int | None,
        listener: Listener,
        tracer: Tracer | None,
        clock: Callable[[], float],
        rng: Rng,
    ) -> None:
        self._private, self._mark, self._listener, self._tracer = private, mark, listener, tracer
        self._clock, self._rng = clock, rng
        self._searches: dict[str, _Search] = {}
        self._group: asyncio.TaskGroup | None = None
        self.sessions: dict[bytes, Session] = {}

    def configure(self, servers: Sequence[RelayServer]) -> None:
        """Look for these relays' processes. A session stays as long as one of the relays is its own."""
        names = {server.name for server in servers}
        for name in [name for name in self._searches if name not in names]:
            self._stop(self._searches.pop(name))
        before, self._searches = self._searches, {}
        for server in servers:
            search = self._searches[server.name] = before.get(server.name) or _Search(server, self._rng)
            if server.name not in before or search.server != server:
                search.server = server
                search.plan.configure(server.endpoints, server.replicas, self._clock(), self._held(search))
                search.changed.set()
            self._start(search)
        for session in list(self.sessions.values()):
            if not any(self._is_of(session, search) for search in self._searches.values()):
                session.end("not configured any more")

    def up(self) -> list[str]:
        """Return the names of the relays that have a session, in the order of configuration."""
        return [name for name, search in self._searches.items() if self._held(search)]

    async def run(self) -> None:
        """Search and ping until cancelled; then close everything."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for search in self._searches.values():
                    self._start(search)
                await asyncio.Event().wait()
        finally:
            self._group = None

    def _start(self, search: _Search) -> None:
        if self._group is not None and search.task is None:
            search.task = self._group.create_task(self._search(search))

    @staticmethod
    def _stop(search: _Search) -> None:
        if search.task is not None:
            search.task.cancel()

    def _held(self, search: _Search) -> int:
        return sum(process in self.sessions for process in search.met)

    @staticmethod
    def _is_of(session: Session | Registered, search: _Search) -> bool:
        return session.process in search.met and search.server.public_key in {None, session.relay_key}

    async def _search(self, search: _Search) -> None:
        while True:
            search.changed.clear()
            wait = search.plan.wait(self._held(search), self._clock())
            if wait == 0:
                await self._dial(search, search.plan.dial())
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await search.changed.wait()

    async def _dial(self, search: _Search, endpoint: Endpoint) -> None:
        """Dial an address once, and tell the plan how it went."""
        span = self._tracer.start_span("relay.session.setup") if self._tracer else None
        server, claim = search.server, partial(self._claim, search)
        failure = None
        try:
            registered = await register(endpoint, self._private, server.public_key, self._mark, self._clock, claim)
            self._hold(search, registered)
        except HeldAlready:
            pass
        except (OSError, wire.HandshakeError, wire.ProtocolError) as error:
            failure = _reason(endpoint, error)
            if span is not None:
                span.set_status(StatusCode.ERROR, failure)
        finally:
            search.claimed = None
            if span is not None:
                span.end()
        held, now = self._held(search), self._clock()
        if failure is None:
            search.plan.met(held, now)
        elif search.plan.failed(held, now):
            self._listener.unreachable(server, failure)

    def _claim(self, search: _Search, process: bytes) -> bool:
        search.met.add(process)
        if process in self.sessions or any(other.claimed == process for other in self._searches.values()):
            return False
        search.claimed = process
        return True

    def _hold(self, search: _Search, registered: Registered) -> None:
        """Use what was registered, unless the configuration has changed since it was dialled."""
        if self._group is None or not self._is_of(registered, search):
            registered.sock.close()
            return
        session = Session(registered, search.server, self._listener.frame, self._listener.rtt, self._clock)
        self.sessions[session.process] = session
        self._listener.session_up(session)
        if not session.ended.done():
            session.start()
        self._group.create_task(self._keep(session))

    async def _keep(self, session: Session) -> None:
        """Ping a session until it ends, and have it looked for again."""
        try:
            reason = await session.keep_alive()
        finally:
            session.end("the agent stops")
            del self.sessions[session.process]
        now = self._clock()
        for search in self._searches.values():
            if session.process in search.met:
                search.met.discard(session.process)
                search.plan.lost(now - session.started, self._held(search), now)
                search.changed.set()
        self._listener.session_down(session, reason)


def _reason(endpoint: Endpoint, error: Exception) -> str:
    text = "no answer in time" if isinstance(error, TimeoutError) else str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    return f"{endpoint}: {text}"
