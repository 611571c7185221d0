# SPDX-License-Identifier: Apache-2.0
"""relay.mode by `kubectl patch`, while everything runs."""

from __future__ import annotations

from typing import Any

from wirekube.lab.expect import allowed_by_nat


def test_always_relays_every_pair(mesh: Any) -> None:
    mesh.set(relay={"mode": "always"})
    try:
        mesh.cluster.until("every pair is relayed", lambda: set(mesh.paths().values()) == {"Relayed"}, 120)
        assert mesh.unanswered() == []
    finally:
        mesh.set(relay={"mode": "auto"})
    mesh.settle()


def test_never_keeps_what_is_direct_and_says_why_the_rest_is_not(mesh: Any, nodes: Any) -> None:
    mesh.set(relay={"mode": "never"})
    try:
        mesh.cluster.until("no pair is relayed", lambda: "Relayed" not in mesh.paths().values(), 120)

        def as_allowed() -> bool:
            return all(
                path == "Direct"
                if allowed_by_nat(nodes[one], nodes[other]) == {"Direct"}
                else path in ("Direct", "Unreachable")
                for (one, other), path in mesh.paths().items()
            )

        mesh.cluster.until("only pairs that NATs keep apart are unreachable", as_allowed, 120)
        for peer in mesh.peers().values():
            for each in peer["status"].get("notDirect", []):
                assert each["reason"], each
                assert each["message"], each
        direct = {pair for pair, path in mesh.paths().items() if path == "Direct"}
        assert direct
        assert all(None not in found for found in mesh.ping(20, direct).values())
    finally:
        mesh.set(relay={"mode": "auto"})
    mesh.settle()
    assert mesh.unanswered() == []
