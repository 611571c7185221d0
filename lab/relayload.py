# SPDX-License-Identifier: Apache-2.0
"""Load for a relay: registered sessions, one process that sends for all pairs and one that receives for all.

Two processes, not two a pair: on a small machine the generators share the cores with what they measure, so they make
few and large system calls. The receiver reads the bytes (an agent does too) and counts them; it does not parse, since
all frames of a run have one size.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from typing import Final

from ..agent.relayclient.session import prepare
from ..runtime.sockets import unpaced_if_short
from ..wire import relay as wire
from ..wire.endpoint import Endpoint

PACKET: Final = 1420
READ: Final = 256 << 10
QUIET: Final = 1.0  # seconds without a byte after which what is missing is lost
SETTLE: Final = 0.3  # seconds of load before the measured window, for the windows of TCP to open
CATCH_UP: Final = 0.002  # seconds: a paced sender that lost its core for longer does not make up for it in one burst
DEADLINE: Final = 10.0

_fork = multiprocessing.get_context("fork")  # the sessions are made before, and inherited


@dataclass(frozen=True)
class Feed:
    """How packets are packed: `trains` frames' worth of packets a frame, frames a write."""

    name: str
    packets_a_frame: int
    frames_a_write: int

    @property
    def frame_bytes(self) -> int:
        """The size of one frame on the wire."""
        return wire.DATA_HEADER + self.packets_a_frame * PACKET

    def write(self, destination: bytes) -> bytes:
        """Return the bytes of one write to `destination`."""
        segment = PACKET if self.packets_a_frame > 1 else 0
        return wire.data_frame(destination, segment, bytes(self.packets_a_frame * PACKET)) * self.frames_a_write


TRAINS: Final = Feed("trains of 45, one a write", 45, 1)
BATCHES: Final = Feed("packets, 64 a write", 1, 64)
SINGLES: Final = Feed("packets, one a write", 1, 1)


@dataclass(frozen=True)
class Window:
    """What arrived in the measured window, and what was sent and arrived in the whole run.

    Attributes:
        seconds: length of the window.
        received: bytes in the window, headers included.
        sent_total: bytes of the whole run.
        received_total: bytes of the whole run.
    """

    seconds: float
    received: int
    sent_total: int
    received_total: int


@dataclass(frozen=True)
class Wire:
    """One direction of load: what is sent where, and where it arrives."""

    source: socket.socket
    write: bytes
    sink: socket.socket


def register(address: Endpoint, relay_key: bytes) -> tuple[bytes, socket.socket]:
    """Open a session with a fresh key, by proof and with an agent's socket options; return the public key and the socket.

    Raises:
        OSError: no connection.
        HandshakeError: the relay refused.
    """
    private = os.urandom(32)
    handshake = wire.ClientHandshake(private, os.urandom(wire.NONCE), relay_key)
    sock = socket.socket(socket.AF_INET6 if address.ip.version == 6 else socket.AF_INET)
    try:
        prepare(sock)
        sock.settimeout(DEADLINE)
        sock.connect(address.sockaddr())
        sock.sendall(wire.frame(wire.HELLO, handshake.hello.body()))
        challenge = wire.parse_challenge(_expect(sock, wire.CHALLENGE))
        sock.sendall(wire.frame(wire.PROOF, handshake.proof(challenge)))
        handshake.accept(_expect(sock, wire.WELCOME))
        unpaced_if_short(sock)
    except BaseException:
        sock.close()
        raise
    return wire.public_key(private), sock


def _expect(sock: socket.socket, kind: int) -> bytes:
    length, got = wire.HEADER.unpack(receive_exactly(sock, wire.HEADER.size))
    body = receive_exactly(sock, length - 1)
    if got != kind:
        raise wire.HandshakeError(wire.parse_text(body) if got == wire.ERROR else f"frame type {got} is out of place")
    return body


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    """Read `size` bytes.

    Raises:
        ConnectionError: the connection ended before.
    """
    data = sock.recv(size, socket.MSG_WAITALL)
    if len(data) < size:
        raise ConnectionError("the relay closed the connection")
    return data


