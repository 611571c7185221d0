# SPDX-License-Identifier: Apache-2.0
"""WireGuard's cross-platform configuration protocol, without I/O.

A request is `set=1` or `get=1` and lines of `key=value`, then an empty line; the answer ends with `errno=N` and an
empty line (https://www.wireguard.com/xplatform/). The parser is total: any input gives a value or UapiError.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import ip_network

from ...wire.endpoint import Endpoint
from .device import NO_KEY, Device, DeviceChange, Network, PeerChange, PeerConfig, PeerStats, public_key_of

GET = b"get=1\n\n"


class UapiError(Exception):
    """An answer that is malformed, or that carries an error number.

    Attributes:
        errno: the positive error number of the device; EBADMSG for a malformed answer.
    """

    def __init__(self, number: int, reason: str = "") -> None:
        super().__init__(f"the WireGuard process answered: {reason or os.strerror(number)}")
        self.errno = number


def encode_set(change: DeviceChange) -> bytes:
    """Return the request that carries a change out."""
    lines = ["set=1"]
    if change.private_key is not None:
        lines.append(f"private_key={change.private_key.hex()}")
    if change.listen_port is not None:
        lines.append(f"listen_port={change.listen_port}")
    if change.fwmark is not None:
        lines.append(f"fwmark={change.fwmark}")
    for peer in change.peers:
        lines += _peer_lines(peer)
    return ("\n".join(lines) + "\n\n").encode("ascii")


def _peer_lines(peer: PeerChange) -> Iterator[str]:
    yield f"public_key={peer.public_key.hex()}"
    if peer.remove:
        yield "remove=true"
        return
    if peer.update_only:
        yield "update_only=true"
    if peer.preshared_key is not None:
        yield f"preshared_key={peer.preshared_key.hex()}"
    if peer.endpoint is not None:
        yield f"endpoint={peer.endpoint}"
    if peer.keepalive is not None:
        yield f"persistent_keepalive_interval={peer.keepalive}"
    if peer.replace_allowed_ips:
        yield "replace_allowed_ips=true"
    for network in sorted(map(str, peer.allowed_ips)):
        yield f"allowed_ip={network}"


def check(answer: bytes) -> None:
    """Read the answer to a set request.

    Raises:
        UapiError: it carries an error number, or is malformed.
    """
    for _ in _pairs(answer):
        pass


def decode_get(answer: bytes) -> Device:
    """Read the answer to `GET`. Lines with an unknown key are passed over.

    Raises:
        UapiError: it carries an error number, or is malformed.
    """
    state = _Decoding()
    for key, value in _pairs(answer):
        try:
            state.take(key, value)
        except ValueError as error:
            # Neither the value nor its cause is named: the line may hold a key.
            raise UapiError(errno.EBADMSG, f"a malformed line {key[:40]!r}") from (
                None if key.endswith("_key") else error
            )
    return state.device()


def decode_stats(answer: bytes) -> dict[bytes, PeerStats]:
    """Read only the counters from the answer to `GET`: for once a second, and 1000 peers.

    Raises:
        UapiError: it carries an error number, or is malformed.
    """
    peers: dict[bytes, dict[str, str]] = {}
    peer: dict[str, str] | None = None
    for name, value in _pairs(answer):
        try:
            if name == "public_key":
                peer = peers.setdefault(_key(value), {})
            elif peer is not None and name in _COUNTED:
                peer[name] = value
        except ValueError:
            raise UapiError(errno.EBADMSG, "a malformed public key") from None
    try:
        return {key: _stats(lines) for key, lines in peers.items()}
    except ValueError as error:
        raise UapiError(errno.EBADMSG, "a malformed counter") from error


def _stats(lines: dict[str, str]) -> PeerStats:
    get = lines.get
    endpoint = get("endpoint")
    handshake = _integer(get("last_handshake_time_sec", "0")) + _integer(get("last_handshake_time_nsec", "0")) / 1e9
    return PeerStats(
        _endpoint(endpoint) if endpoint else None,
        handshake,
        _integer(get("rx_bytes", "0")),
        _integer(get("tx_bytes", "0")),
    )


@lru_cache(maxsize=4096)
def _endpoint(text: str) -> Endpoint:
    """An endpoint is the same each second for weeks."""
    return Endpoint.parse(text)


_COUNTED = frozenset(("endpoint", "last_handshake_time_sec", "last_handshake_time_nsec", "rx_bytes", "tx_bytes"))


def _pairs(answer: bytes) -> Iterator[tuple[str, str]]:
    """Yield the lines before `errno=0`."""
    if not answer.endswith(b"\n\n"):
        raise UapiError(errno.EBADMSG, "an answer without an end")
    for line in answer.decode("utf-8", "replace").split("\n"):
        key, equals, value = line.partition("=")
        if not equals:
            break
        if key == "errno":
            number = _errno(value)
            if number:
                raise UapiError(number)
            return
        yield key, value
    raise UapiError(errno.EBADMSG, "an answer without an error number")


def _errno(value: str) -> int:
    """Return the positive error number; wireguard-go writes them negative."""
    try:
        return abs(_integer(value.removeprefix("-")))
    except ValueError:
        raise UapiError(errno.EBADMSG, "a malformed error number") from None


def _integer(value: str) -> int:
    # int() alone would also take "1_0", " 1" and digits of other scripts, and is slow on megabytes of digits.
    if not (value.isascii() and value.isdigit() and len(value) <= 20):
        raise ValueError("not a number")
    return int(value)


def _key(value: str) -> bytes:
    key = bytes.fromhex(value)
    if len(key) != 32:
        raise ValueError("not a key")
    return key


@dataclass(slots=True)
class _Peer:
    key: bytes
    endpoint: Endpoint | None = None
    preshared_key: bytes = field(default=NO_KEY, repr=False)
    numbers: dict[str, int] = field(default_factory=dict)
    allowed_ips: set[Network] = field(default_factory=set)

    def take(self, name: str, value: str) -> None:
        if name == "allowed_ip":
            self.allowed_ips.add(ip_network(value))
        elif name == "endpoint":
            self.endpoint = Endpoint.parse(value)
        elif name == "preshared_key":
            self.preshared_key = _key(value)
        elif name in _NUMBERS:
            self.numbers[name] = _integer(value)

    def config(self) -> PeerConfig:
        psk = None if self.preshared_key == NO_KEY else self.preshared_key
        keepalive = self.numbers.get("persistent_keepalive_interval", 0)
        return PeerConfig(self.key, self.endpoint, frozenset(self.allowed_ips), keepalive, psk)

    def stats(self) -> PeerStats:
        get = self.numbers.get
        handshake = get("last_handshake_time_sec", 0) + get("last_handshake_time_nsec", 0) / 1e9
        return PeerStats(self.endpoint, handshake, get("rx_bytes", 0), get("tx_bytes", 0))


_NUMBERS = frozenset(
    ("persistent_keepalive_interval", "last_handshake_time_sec", "last_handshake_time_nsec", "rx_bytes", "tx_bytes")
)


class _Decoding:
    """A device while its lines come in."""

    def __init__(self) -> None:
        self.private_key = NO_KEY
        self.numbers = {"listen_port": 0, "fwmark": 0}
        self.peers: dict[bytes, _Peer] = {}
        self.peer: _Peer | None = None

    def take(self, name: str, value: str) -> None:
        if name == "public_key":
            key = _key(value)
            self.peer = self.peers.setdefault(key, _Peer(key))
        elif self.peer is not None:
            self.peer.take(name, value)
        elif name == "private_key":
            self.private_key = _key(value)
        elif name in self.numbers:
            self.numbers[name] = _integer(value)

    def device(self) -> Device:
        return Device(
            public_key=public_key_of(self.private_key),
            private_key=self.private_key,
            listen_port=self.numbers["listen_port"],
            fwmark=self.numbers["fwmark"],
            peers={key: peer.config() for key, peer in self.peers.items()},
            stats={key: peer.stats() for key, peer in self.peers.items()},
        )
