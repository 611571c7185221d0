# SPDX-License-Identifier: Apache-2.0
"""TCP options for connections that carry packets."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import Final

SHORT: Final = 2000  # microseconds

_MIN_RTT: Final = 148  # offset of tcpi_min_rtt in struct tcp_info, microseconds; Linux 4.9
_U32 = struct.Struct("=I")


def min_rtt(sock: socket.socket) -> int | None:
    """Return the smallest round trip that the kernel has seen on a TCP connection, in microseconds; None if it has none."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _MIN_RTT + _U32.size)
    if len(info) < _MIN_RTT + _U32.size:
        return None
    rtt = int(_U32.unpack_from(info, _MIN_RTT)[0])
    return rtt if rtt != 0xFFFFFFFF else None


def unpaced_if_short(sock: socket.socket) -> None:
    """On a connection of less than 2 ms, use the congestion control that every kernel has and everybody may use.

    A sender that paces (bbr) spreads what it has over the round trip. On a long path that is the host's choice and a good
    one; on a short one each small piece only wakes up a process: a relayed pair on two cores costs a fifth more processor.
    """
    with contextlib.suppress(OSError):
        rtt = min_rtt(sock)
        if rtt is not None and rtt < SHORT:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
