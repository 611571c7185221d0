# SPDX-License-Identifier: Apache-2.0
"""The peers: for each of them a UDP proxy beside WireGuard, a gate, and the session by which it is sent to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address
from typing import Final

from ...wire import relay as wire
from ...wire.endpoint import Endpoint
from .choice import best, pair_of
from .counters import add
from .events import PeerGone, PeerPresent, PeerStats, ProxyMoved, RelayEvent
from .gate import Gate, is_initiation, is_response, opens
from .proxy import Batch, Proxy
from .session import Session

NO_PROXY: Final = Endpoint(IPv4Address(0), 0)
YIELD: Final = (
    0.5  # seconds in which the other side's initiation arrives, on a busy machine too; WireGuard's retry takes 5
)


class Peer:
    """One peer.

    Attributes:
        present: sessions with relay processes that have one with the peer, too.
        known: sessions whose process has reported the peer present before.
        session: that of `present` by which it is sent to; may just have ended, see `Peers.way`.
    """

    def __init__(self, key: bytes, own: bytes) -> None:
        self.key = key
        self.pair = pair_of(own, key)
        self.gate = Gate(opens(own, key))
        self.yielding: asyncio.TimerHandle | None = None
        self.stats = PeerStats()
        self.proxy: Proxy | None = None
        self.present: set[Session] = set()
        self.known: set[Session] = set()
        self.session: Session | None = None

    def choose(self) -> Session | None:
        """Choose the session anew."""
        self.session = _best(self.pair, self.present)
        return self.session

    def forget(self, session: Session) -> None:
        """Take that this session does not reach the peer any more."""
        self.present.discard(session)
        self.choose()


class Peers:
    """Everything between WireGuard's socket and the sessions.

    Args:
        own: our public key.
        event: called in the loop for each event; it may call back.
    """

    def __init__(self, own: bytes, event: Callable[[RelayEvent], None]) -> None:
        self._own, self._event = own, event
        self._peers: dict[bytes, Peer] = {}
        self._sessions: dict[Session, None] = {}
        self._underlay: tuple[str, int] | None = None
        self._batch = Batch()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._removed = PeerStats()

    # The host's side.

    def set_underlay(self, ip4: str | None, listen_port: int) -> None:
        """Bind the proxies to this address and give packets to its `listen_port`; None closes the proxies."""
        underlay = None if ip4 is None else (ip4, listen_port)
        if underlay == self._underlay and all(peer.proxy or not underlay for peer in self._peers.values()):
            return
        self._underlay = underlay
        for peer in list(self._peers.values()):
            self._unbind(peer)
            self._event(ProxyMoved(peer.key, self._bind(peer)))

    def add(self, key: bytes) -> Endpoint:
        """Make the peer's proxy and ask for its presence; return the proxy's address, or NO_PROXY."""
        peer = self._peers.get(key)
        if peer is not None:
            return peer.proxy.endpoint if peer.proxy else NO_PROXY
        peer = self._peers[key] = Peer(key, self._own)
        for session in list(self._sessions):
            session.control(wire.frame(wire.WATCH, key))
        return self._bind(peer)

    def remove(self, key: bytes) -> None:
        """Close the peer's proxy and forget what it held; a peer that is not known is no error."""
        peer = self._peers.pop(key, None)
        if peer is None:
            return
        self._rest(peer)
        add(self._removed, peer.stats)
        for session in list(self._sessions):
            session.control(wire.frame(wire.UNWATCH, key))

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Read the proxies in this loop from now on."""
        self._loop = loop
        for peer in self._peers.values():
            self._attach(peer)

    def close(self) -> None:
        """Close all proxies; nothing is read any more."""
        for peer in self._peers.values():
            self._rest(peer)
            peer.gate.close()
            peer.present.clear()
            peer.known.clear()
            peer.choose()
        self._sessions.clear()
        self._loop = None

    # What is asked.

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

    def way_to(self, key: bytes) -> Session | None:
        """Return by which session to signal to a peer: without a report of its presence, by the best of all."""
        peer = self._peers.get(key)
        session = self._way(peer) if peer is not None else None
        return session or _best(pair_of(self._own, key), self._sessions)

    # Sessions.

    def session_up(self, session: Session) -> None:
        """Ask a new session for everybody's presence."""
        self._sessions[session] = None
        for key in list(self._peers):
            session.control(wire.frame(wire.WATCH, key))

    def session_down(self, session: Session) -> None:
        """Send what this session carried by the others. Without any session gates close, and no PeerGone is told."""
        self._sessions.pop(session, None)
        for peer in list(self._peers.values()):
            was = session in peer.present
            peer.known.discard(session)
            peer.forget(session)
            if not self._sessions:
                peer.gate.close()
            elif was and not peer.present:
                peer.gate.close()
                self._event(PeerGone(peer.key))

    def presence(self, session: Session, key: bytes, present: bool) -> None:
        """A relay process says whether it has a session with the peer."""
        peer = self._peers.get(key)
        if peer is None:
            return
        if not present:
            peer.forget(session)
            if not peer.present:
                peer.gate.close()
                self._event(PeerGone(key))
            return
        # The peer's second session with another process is no news; a second one with the same is: of a new agent, maybe.
        news = not peer.present or session in peer.known
        self._reached(peer, session)
        self._opened(peer, peer.gate.present())
        if news:
            self._event(PeerPresent(key))

    def data(self, session: Session, body: memoryview) -> None:
        """A train of a peer came."""
        data = wire.parse_data(body)
        peer = self._peers.get(data.key)
        if peer is None or peer.proxy is None:
            return
        peer.proxy.deliver(data.segment, data.train)
        if peer.gate.yielding or not peer.gate.open:
            self._reached(peer, session)
            self._opened(peer, peer.gate.heard(data.train))

    def release(self, key: bytes) -> None:
        """The peer's agent knows our key: hand over what is held, and from now on everything."""
        peer = self._peers.get(key)
        if peer is not None and self._sessions:
            self._opened(peer, peer.gate.release())

    def take_held(self, key: bytes) -> bytes | None:
        """Return the held handshake message and forget it, for sending it on another leg."""
        peer = self._peers.get(key)
        return peer.gate.take() if peer is not None else None

    @staticmethod
    def _reached(peer: Peer, session: Session) -> None:
        if session not in peer.present:
            peer.present.add(session)
            peer.choose()
        peer.known.add(session)

    @staticmethod
    def _way(peer: Peer) -> Session | None:
        """Return the session by which to send to the peer now; one that has just ended cannot."""
        session = peer.session
        return peer.choose() if session is not None and session.ended.done() else session

    def _opened(self, peer: Peer, message: bytes | None) -> None:
        """Hand over what the gate gave, and let the other side go first where it should."""
        self._hand_over(peer, message)
        if peer.gate.waiting and peer.yielding is None and self._loop is not None:
            peer.yielding = self._loop.call_later(YIELD, self._end_yield, peer)

    def _end_yield(self, peer: Peer) -> None:
        peer.yielding = None
        self._hand_over(peer, peer.gate.end_yield())

    def _hand_over(self, peer: Peer, message: bytes | None) -> None:
        session = self._way(peer)
        if message is None or session is None:
            return
        frame = wire.data_frame(peer.key, 0, message)
        peer.stats.dropped_full += session.send(memoryview(frame), (len(frame),))
        peer.stats.trains_out += 1
        peer.stats.bytes_out += len(message)

    # WireGuard's side.

    def _from_wireguard(self, peer: Peer, proxy: Proxy) -> None:
        """A proxy is readable: one batch to the session, or to the gate that holds back."""
        batch, session = self._batch, self._way(peer)
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

    def _sort(self, session: Session | None, peer: Peer, proxy: Proxy) -> None:
        """Pass what the gate lets through, frame by frame: it is closed, or initiations wait."""
        for start, end, segment in proxy.receive(self._batch):
            train = self._batch.view[start + wire.DATA_HEADER : end]
            if self._sessions and is_response(train):
                peer.gate.theirs()
            if session is None or not peer.gate.open or is_initiation(train):
                peer.stats.dropped_held += peer.gate.hold(train, segment)
            else:
                peer.stats.dropped_full += session.send(self._batch.view[start:end], [end - start])
                peer.stats.trains_out += 1
                peer.stats.bytes_out += len(train)
            self._opened(peer, None)

    # Proxies.

    def _bind(self, peer: Peer) -> Endpoint:
        """Make the peer's proxy; NO_PROXY when there is no address, or it is not ours any more."""
        if self._underlay is None:
            return NO_PROXY
        try:
            peer.proxy = Proxy(peer.key, *self._underlay, peer.stats)
        except OSError:
            return NO_PROXY
        self._attach(peer)
        return peer.proxy.endpoint

    def _attach(self, peer: Peer) -> None:
        if self._loop is not None and peer.proxy is not None:
            self._loop.add_reader(peer.proxy.sock, self._from_wireguard, peer, peer.proxy)

    def _unbind(self, peer: Peer) -> None:
        if peer.proxy is None:
            return
        if self._loop is not None:
            self._loop.remove_reader(peer.proxy.sock)
        peer.proxy.close()
        peer.proxy = None

    def _rest(self, peer: Peer) -> None:
        self._unbind(peer)
        if peer.yielding is not None:
            peer.yielding.cancel()
            peer.yielding = None


def _best(pair: bytes, sessions: Iterable[Session]) -> Session | None:
    """Return the session that carries a pair, of those that have not ended."""
    live = {session.process: session for session in sessions if not session.ended.done()}
    process = best(pair, live)
    return None if process is None else live[process]
