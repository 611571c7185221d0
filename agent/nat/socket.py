# SPDX-License-Identifier: Apache-2.0
"""UDP sockets for STUN and probes, and STUN transactions on them.

The agent's main one shares WireGuard's port by the steering table: what it sends leaves from the listen port, and STUN
answers and probes that arrive there are given to it.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass

from ...api.constants import FWMARK
from ...wire import stun
from ...wire.endpoint import Endpoint

MAX_DATAGRAM = 2048
BATCH = 64  # datagrams read in one wake-up; the rest waits for the loop's next turn
RETRANSMIT = (0.15, 0.3, 0.6)  # seconds to wait for an answer to each copy of a request

BUFFER = 4 << 20  # a thousand direct paths are asked, and answer, at once; by default 256 answers fit

_SO_MARK = 36
_BUFFERS = ((33, socket.SO_RCVBUF), (32, socket.SO_SNDBUF))  # SO_RCVBUFFORCE, SO_SNDBUFFORCE, and without privilege


@dataclass
class _Pending:
    future: asyncio.Future[tuple[stun.Message, Endpoint]]
    servers: frozenset[Endpoint] | None  # None: a changed answer may come from anywhere; its id is 96 random bits


class ProbeSocket:
    """One UDP socket, IPv4.

    Args:
        on_probe: told each datagram that is not STUN, with its source.
        rng: for transaction ids.
        mark: fwmark, so that no packet of it is routed into the mesh; None where that takes no privilege.
    """

    def __init__(
        self, on_probe: Callable[[bytes, Endpoint], None], rng: random.Random, mark: int | None = FWMARK
    ) -> None:
        self._on_probe, self._rng, self.mark = on_probe, rng, mark
        self._pending: dict[bytes, _Pending] = {}
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        if mark is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_MARK, mark)
        self._enlarge()
        self._socket.bind(("0.0.0.0", 0))  # noqa: S104 - the wire decides which address a peer reaches us at
        self.port: int = self._socket.getsockname()[1]
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._drain)

    def send(self, data: bytes, to: Endpoint) -> bool:
        """Send one datagram; False when the host refuses (no route, a local firewall, a full buffer)."""
        try:
            self._socket.sendto(data, to.sockaddr())
        except OSError:
            return False
        return True

    async def ask(
        self, server: Endpoint, *, change_ip: bool = False, change_port: bool = False
    ) -> tuple[stun.Message, Endpoint] | None:
        """Ask a STUN server; return its answer with its source, None after about 1 s of silence."""
        txid = self._rng.randbytes(stun.TXID_BYTES)
        request = stun.encode_request(txid, change_ip=change_ip, change_port=change_port)
        changed = change_ip or change_port
        pending = _Pending(self._loop.create_future(), None if changed else frozenset({server}))
        self._pending[txid] = pending
        try:
            for wait in RETRANSMIT:
                self.send(request, server)
                done, _ = await asyncio.wait([pending.future], timeout=wait)
                if done:
                    return pending.future.result()
            return None
        finally:
            del self._pending[txid]
            pending.future.cancel()

    def close(self) -> None:
        """Close the socket; transactions that wait end without an answer."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()

    def _enlarge(self) -> None:
        for force, plain in _BUFFERS:
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, force, BUFFER)
            except PermissionError:
                self._socket.setsockopt(socket.SOL_SOCKET, plain, BUFFER)

    def _drain(self) -> None:
        for _ in range(BATCH):
            try:
                data, address = self._socket.recvfrom(MAX_DATAGRAM)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error of an earlier send
            source = Endpoint.of(address[0], address[1])
            if stun.looks_like_stun(data):
                self._answer(stun.decode(data), source)
            else:
                self._on_probe(data, source)

    def _answer(self, message: stun.Message | None, source: Endpoint) -> None:
        if message is None or message.kind not in (stun.BINDING_SUCCESS, stun.BINDING_ERROR):
            return
        pending = self._pending.get(message.txid)
        if pending is None or pending.future.done():
            return
        if pending.servers is None or source in pending.servers:
            pending.future.set_result((message, source))
