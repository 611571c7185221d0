# SPDX-License-Identifier: Apache-2.0
"""How many looks at the stores a burst of events makes."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from wirekube.agent.peersource import MESH, SLICE, WatchedSlices, pause_before_look
from wirekube.runtime.reflector import Reflector
from wirekube.telemetry import noop


@pytest.mark.parametrize(
    ("peers", "since", "pause"),
    [
        (1000, math.inf, 0.005),  # after a quiet time
        (1000, 10.0, 0.005),
        (1000, 0.1, 0.2),  # while events keep coming
        (5000, 0.0, 0.3),
        (100, 0.0, 0.03),
        (6, 0.0, 0.005),
        (0, 0.0, 0.005),
    ],
)
def test_the_more_peers_the_further_apart(peers: int, since: float, pause: float) -> None:
    assert pause_before_look(peers, since) == pytest.approx(pause)


async def test_a_lone_event_is_seen_at_once_and_a_burst_in_few_looks() -> None:
    loop = asyncio.get_running_loop()
    looks: list[float] = []
    seen = asyncio.Event()

    def changed() -> None:
        looks.append(loop.time())
        seen.set()

    source: Any = WatchedSlices("n0", None, (None,), noop(), changed)
    nobody: Any = None
    source._meshes, source._slices = Reflector(nobody, MESH), Reflector(nobody, SLICE)
    peers = [{"name": f"n{index}"} for index in range(500)]
    source._slices.store.put({"metadata": {"name": "peers-1"}, "peers": peers})
    source._meshes.synced.set()
    source._slices.synced.set()
    source._take()
    source.synced.set()
    start = loop.time()
    for _ in range(2):
        for _ in range(100):
            source._soon()
        await asyncio.wait_for(seen.wait(), 5)
        seen.clear()
    assert len(looks) == 2
    assert looks[0] - start < looks[1] - looks[0]
    assert looks[1] - looks[0] >= 0.14  # 0.3 ms a peer
