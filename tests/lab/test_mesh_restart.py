# SPDX-License-Identifier: Apache-2.0
"""What a restart, an upgrade, a crash, a second agent and a clean-up do to a node of a real mesh."""

from __future__ import annotations

import pytest

from wirekube.lab import wait

TOPOLOGY = "pair"
A, B = "home-a", "home-b"
RELAYED, NOISE = 3.0, 2.0  # seconds: the design's bound, and what a busy machine may add

pytestmark = pytest.mark.timeout(120)


def running(mesh):
    return lambda: mesh.phase(A) == "Running" and mesh.both(A, B, "Direct")()


@pytest.mark.parametrize("way", ["kill -9", "SIGTERM, cleanup --stale"])
def test_a_restart_loses_no_packet_of_a_direct_pair_and_moves_nothing(mesh, way):
    before, process = mesh.wg(A), mesh.wireguard_pids(A)
    other = mesh.wg(B)
    assert len(process) == 1
    with mesh.pinging((A, B), (B, A)) as pings:
        if way == "kill -9":
            mesh.lab.kill_agent(A)
        else:
            mesh.lab.stop_agent(A)
            assert (mesh.lab.run_dir(A) / "handover.json").exists()
            assert "it stays" in mesh.cleanup(A, "--stale")
        pings.more(50)
        mesh.lab.start_agent(A)
        took = mesh.until(running(mesh), 15, "the new agent runs and both sides are direct")
        pings.more(100)
    print(f"MEASURED {way}: {pings.lost()} of {pings.sent} pings lost, gap {pings.gap():.3f} s, ready in {took:.1f} s")
    pings.assert_none_lost()
    assert mesh.wg(A).identity == before.identity
    assert mesh.wg(B).identity == other.identity
    assert mesh.wireguard_pids(A) == process
    assert not (mesh.lab.run_dir(A) / "handover.json").exists(), "the note is for one agent only"


@pytest.fixture
def relayed(mesh):
    """The pair is relayed, and direct again at the end."""

    def mode(name):
        mesh.lab.kubectl(
            "patch", "wirekubemesh", "default", "--type=merge", "-p", f'{{"spec":{{"relay":{{"mode":"{name}"}}}}}}'
        )

    mode("always")
    mesh.until(mesh.both(A, B, "Relayed"), 15, "the pair is relayed")
    yield mesh
    mode("auto")
    mesh.until(running(mesh), 15, "the pair is direct again")


def test_an_upgrade_pauses_a_relayed_pair_for_three_seconds_at_most(relayed, measured):
    mesh, before = relayed, relayed.wg(A).identity
    with mesh.pinging((A, B), (B, A)) as pings:
        mesh.lab.stop_agent(A)
        assert "it stays" in mesh.cleanup(A, "--stale")
        mesh.lab.start_agent(A)
        mesh.until(lambda: mesh.phase(A) == "Running" and mesh.both(A, B, "Relayed")(), 15, "the new agent relays")
        pings.more(100)
    measured("an upgrade of the agent, relayed pair: longest gap", pings.gap(), "3 s")
    assert pings.gap() < RELAYED + NOISE
    assert mesh.wg(A).identity == before


def test_a_second_agent_waits_in_one_line_and_takes_over_when_the_first_dies(mesh, measured):
    second = "agent-second"
    argv, env = mesh.lab.command(A, [])
    mesh.lab.processes.start(second, [*argv, *mesh.agent], env)
    mesh.until(lambda: "another agent" in mesh.log(second), 15, "the second agent says that it waits")
    identity = mesh.wg(A).identity
    try:
        with mesh.pinging((A, B)) as pings:
            pings.more(50)
            assert len(mesh.log(second).splitlines()) == 1
            mesh.lab.kill_agent(A)
            took = mesh.until(lambda: mesh.answer(A) is not None, 5, "the second agent answers")
            mesh.until(running(mesh), 10, "the second agent runs")
            pings.more(50)
        measured("take-over by a second agent", took, "1 s")
        assert took < 2.5
        pings.assert_none_lost()
        assert mesh.wg(A).identity == identity
    finally:
        mesh.lab.processes.stop(second)
        mesh.lab.start_agent(A)
        mesh.until(running(mesh), 15, "the usual agent runs again")


def test_after_a_crash_cleanup_stale_leaves_the_host_as_it_was_and_the_node_joins_again(mesh):
    key = mesh.wg(A).public_key
    mesh.lab.kill_agent(A)
    assert mesh.changes(A), "the mesh is on this host"
    assert "clean" in mesh.cleanup(A, "--stale")
    assert mesh.changes(A) == {}
    assert wait.until(lambda: not mesh.wireguard_pids(A), 2.0)
    assert mesh.cleanup(A, "--stale"), "a second time is no error"
    mesh.lab.start_agent(A)
    mesh.until(running(mesh), 20, "the node joins again")
    assert mesh.wg(A).public_key == key
    with mesh.pinging((A, B), (B, A)) as pings:
        pings.more(25)


def test_cleanup_is_refused_while_an_agent_runs(mesh):
    done = mesh.lab.exec(A, *mesh.agent, "cleanup", check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["wirekube-agent: an agent is running on this node; stop it first"]
    assert "nothing is stale" in mesh.cleanup(A, "--stale")
    assert mesh.has_interface(A)


def test_cleanup_leaves_nothing_and_the_node_joins_with_a_new_key(mesh):
    key = mesh.wg(A).public_key
    mesh.lab.stop_agent(A)
    assert mesh.changes(A), "a clean stop leaves the tunnels"
    assert "key is gone" in mesh.cleanup(A)
    assert mesh.changes(A) == {}
    for folder in (mesh.lab.run_dir(A), mesh.lab.root(A).state, mesh.lab.root(A).run / "wireguard"):
        assert not folder.exists() or list(folder.iterdir()) == []
    mesh.lab.start_agent(A)
    mesh.until(lambda: running(mesh)() and mesh.has_interface(A), 20, "the node joins again")
    assert mesh.wg(A).public_key != key
    with mesh.pinging((A, B), (B, A)) as pings:
        pings.more(25)
