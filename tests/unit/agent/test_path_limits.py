# SPDX-License-Identifier: Apache-2.0
"""Which of a peer's candidates are tried, when what is allowed becomes known after them."""

from __future__ import annotations

import asyncio
import base64
from ipaddress import ip_network
from typing import Any

from wirekube.agent.facts import MeshFacts, PeerFactsReader, parse_mesh
from wirekube.agent.pathdriver import PathDriver
from wirekube.telemetry import noop
from wirekube.wire.endpoint import Endpoint

GOOD, POD, SERVICE, MESH_OWN = "203.0.113.2:51820", "10.244.3.4:51820", "10.96.0.10:51820", "198.18.0.7:51820"


class NoRelay:
    """A relay client without a session."""

    def __getattr__(self, _name: str) -> Any:
        return lambda *_args, **_kwargs: False


def mesh(**status: Any) -> MeshFacts:
    parsed = parse_mesh({"metadata": {"name": "default"}, "status": status})
    assert isinstance(parsed, MeshFacts)
    return parsed


async def test_candidates_in_the_clusters_own_ranges_are_not_tried() -> None:
    listed = [{"endpoint": each, "type": "host"} for each in (POD, SERVICE, MESH_OWN, GOOD)]
    status = {"publicKey": base64.b64encode(bytes([1]) * 32).decode(), "candidates": listed}
    (facts,), _ = PeerFactsReader("n0").read(None, [{"metadata": {"name": "n1"}, "status": status}])
    driver = PathDriver(bytes([2]) * 32, NoRelay(), noop(), "n0", steer=lambda: None, changed=lambda _: None)  # type: ignore[arg-type]
    try:
        tried = []
        for known in (mesh(), mesh(meshCIDRs=["198.18.0.0/16"], clusterCIDRs=["10.96.0.0/16", "10.244.0.0/16"])):
            driver.set_limits((), known.ranges, ())
            driver.set_peers({"n1": facts})
            tried.append(driver.paths._paths["n1"].candidates)
        assert tried == [facts.candidates, (Endpoint.parse(GOOD),)]
    finally:
        driver.close()
        await asyncio.sleep(0)


def test_the_ranges_of_the_cluster_are_read_with_those_of_the_mesh() -> None:
    found = mesh(meshCIDRs=["198.18.0.0/16"], clusterCIDRs=["10.96.0.0/16"]).ranges
    assert found == (ip_network("198.18.0.0/16"), ip_network("10.96.0.0/16"))
