# SPDX-License-Identifier: Apache-2.0
"""The operator and a real API server that dies, or that does not serve its kinds yet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from operators import NAMESPACE, Operator, World
from ports import free_ports

from wirekube.lab.controlplane import ControlPlane
from wirekube.lab.wait import eventually, until

# Operators and API servers start in some seconds, on a busy machine in many.
pytestmark = pytest.mark.timeout(240)

BACK, NOISE = 10.0, 3.0


@pytest.fixture(scope="module")
def world(control_plane: ControlPlane) -> Iterator[World]:
    world = World(control_plane)
    world.install()
    yield world
    world.install_crds()
    world.clean()


@pytest.fixture
def operator(world: World, tmp_path: Path) -> Iterator[Operator]:
    """One without an election: it is to outlive every outage."""
    world.plane.service_account_kubeconfig(NAMESPACE, "wirekube-operator", None, tmp_path / "kubeconfig")
    operator = Operator(
        str(tmp_path / "kubeconfig"), tmp_path / "log", *free_ports(1), WIREKUBE_LEADER_ELECTION="false"
    )
    yield operator
    assert operator.end() == 0
    assert "Traceback" not in operator.log()


@pytest.mark.parametrize("away", [0.0, 30.0])
def test_an_api_server_that_was_killed_is_followed_soon(world: World, operator: Operator, away: float) -> None:
    eventually(operator.ready, 30)
    for name in ("kube-apiserver", "etcd"):
        world.plane.processes.kill(name)
    until(lambda: operator.process.poll() is not None, away)
    world.plane.launch()
    world.joins(f"rs-{away:.0f}", BACK + NOISE)
    assert operator.process.poll() is None


def test_kinds_that_are_installed_later_are_awaited(world: World, tmp_path: Path) -> None:
    world.kubectl("delete", "crd", "--all", "--timeout=60s")
    world.plane.service_account_kubeconfig(NAMESPACE, "wirekube-operator", None, tmp_path / "kubeconfig")
    operator = Operator(str(tmp_path / "kubeconfig"), tmp_path / "log", *free_ports(1))
    try:
        eventually(lambda: "waiting for its CRD" in operator.log(), 30)
        until(lambda: operator.process.poll() is not None, 8)
        assert operator.answer("/healthz") == (200, "ok")
        assert operator.answer("/readyz")[0] == 500
        world.install_crds()
        world.make_mesh()
        world.joins("rs-late", BACK + NOISE)
        assert operator.ready()
        # Deleted by accident beneath a running one, and installed again.
        world.kubectl("delete", "crd", "--all", "--timeout=60s")
        world.install_crds()
        world.make_mesh()
        eventually(lambda: world.get("wkpeer", "rs-late"), BACK + NOISE)
        assert operator.leads()
    finally:
        assert operator.end() == 0
    assert "Traceback" not in operator.log()
