# SPDX-License-Identifier: Apache-2.0
"""A second opinion by pystun3, which speaks the older RFC 3489: the oracle beside our own STUN client.

pystun3 blocks, takes any datagram for an answer, asks for ever where it gets an error, and stumbles over padding. So it
gets an adapter for a socket: only success responses of the asked server that carry the pending transaction id reach it,
and of those only the attributes that RFC 3489 calls addresses.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Sequence
from typing import Any

import anyio
import anyio.to_thread
import stun as pystun3

from ...wire.endpoint import Endpoint

ANSWER_SECONDS = 2.0  # pystun3 asks four times
ASK_SECONDS = 5 * ANSWER_SECONDS
_SUCCESS = b"\x01\x01"
_ADDRESSES = (0x0001, 0x0004, 0x0005)  # MAPPED, SOURCE, CHANGED: each 4 bytes of header and 8 of value
_INITIALISED: list[bool] = []


class _Filtered:
    """What `pystun3.stun_test` needs of a socket."""

    def __init__(self, plain: socket.socket) -> None:
        self._plain, self._asked, self._txid = plain, ("", 0), b""

    def sendto(self, data: bytes, address: tuple[str, int]) -> int:
        self._asked, self._txid = address, data[4:20]
        return self._plain.sendto(data, address)

    def recvfrom(self, size: int) -> tuple[bytes, Any]:
        deadline = time.monotonic() + ANSWER_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            self._plain.settimeout(left)
            data, address = self._plain.recvfrom(size)
            whole = len(data) >= 20 and len(data) == 20 + int.from_bytes(data[2:4], "big")
            if whole and address[:2] == self._asked and data[:2] == _SUCCESS and data[4:20] == self._txid:
                return _addresses_only(data), address
        raise TimeoutError


def _addresses_only(data: bytes) -> bytes:
    body, position = b"", 20
    while position + 4 <= len(data):
        kind, length = struct.unpack_from("!HH", data, position)
        if kind in _ADDRESSES and length == 8 and position + 12 <= len(data):
            body += data[position : position + 12]
        position += 4 + length + -length % 4
    return data[:2] + struct.pack("!H", len(body)) + data[4:20] + body


async def mapped_addresses(servers: Sequence[Endpoint]) -> dict[Endpoint, Endpoint | None]:
    """Return our address as each server saw it, asked by pystun3 from one socket; None where it got no answer."""

    def ask_all() -> dict[Endpoint, Endpoint | None]:
        if not _INITIALISED:
            pystun3._initialize()  # without it the first call fails with a KeyError
            _INITIALISED.append(True)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
            plain.bind(("0.0.0.0", 0))  # noqa: S104 - the wire decides which address a server sees
            return {server: _ask(_Filtered(plain), server) for server in servers}

    with anyio.fail_after(ASK_SECONDS * max(1, len(servers))):
        return await anyio.to_thread.run_sync(ask_all, abandon_on_cancel=True)


def _ask(adapter: _Filtered, server: Endpoint) -> Endpoint | None:
    try:
        answer = pystun3.stun_test(adapter, str(server.ip), server.port, "0.0.0.0", 0)  # noqa: S104 - see above
    except (KeyError, ValueError, OSError):
        return None  # answers that RFC 3489 did not know
    if not answer.get("Resp") or not answer.get("ExternalIP"):
        return None
    return Endpoint.of(str(answer["ExternalIP"]), int(answer["ExternalPort"]))
