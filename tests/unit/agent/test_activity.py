# SPDX-License-Identifier: Apache-2.0
"""What WireGuard's counters say about a pair: traffic, sent or received, or keepalives and handshakes alone."""

from __future__ import annotations

import pytest

from wirekube.agent.activity import HOLD_SECONDS, Activity
from wirekube.agent.wireguard.device import PeerStats

KEY = b"k" * 32


def stats(rx: int, tx: int, handshake: float = 1.0) -> dict[bytes, PeerStats]:
    return {KEY: PeerStats(None, handshake, rx, tx)}


@pytest.mark.parametrize(
    ("rx", "tx", "handshake", "busy", "sent", "received"),
    [
        (0, 0, 1.0, False, False, False),
        (32, 32, 1.0, False, False, True),  # keepalives
        (0, 148, 1.0, True, True, False),  # an initiation that nobody answered
        (92, 148 + 32, 2.0, False, False, True),  # a handshake
        (1000, 32, 1.0, True, False, True),
        (32, 1000, 1.0, True, True, True),
        (0, 1000, 1.0, True, True, False),
    ],
)
def test_traffic_is_more_than_keepalives_and_handshakes(
    rx: int, tx: int, handshake: float, busy: bool, sent: bool, received: bool
) -> None:
    activity = Activity()
    assert activity.update(stats(100, 100), 0.0) == {KEY: False}
    assert (activity.sent, activity.received) == (frozenset(), frozenset()), "the first reading says nothing"
    assert activity.update(stats(100 + rx, 100 + tx, handshake), 1.0) == {KEY: busy}
    assert (KEY in activity.sent, KEY in activity.received) == (sent, received)


def test_a_short_pause_makes_no_pair_idle_and_a_peer_that_left_is_forgotten() -> None:
    activity = Activity()
    activity.update(stats(0, 0), 0.0)
    activity.update(stats(1000, 1000), 1.0)
    assert activity.update(stats(1000, 1000), HOLD_SECONDS) == {KEY: True}
    assert activity.update(stats(1000, 1000), 1.0 + HOLD_SECONDS) == {KEY: False}
    assert activity.update({}, 20.0) == {}
    assert activity.update(stats(5000, 5000), 21.0) == {KEY: False}
    assert activity.sent == activity.received == frozenset()
