# SPDX-License-Identifier: Apache-2.0
"""Kernel notifications about links, addresses, routes and rules, debounced."""

from __future__ import annotations

import asyncio
import inspect
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Final

DEBOUNCE: Final = 0.2  # seconds from the first event to the callback
BUFFER: Final = 1 << 16
GROUPS: Final = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 1 << 18
"""RTMGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, and group 19, IPV6_RULE."""

KINDS: Final = {16: "link", 17: "link", 20: "address", 21: "address", 24: "route", 25: "route", 32: "rule", 33: "rule"}
ALL: Final = frozenset(KINDS.values())

Callback = Callable[[frozenset[str]], Awaitable[None] | None]

_HEADER = struct.Struct("=IHHII")


def kinds(data: bytes) -> frozenset[str]:
    """Return what one datagram is about, of `link`, `address`, `route`, `rule`."""
    found: set[str] = set()
    at = 0
    while at + _HEADER.size <= len(data):
        size, kind, *_ = _HEADER.unpack_from(data, at)
        if size < _HEADER.size:
            break
        if kind in KINDS:
            found.add(KINDS[kind])
        at += size + 3 & ~3
    return frozenset(found)


async def changes(callback: Callback) -> None:
    """Call back with what changed, at most every 200 ms; runs until it is cancelled.

    The own changes of a reconcile are reported too; the next one finds nothing to do, which ends it.
    """
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as sock:
        sock.setblocking(False)
        sock.bind((0, GROUPS))
        while True:
            found = await _receive(loop, sock)
            if not found:
                continue
            await asyncio.sleep(DEBOUNCE)
            result = callback(found | _drain(sock))
            if inspect.isawaitable(result):
                await result


async def _receive(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> frozenset[str]:
    try:
        return kinds(await loop.sock_recv(sock, BUFFER))
    except OSError:  # ENOBUFS: events were lost, so anything may have changed
        return ALL


def _drain(sock: socket.socket) -> frozenset[str]:
    """Read what is waiting, at most as many datagrams as a busy host sends in the meantime."""
    found: frozenset[str] = frozenset()
    for _ in range(10_000):
        try:
            found |= kinds(sock.recv(BUFFER))
        except BlockingIOError:
            break
        except OSError:
            found = ALL
    return found
