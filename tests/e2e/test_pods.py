# SPDX-License-Identifier: Apache-2.0
"""What the pods of the mesh may do and what they cost, read from the running processes."""

from __future__ import annotations

from typing import Any

import pytest

NET_ADMIN, SYS_MODULE = 1 << 12, 1 << 16  # linux/capability.h
SECCOMP_FILTER = "2"
NOT_OVERLAID = "ro"


def _capabilities(found: dict[str, str]) -> set[int]:
    return {int(found[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")}


@pytest.mark.parametrize(
    ("command", "capabilities"), [("wirekube-agent", NET_ADMIN | SYS_MODULE), ("userspace.sh", NET_ADMIN)]
)
def test_the_agents_processes_have_exactly_their_capabilities(
    mesh: Any, nodes: Any, probes: Any, command: str, capabilities: int
) -> None:
    found = probes.run({node: ["process", command] for node in nodes}, pids=True)
    for node, process in found.items():
        assert _capabilities(process) == {capabilities}, (node, process)
        assert int(process["CapInh"], 16) == int(process["CapAmb"], 16) == 0, (node, process)
        assert process["NoNewPrivs"] == "1", (node, process)
        assert process["Seccomp"] == SECCOMP_FILTER, (node, process)
        assert process["root"].split(",")[0] == NOT_OVERLAID, (node, process)


@pytest.mark.parametrize("component", ["operator", "relay"])
def test_operator_and_relay_have_no_capability_and_are_not_root(mesh: Any, probes: Any, component: str) -> None:
    (node,) = mesh.pods(component)
    found = probes.one(node, "process", f"wirekube-{component}", pids=True)
    assert _capabilities(found) == {0}
    assert found["Uid"].split()[0] != "0"
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == SECCOMP_FILTER
    assert found["root"].split(",")[0] == NOT_OVERLAID


def test_what_they_cost(mesh: Any, nodes: Any, probes: Any, timeline: Any) -> None:
    """Printed beside what config/ asks for; the memory that it requests is enough for a mesh of this size."""
    programs = {"wirekube-agent": "agent", "wireguard-go": "wireguard"}
    found = probes.run({node: ["cost", "10", *programs] for node in nodes}, pids=True)
    daemonset = mesh.cluster.get("daemonset", "wirekube-agent", "-n", "wirekube-system")
    asked = {each["name"]: each["resources"] for each in daemonset["spec"]["template"]["spec"]["containers"]}
    for program, container in programs.items():
        cpu = sorted(each[program]["cpu"] for each in found.values())
        memory = sorted(each[program]["rss"] for each in found.values())
        assert memory[-1] <= int(asked[container]["requests"]["memory"].removesuffix("Mi")) * 2**20
        timeline.note(
            f"{program} in a steady state: {cpu[0] * 1000:.0f} to {cpu[-1] * 1000:.0f} m CPU, "
            f"{memory[0] / 2**20:.0f} to {memory[-1] / 2**20:.0f} MiB resident; config asks for {asked[container]}"
        )
