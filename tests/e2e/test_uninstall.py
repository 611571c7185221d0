# SPDX-License-Identifier: Apache-2.0
"""Nothing is left: neither in the API nor on a node."""

from __future__ import annotations

from typing import Any

from wirekube.api.constants import LABEL_VPN_ENABLED


def test_nodes_are_as_they_were_before(
    mesh: Any, nodes: Any, probes: Any, before: Any, pod_ranges: list[str], uninstall: Any
) -> None:
    ranges = {*pod_ranges, *(node["spec"].get("podCIDR", "") for node in mesh.cluster.items("nodes"))} - {""}
    uninstall(mesh.cluster)
    mesh.cluster.run("label", "nodes", *nodes, f"{LABEL_VPN_ENABLED}-")
    after = probes.run({node: ["state"] for node in nodes})
    for node in nodes:
        for part, was in before[node].items():
            assert _ours(part, after[node][part], ranges) == _ours(part, was, ranges), f"{node}: {part}"


def _ours(part: str, found: Any, pod_ranges: set[str]) -> Any:
    """Leave out the CNI's routes to pods, which change with a node that another test makes anew."""
    if part != "routes":
        return found
    return [line for line in found if not any(f" {each.replace('/', ' ')} " in line for each in pod_ranges)]


def test_the_api_has_nothing_of_it_any_more(cluster: Any, uninstall: Any) -> None:
    uninstall(cluster)
    kinds = "namespaces,crds,clusterroles,clusterrolebindings"
    left = cluster.run("get", kinds, "-o", "name").split()
    assert [each for each in left if "wirekube" in each and "wirekube-e2e" not in each] == []