def run(wires: Sequence[Wire], rate: float | None, seconds: float, meanwhile: Callable[[float, float], None]) -> Window:
    """Send on all wires, evenly, and count what arrives.

    Args:
        wires: sockets; this process keeps and later closes them.
        rate: bytes a second over all wires, None for all that goes.
        seconds: length of the measured window.
        meanwhile: called in this process with the window's start and end (monotonic seconds), before it starts.

    Raises:
        TimeoutError: a generator did not end.
    """
    start = time.monotonic() + SETTLE
    end = start + seconds
    jobs = [_job(_send, wires, rate, end), _job(_receive, wires, start, end)]
    try:
        meanwhile(start, end)
        (sent,) = _result(jobs[0][1])
        jobs[1][1].send(sent)
        span, received, total = _result(jobs[1][1])
        return Window(span, int(received), int(sent), int(total))
    finally:
        for process, pipe in jobs:
            process.kill()
            process.join()
            pipe.close()


def _job(target: Callable[..., None], *arguments: object) -> tuple[multiprocessing.process.BaseProcess, Pipe]:
    ours, theirs = _fork.Pipe()
    process = _fork.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _result(pipe: Pipe) -> tuple[float, ...]:
    if not pipe.poll(60.0):
        raise TimeoutError("a load generator did not end")
    result: tuple[float, ...] = pipe.recv()
    return result


def _send(pipe: Pipe, wires: Sequence[Wire], rate: float | None, end: float) -> None:
    """Process body: give each writable socket one write a turn; complete the last ones."""
    pending = {wire.source.fileno(): (wire.source, wire.write, 0) for wire in wires}
    poller = select.epoll()
    for fd, (sock, _, _) in pending.items():
        sock.setblocking(False)
        poller.register(fd, select.EPOLLOUT)
    sent, due, size = 0, time.monotonic(), len(wires[0].write)
    while (now := time.monotonic()) < end:
        if rate is not None:
            if due > now:
                time.sleep(due - now)
                continue
            due = max(due, now - CATCH_UP)
        for fd, _ in poller.poll(0.05):
            sock, write, offset = pending[fd]
            done = _push(sock, write, offset)
            sent += done
            pending[fd] = (sock, write, (offset + done) % size)
            if rate is not None:
                due += done / rate
    for sock, write, offset in pending.values():
        if offset:
            sock.setblocking(True)
            sock.sendall(write[offset:])
            sent += size - offset
    pipe.send((sent,))


def _push(sock: socket.socket, write: bytes, offset: int) -> int:
    try:
        return sock.send(memoryview(write)[offset:] if offset else write)
    except BlockingIOError:
        return 0


def _receive(pipe: Pipe, wires: Sequence[Wire], start: float, end: float) -> None:
    """Process body: read all sockets until the end, and then until all that was sent has come, or nothing comes."""
    socks = {wire.sink.fileno(): wire.sink for wire in wires}
    poller = select.epoll()
    for fd in socks:
        poller.register(fd, select.EPOLLIN)
    buffer = bytearray(READ)
    total, sent = 0, math.inf
    marks: list[tuple[float, int]] = []
    heard = time.monotonic()
    while (now := time.monotonic()) < end or (total < sent and now - heard < QUIET):
        if len(marks) < 2 and now >= (start, end)[len(marks)]:
            marks.append((now, total))
        for fd, _ in poller.poll(0.01):
            total += socks[fd].recv_into(buffer)
            heard = now
        if now >= end and pipe.poll():
            sent = pipe.recv()
    if len(marks) < 2:
        marks.append((now, total))
    (t0, b0), (t1, b1) = marks
    pipe.send((t1 - t0, b1 - b0, total))


@contextmanager
def copying(between: Sequence[tuple[socket.socket, socket.socket]]) -> Iterator[None]:
    """Have a process pass all that comes on each first socket to its second, and stop it at the end."""
    process, pipe = _job(_copy, between)
    try:
        yield
    finally:
        process.kill()
        process.join()
        pipe.close()


def _copy(_pipe: Pipe, between: Sequence[tuple[socket.socket, socket.socket]]) -> None:
    """Process body: what a relay would do that does not look at what it passes on, and loses nothing."""
    poller = select.epoll()
    ways = {source.fileno(): (source, sink) for source, sink in between}
    for fd in ways:
        poller.register(fd, select.EPOLLIN)
    buffer = bytearray(READ)
    with memoryview(buffer) as view:
        while True:
            for fd, _ in poller.poll():
                source, sink = ways[fd]
                sink.sendall(view[: source.recv_into(buffer)])
