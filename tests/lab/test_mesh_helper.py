# SPDX-License-Identifier: Apache-2.0
"""A node whose WireGuard runs in the container beside the agent's: absent, started, killed; the agent restarted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from wirekube.agent.wireguard import userspace
from wirekube.lab.controlplane.binaries import wireguard_go

TOPOLOGY = "pair"
A, B = "home-a", "home-b"
AGENT, HELPER = f"agent-{A}", f"helper-{A}"
SCRIPT = Path(userspace.__file__).with_name("userspace.sh").resolve()
HEALTH = "http://127.0.0.1:9586/readyz"

pytestmark = pytest.mark.timeout(180)


def start_agent(mesh):
    """Start the agent as in its pod, where there is no wireguard-go."""
    argv, env = mesh.lab.command(A, mesh.agent)
    del env["WIREKUBE_WIREGUARD_GO"]
    mesh.lab.processes.start(AGENT, argv, env)


def start_helper(mesh):
    folder = mesh.lab.root(A).folder / "helper-bin"
    folder.mkdir(exist_ok=True)
    if not (folder / "wireguard-go").exists():
        (folder / "wireguard-go").symlink_to(wireguard_go())
    # A container: when its first process dies, all of it does.
    words = ["unshare", "--pid", "--fork", "--kill-child", shutil.which("busybox"), "sh", str(SCRIPT)]
    mesh.lab.start(HELPER, A, words, {"PATH": f"{folder}:/usr/sbin:/usr/bin:/sbin:/bin"}, own_root=True)


def kill_helper(mesh):
    mesh.lab.processes.kill(HELPER)
    mesh.until(lambda: not mesh.wireguard_pids(A), 5, "the program went with its container")


def running(mesh):
    return lambda: mesh.phase(A) == "Running" and mesh.both(A, B, "Direct")() and mesh.has_interface(A)


def ready(mesh, kind="Ready"):
    found = mesh.condition(A, kind)
    return found.get("status"), found.get("reason")


def readyz(mesh):
    return mesh.lab.exec(A, "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", HEALTH, check=False).stdout


@pytest.fixture(scope="module", autouse=True)
def in_a_pod(mesh):
    if shutil.which("busybox") is None:
        pytest.fail("busybox is missing: run hack/setup")
    assert shutil.which("wireguard-go") is None, "the agent would start it itself"
    mesh.lab.stop_agent(A)
    mesh.cleanup(A)
    yield
    mesh.lab.processes.stop(AGENT)
    mesh.cleanup(A)
    mesh.lab.processes.kill(HELPER)
    assert mesh.changes(A) == {}
    assert not (mesh.lab.run_dir(A) / "userspace").exists()


def test_without_a_helper_everybody_is_told_once_and_the_mesh_comes_with_the_helper(mesh):
    mark = mesh.log_end(AGENT)
    start_agent(mesh)
    mesh.until(lambda: ready(mesh) == ("False", "WireGuardUnavailable"), 20, "the Peer says what is wrong")
    message = mesh.condition(A, "Ready")["message"]
    assert "no helper container listens on /run/wirekube/userspace: load the module wireguard" in message
    assert mesh.condition(A, "DataPlaneReady")["message"] == message
    assert readyz(mesh) == "500"
    mesh.until(
        lambda: "WireGuardUnavailable" in mesh.lab.kubectl("get", "events", "-n", "default"), 10, "an Event tells it"
    )
    start_helper(mesh)
    took = mesh.until(running(mesh), 30, "the mesh is there")
    print(f"MEASURED mesh after the helper has started: {took:.1f} s")
    mesh.until(lambda: ready(mesh) == ("True", "Ready"), 20, "the Peer is ready")
    assert mesh.log(AGENT, mark).count("cannot join the mesh") == 1
    assert readyz(mesh) == "200"
    with mesh.pinging((A, B), (B, A)) as pings:
        pings.more(25)


def test_the_agent_gets_its_tunnel_back_from_a_helper_that_was_killed(mesh):
    mesh.until(running(mesh), 30, "the mesh is there")
    key = mesh.wg(A).public_key
    kill_helper(mesh)
    mesh.until(lambda: not mesh.has_interface(A), 5, "the interface went with the program")
    start_helper(mesh)
    # The agent may not have noticed anything yet: what it says of itself is no proof, what WireGuard has is.
    took = mesh.until(lambda: mesh.has_interface(A) and mesh.wg(A).public_key == key, 30, "the tunnel is back")
    print(f"MEASURED key in the new interface after the helper was started again: {took:.1f} s")
    mesh.until(running(mesh), 30, "the mesh is there")
    with mesh.pinging((A, B), (B, A)) as pings:
        pings.more(25)


def test_an_agent_that_was_killed_adopts_the_helpers_interface(mesh):
    mesh.until(running(mesh), 30, "the mesh is there")
    before, process = mesh.wg(A), mesh.wireguard_pids(A)
    with mesh.pinging((A, B), (B, A)) as pings:
        mesh.lab.processes.kill(AGENT)
        pings.more(50)
        start_agent(mesh)
        mesh.until(running(mesh), 20, "the new agent runs")
        pings.more(50)
    pings.assert_none_lost()
    assert mesh.wg(A).identity == before.identity
    assert mesh.wireguard_pids(A) == process
