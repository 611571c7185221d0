# SPDX-License-Identifier: Apache-2.0
"""The search for relay processes, against worlds in which addresses lead to processes as a load balancer chooses."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wirekube.agent.relayclient.dialplan import QUICK_TRIES, SPREAD, DialPlan
from wirekube.wire.endpoint import Endpoint

ADDRESSES = tuple(Endpoint.parse(f"192.0.2.{index}:3478") for index in range(1, 17))
RTT = 0.02


class World:
    """Processes behind addresses: an address leads to a live one at random, and fails when there is none."""

    def __init__(self, seed: int, addresses: int, replicas: int, *, own: bool = False) -> None:
        self.rng = random.Random(seed)
        self.plan = DialPlan(self.rng)
        self.addresses, self.replicas, self.own = ADDRESSES[:addresses], replicas, own
        self.alive = set(range(replicas))
        self.held: dict[int, float] = {}
        self.now = 0.0
        self.dials: list[float] = []
        self.plan.configure(self.addresses, replicas, self.now, 0)

    def run(self, until: float) -> None:
        while self.now < until:
            wait = self.plan.wait(len(self.held), self.now)
            if wait is None or self.now + wait >= until:
                self.now = until
                return
            self.now += wait
            self.dial()

    def dial(self) -> None:
        assert len(self.held) < self.replicas
        self.dials.append(self.now)
        at = self.addresses.index(self.plan.dial())
        self.now += RTT
        behind = [at] if self.own else sorted(self.alive)
        process = self.rng.choice(behind) if behind else None
        if process in self.alive and process is not None:
            self.held.setdefault(process, self.now)
            self.plan.met(len(self.held), self.now)
        else:
            self.plan.failed(len(self.held), self.now)

    def kill(self, process: int) -> None:
        self.alive.discard(process)
        since = self.held.pop(process, None)
        if since is not None:
            self.plan.lost(self.now - since, len(self.held), self.now)

    def most(self, seconds: float) -> int:
        """Return the most dials in any span of so many seconds."""
        return max((sum(0 <= other - dial < seconds for other in self.dials) for dial in self.dials), default=0)


def test_one_relay_with_one_process_is_dialled_once() -> None:
    world = World(1, 1, 1)
    world.run(1000)
    assert len(world.dials) == 1


def test_each_address_is_tried_at_once_and_in_turn() -> None:
    plan = DialPlan(random.Random(1))
    plan.configure(ADDRESSES[:3], 1, 5.0, 0)
    for index in range(3):
        assert plan.wait(0, 5.0) == 0
        assert plan.dial() == ADDRESSES[index]
        assert plan.failed(0, 5.0) is (index == 2)
    wait = plan.wait(0, 5.0)
    assert wait is not None
    assert 0.1 <= wait <= 0.2
    assert plan.dial() == ADDRESSES[0]


def test_without_addresses_or_processes_to_find_there_is_nothing_to_do() -> None:
    plan = DialPlan(random.Random(1))
    assert plan.wait(0, 0) is None
    plan.configure((), 2, 0, 0)
    assert plan.wait(0, 1e9) is None


@given(st.integers(0, 1000), st.integers(1, 16))
@settings(max_examples=60)
def test_one_address_leads_to_all_processes_most_of_them_by_the_quick_tries(seed: int, replicas: int) -> None:
    world = World(seed, 1, replicas)
    world.run(QUICK_TRIES * replicas * RTT + 0.05)
    assert len(world.held) >= (replicas + 1) // 2
    world.run(1200)
    assert world.held.keys() == world.alive


@given(st.integers(0, 1000), st.integers(1, 16))
def test_an_address_for_each_process_costs_one_dial_each(seed: int, replicas: int) -> None:
    world = World(seed, replicas, replicas, own=True)
    world.run(100)
    assert len(world.dials) == len(world.held) == replicas


@pytest.mark.parametrize("addresses", [1, 2])
def test_a_process_that_comes_back_is_found_soon_and_the_survivor_is_asked_seldom(addresses: int) -> None:
    took = []
    for seed in range(50):
        world = World(seed, addresses, 2)
        world.run(100)
        world.kill(1)
        del world.dials[:]
        world.run(102)
        world.alive.add(1)
        world.run(200)
        took.append(world.held[1] - 102)
        assert world.most(1.0) <= 3 * 2  # rounds of two tries, 0.1, 0.2 and 0.4 s apart at least
    assert sorted(took)[len(took) // 2] < 4


def test_the_last_session_that_ends_is_looked_for_within_a_second_however_long_another_was_missing() -> None:
    for seed in range(20):
        world = World(seed, 1, 2)
        world.alive = {0}
        world.run(3600)
        world.alive = {0, 1}
        world.kill(0)
        begin = world.now
        world.run(begin + 1)
        assert world.held


@given(st.integers(0, 1000), st.integers(1, 3), st.integers(1, 4), st.lists(st.integers(0, 3), max_size=12))
def test_whatever_dies_and_comes_back_nothing_storms(
    seed: int, addresses: int, replicas: int, events: list[int]
) -> None:
    world = World(seed, addresses, replicas)
    world.run(60)
    del world.dials[:]
    for event in events:
        process = event % replicas
        if process in world.alive:
            world.kill(process)
        else:
            world.alive.add(process)
        world.run(world.now + 1 + world.rng.random() * 30)
    assert world.most(10.0) <= (2 + len(events)) * 13 * max(addresses, replicas)
    world.alive = set(range(replicas))
    world.run(world.now + 1200)
    assert world.held.keys() == world.alive


def test_a_balancer_that_always_chooses_the_same_is_asked_seldom_in_the_end() -> None:
    world = World(3, 1, 2)
    world.alive = {0}
    world.run(3600)
    late = [dial for dial in world.dials if dial > 120]
    assert len(late) <= 2 * 3480 / 5


def test_agents_that_are_told_at_once_of_one_more_process_do_not_look_for_it_at_once() -> None:
    first = []
    for seed in range(100):
        world = World(seed, 1, 1)
        world.run(10)
        world.alive, world.replicas = {0, 1}, 2
        world.plan.configure(world.addresses, 2, world.now, 1)
        del world.dials[:]
        world.run(60)
        first.append(world.dials[0] - 10)
        assert len(world.held) == 2
    assert max(first) <= SPREAD
    assert sum(dial < SPREAD / 2 for dial in first) < 70
