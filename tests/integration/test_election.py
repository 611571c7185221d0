# SPDX-License-Identifier: Apache-2.0
"""Two operators, one Lease, a real API server."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from operators import NAMESPACE, Operator, World
from ports import free_ports

from wirekube import telemetry
from wirekube.lab.wait import eventually
from wirekube.runtime.client import Client
from wirekube.runtime.controller import Controller, Result
from wirekube.runtime.elector import LEASE, Elector
from wirekube.runtime.manager import Manager
from wirekube.runtime.objects import Key

# Operators start in some seconds, on a busy machine in many.
pytestmark = pytest.mark.timeout(180)
Start = Callable[[], Operator]


@pytest.fixture
def start(world: World, tmp_path: Path) -> Iterator[Start]:
    """Start operators, which end with the test."""
    running: list[Operator] = []
    kubeconfig = tmp_path / "kubeconfig"
    world.plane.service_account_kubeconfig(NAMESPACE, "wirekube-operator", None, kubeconfig)

    def begin() -> Operator:
        running.append(Operator(str(kubeconfig), tmp_path / f"log{len(running)}", *free_ports(1)))
        return running[-1]

    yield begin
    for each in running:
        if each.process.poll() is None:
            each.end()
        assert "Traceback" not in each.log()


def pair(start: Start) -> tuple[Operator, Operator]:
    """One that leads, and one that waits."""
    leader = start()
    eventually(leader.leads, 30, "the first one leads")
    follower = start()
    eventually(follower.ready, 30, "the second one is ready")
    return leader, follower


def seconds_until(probe: Callable[[], bool], limit: float) -> float:
    begin = time.monotonic()
    eventually(probe, limit)
    return time.monotonic() - begin


def test_one_works_and_the_other_waits_until_it_ends(world: World, start: Start) -> None:
    leader, follower = pair(start)
    world.joins("el-a")
    assert (leader.leads(), follower.leads()) == (True, False)
    assert "applied a Peer" in leader.log()
    assert "applied a Peer" not in follower.log()
    before = world.lease()
    assert before["leaseDurationSeconds"] == 15
    eventually(lambda: world.lease()["renewTime"] > before["renewTime"], 5, "it is renewed")

    assert leader.end(signal.SIGTERM) == 0
    took = seconds_until(follower.leads, 5)
    assert took < 3, took
    assert world.lease()["leaseTransitions"] == before["leaseTransitions"] + 1
    assert world.lease()["acquireTime"] > before["acquireTime"]
    world.joins("el-b")

    assert follower.end(signal.SIGTERM) == 0
    assert (world.lease()["holderIdentity"], world.lease()["leaseDurationSeconds"]) == ("", 1)


def test_a_crash_is_followed_by_a_take_over(world: World, start: Start) -> None:
    leader, follower = pair(start)
    leader.end(signal.SIGKILL)
    assert world.lease()["holderIdentity"] != ""
    took = seconds_until(follower.leads, 25)
    assert 8 < took < 20, took
    world.joins("el-c")


def test_who_loses_the_lease_ends_with_one_line(world: World, start: Start) -> None:
    leader, follower = pair(start)
    lines = len(leader.log().splitlines())
    stolen = json.dumps({"spec": {"holderIdentity": "thief", "leaseDurationSeconds": 3}})
    world.kubectl("patch", "lease", "wirekube-operator", "-n", NAMESPACE, "--type=merge", "-p", stolen)
    assert leader.process.wait(10) == 1
    said = leader.log().splitlines()[lines:]
    assert said == ["wirekube-operator: lost the Lease wirekube-system/wirekube-operator: thief holds it now"]
    # A thief that does not renew is a leader that died.
    assert seconds_until(follower.leads, 25) < 20
    world.joins("el-d")


def test_an_outage_ends_the_leader_and_its_successor_waits_in_health(world: World, start: Start) -> None:
    leader = start()
    eventually(leader.leads, 30)
    world.plane.stop()
    try:
        assert leader.process.wait(20) == 1
        assert "not renewed for 10 s" in leader.log().splitlines()[-1]
        successor = start()
        eventually(lambda: successor.answer("/healthz")[0] == 200, 20, "no kubelet would kill it")
        eventually(lambda: "cannot use the API server yet" in successor.log())
        assert successor.answer("/readyz?verbose") == (
            500,
            "[-]apiserver failed: reason withheld\nreadyz check failed\n",
        )
    finally:
        world.plane.launch()
    # It has the name of the one that died, and need not wait until that one's Lease expires.
    took = seconds_until(successor.leads, 30)
    assert took < 10, took
    eventually(successor.ready, 10, "it lists anew what it watches")
    world.joins("el-e")


class Slow:
    """A reconciler that takes its time, and notes who held the Lease when it ended."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.started, self.holders = anyio.Event(), list[str]()

    async def reconcile(self, key: Key) -> Result:
        self.started.set()
        await anyio.sleep(3)
        self.holders.append((await self.client.get(LEASE, "slow", "default"))["spec"]["holderIdentity"])
        return Result()


@pytest.mark.anyio
async def test_controllers_end_before_the_lease_is_given_up(control_plane: Any) -> None:
    client = await Client.connect(kubeconfig=control_plane.kubeconfig)
    manager = Manager(telemetry.noop(), election=Elector(client, "default", "slow", telemetry.noop(), identity="first"))
    slow = Slow(client)
    controller = Controller("slow", slow, telemetry=telemetry.noop())
    manager.add_controller(controller)
    controller.enqueue(("", "x"))
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(manager.run)
            await slow.started.wait()
            manager.cancel()
    assert slow.holders == ["first"]
    assert (await client.get(LEASE, "slow", "default"))["spec"]["holderIdentity"] == ""
    await client.close()
