# SPDX-License-Identifier: Apache-2.0
"""Pings from many nodes at once: one socket for each node and family, one thread for all.

A socket stays in the network namespace in which it was made, so a single thread serves sockets of all nodes; a `ping`
process for each pair would cost more than what it measures.

An echo request carries the number of its flow as identifier, a sequence number, and the time of sending.
"""

from __future__ import annotations

import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from .netns import inside

ECHO = struct.Struct("!BBHHHd")
REQUEST = {4: 8, 6: 128}
REPLY = {4: 0, 6: 129}
_SOL_RAW, _ICMP_FILTER = 255, 1
_ICMP6_FILTER = 1
LATE_SECONDS = 2.0  # an answer that has not come by then counts as lost


@dataclass
class Flow:
    """Pings from one node to one address.

    Attributes:
        source: name of the pinging node.
        target: name of the pinged node.
        address: mesh address of the target.
        sent: time of each request (monotonic seconds).
        answers: (time of the request, time of its answer), in the order of the answers.
    """

    source: str
    target: str
    address: str
    sent: list[float] = field(default_factory=list)
    answers: list[tuple[float, float]] = field(default_factory=list)

    @property
    def version(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.address else 4

    def first_answer(self) -> float | None:
        """Return when the first answer came."""
        return self.answers[0][1] if self.answers else None

    def lost(self, now: float) -> int:
        """Return how many requests had no answer, those aside that may still get one."""
        answered = {sent for sent, _ in self.answers}
        return sum(sent not in answered and sent < now - LATE_SECONDS for sent in self.sent)


def longest_gap(answers: Sequence[tuple[float, float]], begin: float, end: float) -> float:
    """Return the longest time in seconds between requests that were answered, within a span; begin and end bound it."""
    times = sorted(sent for sent, _ in answers if begin <= sent <= end)
    marks = [begin, *times, end]
    return max(later - earlier for earlier, later in pairwise(marks))


def median_rtt(answers: Sequence[tuple[float, float]], since: float) -> float | None:
    """Return the median RTT in seconds of requests sent since then; None without any answer."""
    rtts = sorted(received - sent for sent, received in answers if sent >= since)
    return rtts[len(rtts) // 2] if rtts else None


def checksum(data: bytes) -> int:
    """Return the internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def encode(version: int, identifier: int, sequence: int, now: float) -> bytes:
    """Return an echo request; the kernel itself fills in the checksum of ICMPv6."""
    kind = REQUEST[version]
    blank = ECHO.pack(kind, 0, 0, identifier, sequence & 0xFFFF, now)
    return blank if version == 6 else ECHO.pack(kind, 0, checksum(blank), identifier, sequence & 0xFFFF, now)


def decode(version: int, data: bytes) -> tuple[int, float] | None:
    """Return (identifier, time of sending) of an echo reply of ours, None for anything else."""
    offset = (data[0] & 0x0F) * 4 if version == 4 and data else 0  # IPv4 sockets hand out the IP header as well
    if len(data) - offset != ECHO.size:
        return None
    kind, _, _, identifier, _, sent = ECHO.unpack_from(data, offset)
    return (identifier, sent) if kind == REPLY[version] else None


class Prober:
    """Sends a ping in each flow every interval, from `start` to `close`.

    Args:
        flows: what to ping; their results are filled in.
        namespaces: network namespace of each source node.
        interval: seconds between two requests of one flow.
        first: identifier of the first flow; probers that run at once on one node need different ones.

    Raises:
        NetworkError, OSError: a socket cannot be made.
    """

    def __init__(
        self, flows: Sequence[Flow], namespaces: Callable[[str], str], interval: float, first: int = 0
    ) -> None:
        self.flows, self._interval, self._first = tuple(flows), interval, first
        self._selector = selectors.DefaultSelector()
        self._sockets: dict[tuple[str, int], socket.socket] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prober", daemon=True)
        for source, version in sorted({(flow.source, flow.version) for flow in flows}):
            with inside(namespaces(source)):
                made = _socket(version)
            self._sockets[source, version] = made
            self._selector.register(made, selectors.EVENT_READ, version)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Stop and close all sockets; results stay."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        for each in self._sockets.values():
            each.close()
        self._selector.close()

    def _run(self) -> None:
        # Requests are spread over the interval, lest all nodes work at the same moment.
        pause = self._interval / len(self.flows)
        due, turn = time.monotonic(), 0
        while not self._stop.is_set():
            now = time.monotonic()
            while due <= now:
                self._send(turn % len(self.flows), turn // len(self.flows))
                turn, due = turn + 1, max(due + pause, now - self._interval)
            for key, _ in self._selector.select(max(0.0, due - time.monotonic())):
                self._receive(key.fileobj, key.data)  # type: ignore[arg-type]  # only sockets are registered

    def _send(self, number: int, sequence: int) -> None:
        flow = self.flows[number]
        now = time.monotonic()
        flow.sent.append(now)
        try:
            self._sockets[flow.source, flow.version].sendto(
                encode(flow.version, self._first + number, sequence, now), (flow.address, 0)
            )
        except OSError:
            return  # no route yet, or the interface has just gone: a lost ping

    def _receive(self, ready: socket.socket, version: int) -> None:
        while True:
            try:
                data = ready.recv(2048)
            except OSError:
                return
            now = time.monotonic()
            answer = decode(version, data)
            if answer is not None and 0 <= answer[0] - self._first < len(self.flows):
                self.flows[answer[0] - self._first].answers.append((answer[1], now))


def _socket(version: int) -> socket.socket:
    """Return a raw socket that hears echo replies only."""
    family, protocol = (
        (socket.AF_INET, socket.IPPROTO_ICMP) if version == 4 else (socket.AF_INET6, socket.IPPROTO_ICMPV6)
    )
    made = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    if version == 4:
        made.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("I", ~(1 << REPLY[4]) & 0xFFFFFFFF))
    else:
        blocked = [0xFFFFFFFF] * 8
        blocked[REPLY[6] >> 5] &= ~(1 << (REPLY[6] & 31))
        made.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, struct.pack("8I", *blocked))
    return made
