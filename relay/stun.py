# SPDX-License-Identifier: Apache-2.0
"""A STUN Binding responder (RFC 8489): tells a client the address it comes from. UDP, IPv4 and IPv6, no state.

The answer is 32 bytes (44 over IPv6) to a request of 20 or more: with the IP and UDP headers at most 1.36 times the
request, so the responder is no use to who forges source addresses.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

from ..wire.endpoint import Endpoint
from ..wire.stun import BINDING_ERROR, BINDING_REQUEST, COOKIE, HEADER, encode_success
from .counters import Counters

ERROR_CODE: Final = 0x0009
UNKNOWN_ATTRIBUTES: Final = 0x000A
# Required attributes of RFC 8489 that a responder without credentials reads past.
_UNDERSTOOD: Final = frozenset((0x0006, 0x0008, 0x0014, 0x0015, 0x001C, 0x001D, 0x001E))
_MAX_REQUEST: Final = 1500
_BATCH: Final = 64
_IP_PKTINFO: Final = 8
_IPV6_RECVPKTINFO: Final = 49
_IPV6_PKTINFO: Final = 50


def respond(request: bytes, source: Endpoint) -> bytes | None:
    """Return the answer to a datagram, or None when it is no Binding request of RFC 8489. Total over garbage."""
    if not 20 <= len(request) <= _MAX_REQUEST:
        return None
    kind, length, cookie, transaction = HEADER.unpack_from(request)
    if kind != BINDING_REQUEST or cookie != COOKIE or length % 4 or length + 20 != len(request):
        return None
    unknown = _unknown_attributes(request)
    if unknown is None:
        return None
    if unknown:
        error = _unknown_error(unknown[:8])
        return HEADER.pack(BINDING_ERROR, len(error), COOKIE, transaction) + error
    return encode_success(transaction, source)


def _unknown_attributes(request: bytes) -> list[int] | None:
    """Return the required attributes that are not understood; None when the attributes do not fill the message."""
    unknown: list[int] = []
    position = 20
    while position < len(request):
        kind, size = struct.unpack_from("!HH", request, position)
        position += 4 + (size + 3 & ~3)
        if position > len(request):
            return None
        if kind < 0x8000 and kind not in _UNDERSTOOD:
            unknown.append(kind)
    return unknown


def _unknown_error(unknown: list[int]) -> bytes:
    listed = struct.pack(f"!{len(unknown)}H", *unknown)
    padding = bytes(-len(listed) % 4)
    error = struct.pack("!HHxxBB", ERROR_CODE, 4, 4, 20)
    return error + struct.pack("!HH", UNKNOWN_ATTRIBUTES, len(listed)) + listed + padding


class StunSocket:
    """The responder's UDP socket. Answers leave from the address that was asked, on a host with several.

    Raises:
        OSError: the address cannot be bound.
    """

    def __init__(self, address: Endpoint, counters: Counters) -> None:
        self._counters = counters
        v6 = address.ip.version == 6
        self.sock = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            if v6:
                self.sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
            else:
                self.sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            self.sock.bind(address.sockaddr())
        except OSError:
            self.sock.close()
            raise
        self.address = Endpoint.of(*self.sock.getsockname()[:2])

    def drain(self) -> None:
        """Answer up to 64 datagrams, then let others have their turn."""
        for _ in range(_BATCH):
            try:
                request, ancillary, _, source = self.sock.recvmsg(_MAX_REQUEST + 1, 128)
            except OSError:
                return
            answer = respond(request, Endpoint.of(*source[:2]))
            if answer is None:
                self._counters.stun_ignored += 1
                continue
            try:
                self.sock.sendmsg([answer], _reply_from(ancillary), socket.MSG_DONTWAIT, source)
            except OSError:
                self._counters.stun_ignored += 1
            else:
                self._counters.stun_answers += 1


def _reply_from(ancillary: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    """Turn the received packet information into the one that fixes the answer's source; the routes choose the link."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            return [(level, kind, bytes(4) + data[4:])]
        if (level, kind) == (socket.IPPROTO_IPV6, _IPV6_PKTINFO):
            return [(level, kind, data[:16] + bytes(4))]
    return []
