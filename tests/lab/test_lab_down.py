# SPDX-License-Identifier: Apache-2.0
"""`down` leaves the machine as it was, whatever happened to `up`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from wirekube.lab import netns, wait
from wirekube.lab.controlplane import find_or_build
from wirekube.lab.down import down
from wirekube.lab.lab import Lab
from wirekube.lab.processes import ProcessError, start_time
from wirekube.lab.state import ENV_BASE
from wirekube.lab.up import up

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for network namespaces"),
    pytest.mark.timeout(180),
]


@dataclass
class World:
    """A lab of this test's own, what it starts, and what the machine looked like before."""

    lab: Lab
    base: Path
    mounts: list[str]
    links: list[str]

    def running(self) -> dict[int, str]:
        """Processes in the lab's namespaces, with their start times."""
        pids = netns.pids(netns.names(self.lab.name))
        return {pid: started for pid in pids if (started := start_time(pid))}

    def assert_as_before(self, ran: dict[int, str]) -> None:
        assert netns.names(self.lab.name) == []
        assert [pid for pid, started in ran.items() if start_time(pid) == started] == []
        assert not self.base.exists()
        assert _mounts() == self.mounts
        assert wait.until(lambda: _links() == self.links, 10), "a link is left"  # the kernel removes them a bit later


def _mounts() -> list[str]:
    """Mounts of this machine, those aside that any other user of namespaces makes and removes."""
    points = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return sorted(point for point in points if not point.startswith(str(netns.RUN_NETNS)))


def _links() -> list[str]:
    return sorted(path.name for path in Path("/sys/class/net").iterdir())


@pytest.fixture
def world(tmp_path, monkeypatch):
    base = tmp_path / "labs"
    monkeypatch.setenv(ENV_BASE, str(base))
    world = World(Lab(f"t{os.getpid()}-down"), base, _mounts(), _links())
    yield world
    down(Lab(world.lab.name))


@pytest.fixture(autouse=True)
def heed_interrupts():
    """A shell starts what it runs in the background with SIGINT ignored, and children inherit that; a terminal does not."""
    kept = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, kept)


def begin(world, *words):
    """Run `lab up` as a person does; returns the process, whose progress is read from stderr."""
    argv = [sys.executable, "-m", "wirekube.cli.main", "lab", "up", "pair", "-n", world.lab.name, *words]
    return subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True)


def read_until(process, word):
    for line in process.stderr:
        if word in line:
            return
    pytest.fail(f"up ended before it said {word!r}")


@pytest.mark.parametrize("stage", ["network", "STUN", "API server", "Nodes, tokens", "agents: started"])
def test_up_that_was_killed_is_undone(world, stage):
    with begin(world) as process:
        read_until(process, stage)
        process.kill()
        process.wait()
    ran = world.running()
    assert netns.names(world.lab.name)
    down(world.lab)
    world.assert_as_before(ran)


def test_up_that_is_interrupted_undoes_itself(world):
    with begin(world) as process:
        read_until(process, "API server")
        ran = world.running()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) != 0
        assert "Traceback" not in process.stderr.read()
    world.assert_as_before(ran)


def test_up_that_fails_undoes_itself(world, tmp_path, monkeypatch):
    assets = tmp_path / "assets"
    assets.mkdir()
    for name in ("etcd", "kubectl"):
        (assets / name).symlink_to(find_or_build() / name)
    (assets / "kube-apiserver").write_text("#!/bin/sh\necho it is too old >&2\nexit 1\n")
    (assets / "kube-apiserver").chmod(0o755)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    with pytest.raises(ProcessError, match="kube-apiserver died: it is too old"):
        up(world.lab, "pair")
    world.assert_as_before({})


def test_everything_is_found_again_whatever_was_killed_and_nothing_from_inside(world):
    up(world.lab, "pair")
    wireguard = [world.lab.root(node).run / "wireguard" / "wire_kube.sock" for node in world.lab.nodes]
    assert wait.until(lambda: all(path.exists() for path in wireguard), 60)
    ran = world.running()
    command = (sys.executable, "-m", "wirekube.cli.main", "lab", "down", world.lab.name)
    inside = world.lab.exec("home-a", *command, check=False)
    assert inside.returncode == 1
    assert "this command runs inside a lab; run it outside" in inside.stderr
    for name in ("agent-home-a", "operator", "relay", "stun"):
        world.lab.processes.kill(name)
    (world.lab.folder.path / "lab.json").unlink()
    down(Lab(world.lab.name))
    world.assert_as_before(ran)


def test_two_labs_stand_side_by_side(world):
    other = Lab(f"{world.lab.name}-2")
    try:
        up(world.lab, "pair")
        up(other, "pair")
        both = [(lab, lab.exec("home-a", "ip", "-o", "addr", "show", "eth0").stdout) for lab in (world.lab, other)]
        assert both[0][1].count("192.168.") == both[1][1].count("192.168.") == 1
        down(world.lab)
        assert netns.names(world.lab.name) == []
        assert other.kubectl("get", "--raw", "/readyz") == "ok"
    finally:
        down(other)
    world.assert_as_before({})
