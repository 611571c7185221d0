# SPDX-License-Identifier: Apache-2.0
"""The relay's sockets: one thread, one epoll, one read of at most 256 KiB a session and turn.

A turn serves each readable session once, so a fast sender gets no more turns than a slow one, and nobody waits for a
slow reader: its queue is bounded and the newest is dropped. All sessions share one read buffer; a session keeps only
its incomplete frame.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from opentelemetry.trace import Span, StatusCode, Tracer

from ..runtime.sockets import unpaced_if_short
from ..wire import relay as wire
from ..wire.endpoint import Endpoint
from .connection import Connection
from .counters import Counters
from .forward import Forwarder
from .sessions import Admission, Registry
from .stun import StunSocket

TICK: Final = 0.5  # seconds between looks at deadlines
ACCEPTS_A_TURN: Final = 64


@dataclass(frozen=True)
class Limits:
    """Bounds of the relay; seconds and bytes.

    `acknowledge` is how long a client's system may leave bytes without a word: who has lost its way to this relay uses
    another one, and is sent to there as soon as it is gone from here.
    """

    registration: float = 5.0
    acknowledge: float = 5.0
    idle: float = 90.0
    write: float = 10.0
    queue: int = 1 << 20
    sessions: int = 4096
    unauthenticated: int = 256
    watches: int = 4096


class RelayServer:
    """Accepts clients at `address`, answers STUN at `stun`. Binds at once; `run()` serves until `stop()`.

    Args:
        private: the relay's 32-byte static private key.
        address: where to accept TCP; port 0 chooses one, see `self.address`.
        admission: who may register.
        stun: where to answer STUN, or None.
        poll: called twice a second by the thread of `run()`; returns a new admission or None.
        tracer: gets one span for each session's set-up.

    Raises:
        OSError: an address cannot be bound.
    """

    def __init__(
        self,
        private: bytes,
        address: Endpoint,
        admission: Admission,
        *,
        stun: Endpoint | None = None,
        limits: Limits | None = None,
        poll: Callable[[], Admission | None] = lambda: None,
        tracer: Tracer | None = None,
    ) -> None:
        self.counters = Counters()
        self.limits = limits or Limits()
        self._private = private
        self._process = wire.process_name(os.urandom(wire.PROCESS))
        self._admission = admission
        self._poll = poll
        self._tracer = tracer
        self._spans: dict[Connection, Span] = {}
        self._registry: Registry[Connection] = Registry(self.limits.watches)
        self._forwarder = Forwarder(self._registry, self.counters, self._control)
        self._connections: dict[int, Connection] = {}
        self._fresh: dict[Connection, None] = {}  # not registered yet, oldest first
        self._more: set[Connection] = set()
        self._now = time.monotonic()
        self._listener = _listen(address)
        self.address = Endpoint.of(*self._listener.getsockname()[:2])
        try:
            self._stun = StunSocket(stun, self.counters) if stun is not None else None
        except OSError:
            self._listener.close()
            raise
        self.stun_address = self._stun.address if self._stun else None
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stopped = False
        self._accepting = True
        self._poller = select.epoll()
        for fd in (self._listener.fileno(), self._wake, *((self._stun.sock.fileno(),) if self._stun else ())):
            self._poller.register(fd, select.EPOLLIN)

    def stop(self) -> None:
        """Make `run()` return soon. Any thread and a signal handler may call it, any number of times."""
        if not self._stopped:
            os.eventfd_write(self._wake, 1)  # first: once `run()` sees the flag it closes the descriptor
            self._stopped = True

    def silence(self) -> float:
        """Return the seconds since the last turn, about `TICK` at most in a relay that is well. Any thread may ask."""
        return time.monotonic() - self._now

    def run(self) -> None:
        """Serve until `stop()`, then say goodbye to all clients and close everything."""
        tick = time.monotonic() + TICK
        try:
            while not self._stopped:
                events = self._poller.poll(0 if self._more else max(0.0, tick - time.monotonic()))
                self._now = time.monotonic()
                self._turn(events)
                if self._now >= tick:
                    tick = self._now + TICK
                    self._sweep()
        finally:
            self._shut()

    def _turn(self, events: list[tuple[int, int]]) -> None:
        waiting = self._more
        if waiting:
            self._more = set()
        for conn in waiting:
            if not conn.closed:
                self._serve(conn, read=False)
        for fd, event in events:
            conn_or_none = self._connections.get(fd)
            if conn_or_none is not None:
                if event & select.EPOLLOUT:
                    conn_or_none.flush(self._now)
                if event & ~select.EPOLLOUT and conn_or_none not in waiting:
                    self._serve(conn_or_none, read=True)
            elif fd == self._listener.fileno():
                self._accept()
            elif self._stun is not None and fd == self._stun.sock.fileno():
                self._stun.drain()

    def _serve(self, conn: Connection, read: bool) -> None:
        """Handle one read, or what an earlier turn left of one."""
        view = self._forwarder.view
        have = len(conn.rest)
        if have:
            view[:have] = conn.rest
        if read:
            try:
                size = conn.sock.recv_into(view[have : have + wire.READ])
            except BlockingIOError:
                return
            except OSError:
                size = 0
            if not size:
                self._close(conn)
                return
            self.counters.bytes_in += size
            have += size
            conn.heard = self._now
        try:
            used = self._forwarder.process(conn, have, self._now)
        except wire.ProtocolError as error:
            self._close(conn, str(error))
            return
        conn.rest = bytes(view[used:have]) if used < have else b""
        if conn.more and not conn.closed:
            self._more.add(conn)

    def _accept(self) -> None:
        for _ in range(ACCEPTS_A_TURN):
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:  # out of descriptors, for example: a level-triggered epoll would spin on it
                self._accepting = False
                self._poller.unregister(self._listener)
                return
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self.limits.acknowledge * 1000))
            if len(self._fresh) >= self.limits.unauthenticated:
                # The oldest goes: an honest client needs one round trip, so a flood does not lock it out.
                self._close(next(iter(self._fresh)), "too many unregistered clients")
            conn = Connection(sock, self._poller, self.counters, self.limits.queue, self._now)
            self._connections[conn.fd] = conn
            self._fresh[conn] = None
            self.counters.unauthenticated = len(self._fresh)
            if self._tracer is not None:
                self._spans[conn] = self._tracer.start_span("relay.session.setup")
            self._poller.register(conn.fd, select.EPOLLIN)

    def _control(self, conn: Connection, kind: int, body: bytes) -> None:
        wire.check(kind, len(body))
        if conn.key is None:
            self._register(conn, kind, body)
        elif kind == wire.PING:
            self._tell(conn, wire.frame(wire.PONG, body))
        elif kind == wire.WATCH:
            if not self._registry.watch(conn, body):
                raise wire.ProtocolError("too many watched keys")
            present = self._registry.get(body) is not None
            self._tell(conn, wire.frame(wire.PRESENT if present else wire.GONE, body))
        elif kind == wire.UNWATCH:
            self._registry.unwatch(conn, body)
        elif kind in {wire.CLOSE, wire.ERROR}:
            self._close(conn)
        elif kind != wire.PONG and wire.known(kind):
            raise wire.ProtocolError(f"frame type {kind} is out of place")

    def _register(self, conn: Connection, kind: int, body: bytes) -> None:
        try:
            if kind == wire.HELLO:
                nonce = self._process + os.urandom(wire.NONCE - wire.PROCESS)
                conn.handshake = wire.RelayHandshake(self._private, nonce)
                challenge = conn.handshake.challenge(wire.parse_hello(body))
                self._tell(conn, wire.frame(wire.CHALLENGE, challenge.body()))
            elif kind == wire.PROOF and conn.handshake is not None:
                key, welcome = conn.handshake.welcome(body)
                self._admit(conn, key, welcome)
            elif kind == wire.CLOSE and conn.handshake is not None:
                self._settle(conn, None)  # no failure: it has a session here, and looks for another process
                self._close(conn)
            else:
                raise wire.HandshakeError("not registered")
        except wire.HandshakeError as error:
            self._close(conn, str(error))

    def _admit(self, conn: Connection, key: bytes, welcome: bytes) -> None:
        if not self._admission.admits(key):
            self.counters.refused += 1
            self._close(conn, "this key is not admitted")
            return
        old = self._registry.get(key)
        if old is None and len(self._registry) >= self.limits.sessions:
            self.counters.refused += 1
            self._close(conn, "the relay is full")
            return
        if old is not None:
            self.counters.replaced += 1
            self._close(old, "replaced by a newer session of the same key")
        self._registry.register(key, conn)
        conn.key, conn.handshake = key, None
        unpaced_if_short(conn.sock)
        self._settle(conn, None)
        self.counters.registered += 1
        self.counters.sessions = len(self._registry)
        self._tell(conn, wire.frame(wire.WELCOME, welcome))
        self._announce(wire.PRESENT, key)

    def _announce(self, kind: int, key: bytes) -> None:
        for watcher in self._registry.watchers(key):
            self._tell(watcher, wire.frame(kind, key))

    def _tell(self, conn: Connection, frame: bytes) -> None:
        if not conn.closed and not conn.send_control(frame, self._now):
            self._close(conn, "nothing was read for too long")

    def _settle(self, conn: Connection, failure: str | None) -> None:
        """The connection is no more a fresh one: it registered, or it failed."""
        if conn not in self._fresh:
            return
        del self._fresh[conn]
        self.counters.unauthenticated = len(self._fresh)
        self.counters.failed += failure is not None
        span = self._spans.pop(conn, None)
        if span is not None:
            if failure is not None:
                span.set_status(StatusCode.ERROR, failure)
            span.end()

    def _close(self, conn: Connection, reason: str = "", kind: int = wire.ERROR) -> None:
        if conn.closed:
            return
        conn.closed = True
        self._settle(conn, reason or "the client went away")
        if reason and not conn.out:  # within a queued frame a text would only be taken for its rest
            with contextlib.suppress(OSError):
                conn.sock.send(wire.text_frame(kind, reason))
        del self._connections[conn.fd]
        self._poller.unregister(conn.fd)
        conn.sock.close()
        conn.out.clear()
        if conn.key is not None and self._registry.remove(conn.key, conn):
            self.counters.sessions = len(self._registry)
            self._announce(wire.GONE, conn.key)

    def _sweep(self) -> None:
        """Look at deadlines, at the admission, and at a listener that ran out of descriptors."""
        limits = self.limits
        admission = self._poll()
        if admission is not None:
            self._admission = admission
        for conn in list(self._connections.values()):
            reason = conn.overdue(self._now, limits.registration, limits.idle, limits.write)
            if reason is None and conn.key is not None and not self._admission.admits(conn.key):
                reason = "this key is not admitted any more"
            if reason is not None:
                self._close(conn, reason)
        if not self._accepting:
            self._accepting = True
            self._poller.register(self._listener, select.EPOLLIN)

    def _shut(self) -> None:
        for conn in list(self._connections.values()):
            self._close(conn, "the relay stops", wire.CLOSE)
        self._listener.close()
        if self._stun is not None:
            self._stun.sock.close()
        self._poller.close()
        os.close(self._wake)


def _listen(address: Endpoint) -> socket.socket:
    v6 = address.ip.version == 6
    listener = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address.sockaddr())
        listener.listen(512)
    except OSError:
        listener.close()
        raise
    return listener
