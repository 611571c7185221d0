# SPDX-License-Identifier: Apache-2.0
"""Another image for everything, while the mesh carries traffic.

A tunnel of the kernel outlives its agent, so a direct pair of two such nodes loses nothing. A relayed pair pauses while no
agent runs, and wherever wireguard-go runs it ends with its pod: such a node's pairs pause until the next pod is there.
"""

from __future__ import annotations

import os
import time
from typing import Any

NAMESPACE = "wirekube-system"
PINGED = 120.0  # seconds; longer than an upgrade of four nodes takes, one after the other
NOTHING_LOST = 0.5  # seconds between two answers, of pings that are sent every 0.05 s
RELAYED = 3.0  # seconds
NEXT_POD = 20.0  # seconds until a node whose WireGuard ended with its pod has the next one
NEXT = os.environ.get("WIREKUBE_E2E_NEXT_IMAGE", "wirekube:next")


def _images(mesh: Any) -> dict[str, set[str]]:
    components = ("operator", "agent", "relay")
    pods = {component: mesh.pods(component).values() for component in components}
    return {
        component: {each["image"] for pod in found for each in pod["spec"]["containers"] if each["name"] == component}
        for component, found in pods.items()
    }


def _upgrade(mesh: Any) -> None:
    cluster = mesh.cluster
    for workload, containers in (
        ("deployment/wirekube-operator", ["operator"]),
        ("daemonset/wirekube-agent", ["agent", "cleanup"]),
    ):
        cluster.run("set", "image", "-n", NAMESPACE, workload, *(f"{name}={NEXT}" for name in containers))
    mesh.rolled_out()
    # The operator gives its relays its own image.
    cluster.until("the relays have the operator's image", lambda: _images(mesh)["relay"] == {NEXT}, 60)
    mesh.rolled_out()
    cluster.until("the old relays are gone", lambda: len(mesh.pods("relay")) == 1, 60)


def _bound(pair: tuple[str, str], path: str, userspace: set[str]) -> tuple[str, float]:
    """Return what kind of a pair it is, and how long an upgrade may interrupt it."""
    if userspace & set(pair):
        return f"{path.lower()} pairs with wireguard-go", NEXT_POD
    return ("direct pairs", NOTHING_LOST) if path == "Direct" else ("relayed pairs", RELAYED)


def test_an_upgrade_keeps_keys_addresses_and_paths(mesh: Any, probes: Any, nodes: Any, timeline: Any) -> None:
    before = {name: (peer["spec"]["addresses"], peer["status"]["publicKey"]) for name, peer in mesh.peers().items()}
    paths, running = mesh.paths(), probes.run({node: ["commands"] for node in nodes}, pids=True)
    userspace = {node for node, names in running.items() if "wireguard-go" in names}
    begin = time.monotonic()
    took = []

    def act() -> None:
        _upgrade(mesh)
        took.append(time.monotonic() - begin)

    gaps = mesh.gaps(PINGED, act)
    kinds: dict[str, tuple[float, float]] = {}
    for pair, gap in gaps.items():
        assert gap is not None, pair
        kind, bound = _bound(pair, paths[pair], userspace)
        kinds[kind] = max(gap, kinds.get(kind, (0.0, bound))[0]), bound
    timeline.note(
        f"upgraded in {took[0]:.0f} s; longest gap of " + ", ".join(f"{k} {g:.2f} s" for k, (g, _) in kinds.items())
    )
    assert took[0] < PINGED
    assert _images(mesh) == {component: {NEXT} for component in ("operator", "agent", "relay")}
    mesh.settle()
    after = {name: (peer["spec"]["addresses"], peer["status"]["publicKey"]) for name, peer in mesh.peers().items()}
    assert after == before
    assert mesh.unanswered() == []
    assert [kind for kind, (gap, bound) in kinds.items() if gap > bound] == [], kinds
