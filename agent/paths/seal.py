# SPDX-License-Identifier: Apache-2.0
"""Small messages between two agents over the relay, sealed end to end: the relay passes them and cannot read or forge.

    offset  bytes
    0       1      version, 1
    1       8      session id of the sender, random at its start
    9       8      counter, from 1 up, big-endian
    17             ChaCha20-Poly1305 of the message; key = HMAC-SHA256 of (sender's public key, session id) under the
                   pair's key (`keys.SIGNAL_LABEL`), nonce = 4 zero bytes and the counter; all before is authenticated

A message:

    0       1      type: 1 call-me-maybe, 2 known, 3 unheard
    1       1      flags: 1 = please answer in kind
    2       1      number of endpoints, at most 8; each follows as 16 bytes of IPv6 (IPv4 mapped) and a 2-byte port

A sender counts through all its messages, whoever they are for, and never starts over: no nonce serves a key twice.

A receiver takes of each session only rising counters (replay.py): whoever plays a recording to one that was restarted is
heard once, which costs one attempt, and locks nobody out.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from ...wire.endpoint import Endpoint
from .keys import SIGNAL_LABEL, PairKeys
from .replay import Replays

MAX_ENDPOINTS = 8
SESSION_BYTES = 8
_HEAD = struct.Struct("!B8sQ")
_BODY = struct.Struct("!BBB")
_CALL, _KNOWN, _UNHEARD, _ANSWER = 1, 2, 3, 1


@dataclass(frozen=True)
class CallMeMaybe:
    """Says: send probes to these addresses of mine now; I send to yours. `answer` asks for the same in return."""

    endpoints: tuple[Endpoint, ...]
    answer: bool = False


@dataclass(frozen=True)
class Known:
    """Says: my WireGuard has your key; a handshake sent now is answered. `answer` asks for the same in return."""

    answer: bool = False


@dataclass(frozen=True)
class Unheard:
    """Says: my WireGuard sends to you and hears nothing; I have left the direct path, and so should you."""


Signal = CallMeMaybe | Known | Unheard


class Sealer:
    """Seals and opens the signals of one node.

    Args:
        keys: the pairs' keys.
        session: 8 random bytes, new at each start.
    """

    def __init__(self, keys: PairKeys, session: bytes) -> None:
        self._keys, self._session = keys, session
        self._sent = 0
        self._heard = Replays(window=1)  # a session over a relay is in order; an older signal is no news

    def seal(self, peer: bytes, signal: Signal) -> bytes | None:
        """Return the sealed message; None when no key can be derived with the peer."""
        key = self._keys.derive(peer, SIGNAL_LABEL)
        if key is None:
            return None
        self._sent += 1
        head = _HEAD.pack(1, self._session, self._sent)
        return head + _cipher(key, self._keys.public, self._session).encrypt(_nonce(self._sent), _encode(signal), head)

    def open(self, peer: bytes, data: bytes) -> Signal | None:
        """Return the message; None when it is not authentic, was heard before, or has a form that we do not know."""
        key = self._keys.derive(peer, SIGNAL_LABEL)
        if key is None or len(data) < _HEAD.size or data[0] != 1:
            return None
        head = data[: _HEAD.size]
        _, session, counter = _HEAD.unpack(head)
        try:
            body = _cipher(key, peer, session).decrypt(_nonce(counter), data[_HEAD.size :], head)
        except InvalidTag:
            return None
        return _decode(body) if self._heard.is_new(peer, session, counter) else None

    def forget(self, peer: bytes) -> None:
        """Drop the keys of a peer that left. What was heard from it is kept: it must not be played again."""
        self._keys.forget(peer)


def _cipher(key: bytes, sender: bytes, session: bytes) -> ChaCha20Poly1305:
    # A key for each direction and session: counters start anew with each, and no nonce may serve a key twice.
    return ChaCha20Poly1305(hmac.digest(key, sender + session, "sha256"))


def _nonce(counter: int) -> bytes:
    return counter.to_bytes(12, "big")


def _encode(signal: Signal) -> bytes:
    endpoints: Sequence[Endpoint] = signal.endpoints[:MAX_ENDPOINTS] if isinstance(signal, CallMeMaybe) else ()
    kind = {CallMeMaybe: _CALL, Known: _KNOWN, Unheard: _UNHEARD}[type(signal)]
    answer = not isinstance(signal, Unheard) and signal.answer
    packed = b"".join(
        (e.ip.packed if e.ip.version == 6 else b"\0" * 10 + b"\xff\xff" + e.ip.packed) + e.port.to_bytes(2, "big")
        for e in endpoints
    )
    return _BODY.pack(kind, _ANSWER if answer else 0, len(endpoints)) + packed


def _decode(body: bytes) -> Signal | None:
    if len(body) < _BODY.size:
        return None
    kind, flags, count = _BODY.unpack_from(body)
    if count > MAX_ENDPOINTS or len(body) != _BODY.size + 18 * count:
        return None
    answer = bool(flags & _ANSWER)
    if kind == _KNOWN:
        return Known(answer)
    if kind == _UNHEARD:
        return Unheard()
    if kind != _CALL:
        return None
    items = [body[_BODY.size + 18 * i : _BODY.size + 18 * (i + 1)] for i in range(count)]
    return CallMeMaybe(
        tuple(Endpoint.of(str(IPv6Address(item[:16])), int.from_bytes(item[16:], "big")) for item in items), answer
    )
