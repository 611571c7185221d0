# SPDX-License-Identifier: Apache-2.0
"""The mode becomes `always` while no relay session stands: the direct leg serves until the relay has the peer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from wirekube.agent.paths.model import Mode, State

SESSION_SECONDS = 2.0
HANDSHAKE_SECONDS = 30.0


@pytest.fixture
def switched(world: Callable[..., Any]) -> Any:
    """A direct pair in `never`, for which both agents have just heard `always`."""
    made = world("easy", "easy", Mode.NEVER, relay=False)
    made.busy = True
    made.run(30.0)
    assert made.state == (State.DIRECT, State.DIRECT)
    made.measure()
    for host in made.hosts:
        made.set_mode(host, Mode.ALWAYS)
    return made


def test_nothing_is_lost_on_the_way_to_the_relay(switched: Any) -> None:
    sent = [host.sent for host in switched.hosts]
    switched.run(SESSION_SECONDS)
    assert switched.state == (State.DIRECT, State.DIRECT)
    switched.set_relay(True)
    switched.run(5.0)
    assert switched.state == (State.RELAYED, State.RELAYED)
    assert max(switched.gaps) < 0.3
    assert switched.unmapped == 0
    assert [host.sent for host in switched.hosts] == sent, "no probe is sent"


def test_always_means_always_where_no_relay_comes(switched: Any) -> None:
    switched.run(HANDSHAKE_SECONDS + 1)
    assert switched.state == (State.UNREACHABLE, State.UNREACHABLE)
    assert [host.direct for host in switched.hosts] == [None, None]
