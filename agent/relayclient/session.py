# SPDX-License-Identifier: Apache-2.0
"""One TCP session with a relay: connect, register, read in batches, write with a bounded queue, ping."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from ...runtime.sockets import unpaced_if_short
from ...wire import relay as wire
from ...wire.endpoint import Endpoint
from .events import RelayServer
from .liveness import Liveness

SO_MARK: Final = 36
SO_RCVBUFFORCE: Final = 33
TCP_NOTSENT_LOWAT: Final = 25
UNSENT: Final = 128 << 10  # so that a ping does not stand behind megabytes in the kernel
# The kernel's own growing window closes when this process waits for its turn, and what the relay has sent by then is lost
# and repeated after milliseconds: at 5 Gbit/s the relay's queue overflows.
RECEIVE: Final = 4 << 20
QUEUE: Final = 1 << 20
CONTROL_RESERVE: Final = 64 << 10
CONNECT_TIMEOUT: Final = 2.0
REGISTER_TIMEOUT: Final = 5.0


@dataclass(frozen=True)
class Registered:
    """A socket on which WELCOME was checked; `reader` may hold frames that came behind it."""

    sock: socket.socket
    reader: wire.Reader
    rtt: float
    relay_key: bytes
    process: bytes


class HeldAlready(Exception):
    """The address led to a relay process with which there is a session; a second one would replace it."""


def prepare(sock: socket.socket) -> None:
    """Set a TCP socket's options before it connects to a relay."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, UNSENT)
    with contextlib.suppress(
        OSError
    ):  # needs CAP_NET_ADMIN; the system's limit without it is smaller than its own window
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE)


async def register(
    endpoint: Endpoint,
    private: bytes,
    expected: bytes | None,
    mark: int | None,
    clock: Callable[[], float],
    claim: Callable[[bytes], bool],
) -> Registered:
    """Connect within 2 s and register within 5 s.

    Args:
        endpoint: of the relay.
        private: the node's 32-byte WireGuard private key.
        expected: the relay's public key; None accepts any.
        mark: SO_MARK of the socket, or None.
        clock: monotonic seconds.
        claim: asked with the name of the relay process before anything is proved to it; False leaves it.

    Raises:
        HeldAlready: the process was not to be claimed.
        OSError: no connection; TimeoutError is one of them.
        HandshakeError: the relay refused, or did not prove the expected key.
        ProtocolError: it speaks something else.
    """
    family = socket.AF_INET6 if endpoint.ip.version == 6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if mark is not None:
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        prepare(sock)
        async with asyncio.timeout(CONNECT_TIMEOUT):
            await asyncio.get_running_loop().sock_connect(sock, endpoint.sockaddr())
        async with asyncio.timeout(REGISTER_TIMEOUT):
            return await _handshake(sock, wire.ClientHandshake(private, os.urandom(wire.NONCE), expected), clock, claim)
    except BaseException:
        sock.close()
        raise


async def _handshake(
    sock: socket.socket, handshake: wire.ClientHandshake, clock: Callable[[], float], claim: Callable[[bytes], bool]
) -> Registered:
    loop = asyncio.get_running_loop()
    reader = wire.Reader()
    start = clock()
    await loop.sock_sendall(sock, wire.frame(wire.HELLO, handshake.hello.body()))
    challenge = wire.parse_challenge(await _expect(sock, reader, wire.CHALLENGE))
    rtt = clock() - start
    proof = handshake.proof(challenge)
    if not claim(challenge.process):
        await loop.sock_sendall(sock, wire.text_frame(wire.CLOSE, ""))
        raise HeldAlready
    await loop.sock_sendall(sock, wire.frame(wire.PROOF, proof))
    handshake.accept(await _expect(sock, reader, wire.WELCOME))
    unpaced_if_short(sock)
    return Registered(sock, reader, rtt, challenge.key, challenge.process)


async def _expect(sock: socket.socket, reader: wire.Reader, kind: int) -> bytes:
    loop = asyncio.get_running_loop()
    while True:
        for got, body in reader.frames():
            if got in {wire.ERROR, wire.CLOSE}:
                raise wire.HandshakeError(f"the relay says: {wire.parse_text(bytes(body))}")
            if got != kind:
                raise wire.ProtocolError(f"frame type {got} is out of place")
            return bytes(body)
        size = await loop.sock_recv_into(sock, reader.space())
        if not size:
            raise wire.HandshakeError("the relay closed the connection")
        reader.filled(size)


