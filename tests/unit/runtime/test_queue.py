# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import anyio
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from wirekube import telemetry
from wirekube.runtime.queue import LOW, ItemBackoff, QueueState, WorkQueue

KEYS = st.sampled_from("abcde")


class QueueMachine(RuleBasedStateMachine):
    """Against a model: for each key when it is due, and which keys are being worked on."""

    def __init__(self) -> None:
        super().__init__()
        self.state: QueueState[str] = QueueState()
        self.now = 0.0
        self.due: dict[str, float] = {}
        self.priority: dict[str, int] = {}
        self.working: set[str] = set()

    @rule(key=KEYS, delay=st.sampled_from([0.0, 1.0, 5.0]), priority=st.sampled_from([0, LOW]))
    def add(self, key: str, delay: float, priority: int) -> None:
        self.state.add_after(key, delay, self.now, priority)
        self.due[key] = min(self.due.get(key, self.now + delay), self.now + delay)
        self.priority[key] = max(self.priority.get(key, LOW), priority)

    @rule(seconds=st.sampled_from([0.5, 2.0, 10.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def get(self) -> None:
        taken = self.state.get(self.now)
        ready = {k for k, at in self.due.items() if at <= self.now and k not in self.working}
        if taken is None:
            assert not ready
            return
        key = taken[0]
        assert key in ready
        assert self.priority[key] == max(self.priority[k] for k in ready)
        assert taken[1] == self.now - self.due.pop(key)
        del self.priority[key]
        self.working.add(key)

    @precondition(lambda self: self.working)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.working)))
        self.state.done(key, self.now)
        self.working.remove(key)

    @invariant()
    def next_time_is_never_too_late(self) -> None:
        future = [at for k, at in self.due.items() if at > self.now and k not in self.working]
        if future:
            next_time = self.state.next_time()
            assert next_time is not None
            assert next_time <= min(future)


TestQueueMachine = QueueMachine.TestCase


def test_many_adds_make_one_run_and_adds_during_it_one_more() -> None:
    state: QueueState[str] = QueueState()
    assert [state.add("a", 0) for _ in range(3)] == [True, False, False]
    assert state.get(0) == ("a", 0)
    state.add("a", 0)
    state.add("a", 0)
    assert state.get(0) is None
    state.done("a", 1)
    assert state.get(1) == ("a", 1)
    state.done("a", 1)
    assert state.get(1) is None


def test_an_add_pulls_a_delayed_key_to_now() -> None:
    state: QueueState[str] = QueueState()
    state.add_after("a", 10, 0)
    state.add("a", 1)
    assert state.get(1) == ("a", 0)
    state.done("a", 1)
    assert state.get(100) is None


def test_real_changes_overtake_the_first_list() -> None:
    state: QueueState[str] = QueueState()
    for key in "abc":
        state.add(key, 0, LOW)
    state.add("c", 1)
    assert [state.get(1) for _ in range(3)] == [("c", 1), ("a", 1), ("b", 1)]


def test_close_drains_what_is_ready_only() -> None:
    state: QueueState[str] = QueueState()
    state.add("now", 0)
    state.add_after("later", 5, 0)
    state.close(0)
    assert not state.add("new", 0)
    assert state.get(10) == ("now", 10)
    assert state.get(10) is None


@given(failures=st.integers(0, 200))
def test_backoff_doubles_to_its_limit(failures: int) -> None:
    backoff: ItemBackoff[str] = ItemBackoff()
    delays = [backoff.next("a") for _ in range(failures + 1)]
    assert delays[-1] == min(1000.0, 0.005 * 2**failures)
    backoff.forget("a")
    assert backoff.next("a") == 0.005


async def test_get_waits_for_an_add_and_ends_with_the_queue() -> None:
    queue: WorkQueue[str] = WorkQueue("q", telemetry.noop())
    got: list[str | None] = []

    async def work() -> None:
        while True:
            key = await queue.get()
            got.append(key)
            if key is None:
                return
            queue.done(key)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(work)
            await anyio.wait_all_tasks_blocked()
            queue.add("a")
            await anyio.wait_all_tasks_blocked()
            queue.add_after("b", 0.01)
            await anyio.sleep(0.05)
            queue.shut_down()
    assert got == ["a", "b", None]


def test_metrics_carry_client_go_names() -> None:
    tele = telemetry.setup("test")
    queue: WorkQueue[str] = WorkQueue("q", tele)
    queue.add("a")
    queue.add_rate_limited("b")
    labels = {"name": "q", "controller": "q"}
    assert tele.registry.get_sample_value("workqueue_adds_total", labels) == 2
    assert tele.registry.get_sample_value("workqueue_retries_total", labels) == 1
    assert tele.registry.get_sample_value("workqueue_depth", labels) in {1, 2}
    tele.shutdown()
