# SPDX-License-Identifier: Apache-2.0
"""The benchmark's simulated agents: whole ones and light ones join one mesh, and know of each other alike."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from wirekube.lab import bench_controlplane as bench
from wirekube.lab.simulation.light import endpoint_of
from wirekube.lab.simulation.world import WHOLE, World, world

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0, reason="whole agents mark their sockets: needs root"),
]


async def test_whole_and_light_agents_know_of_each_other(tmp_path: Path) -> None:
    async with world(tmp_path, 5) as here:
        assert [len(each.names) for each in here.agents] == [1, 2] + [1] * WHOLE
        labelling, joined, _ = await bench.join(here)
        assert labelling >= 0
        assert joined > 0
        for at, name in enumerate(here.names):
            times = await bench.change(here, name, endpoint_of(name, at + 1))
            assert len(times) == len(here.names) - 1
            assert min(times) > 0
        peers = {each["metadata"]["name"]: each for each in listed(here, "wirekubepeers")}
        whole, light = peers[here.agents[-1].names[0]], peers[here.agents[0].names[0]]
        assert shape(whole["status"]) == shape(light["status"]), "a light agent writes what a whole one does"
        leases = {each["metadata"]["name"] for each in listed(here, "leases", "-n", "wirekube-node-lease")}
        assert leases <= set(here.names)


def listed(here: World, *words: str) -> list[Any]:
    return list(json.loads(here.plane.kubectl("get", *words, "-o", "json").stdout)["items"])


def shape(status: dict[str, Any]) -> dict[str, Any]:
    """What there is in a status, but for conditions and what is not known at that moment."""
    return {name: type(value) for name, value in status.items() if name not in {"conditions", "notDirect"}}
