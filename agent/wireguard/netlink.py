# SPDX-License-Identifier: Apache-2.0
"""The kernel's WireGuard messages as bytes (linux/wireguard.h, generic netlink). Pure.

A netlink attribute is length (16 bits, with its own 4 bytes, without padding), type (16 bits), value, padded to 4
bytes; the machine's byte order. A nested one has bit 0x8000 in its type. The 16-bit length bounds the list of peers of
one message to 64 KiB, so a change becomes several messages.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from ...wire.endpoint import Endpoint
from .device import NO_KEY, Device, DeviceChange, Network, PeerChange, PeerConfig, PeerStats

GET_DEVICE, SET_DEVICE = 0, 1
IFNAME, PRIVATE_KEY, PUBLIC_KEY, LISTEN_PORT, FWMARK, PEERS = 2, 3, 4, 6, 7, 8
PEER_PUBLIC_KEY, PEER_PRESHARED_KEY, PEER_FLAGS, PEER_ENDPOINT, PEER_KEEPALIVE = 1, 2, 3, 4, 5
PEER_HANDSHAKE, PEER_RX, PEER_TX, PEER_ALLOWED_IPS = 6, 7, 8, 9
IP_FAMILY, IP_ADDRESS, IP_MASK = 1, 2, 3
REMOVE_ME, REPLACE_ALLOWED_IPS, UPDATE_ONLY = 1, 2, 4
NESTED = 0x8000
TYPE_MASK = 0x3FFF

MAX_PEERS = 200  # in one message
MAX_BYTES = 60_000  # of peers in one message, below the 65,535 that a nested attribute can hold
MAX_NETWORKS = 500  # of a peer in one entry: 500 IPv6 networks take 20 kB

_HEADER = struct.Struct("=HH")
_TIME = struct.Struct("=qq")
_COUNT = struct.Struct("=Q")

Attributes = list[tuple[int, bytes]]


def attribute(kind: int, value: bytes) -> bytes:
    """Return one attribute, padded."""
    return _HEADER.pack(len(value) + 4, kind) + value + bytes(-len(value) % 4)


def nested(kind: int, parts: Iterable[bytes]) -> bytes:
    """Return an attribute that contains others."""
    return attribute(kind | NESTED, b"".join(parts))


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type (without flag bits) and value of each attribute.

    Raises:
        ValueError: a length does not fit.
    """
    at, end = 0, len(data)
    while at + 4 <= end:
        length, kind = _HEADER.unpack_from(data, at)
        if length < 4 or at + length > end:
            raise ValueError("a netlink attribute with a wrong length")
        yield kind & TYPE_MASK, data[at + 4 : at + length]
        at += length + 3 & ~3


def name_attribute(name: str) -> bytes:
    """Return the attribute that names the device."""
    return attribute(IFNAME, name.encode() + b"\0")


def encode_set(name: str, change: DeviceChange) -> list[bytes]:
    """Return the attribute bytes of each message that a change takes, in order.

    No message says "replace all peers": removals are explicit, so that a lost or failed message harms nobody else.
    """
    head = name_attribute(name)
    first = head
    if change.private_key is not None:
        first += attribute(PRIVATE_KEY, change.private_key)
    if change.listen_port is not None:
        first += attribute(LISTEN_PORT, struct.pack("=H", change.listen_port))
    if change.fwmark is not None:
        first += attribute(FWMARK, struct.pack("=I", change.fwmark))
    messages = [head + nested(PEERS, chunk) for chunk in _chunks(change.peers)]
    # The device's own fields go with the first peers: one message is then enough for most changes.
    if first != head and messages:
        return [first + messages[0][len(head) :], *messages[1:]]
    return [first] if first != head else messages


