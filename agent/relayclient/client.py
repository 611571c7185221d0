# SPDX-License-Identifier: Apache-2.0
"""The agent's relay client: sessions and peers put together.

WireGuard <──UDP──> proxies, gates (peers.py) <──frames──> sessions (pool.py, session.py) <──TCP──> relay processes
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from opentelemetry.trace import Tracer

from ...wire import relay as wire
from ...wire.endpoint import Endpoint
from .dialplan import Rng
from .events import PeerStats, RelayDown, RelayEvent, RelayLost, RelayRtt, RelayServer, RelayUp, Signal
from .gate import opens
from .peers import Peers
from .pool import Pool
from .session import Session


class Instruments(Protocol):
    """The part of Telemetry that the client uses."""

    @property
    def tracer(self) -> Tracer:
        """For one span each session set-up."""


class RelayClient:
    """Everything between WireGuard's socket and the relays. All methods belong to the event loop's thread.

    Args:
        private_key: the node's 32-byte WireGuard private key.
        mark: SO_MARK of the sessions' sockets, or None.
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
        self._public = wire.public_key(private_key)
        self._event = on_event
        tracer = telemetry.tracer if telemetry else None
        self._peers = Peers(self._public, on_event)
        self._pool = Pool(private_key, mark, self, tracer, clock, rng or random.SystemRandom())

    def configure(self, servers: Sequence[RelayServer]) -> None:
        """Use these relays. A session stays when its relay is still among them; none closes all."""
        self._pool.configure(servers)

    def up(self) -> list[str]:
        """Return the names of the relays that have a session, in the order of configuration."""
        return self._pool.up()

    def set_underlay(self, ip4: str | None, listen_port: int) -> None:
        """Bind the proxies to this address and give packets to its `listen_port`; None closes the proxies."""
        self._peers.set_underlay(ip4, listen_port)

    def add_peer(self, key: bytes) -> Endpoint:
        """Make the peer's proxy and ask for its presence; return the proxy's address.

        Port 0 says that there is none yet, for want of an underlay address; ProxyMoved follows.
        """
        return self._peers.add(key)

    def remove_peer(self, key: bytes) -> None:
        """Close the peer's proxy and forget what it held; a peer that is not known is no error."""
        self._peers.remove(key)

    def release(self, key: bytes) -> None:
        """The peer's agent knows our key: hand over the held initiation, and from now on everything.

        Holds as long as the peer is present somewhere; without any session it does nothing.
        """
        self._peers.release(key)

    def goes_first(self, key: bytes) -> bool:
        """Tell whether our initiation goes before this peer's: of two that cross, both are lost."""
        return opens(self._public, key)

    def take_held(self, key: bytes) -> bytes | None:
        """Return the held handshake message and forget it, for sending it on another leg."""
        return self._peers.take_held(key)

    def signal(self, key: bytes, payload: bytes) -> bool:
        """Send 1200 B at most to the peer's agent; False when there is no session or no room.

        Raises:
            ProtocolError: the payload is too long.
        """
        message = wire.frame(wire.SIGNAL, key + payload)
        session = self._peers.way_to(key)
        return session is not None and session.send(memoryview(message), (len(message),)) == 0

    def stats(self, key: bytes) -> PeerStats:
        """Return the peer's totals; zeros for a peer that is not known."""
        return self._peers.stats(key)

    def total(self) -> PeerStats:
        """Return the sum over all peers, those that were removed included."""
        return self._peers.total()

    async def run(self) -> None:
        """Keep sessions until cancelled; then close everything."""
        self._peers.attach(asyncio.get_running_loop())
        try:
            await self._pool.run()
        finally:
            self._peers.close()

    # What the pool tells.

    def session_up(self, session: Session) -> None:
        """See `Listener`."""
        self._event(RelayUp(session.server, session.set_up_rtt, session.relay_key))
        self._peers.session_up(session)

    def session_down(self, session: Session, reason: str) -> None:
        """See `Listener`."""
        self._peers.session_down(session)
        self._event((RelayLost if self._pool.sessions else RelayDown)(session.server, reason))

    def unreachable(self, server: RelayServer, reason: str) -> None:
        """See `Listener`."""
        if not self._pool.sessions:
            self._event(RelayDown(server, reason))

    def frame(self, session: Session, kind: int, body: memoryview) -> None:
        """See `Listener`."""
        if kind == wire.DATA:
            self._peers.data(session, body)
        elif kind == wire.SIGNAL:
            self._event(Signal(bytes(body[: wire.KEY]), bytes(body[wire.KEY :])))
        elif kind in {wire.PRESENT, wire.GONE}:
            self._peers.presence(session, bytes(body), kind == wire.PRESENT)

    def rtt(self, session: Session, seconds: float) -> None:
        """See `Listener`."""
        self._event(RelayRtt(session.server, seconds))
