# SPDX-License-Identifier: Apache-2.0
"""One client's TCP connection: its unparsed rest and its bounded queue of what could not be sent yet."""

from __future__ import annotations

import select
import socket
from typing import Final

from ..wire import relay as wire
from .counters import Counters

CONTROL_RESERVE: Final = 64 << 10  # beyond the data limit, so that presence reaches who does not read data fast enough


def fitting(view: memoryview, room: int) -> tuple[int, int]:
    """Return how many bytes of whole frames at the front of `view` fit into `room`, and how many frames do not.

    Args:
        view: whole frames, one after another.
        room: bytes; may be negative.
    """
    position, size, dropped = 0, 0, 0
    while position < len(view):
        position += 4 + int.from_bytes(view[position : position + 4], "big")
        if dropped or position > room:
            dropped += 1
        else:
            size = position
    return size, dropped


class Connection:
    """A socket with what the relay knows of it.

    Args:
        sock: accepted and not blocking.
        poller: the epoll that has the socket with EPOLLIN.
        limit: bytes of DATA and SIGNAL that may wait.
        now: monotonic seconds.
    """

    __slots__ = (
        "closed",
        "counters",
        "fd",
        "handshake",
        "heard",
        "key",
        "limit",
        "more",
        "opened",
        "out",
        "poller",
        "rest",
        "sock",
        "stuck",
        "wants",
    )

    def __init__(self, sock: socket.socket, poller: select.epoll, counters: Counters, limit: int, now: float) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.poller = poller
        self.counters = counters
        self.limit = limit
        self.key: bytes | None = None
        self.handshake: wire.RelayHandshake | None = None
        self.rest = b""
        self.more = False
        self.out = bytearray()
        self.opened = now
        self.heard = now
        self.stuck: float | None = None
        self.wants = False
        self.closed = False

    def send_run(self, view: memoryview, now: float) -> None:
        """Send whole frames, queue what the socket does not take, drop the newest beyond the limit."""
        if self.out:
            size, dropped = len(view), 0
            if len(self.out) + size > self.limit:
                size, dropped = fitting(view, self.limit - len(self.out))
            self.counters.dropped_full += dropped
            self.counters.bytes_out += size
            self.out += view[:size]
            return
        self.counters.bytes_out += len(view)
        self._send(view, now)

    def send_control(self, frame: bytes, now: float) -> bool:
        """Send a frame that must not be lost; False when the client has stopped reading and has to go."""
        if not self.out:
            self._send(frame, now)
            return True
        self.out += frame
        return len(self.out) <= self.limit + CONTROL_RESERVE

    def _send(self, data: memoryview | bytes, now: float) -> None:
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # epoll reports the same socket as broken, and the server closes it there
        if sent < len(data):
            self.out += data[sent:]
            self.stuck = now
            self._want(True)

    def flush(self, now: float) -> None:
        """Send from the queue, once; the socket said that it takes something."""
        try:
            sent = self.sock.send(self.out)
        except BlockingIOError:
            return
        except OSError:
            self.out.clear()
            sent = 0
        del self.out[:sent]
        self.stuck = now if self.out else None
        if not self.out:
            self._want(False)

    def _want(self, wants: bool) -> None:
        if wants != self.wants and not self.closed:
            self.wants = wants
            self.poller.modify(self.fd, select.EPOLLIN | (select.EPOLLOUT if wants else 0))

    def overdue(self, now: float, registration: float, idle: float, write: float) -> str | None:
        """Return which deadline has passed, if one has. Arguments are monotonic seconds and seconds."""
        if self.key is None:
            return "registration took too long" if now - self.opened >= registration else None
        if self.stuck is not None and now - self.stuck >= write:
            return "nothing was read for too long"
        return "idle for too long" if now - self.heard >= idle else None