class Session:
    """A session in the event loop: callbacks only, no task for a packet.

    Args:
        registered: from `register`.
        server: the relay by whose address it was found.
        on_frame: called with this session, type and body of each frame but PONG; the body is valid during the call.
        on_rtt: called with this session and the seconds that a ping took.
        clock: monotonic seconds.

    Attributes:
        process: the name of the relay process.
        relay_key: the relay's public key, proved.
        ended: the reason, once it is over.
    """

    def __init__(
        self,
        registered: Registered,
        server: RelayServer,
        on_frame: Callable[[Session, int, memoryview], None],
        on_rtt: Callable[[Session, float], None],
        clock: Callable[[], float],
    ) -> None:
        self.server, self.process, self.relay_key = server, registered.process, registered.relay_key
        self.set_up_rtt, self.started = registered.rtt, clock()
        self._sock = registered.sock
        self._reader = registered.reader
        self._on_frame, self._on_rtt = on_frame, on_rtt
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._out = bytearray()
        self._liveness = Liveness(self.started)
        self._pings, self._pinged = 0, self.started
        self.ended: asyncio.Future[str] = self._loop.create_future()

    def start(self) -> None:
        """Handle what came with WELCOME and everything from now on."""
        self._loop.add_reader(self._sock, self._readable)
        self._frames()

    def send(self, view: memoryview, ends: Sequence[int]) -> int:
        """Send whole frames; return how many did not fit into the queue. The newest are dropped.

        Args:
            view: frames one behind the other.
            ends: where each of them ends.
        """
        self._liveness.sent(self._clock())
        if not self._out:
            self._push(view)
            return 0
        fit = 0
        while fit < len(ends) and len(self._out) + ends[fit] <= QUEUE:
            fit += 1
        if fit:
            self._out += view[: ends[fit - 1]]
        return len(ends) - fit

    def control(self, frame: bytes) -> None:
        """Send a frame that must not be lost; a session that cannot take it even then is over."""
        self._liveness.sent(self._clock())
        if not self._out:
            self._push(frame)
        elif len(self._out) + len(frame) <= QUEUE + CONTROL_RESERVE:
            self._out += frame
        else:
            self.end("the relay does not read")

    async def keep_alive(self) -> str:
        """Ping until the session ends; return why it did."""
        while not self.ended.done():
            now = self._clock()
            if self._liveness.dead(now):
                self.end("no answer for 3 s")
            elif self._liveness.ping_due(now):
                self._pings, self._pinged = self._pings + 1, now
                self.control(wire.frame(wire.PING, self._pings.to_bytes(8, "big")))
            await asyncio.wait((self.ended,), timeout=self._liveness.wait(now))
        return self.ended.result()

    def end(self, reason: str) -> None:
        """Close; `ended` gets the reason. Safe to repeat."""
        if self.ended.done():
            return
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        if not self._out:
            with contextlib.suppress(OSError):
                self._sock.send(wire.text_frame(wire.CLOSE, ""))
        self._sock.close()
        self._out.clear()
        self.ended.set_result(reason)

    def _push(self, data: memoryview | bytes) -> None:
        if self.ended.done():
            return
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.end(error.strerror or "broken connection")
            return
        if sent < len(data):
            self._out += data[sent:]
            self._loop.add_writer(self._sock, self._writable)

    def _writable(self) -> None:
        try:
            sent = self._sock.send(self._out)
        except BlockingIOError:
            return
        except OSError as error:
            self.end(error.strerror or "broken connection")
            return
        del self._out[:sent]
        self._liveness.heard()
        if self._out:
            self._liveness.sent(self._clock())
        else:
            self._loop.remove_writer(self._sock)

    def _readable(self) -> None:
        try:
            size = self._sock.recv_into(self._reader.space())
        except BlockingIOError:
            return
        except OSError as error:
            self.end(error.strerror or "broken connection")
            return
        if not size:
            self.end("the relay closed the connection")
            return
        self._reader.filled(size)
        self._liveness.heard()
        self._frames()

    def _frames(self) -> None:
        try:
            for kind, body in self._reader.frames():
                if kind in {wire.CLOSE, wire.ERROR}:
                    self.end(f"the relay says: {wire.parse_text(bytes(body))}")
                elif kind == wire.PONG:
                    self._pong(bytes(body))
                else:
                    self._on_frame(self, kind, body)
                if self.ended.done():
                    return
        except wire.ProtocolError as error:
            self.end(str(error))

    def _pong(self, token: bytes) -> None:
        if token == self._pings.to_bytes(8, "big"):
            self._on_rtt(self, self._clock() - self._pinged)
