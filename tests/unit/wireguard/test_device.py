# SPDX-License-Identifier: Apache-2.0
"""The difference between two devices, checked against a model of how WireGuard applies a change."""

from dataclasses import replace
from ipaddress import ip_network

from hypothesis import given
from hypothesis import strategies as st

from wirekube.agent.wireguard.device import (
    NO_KEY,
    Device,
    DeviceChange,
    DeviceConfig,
    PeerChange,
    PeerConfig,
    clamp,
    diff,
    public_key_of,
    settle,
)
from wirekube.wire.endpoint import Endpoint

PRIVATE = bytes(range(32))
KEYS = [bytes([i]) * 32 for i in range(1, 6)]
NETWORKS = [ip_network(f"10.0.{i}.0/24") for i in range(6)] + [ip_network("fd00::1/128")]
ENDPOINTS = [Endpoint.parse("192.0.2.1:1"), Endpoint.parse("[2001:db8::1]:2")]


def peer_configs(key):
    return st.builds(
        PeerConfig,
        st.just(key),
        st.sampled_from([None, *ENDPOINTS]),
        st.frozensets(st.sampled_from(NETWORKS)),
        st.sampled_from([0, 25]),
        st.sampled_from([None, b"p" * 32]),
    )


peer_maps = st.lists(st.sampled_from(KEYS), unique=True).flatmap(
    lambda keys: st.fixed_dictionaries({key: peer_configs(key) for key in keys})
)


def device(private=PRIVATE, port=51820, fwmark=0, peers=None):
    return Device(public_key_of(private), clamp(private), port, fwmark, peers or {}, {})


def applied(peers, change: DeviceChange):
    """Apply a change as WireGuard does: peer by peer, a network that is added leaves its old owner."""
    peers = dict(peers)
    for c in change.peers:
        if c.remove:
            peers.pop(c.public_key, None)
            continue
        if c.update_only and c.public_key not in peers:
            continue
        old = peers.get(c.public_key, PeerConfig(c.public_key, None, frozenset()))
        peers = {k: replace(p, allowed_ips=p.allowed_ips - c.allowed_ips) for k, p in peers.items()}
        psk = old.preshared_key if c.preshared_key is None else c.preshared_key
        peers[c.public_key] = PeerConfig(
            c.public_key,
            c.endpoint or old.endpoint,
            c.allowed_ips | (frozenset() if c.replace_allowed_ips else old.allowed_ips),
            old.keepalive if c.keepalive is None else c.keepalive,
            None if psk == NO_KEY else psk,
        )
    return peers


@given(peer_maps, peer_maps)
def test_a_change_leads_to_what_is_desired_and_then_nothing_is_left(wanted, present):
    owned = settle(present)  # a real device never has two owners of one network
    observed = device(peers={k: replace(p, allowed_ips=owned[k]) for k, p in present.items()})
    desired = DeviceConfig(PRIVATE, 51820, 0, wanted)
    after = applied(observed.peers, diff(desired, observed))
    assert not diff(desired, replace(observed, peers=after))
    assert {k: p.allowed_ips for k, p in after.items()} == settle(wanted)
    for key, peer in after.items():
        old = present.get(key)
        assert peer.endpoint == (wanted[key].endpoint or (old.endpoint if old else None))


def test_an_endpoint_is_left_alone_when_none_is_desired():
    here = PeerConfig(KEYS[0], ENDPOINTS[0], frozenset())
    assert not diff(
        DeviceConfig(PRIVATE, 51820, 0, {KEYS[0]: replace(here, endpoint=None)}), device(peers={KEYS[0]: here})
    )


def test_only_the_endpoint_is_named_when_only_it_differs():
    here = PeerConfig(KEYS[0], ENDPOINTS[0], frozenset(NETWORKS), 25)
    wanted = replace(here, endpoint=ENDPOINTS[1])
    change = diff(DeviceConfig(PRIVATE, 51820, 0, {KEYS[0]: wanted}), device(peers={KEYS[0]: here}))
    assert change == DeviceChange(peers=(PeerChange(KEYS[0], update_only=True, endpoint=ENDPOINTS[1]),))


def test_a_network_that_moves_is_added_once_and_its_old_owner_is_not_rewritten():
    one, two = (PeerConfig(k, None, frozenset(n)) for k, n in zip(KEYS[:2], [NETWORKS[:2], NETWORKS[2:3]], strict=True))
    wanted = {
        KEYS[0]: replace(one, allowed_ips=frozenset(NETWORKS[:1])),
        KEYS[1]: replace(two, allowed_ips=frozenset(NETWORKS[1:3])),
    }
    change = diff(DeviceConfig(PRIVATE, 51820, 0, wanted), device(peers={KEYS[0]: one, KEYS[1]: two}))
    assert change.peers == (PeerChange(KEYS[1], update_only=True, allowed_ips=frozenset(NETWORKS[1:2])),)


def test_a_peer_with_our_own_key_is_left_out():
    own = public_key_of(PRIVATE)
    assert not diff(DeviceConfig(PRIVATE, 51820, 0, {own: PeerConfig(own, None, frozenset())}), device())


def test_device_fields():
    change = diff(DeviceConfig(bytes([7]) * 32, 0, 0x574B, {}), device())
    assert (change.private_key, change.listen_port, change.fwmark) == (clamp(bytes([7]) * 32), None, 0x574B)
    assert diff(DeviceConfig(PRIVATE, 51821, 0, {}), device()).listen_port == 51821


def test_no_repr_shows_a_secret():
    secret = b"S" * 32
    peer = PeerConfig(KEYS[0], None, frozenset(), 0, secret)
    shown = repr(
        [
            peer,
            DeviceConfig(secret, 1, 2, {KEYS[0]: peer}),
            device(secret, peers={KEYS[0]: peer}),
            DeviceChange(private_key=secret, peers=(PeerChange(KEYS[0], preshared_key=secret),)),
        ]
    )
    assert "SSS" not in shown
    assert repr(clamp(secret)) not in shown
