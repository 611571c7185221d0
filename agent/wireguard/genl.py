# SPDX-License-Identifier: Apache-2.0
"""One generic netlink request and its answers, over a socket of its own.

A socket for each request: there is no sequence to mix up, no lock, and no descriptor to lose. The kernel works a
request off while it is sent, so the answers are there at once and no worker thread is needed.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from typing import Final

from .netlink import attribute, attributes

NETLINK_GENERIC: Final = 16
CONTROL: Final = 16  # the family that knows the others
GETFAMILY, FAMILY_ID, FAMILY_NAME = 3, 1, 2
ERROR, DONE = 2, 3  # message types
REQUEST, ACK, DUMP = 1, 4, 0x300
DEADLINE: Final = 5.0  # seconds
BUFFER: Final = 1 << 16

_MESSAGE = struct.Struct("=IHHII")
_GENERIC = struct.Struct("=BBH")


def pack(family: int, command: int, flags: int, payload: bytes) -> bytes:
    """Return one message: netlink header, generic header (version 1), attributes."""
    size = _MESSAGE.size + _GENERIC.size + len(payload)
    return _MESSAGE.pack(size, family, flags | REQUEST, 1, 0) + _GENERIC.pack(command, 1, 0) + payload


def unpack(data: bytes) -> tuple[list[bytes], bool]:
    """Split a datagram into the attribute bytes of its messages, and whether the answer ended.

    Raises:
        OSError: the kernel answered with an error number.
        ValueError: malformed.
    """
    payloads: list[bytes] = []
    at = 0
    while at + _MESSAGE.size <= len(data):
        size, kind, *_ = _MESSAGE.unpack_from(data, at)
        if size < _MESSAGE.size or at + size > len(data):
            raise ValueError("a netlink message with a wrong length")
        if kind in {ERROR, DONE}:
            number = struct.unpack_from("=i", data, at + _MESSAGE.size)[0] if size >= _MESSAGE.size + 4 else 0
            if number:
                raise OSError(-number, os.strerror(-number))
            return payloads, True
        payloads.append(data[at + _MESSAGE.size + _GENERIC.size : at + size])
        at += size + 3 & ~3
    return payloads, False


async def request(family: int, command: int, flags: int, payload: bytes) -> list[bytes]:
    """Send one request and return the attribute bytes of every answer.

    Raises:
        OSError: the kernel's error number; TimeoutError after 5 s.
    """
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_GENERIC) as sock:
        sock.setblocking(False)
        sock.bind((0, 0))
        sock.send(pack(family, command, flags, payload))
        answers: list[bytes] = []
        async with asyncio.timeout(DEADLINE):
            while True:
                payloads, ended = unpack(await loop.sock_recv(sock, BUFFER))
                answers += payloads
                if ended:
                    return answers


async def family_id(name: str) -> int:
    """Return a family's number; the kernel loads its module for this when it can.

    Raises:
        OSError: ENOENT when there is no such family.
    """
    for answer in await request(CONTROL, GETFAMILY, ACK, attribute(FAMILY_NAME, name.encode() + b"\0")):
        for kind, value in attributes(answer):
            if kind == FAMILY_ID:
                return int(struct.unpack("=H", value)[0])
    raise OSError(errno.ENOENT, f"the kernel knows no generic netlink family {name}")
