# SPDX-License-Identifier: Apache-2.0
"""Probes on WireGuard's port: a ping asks "does this address reach you?", a pong proves both directions.

    offset  bytes
    0       4      magic 57 4b 50 02 ("WKP", version 2); the first byte is above 4, so it is no WireGuard message
    4       1      type: 1 ping, 2 pong
    5       1      flags: 1 = mapped: "the address that I talk to is in my steering table as yours"
    6       2      zero
    8       32     sender's WireGuard public key
    40      8      session of the one who asks, random at its start   } the transaction id;
    48      8      counter of its pings, from 1 up, big-endian        } a pong repeats the ping's
    56      16+2   pong: where the ping came from, as an IPv6 address (IPv4 mapped) and port; ping: zeros of equal length
    74      16     MAC: the first 16 bytes of HMAC-SHA256 over all before it and the receiver's public key, keyed per pair
                   (`keys.PROBE_LABEL`)
    90             end

Ping and pong are equally long, so nobody can be made to send more than was sent to him. A probe with a wrong MAC, or of
a sender that is no peer, is not answered at all, and no ping is answered twice (replay.py): a recorded one, played from
forged sources, would make us send to others. Pings overtake each other on paths of unlike length, so the counters need
not rise; one that lies more than 4096 behind is older than any answer to it is worth. A pong counts for a ping that
waits for it, once.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Container
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Final

from ...wire.endpoint import Endpoint
from .keys import PROBE_LABEL, PairKeys

MAGIC: Final = b"WKP\x02"
SESSION_BYTES: Final = 8
TXID_BYTES: Final = SESSION_BYTES + 8
WINDOW: Final = 4096  # pings of one sender to all its peers: some seconds' worth, even with a thousand of them
_FORM: Final = struct.Struct("!4sBBH32s16s16sH")
_MAC_BYTES: Final = 16
PROBE_BYTES: Final = _FORM.size + _MAC_BYTES
_PING, _PONG, _MAPPED = 1, 2, 1


@dataclass(frozen=True)
class Ping:
    """A question. `mapped`: the sender has our address in its steering table."""

    sender: bytes
    txid: bytes
    mapped: bool


@dataclass(frozen=True)
class Pong:
    """An answer. `seen`: our address as the sender sees it."""

    sender: bytes
    txid: bytes
    mapped: bool
    seen: Endpoint


def txid_of(session: bytes, counter: int) -> bytes:
    """Return the transaction id of a ping."""
    return session + counter.to_bytes(8, "big")


def parts_of(txid: bytes) -> tuple[bytes, int]:
    """Return session and counter of a transaction id."""
    return txid[:SESSION_BYTES], int.from_bytes(txid[SESSION_BYTES:], "big")


def encode_ping(keys: PairKeys, peer: bytes, txid: bytes, *, mapped: bool) -> bytes | None:
    """Return a ping to a peer; None when no key can be derived with it."""
    return _encode(keys, peer, _PING, txid, mapped, bytes(16), 0)


def encode_pong(keys: PairKeys, peer: bytes, txid: bytes, *, mapped: bool, seen: Endpoint) -> bytes | None:
    """Return a pong to a peer; None when no key can be derived with it."""
    address = seen.ip.packed if seen.ip.version == 6 else b"\0" * 10 + b"\xff\xff" + seen.ip.packed
    return _encode(keys, peer, _PONG, txid, mapped, address, seen.port)


def decode(data: bytes, keys: PairKeys, peers: Container[bytes]) -> Ping | Pong | None:
    """Parse and authenticate one datagram; None for everything that is not a valid probe of a peer."""
    if len(data) != PROBE_BYTES or data[:4] != MAGIC:
        return None
    _, kind, flags, _, sender, txid, address, port = _FORM.unpack_from(data)
    if sender not in peers or kind not in (_PING, _PONG):
        return None
    mac = _mac(keys, sender, data[: _FORM.size], keys.public)
    if mac is None or not hmac.compare_digest(mac, data[_FORM.size :]):
        return None
    mapped = bool(flags & _MAPPED)
    if kind == _PING:
        return Ping(sender, txid, mapped)
    return Pong(sender, txid, mapped, Endpoint.of(str(IPv6Address(address)), port))


def _encode(
    keys: PairKeys, peer: bytes, kind: int, txid: bytes, mapped: bool, address: bytes, port: int
) -> bytes | None:
    body = _FORM.pack(MAGIC, kind, _MAPPED if mapped else 0, 0, keys.public, txid, address, port)
    mac = _mac(keys, peer, body, peer)
    return None if mac is None else body + mac


def _mac(keys: PairKeys, peer: bytes, body: bytes, receiver: bytes) -> bytes | None:
    """The receiver's key is part of what is authenticated: a probe that is sent back to its sender proves nothing."""
    key = keys.derive(peer, PROBE_LABEL)
    return None if key is None else hmac.digest(key, body + receiver, "sha256")[:_MAC_BYTES]
