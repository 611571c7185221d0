# SPDX-License-Identifier: Apache-2.0
"""STUN messages (RFC 8489) and the behaviour-discovery attributes (RFC 5780), as bytes. No I/O, no state.

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |0 0|     message type          |  length of what follows the 20 |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+   bytes of header, 4-aligned   |
    |                   magic cookie 0x2112A442                      |
    |                   transaction id, 96 bits                      |
    +----------------------------------------------------------------+
    |  attribute type (16)          |  length (16)                   |
    |  value, padded to 4 bytes ...                                  |

`decode` is total: it answers None for everything that is not a well-formed STUN message.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from .endpoint import Endpoint

COOKIE: Final = 0x2112A442
BINDING_REQUEST: Final = 0x0001
BINDING_SUCCESS: Final = 0x0101
BINDING_ERROR: Final = 0x0111
TXID_BYTES: Final = 12
HEADER: Final = struct.Struct("!HHI12s")

_MAPPED, _CHANGE_REQUEST, _CHANGED, _XOR_MAPPED = 0x0001, 0x0003, 0x0005, 0x0020
_SOFTWARE, _OTHER = 0x8022, 0x802C
_CHANGE_IP, _CHANGE_PORT = 0x04, 0x02


@dataclass(frozen=True)
class Message:
    """A STUN message, as far as we read it.

    Attributes:
        kind: message type, 16 bits; `BINDING_SUCCESS` and so on.
        txid: transaction id, 12 bytes.
        mapped: our address as the server saw it (XOR-MAPPED-ADDRESS before MAPPED-ADDRESS).
        other: the server's second address (OTHER-ADDRESS before RFC 3489's CHANGED-ADDRESS).
        change_ip: a request that asks for the answer from the other address.
        change_port: a request that asks for the answer from the other port.
    """

    kind: int
    txid: bytes
    mapped: Endpoint | None = None
    other: Endpoint | None = None
    change_ip: bool = False
    change_port: bool = False


def looks_like_stun(data: bytes) -> bool:
    """Tell STUN from probes and WireGuard: two zero bits first, the cookie in bytes 4 to 7."""
    return len(data) >= HEADER.size and data[0] < 0x40 and data[4:8] == b"\x21\x12\xa4\x42"


def encode_request(txid: bytes, *, change_ip: bool = False, change_port: bool = False) -> bytes:
    """Return a binding request, with CHANGE-REQUEST when the answer shall come from elsewhere."""
    flags = (_CHANGE_IP if change_ip else 0) | (_CHANGE_PORT if change_port else 0)
    body = struct.pack("!HHI", _CHANGE_REQUEST, 4, flags) if flags else b""
    return HEADER.pack(BINDING_REQUEST, len(body), COOKIE, txid) + body


def encode_success(txid: bytes, source: Endpoint) -> bytes:
    """Return the answer of a server: the source of the request as XOR-MAPPED-ADDRESS."""
    if isinstance(source.ip, IPv4Address):
        family, mask = 1, COOKIE.to_bytes(4, "big")
    else:
        family, mask = 2, COOKIE.to_bytes(4, "big") + txid
    address = bytes(a ^ b for a, b in zip(source.ip.packed, mask, strict=True))
    value = struct.pack("!BBH", 0, family, source.port ^ (COOKIE >> 16)) + address
    body = struct.pack("!HH", _XOR_MAPPED, len(value)) + value
    return HEADER.pack(BINDING_SUCCESS, len(body), COOKIE, txid) + body


def decode(data: bytes) -> Message | None:
    """Parse one datagram; None when it is not a well-formed STUN message."""
    if not looks_like_stun(data):
        return None
    kind, length, _, txid = HEADER.unpack_from(data)
    if length % 4 or HEADER.size + length != len(data):
        return None
    attributes = _attributes(data)
    if attributes is None:
        return None
    flags = attributes.get(_CHANGE_REQUEST, b"")
    change = int.from_bytes(flags, "big") if len(flags) == 4 else 0
    return Message(
        kind=kind,
        txid=txid,
        mapped=_address(attributes.get(_XOR_MAPPED), txid) or _address(attributes.get(_MAPPED), None),
        other=_address(attributes.get(_OTHER), None) or _address(attributes.get(_CHANGED), None),
        change_ip=bool(change & _CHANGE_IP),
        change_port=bool(change & _CHANGE_PORT),
    )


def _attributes(data: bytes) -> dict[int, bytes] | None:
    found: dict[int, bytes] = {}
    position = HEADER.size
    while position < len(data):
        if position + 4 > len(data):
            return None
        kind, length = struct.unpack_from("!HH", data, position)
        end = position + 4 + length
        if end > len(data):
            return None
        found.setdefault(
            kind, data[position + 4 : end]
        )  # RFC 8489 section 14: of a repeated attribute the first counts
        position = end + -length % 4
    return found


def _address(value: bytes | None, xor_with: bytes | None) -> Endpoint | None:
    """Read an address attribute; `xor_with` is the transaction id for the XOR form."""
    if value is None or len(value) not in (8, 20) or value[1] != (1 if len(value) == 8 else 2):
        return None
    port, raw = int.from_bytes(value[2:4], "big"), value[4:]
    if xor_with is not None:
        port ^= COOKIE >> 16
        raw = bytes(a ^ b for a, b in zip(raw, COOKIE.to_bytes(4, "big") + xor_with, strict=False))
    return Endpoint(IPv4Address(raw) if len(raw) == 4 else IPv6Address(raw), port)
