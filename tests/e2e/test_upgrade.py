# SPDX-License-Identifier: Apache-2.0
"""Another image for everything, while the mesh carries traffic."""

from __future__ import annotations

import os
from typing import Any

NAMESPACE = "wirekube-system"
NEXT = os.environ.get("WIREKUBE_E2E_NEXT_IMAGE", "wirekube:next")


def _images(mesh: Any) -> dict[str, set[str]]:
    components = ("operator", "agent", "relay")
    pods = {component: mesh.pods(component).values() for component in components}
    return {
        component: {each["image"] for pod in found for each in pod["spec"]["containers"] if each["name"] == component}
        for component, found in pods.items()
    }


def test_an_upgrade_keeps_keys_addresses_and_paths(mesh: Any) -> None:
    before = {name: (peer["spec"]["addresses"], peer["status"]["publicKey"]) for name, peer in mesh.peers().items()}
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
    assert _images(mesh) == {component: {NEXT} for component in ("operator", "agent", "relay")}
    mesh.settle()
    after = {name: (peer["spec"]["addresses"], peer["status"]["publicKey"]) for name, peer in mesh.peers().items()}
    assert after == before
    assert mesh.unanswered() == []
