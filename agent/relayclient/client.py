# SPDX-License-Identifier: Apache-2.0
"""The agent's relay client: one warm session, and a UDP proxy for each peer."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from typing import Final, Protocol

from opentelemetry.trace import StatusCode, Tracer

from ...wire import relay as wire
from ...wire.endpoint import Endpoint
from .counters import add
from .events import (
    PeerGone,
    PeerPresent,
    PeerStats,
    ProxyMoved,
    RelayDown,
    RelayEvent,
    RelayRtt,
    RelayServer,
    RelayUp,
    Signal,
)
from .gate import Backoff, Gate, Rng, is_initiation, is_response, opens
from .proxy import Batch, Proxy
from .session import Registered, Session, register

NO_PROXY: Final = Endpoint(IPv4Address(0), 0)
YIELD: Final = (
    0.5  # seconds in which the other side's initiation arrives, on a busy machine too; WireGuard's retry takes 5
)
LASTED: Final = 10.0  # seconds after which a session counts as good and the back-off starts anew


class Instruments(Protocol):
    """The part of Telemetry that the client uses."""

    @property
    def tracer(self) -> Tracer:
        """For one span each session set-up."""


class _Peer:
    def __init__(self, key: bytes, *, first: bool) -> None:
        self.key = key
        self.gate = Gate(first)
        self.yielding: asyncio.TimerHandle | None = None
        self.stats = PeerStats()
        self.proxy: Proxy | None = None


class RelayClient:
    """Everything between WireGuard's socket and the relay. All methods belong to the event loop's thread.

    Args:
        private_key: the node's 32-byte WireGuard private key.
        mark: SO_MARK of the session's socket, or None.
        on_event: called in the loop for each event; it may call back.
        telemetry: spans, or None.
        clock: monotonic seconds.
        rng: jitter only.
    """

    def __init__(
        self,
        private_key: bytes,
        *,
        mark: int | None,
        on_event: Callable[[RelayEvent], None],
        telemetry: Instruments | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: Rng | None = None,
    ) -> None:
        self._private = private_key
        self._public = wire.public_key(private_key)
        self._mark = mark
        self._event = on_event
        self._tracer = telemetry.tracer if telemetry else None
        self._clock = clock
        self._backoff = Backoff(rng or random.SystemRandom())
        self._servers: tuple[RelayServer, ...] = ()
        self._changed = asyncio.Event()
        self._peers: dict[bytes, _Peer] = {}
        self._underlay: tuple[str, int] | None = None
        self._batch = Batch()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._session: Session | None = None
        self._current: tuple[RelayServer, bytes] | None = None
        self._ping: tuple[bytes, float] | None = None
        self._pings = 0
        self._removed = PeerStats()

    def configure(self, servers: Sequence[RelayServer]) -> None:
        """Use these relays, in this order. A session stays when its relay is still among them; none closes it."""
        if tuple(servers) == self._servers:
            return
        self._servers = tuple(servers)
        self._backoff.reset()
        self._changed.set()
        if self._session is not None and self._current is not None and not self._wanted(*self._current):
            self._session.end("not configured any more")

    def set_underlay(self, ip4: str | None, listen_port: int) -> None:
        """Bind the proxies to this address and give packets to its `listen_port`; None closes the proxies."""
        underlay = None if ip4 is None else (ip4, listen_port)
        if underlay == self._underlay and all(peer.proxy or not underlay for peer in self._peers.values()):
            return
        self._underlay = underlay
        for peer in list(self._peers.values()):
            self._unbind(peer)
            self._event(ProxyMoved(peer.key, self._bind(peer)))

    def add_peer(self, key: bytes) -> Endpoint:
        """Make the peer's proxy and ask for its presence; return the proxy's address.

        Port 0 says that there is none yet, for want of an underlay address; ProxyMoved follows.
        """
        peer = self._peers.get(key)
        if peer is not None:
            return peer.proxy.endpoint if peer.proxy else NO_PROXY
        peer = self._peers[key] = _Peer(key, first=self.goes_first(key))
        if (session := self._live()) is not None:
            session.control(wire.frame(wire.WATCH, key))
        return self._bind(peer)

    def remove_peer(self, key: bytes) -> None:
        """Close the peer's proxy and forget what it held; a peer that is not known is no error."""
        peer = self._peers.pop(key, None)
        if peer is None:
            return
        self._unbind(peer)
        if peer.yielding is not None:
            peer.yielding.cancel()
        add(self._removed, peer.stats)
        if (session := self._live()) is not None:
            session.control(wire.frame(wire.UNWATCH, key))

    def release(self, key: bytes) -> None:
        """The peer's agent knows our key: hand over the held initiation, and from now on everything.

        Holds for this session and this presence of the peer; without a session it does nothing.
        """
        peer = self._peers.get(key)
        if peer is not None and self._live() is not None:
            self._opened(peer, peer.gate.release())

    def goes_first(self, key: bytes) -> bool:
        """Tell whether our initiation goes before this peer's: of two that cross, both are lost."""
        return opens(self._public, key)

    def take_held(self, key: bytes) -> bytes | None:
        """Return the held handshake message and forget it, for sending it on another leg."""
        peer = self._peers.get(key)
        return peer.gate.take() if peer is not None else None

    def signal(self, key: bytes, payload: bytes) -> bool:
        """Send 1200 B at most to the peer's agent; False when there is no session or no room.

        Raises:
            ProtocolError: the payload is too long.
        """
        message = wire.frame(wire.SIGNAL, key + payload)
        session = self._live()
        return session is not None and session.send(memoryview(message), (len(message),)) == 0

    def stats(self, key: bytes) -> PeerStats:
        """Return the peer's totals; zeros for a peer that is not known."""
        peer = self._peers.get(key)
        return peer.stats if peer is not None else PeerStats()

    def total(self) -> PeerStats:
        """Return the sum over all peers, those that were removed included."""
        total = PeerStats()
        for stats in (self._removed, *(peer.stats for peer in list(self._peers.values()))):
            add(total, stats)
        return total

    async def run(self) -> None:
        """Keep a session until cancelled; then close everything."""
        self._loop = asyncio.get_running_loop()
        for peer in self._peers.values():
            self._attach(peer)
        try:
            while True:
                await self._round()
        finally:
            if self._session is not None:
                self._session.end("the agent stops")
                self._session = None
            for peer in self._peers.values():
                self._unbind(peer)
                if peer.yielding is not None:
                    peer.yielding.cancel()
                    peer.yielding = None
            self._loop = None

    def _live(self) -> Session | None:
        """Return the session that can send; one that has just ended cannot."""
        return None if self._session is None or self._session.ended.done() else self._session

    async def _round(self) -> None:
        """One walk over the configured servers, one session at most, one wait."""
        self._changed.clear()
        for server in self._servers:
            registered = await self._try(server)
            if registered is not None:
                started = self._clock()
                await self._serve(server, registered)
                if self._clock() - started >= LASTED:
                    self._backoff.reset()
                break
            if self._changed.is_set():
                return
        delay = self._backoff.delay() if self._servers else None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._changed.wait()

    async def _try(self, server: RelayServer) -> Registered | None:
        """Try the server's addresses in turn; tell why none worked."""
        reason = "no address"
        for endpoint in server.endpoints:
            span = self._tracer.start_span("relay.session.setup") if self._tracer else None
            try:
                return await register(endpoint, self._private, server.public_key, self._mark, self._clock)
            except (OSError, wire.HandshakeError, wire.ProtocolError) as error:
                reason = _reason(endpoint, error)
                if span is not None:
                    span.set_status(StatusCode.ERROR, reason)
            finally:
                if span is not None:
                    span.end()
            if self._changed.is_set():
                break
        self._event(RelayDown(server, reason))
        return None

    async def _serve(self, server: RelayServer, registered: Registered) -> None:
        """Use a registered session until it ends."""
        if not self._wanted(server, registered.relay_key):
            registered.sock.close()
            return
        session = self._session = Session(registered, self._on_frame, self._clock)
        self._current = (server, registered.relay_key)
        try:
            self._event(RelayUp(server, registered.rtt, registered.relay_key))
            for key in list(self._peers):
                session.control(wire.frame(wire.WATCH, key))
            if not session.ended.done():
                session.start()
            await self._keep_alive(session)
        finally:
            session.end("the agent stops")
            self._session = self._current = None
            for peer in self._peers.values():
                peer.gate.close()
        self._event(RelayDown(server, session.ended.result()))

    async def _keep_alive(self, session: Session) -> None:
        while not session.ended.done():
            now = self._clock()
            if session.liveness.dead(now):
                session.end("no answer for 3 s")
                return
            if session.liveness.ping_due(now):
                self._pings += 1
                token = self._pings.to_bytes(8, "big")
                self._ping = (token, now)
                session.control(wire.frame(wire.PING, token))
            await asyncio.wait((session.ended,), timeout=session.liveness.wait(now))

    def _wanted(self, server: RelayServer, relay_key: bytes) -> bool:
        return any(s.name == server.name and s.public_key in {None, relay_key} for s in self._servers)

    def _on_frame(self, kind: int, body: memoryview) -> None:
        if kind == wire.DATA:
            data = wire.parse_data(body)
            peer = self._peers.get(data.key)
            if peer is not None and peer.proxy is not None:
                peer.proxy.deliver(data.segment, data.train)
                if peer.gate.yielding or not peer.gate.open:
                    self._opened(peer, peer.gate.heard(data.train))
        elif kind == wire.PONG:
            self._pong(bytes(body))
        elif kind == wire.SIGNAL:
            self._event(Signal(bytes(body[: wire.KEY]), bytes(body[wire.KEY :])))
        elif kind in {wire.PRESENT, wire.GONE}:
            self._presence(bytes(body), kind == wire.PRESENT)

    def _pong(self, token: bytes) -> None:
        if self._ping is not None and self._ping[0] == token and self._current is not None:
            rtt = self._clock() - self._ping[1]
            self._ping = None
            self._event(RelayRtt(self._current[0], rtt))

    def _presence(self, key: bytes, present: bool) -> None:
        peer = self._peers.get(key)
        if peer is None:
            return
        if present:
            self._opened(peer, peer.gate.present())
            self._event(PeerPresent(key))
        else:
            peer.gate.close()
            self._event(PeerGone(key))

    def _opened(self, peer: _Peer, initiation: bytes | None) -> None:
        """Hand over what the gate gave, and let the other side go first where it should."""
        self._hand_over(peer, initiation)
        if peer.gate.waiting and peer.yielding is None and self._loop is not None:
            peer.yielding = self._loop.call_later(YIELD, self._end_yield, peer)

    def _end_yield(self, peer: _Peer) -> None:
        peer.yielding = None
        self._hand_over(peer, peer.gate.end_yield())

    def _hand_over(self, peer: _Peer, initiation: bytes | None) -> None:
        session = self._live()
        if initiation is None or session is None:
            return
        message = wire.data_frame(peer.key, 0, initiation)
        peer.stats.dropped_full += session.send(memoryview(message), (len(message),))
        peer.stats.trains_out += 1
        peer.stats.bytes_out += len(initiation)

    def _from_wireguard(self, peer: _Peer, proxy: Proxy) -> None:
        """A proxy is readable: one batch to the session, or to the gate that holds back."""
        batch, session = self._batch, self._live()
        if session is None or not peer.gate.open or peer.gate.yielding:
            self._sort(session, peer, proxy)
            return
        ends = [end for _, end, _ in proxy.receive(batch)]
        if ends:
            dropped = session.send(batch.view[: ends[-1]], ends)
            peer.stats.dropped_full += dropped
            kept = len(ends) - dropped
            peer.stats.trains_out += kept
            peer.stats.bytes_out += (ends[kept - 1] if kept else 0) - kept * wire.DATA_HEADER

    def _sort(self, session: Session | None, peer: _Peer, proxy: Proxy) -> None:
        """Pass what the gate lets through, frame by frame: it is closed, or initiations wait."""
        for start, end, segment in proxy.receive(self._batch):
            train = self._batch.view[start + wire.DATA_HEADER : end]
            if session is not None and is_response(train):
                peer.gate.theirs()
            if session is None or not peer.gate.open or is_initiation(train):
                peer.stats.dropped_held += peer.gate.hold(train, segment)
            else:
                peer.stats.dropped_full += session.send(self._batch.view[start:end], [end - start])
                peer.stats.trains_out += 1
                peer.stats.bytes_out += len(train)
            self._opened(peer, None)

    def _bind(self, peer: _Peer) -> Endpoint:
        """Make the peer's proxy; NO_PROXY when there is no address, or it is not ours any more."""
        if self._underlay is None:
            return NO_PROXY
        try:
            peer.proxy = Proxy(peer.key, *self._underlay, peer.stats)
        except OSError:
            return NO_PROXY
        self._attach(peer)
        return peer.proxy.endpoint

    def _attach(self, peer: _Peer) -> None:
        if self._loop is not None and peer.proxy is not None:
            self._loop.add_reader(peer.proxy.sock, self._from_wireguard, peer, peer.proxy)

    def _unbind(self, peer: _Peer) -> None:
        if peer.proxy is None:
            return
        if self._loop is not None:
            self._loop.remove_reader(peer.proxy.sock)
        peer.proxy.close()
        peer.proxy = None


def _reason(endpoint: Endpoint, error: Exception) -> str:
    text = "no answer in time" if isinstance(error, TimeoutError) else str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    return f"{endpoint}: {text}"
