# SPDX-License-Identifier: Apache-2.0
"""A peer's UDP socket, beside WireGuard's: takes its trains in batches, gives it those of the peer. IPv4 only so far."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Iterator
from typing import Final

from ...wire import relay as wire
from ...wire.endpoint import Endpoint
from .events import PeerStats

UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
SO_SNDBUFFORCE: Final = 32
SO_RCVBUFFORCE: Final = 33
BUFFER: Final = 4 << 20
MAX_SEGMENTS: Final = 64
MAX_BYTES: Final = 65507  # what one UDP datagram may carry over IPv4; 45 full packets of WireGuard are 65340
DATAGRAMS_A_TURN: Final = 64

_U16 = struct.Struct("=H")
_I32 = struct.Struct("=i")
_SLOT: Final = wire.DATA_HEADER + wire.MAX_TRAIN


def pieces(size: int, segment: int) -> Iterator[tuple[int, int]]:
    """Cut a train of `size` bytes into spans that one send may carry: 64 segments and 65507 bytes at most."""
    step = segment * max(1, min(MAX_SEGMENTS, MAX_BYTES // segment))
    for start in range(0, size, step):
        yield start, min(size, start + step)


class Batch:
    """DATA frames of one wake-up, headers and trains in place, ready for one send. Shared by all proxies."""

    SIZE: Final = 256 << 10

    def __init__(self) -> None:
        self.buffer = bytearray(self.SIZE + _SLOT)
        self.view = memoryview(self.buffer)


class Proxy:
    """The socket of one peer.

    Args:
        key: the peer's public key.
        ip4: this node's address, which WireGuard's packets come from.
        listen_port: WireGuard's port.

    Raises:
        OSError: the address cannot be bound.
    """

    def __init__(self, key: bytes, ip4: str, listen_port: int, stats: PeerStats) -> None:
        self._key = key
        self._wireguard = (ip4, listen_port)
        self._stats = stats
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self.sock.bind((ip4, 0))
        except OSError:
            self.sock.close()
            raise
        _enlarge(self.sock)
        with contextlib.suppress(OSError):  # without it each datagram comes alone
            self.sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        self.endpoint = Endpoint.of(*self.sock.getsockname())

    def receive(self, batch: Batch) -> list[tuple[int, int, int]]:
        """Read what waits, at most 64 times or 256 KiB, into the batch as whole DATA frames, one behind the other.

        Returns:
            For each train: where its frame starts and ends in the batch, and the segment size.
        """
        frames: list[tuple[int, int, int]] = []
        position = 0
        for _ in range(DATAGRAMS_A_TURN):
            if position > Batch.SIZE:
                break
            start = position + wire.DATA_HEADER
            try:
                size, ancillary, _, source = self.sock.recvmsg_into((batch.view[start : start + wire.MAX_TRAIN],), 64)
            except OSError:  # nothing more, or a report about an earlier send
                break
            if source != self._wireguard:
                self._stats.refused_source += 1
                continue
            segment = _I32.unpack_from(ancillary[0][2])[0] if ancillary else 0
            if not 0 < segment < size:
                segment = 0
            wire.put_data_header(batch.buffer, position, self._key, segment, size)
            frames.append((position, start + size, segment))
            position = start + size
        return frames

    def deliver(self, segment: int, train: memoryview) -> None:
        """Give a train to WireGuard; what its socket does not take is dropped and counted."""
        size = len(train)
        self._stats.trains_in += 1
        self._stats.bytes_in += size
        if not 0 < segment < size:
            self._send(train, ())
        elif size <= MAX_BYTES and size <= MAX_SEGMENTS * segment:
            self._send_train(train, segment)
        else:
            for start, end in pieces(size, segment):
                self._send_train(train[start:end], segment)

    def _send_train(self, train: memoryview, segment: int) -> None:
        """Send a train that the kernel can cut, or its packets one by one where it refuses to."""
        if not self._send(train, ((socket.IPPROTO_UDP, UDP_SEGMENT, _U16.pack(segment)),)):
            for packet in range(0, len(train), segment):
                self._send(train[packet : packet + segment], ())

    def _send(self, data: memoryview, segments: tuple[tuple[int, int, bytes], ...]) -> bool:
        """Send once; False when the kernel cannot cut this train, so that the caller sends its packets one by one."""
        try:
            self.sock.sendmsg((data,), segments, 0, self._wireguard)
        except OSError as error:
            if segments and error.errno in {errno.EIO, errno.EINVAL, errno.EMSGSIZE, errno.EOPNOTSUPP}:
                return False
            self._stats.dropped_local += 1
        return True

    def close(self) -> None:
        """Close the socket; the caller took it out of the loop."""
        self.sock.close()


def _enlarge(sock: socket.socket) -> None:
    """Ask for 4 MiB each way: beyond the system's limit with CAP_NET_ADMIN, up to it without."""
    for force, plain in ((SO_RCVBUFFORCE, socket.SO_RCVBUF), (SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, force, BUFFER)
        except OSError:
            sock.setsockopt(socket.SOL_SOCKET, plain, BUFFER)