def _chunks(peers: Iterable[PeerChange]) -> Iterator[list[bytes]]:
    chunk: list[bytes] = []
    size = 0
    for entry in (entry for peer in peers for entry in _entries(peer)):
        if chunk and (len(chunk) == MAX_PEERS or size + len(entry) > MAX_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(entry)
        size += len(entry)
    if chunk:
        yield chunk


def _entries(peer: PeerChange) -> Iterator[bytes]:
    """Yield the peer's entry, and further ones when it has more networks than fit in one."""
    networks = sorted(peer.allowed_ips, key=lambda n: (n.version, int(n.network_address), n.prefixlen))
    yield _entry(peer, networks[:MAX_NETWORKS])
    for start in range(MAX_NETWORKS, len(networks), MAX_NETWORKS):
        yield _entry(PeerChange(peer.public_key, update_only=True), networks[start : start + MAX_NETWORKS])


def _entry(peer: PeerChange, networks: list[Network]) -> bytes:
    parts = [attribute(PEER_PUBLIC_KEY, peer.public_key)]
    flags = REMOVE_ME * peer.remove | REPLACE_ALLOWED_IPS * peer.replace_allowed_ips | UPDATE_ONLY * peer.update_only
    if flags:
        parts.append(attribute(PEER_FLAGS, struct.pack("=I", flags)))
    if not peer.remove:
        parts += _settings(peer)
        if networks:
            parts.append(nested(PEER_ALLOWED_IPS, map(_network, networks)))
    return nested(0, parts)


def _settings(peer: PeerChange) -> Iterator[bytes]:
    if peer.preshared_key is not None:
        yield attribute(PEER_PRESHARED_KEY, peer.preshared_key)
    if peer.endpoint is not None:
        yield attribute(PEER_ENDPOINT, pack_sockaddr(peer.endpoint))
    if peer.keepalive is not None:
        yield attribute(PEER_KEEPALIVE, struct.pack("=H", peer.keepalive))


def _network(network: Network) -> bytes:
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    return nested(
        0,
        (
            attribute(IP_FAMILY, struct.pack("=H", family)),
            attribute(IP_ADDRESS, network.network_address.packed),
            attribute(IP_MASK, bytes((network.prefixlen,))),
        ),
    )


def pack_sockaddr(endpoint: Endpoint) -> bytes:
    """Return a struct sockaddr_in (16 bytes) or sockaddr_in6 (28 bytes, no flow label, no scope)."""
    port = endpoint.port.to_bytes(2, "big")
    if endpoint.ip.version == 4:
        return struct.pack("=H", socket.AF_INET) + port + endpoint.ip.packed + bytes(8)
    return struct.pack("=H", socket.AF_INET6) + port + bytes(4) + endpoint.ip.packed + bytes(4)


@lru_cache(maxsize=8192)
def unpack_sockaddr(data: bytes) -> Endpoint | None:
    """Read a struct sockaddr_in or sockaddr_in6; None for another family."""
    family = int.from_bytes(data[:2], "little" if struct.pack("=H", 1) == b"\1\0" else "big")
    port = int.from_bytes(data[2:4], "big")
    if family == socket.AF_INET and len(data) >= 8:
        return Endpoint(IPv4Address(data[4:8]), port)
    if family == socket.AF_INET6 and len(data) >= 24:
        return Endpoint.of(str(IPv6Address(data[8:24])), port)  # an IPv4-mapped one becomes IPv4, as everywhere
    return None


def decode_stats(messages: Iterable[bytes]) -> dict[bytes, PeerStats]:
    """Read the counters out of a dump, as fast as Python can: keys, networks and settings are stepped over.

    Args:
        messages: the attribute bytes of each message of the dump. A peer that continues in the next message appears
            there with its key and networks only; its counters stay those of the first.
    """
    result: dict[bytes, PeerStats] = {}
    for message in messages:
        for kind, value in attributes(message):
            if kind == PEERS:
                _peers_stats(value, result)
    return result


def _peers_stats(data: bytes, result: dict[bytes, PeerStats]) -> None:  # noqa: C901 - flat and in one loop for its speed
    unpack = _HEADER.unpack_from
    at, end = 0, len(data)
    while at + 4 <= end:
        length, _ = unpack(data, at)
        if length < 4 or at + length > end:
            raise ValueError("a peer with a wrong length")
        stop = at + length
        inner = at + 4
        key, endpoint, handshake, rx, tx = b"", None, 0.0, 0, 0
        while inner + 4 <= stop:
            size, kind = unpack(data, inner)
            if size < 4 or inner + size > stop:
                raise ValueError("an attribute of a peer with a wrong length")
            if kind == PEER_PUBLIC_KEY:
                key = data[inner + 4 : inner + size]
            elif kind == PEER_ENDPOINT:
                endpoint = unpack_sockaddr(data[inner + 4 : inner + size])
            elif kind == PEER_HANDSHAKE and size >= 20:
                seconds, nanoseconds = _TIME.unpack_from(data, inner + 4)
                handshake = seconds + nanoseconds / 1e9
            elif kind == PEER_RX and size >= 12:
                rx = _COUNT.unpack_from(data, inner + 4)[0]
            elif kind == PEER_TX and size >= 12:
                tx = _COUNT.unpack_from(data, inner + 4)[0]
            inner += size + 3 & ~3
        if key and key not in result:
            result[key] = PeerStats(endpoint, handshake, rx, tx)
        at += length + 3 & ~3


def decode_device(messages: list[bytes]) -> Device:
    """Read a whole dump; a peer that is split over messages is joined.

    Raises:
        ValueError: malformed.
    """
    fields: dict[int, bytes] = {}
    peers: dict[bytes, PeerConfig] = {}
    for message in messages:
        for kind, value in attributes(message):
            if kind == PEERS:
                for _, entry in attributes(value):
                    _join(peers, _peer(entry))
            else:
                fields.setdefault(kind, value)
    return Device(
        public_key=fields.get(PUBLIC_KEY, NO_KEY),
        private_key=fields.get(PRIVATE_KEY, NO_KEY),
        listen_port=_number(fields, LISTEN_PORT),
        fwmark=_number(fields, FWMARK),
        peers=peers,
        stats=decode_stats(messages),
    )


def _number(fields: Mapping[int, bytes], kind: int) -> int:
    value = fields.get(kind, b"")
    formats = {1: "=B", 2: "=H", 4: "=I", 8: "=Q"}
    return int(struct.unpack(formats[len(value)], value)[0]) if len(value) in formats else 0


def _join(peers: dict[bytes, PeerConfig], peer: PeerConfig) -> None:
    first = peers.get(peer.public_key, peer)
    peers[peer.public_key] = PeerConfig(
        first.public_key, first.endpoint, first.allowed_ips | peer.allowed_ips, first.keepalive, first.preshared_key
    )


def _peer(entry: bytes) -> PeerConfig:
    fields = dict(attributes(entry))
    key = fields.get(PEER_PUBLIC_KEY, b"")
    if len(key) != 32:
        raise ValueError("a peer without a public key")
    psk = fields.get(PEER_PRESHARED_KEY, NO_KEY)
    return PeerConfig(
        key,
        unpack_sockaddr(fields[PEER_ENDPOINT]) if PEER_ENDPOINT in fields else None,
        frozenset(_read_network(value) for _, value in attributes(fields.get(PEER_ALLOWED_IPS, b""))),
        _number(fields, PEER_KEEPALIVE),
        None if psk == NO_KEY else psk,
    )


def _read_network(data: bytes) -> Network:
    fields = dict(attributes(data))
    packed, bits = fields.get(IP_ADDRESS, b""), _number(fields, IP_MASK)
    return IPv4Network((packed, bits)) if len(packed) == 4 else IPv6Network((packed, bits))
