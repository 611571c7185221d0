# SPDX-License-Identifier: Apache-2.0
"""What an agent cannot work with: one clear line, the right exit status or another try, nothing half-installed."""

from __future__ import annotations

import json
import subprocess
import time

import pytest

TOPOLOGY = "pair"
A, B = "home-a", "home-b"  # A has the usual agent; B's host is clean, and agents come and go there
NAME = "agent-trial"

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def clean(mesh):
    """B has nothing of ours."""
    mesh.lab.stop_agent(B)
    mesh.cleanup(B)
    assert mesh.changes(B) == {}


@pytest.fixture
def trial(mesh, clean):
    """Start an agent on B; returns what it prints from now on, as JSON lines or text."""
    mark = mesh.log_end(NAME)

    def start(*before, **env):
        """Start it by these words (what runs inside the node's files, before the agent), with these variables."""
        argv, values = mesh.lab.command(B, [*before, *mesh.agent])
        values = {name: value for name, value in (values | env).items() if value is not None}
        mesh.lab.processes.start(NAME, argv, values)

    def lines(level=None):
        found = mesh.log(NAME, mark).splitlines()
        if level is None:
            return found
        parsed = [json.loads(line) for line in found if line.startswith("{")]
        return [line for line in parsed if line["level"] == level]

    start.lines = lines
    yield start
    mesh.lab.processes.stop(NAME)
    if mesh.changes(B):
        mesh.cleanup(B)
    assert mesh.changes(B) == {}


def ended(mesh):
    return lambda: mesh.lab.processes.pid(NAME) is None


def run(mesh, *before, **env):
    """Run an agent on B that is expected to end by itself; return its exit status and what it printed."""
    words = [f"{name}={value}" for name, value in env.items() if value is not None]
    unset = [word for name, value in env.items() if value is None for word in ("-u", name)]
    begin = time.monotonic()
    done = mesh.lab.exec(B, "env", *unset, *words, *before, "timeout", "20", *mesh.agent, check=False)
    assert time.monotonic() - begin < 15
    return done.returncode, (done.stdout + done.stderr).splitlines()


@pytest.mark.parametrize(
    ("env", "status", "words"),
    [
        ({"NODE_NAME": None}, 2, "NODE_NAME is not set"),
        ({"NODE_NAME": "No_Node"}, 2, "NODE_NAME='No_Node' is not a Node name"),
        ({"WIREKUBE_APISERVER": "203.0.113.5"}, 2, "WIREKUBE_APISERVER='203.0.113.5' must start with https://"),
        ({"KUBECONFIG": "/nonexistent"}, 1, "/nonexistent"),
        ({"WIREKUBE_RUN_DIR": "/proc/nothing"}, 1, "/proc/nothing"),
        ({"WIREKUBE_METRICS": "198.51.100.1:1"}, 1, "health"),
    ],
)
def test_an_environment_that_cannot_work_ends_with_one_line(mesh, clean, env, status, words):
    code, lines = run(mesh, **env)
    assert code == status, lines
    assert len([line for line in lines if line.startswith("wirekube-agent: ") and words in line]) == 1, lines
    assert len(lines) == 1, lines
    assert mesh.changes(B) == {}


def test_without_net_admin_it_says_so_and_leaves_nothing(mesh, trial):
    trial("setpriv", "--bounding-set=-net_admin", "--")
    mesh.until(lambda: ended(mesh)() or len(trial.lines("warning")) > 0, 15, "the agent says something")
    mesh.until(
        lambda: any("permi" in line.lower() for line in trial.lines()), 5, f"it names the reason: {trial.lines()}"
    )
    assert mesh.changes(B) == {}
    assert len([line for line in trial.lines() if "permi" in line.lower()]) == 1


def test_without_a_tun_device_it_says_so_and_joins_when_there_is_one(mesh, trial):
    trial("sh", "-c", 'mount -t tmpfs none /dev/net && exec "$0" "$@"')
    mesh.until(lambda: mesh.phase(B) == "Failing", 20, "the agent fails")
    (line,) = trial.lines("warning")
    assert "/dev/net/tun" in line["error"]
    mesh.until(
        lambda: mesh.condition(B, "DataPlaneReady").get("reason") == "WireGuardUnavailable", 10, "its Peer says so"
    )
    condition = mesh.condition(B, "DataPlaneReady")
    assert (condition["status"], condition["message"]) == ("False", line["error"])
    assert mesh.condition(B, "Ready")["status"] == "False"
    assert mesh.changes(B) == {}
    pid = mesh.lab.processes.pid(NAME)
    subprocess.run(["nsenter", "--target", str(pid), "--mount", "--root", "umount", "/dev/net"], check=True)
    mesh.until(mesh.both(A, B, "Direct"), 20, "it joins")
    assert mesh.lab.processes.pid(NAME) == pid


def test_a_foreign_interface_of_that_name_is_refused_and_left_alone(mesh, trial):
    mesh.net(B, "ip link add wire_kube type veth peer name foreign")
    try:
        before = mesh.dump(B)
        mesh.cleanup(B)
        assert mesh.dump(B) == before
        trial()
        mesh.until(
            lambda: mesh.condition(B, "DataPlaneReady").get("reason") == "ForeignInterface", 20, "its Peer says so"
        )
        assert "wire_kube exists and is not ours" in mesh.condition(B, "DataPlaneReady")["message"]
        assert mesh.dump(B) == before
        assert len(trial.lines("warning")) == 1, trial.lines()
        assert "exists and is not ours" in trial.lines("warning")[0]["error"]
    finally:
        mesh.net(B, "ip link del wire_kube")
    mesh.until(mesh.both(A, B, "Direct"), 20, "it joins as soon as the name is free")


def test_an_api_server_that_cannot_be_reached_is_tried_again_in_one_line(mesh, trial):
    for name in ("kube-apiserver", "etcd"):
        mesh.lab.control_plane.processes.kill(name)
    try:
        trial()
        mesh.until(lambda: len(trial.lines("warning")) >= 2, 20, "it says that there is no API server")
        mesh.until(lambda: mesh.phase(B) == "Waiting", 10, "it waits")
        assert len(trial.lines("warning")) <= 3, trial.lines()
        assert mesh.changes(B) == {}
    finally:
        mesh.lab.control_plane.launch()
    mesh.until(mesh.both(A, B, "Direct"), 30, "it joins when the API server is there")


def test_an_absent_crd_is_awaited_in_one_line(mesh, trial):
    key = mesh.wg(A).public_key
    kinds = ("wirekubemeshes", "wirekubepeers", "wirekubepeerslices")
    mesh.lab.kubectl("delete", "crd", *(f"{each}.wirekube.io" for each in kinds))
    try:
        trial()
        waits = "the API server does not serve this kind; waiting for its CRD"
        told = lambda: [line for line in trial.lines("warning") if line["event"] == waits]  # noqa: E731
        mesh.until(lambda: len(told()) == 2, 15, "it says that it waits for the two kinds that it watches")
        mesh.until(lambda: mesh.phase(B) == "Waiting", 10, "it waits")
        assert mesh.changes(B) == {}
        assert len(trial.lines("warning")) <= 3, trial.lines()
    finally:
        mesh.apply_config()
        mesh.create_mesh()
    mesh.until(mesh.both(A, B, "Direct"), 40, "both nodes are in the mesh again")
    assert mesh.wg(A).public_key == key
