# SPDX-License-Identifier: Apache-2.0
"""A WireGuard device as it should be and as it is, and the difference between the two. Pure.

Keys are 32 raw bytes. A private or preshared key never appears in a repr, so neither in a log line nor in a traceback.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ...wire.endpoint import Endpoint

Network = IPv4Network | IPv6Network

NO_KEY = bytes(32)
"""All zeros: to both backends this value says "no key"."""


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """One peer.

    Attributes:
        public_key: 32 bytes.
        endpoint: where to send; None in a desired peer leaves the device's as it is, in an observed one it is unknown.
        allowed_ips: networks that are routed to the peer and accepted from it.
        keepalive: seconds between keepalives, 0 for none.
        preshared_key: 32 bytes, or None.
    """

    public_key: bytes
    endpoint: Endpoint | None
    allowed_ips: frozenset[Network]
    keepalive: int = 0
    preshared_key: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """A device as it should be; `listen_port` 0 takes whichever it has, `peers` are by public key."""

    private_key: bytes = field(repr=False)
    listen_port: int
    fwmark: int
    peers: Mapping[bytes, PeerConfig]


@dataclass(frozen=True, slots=True)
class PeerStats:
    """A peer's counters; `last_handshake` is in Unix seconds, 0 for never; `endpoint` is where it was last heard."""

    endpoint: Endpoint | None
    last_handshake: float
    rx_bytes: int
    tx_bytes: int


@dataclass(frozen=True, slots=True)
class Device:
    """A device as it is. Both keys are `NO_KEY` while none is set."""

    public_key: bytes
    private_key: bytes = field(repr=False)
    listen_port: int
    fwmark: int
    peers: Mapping[bytes, PeerConfig]
    stats: Mapping[bytes, PeerStats]


@dataclass(frozen=True, slots=True)
class PeerChange:
    """What to do with one peer; None leaves a field as it is.

    Attributes:
        public_key: 32 bytes.
        remove: take the peer away; no other field counts then.
        update_only: the peer existed when it was read. When it is gone by now, nothing is created from half its fields.
        endpoint: new endpoint.
        keepalive: seconds, 0 switches it off.
        preshared_key: 32 bytes, `NO_KEY` takes it away.
        replace_allowed_ips: drop the networks that it has before `allowed_ips` are added.
        allowed_ips: networks to add. A network of another peer moves.
    """

    public_key: bytes
    remove: bool = False
    update_only: bool = False
    endpoint: Endpoint | None = None
    keepalive: int | None = None
    preshared_key: bytes | None = field(default=None, repr=False)
    replace_allowed_ips: bool = False
    allowed_ips: frozenset[Network] = frozenset()

    def __bool__(self) -> bool:
        """Whether the change does anything."""
        fields = (self.endpoint, self.keepalive, self.preshared_key)
        return (
            self.remove
            or not self.update_only
            or any(value is not None for value in fields)
            or self.replace_allowed_ips
            or bool(self.allowed_ips)
        )


@dataclass(frozen=True, slots=True)
class DeviceChange:
    """What to do with a device; None leaves a field as it is. Falsy when there is nothing to do."""

    private_key: bytes | None = field(default=None, repr=False)
    listen_port: int | None = None
    fwmark: int | None = None
    peers: tuple[PeerChange, ...] = ()

    def __bool__(self) -> bool:
        """Whether the change does anything."""
        fields = (self.private_key, self.listen_port, self.fwmark)
        return bool(self.peers) or any(value is not None for value in fields)


def clamp(private_key: bytes) -> bytes:
    """Return the key as both backends store it: three bits cleared or set (RFC 7748 section 5); `NO_KEY` stays."""
    if private_key == NO_KEY:
        return NO_KEY
    key = bytearray(private_key)
    key[0] &= 248
    key[31] = key[31] & 127 | 64
    return bytes(key)


def public_key_of(private_key: bytes) -> bytes:
    """Return the X25519 public key of 32 private bytes; `NO_KEY` for `NO_KEY`."""
    if private_key == NO_KEY:
        return NO_KEY
    return X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def settle(peers: Mapping[bytes, PeerConfig]) -> dict[bytes, frozenset[Network]]:
    """Return each peer's allowed IPs, with every network given to one peer only.

    WireGuard keeps one owner for each network. If two peers claim the same, the one with the smaller public key gets
    it: any fixed choice will do, without one each apply would move the network and no comparison would ever be empty.
    """
    owner: dict[Network, bytes] = {}
    for key in sorted(peers):
        for network in peers[key].allowed_ips:
            owner.setdefault(network, key)
    return {key: frozenset(n for n in peer.allowed_ips if owner[n] == key) for key, peer in peers.items()}


def diff(desired: DeviceConfig, observed: Device) -> DeviceChange:
    """Return what makes a device that is `observed` become `desired`; falsy when it already is.

    A peer's endpoint is touched only when the desired one is not None and differs. A peer with the device's own public
    key is left out, as WireGuard ignores it. Removals come last, so that a network that moves from a removed peer to
    another is never without an owner.
    """
    own = public_key_of(desired.private_key)
    wanted = {key: peer for key, peer in desired.peers.items() if key != own}
    private_key = clamp(desired.private_key)
    return DeviceChange(
        private_key=private_key if private_key != clamp(observed.private_key) else None,
        listen_port=desired.listen_port if desired.listen_port not in {0, observed.listen_port} else None,
        fwmark=desired.fwmark if desired.fwmark != observed.fwmark else None,
        peers=(
            *_upserts(wanted, observed.peers),
            *(PeerChange(key, remove=True) for key in sorted(observed.peers.keys() - wanted.keys())),
        ),
    )


def _upserts(wanted: Mapping[bytes, PeerConfig], present: Mapping[bytes, PeerConfig]) -> Iterator[PeerChange]:
    networks = settle(wanted)
    gained = frozenset(network for key, mine in networks.items() for network in mine - _networks(present.get(key)))
    for key in sorted(wanted):
        change = _upsert(wanted[key], networks[key], present.get(key), gained)
        if change:
            yield change


def _networks(peer: PeerConfig | None) -> frozenset[Network]:
    return peer.allowed_ips if peer else frozenset()


def _upsert(
    wanted: PeerConfig, networks: frozenset[Network], present: PeerConfig | None, gained: frozenset[Network]
) -> PeerChange:
    """Compare one peer.

    `gained` are the networks that some peer gains in this change: to lose one of them needs no word, adding it there
    takes it from here. Only for other losses is the whole list replaced, which leaves a short gap.
    """
    old = present or PeerConfig(wanted.public_key, None, frozenset())
    replace = bool(old.allowed_ips - networks - gained)
    psk = wanted.preshared_key or NO_KEY
    return PeerChange(
        wanted.public_key,
        update_only=present is not None,
        endpoint=wanted.endpoint if wanted.endpoint != old.endpoint else None,
        keepalive=wanted.keepalive if wanted.keepalive != old.keepalive else None,
        preshared_key=psk if psk != (old.preshared_key or NO_KEY) else None,
        replace_allowed_ips=replace,
        allowed_ips=networks if replace else networks - old.allowed_ips,
    )
