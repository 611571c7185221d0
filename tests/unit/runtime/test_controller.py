# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from wirekube import telemetry
from wirekube.runtime.client import Forbidden, Key, Throttled, Unauthorized, Unavailable
from wirekube.runtime.controller import Controller, Result, TerminalError
from wirekube.runtime.manager import Manager
from wirekube.runtime.queue import WorkQueue

A: Key = ("", "a")


class Script:
    """Gives the scripted outcomes in turn, then success."""

    def __init__(self, *outcomes: Result | Exception) -> None:
        self.outcomes = list(outcomes)
        self.runs: list[Key] = []

    async def reconcile(self, key: Key) -> Result:
        self.runs.append(key)
        outcome = self.outcomes.pop(0) if self.outcomes else Result()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


async def run_once(script: Script, spans: InMemorySpanExporter | None = None) -> tuple[Controller, telemetry.Telemetry]:
    tele = telemetry.setup("test", span_exporter=spans)
    controller = Controller("c", script, telemetry=tele)
    controller.enqueue(A)
    async with anyio.create_task_group() as group:
        group.start_soon(controller.run)
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    return controller, tele


@pytest.mark.parametrize(
    ("outcome", "result", "again"),
    [
        (Result(), "success", False),
        (Result(after=1000), "requeue_after", True),
        (RuntimeError("broken"), "error", True),
        (TerminalError("hopeless"), "error", False),
    ],
)
async def test_outcomes(outcome: Result | Exception, result: str, again: bool) -> None:
    script = Script(outcome, Result(after=1000)) if isinstance(outcome, RuntimeError) else Script(outcome)
    controller, tele = await run_once(script)
    value = tele.registry.get_sample_value
    terminal = value("controller_runtime_terminal_reconcile_errors_total", {"controller": "c"})
    assert value("controller_runtime_reconcile_total", {"controller": "c", "result": result}) == 1
    assert terminal == isinstance(outcome, TerminalError)
    assert (controller.queue.state.next_time() is not None or len(script.runs) > 1) == again
    assert controller.queue.state.processing == {}
    tele.shutdown()


async def test_failures_back_off_and_success_forgets() -> None:
    script = Script(RuntimeError(), RuntimeError())
    controller, tele = await run_once(script)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(controller.run)
            while len(script.runs) < 3:  # noqa: ASYNC110 - the runs are a list
                await anyio.sleep(0.001)
            controller.stop()
    assert script.runs == [A] * 3
    assert controller.queue.backoff.failures(A) == 0
    tele.shutdown()


@pytest.mark.parametrize("error", [Unavailable(503, "no"), Forbidden(403, "no"), Unauthorized(401, "no")])
async def test_trouble_of_the_server_does_not_add_up_to_a_long_pause(error: Exception) -> None:
    script = Script(error, Result(after=1000))
    controller = Controller("c", script, telemetry=telemetry.noop())
    for _ in range(30):
        controller.queue.backoff.next(A)
    controller.enqueue(A)
    async with anyio.create_task_group() as group:
        group.start_soon(controller.run)
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    due = controller.queue.state.next_time()
    assert due is not None
    assert 1 < due - controller.queue._clock() <= 8


def test_many_keys_that_fail_are_spread() -> None:
    now = 0.0
    queue: WorkQueue[int] = WorkQueue("q", telemetry.noop(), clock=lambda: now)
    for number in range(1000):
        queue.add_rate_limited(number, at_most=8)
    for _ in range(12):
        queue.add_rate_limited(0, at_most=8)
    due = sorted(entry.ready_at for entry in queue.state._entries.values())
    assert due[99] < 1
    assert due[500] > 30
    now = 200.0
    assert queue.add_rate_limited(1, at_most=8) < 1


async def test_a_throttled_run_waits_as_asked() -> None:
    script = Script(Throttled(429, "slow down", retry_after=500))
    controller, tele = await run_once(script)
    assert len(script.runs) == 1
    assert controller.queue.state.get(controller.queue._clock() + 499) is None
    assert controller.queue.state.get(controller.queue._clock() + 501) is not None
    tele.shutdown()


async def test_span_is_a_root_with_links_to_its_causes() -> None:
    spans = InMemorySpanExporter()
    tele = telemetry.setup("test", span_exporter=spans)
    controller = Controller("c", Script(ValueError("wrong"), Result(after=1000)), telemetry=tele)
    with tele.tracer.start_as_current_span("cause") as cause:
        controller.enqueue(A, cause.get_span_context())
        async with anyio.create_task_group() as group:
            group.start_soon(controller.run)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
    span = next(s for s in spans.get_finished_spans() if s.name == "reconcile c")
    assert span.parent is None
    assert [link.context for link in span.links] == [cause.get_span_context()]
    assert span.attributes is not None
    assert span.attributes["result"] == "error"
    assert not span.status.is_ok
    tele.shutdown()


class Forever:
    def __init__(self) -> None:
        self.cancelled = False

    async def run(self) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            self.cancelled = True


class Failing:
    async def run(self) -> None:
        raise LookupError("lost")


async def managed(act: Callable[[Manager], None]) -> tuple[Forever, Script]:
    script, forever = Script(), Forever()
    manager = Manager(telemetry.noop())
    controller = Controller("c", script, telemetry=telemetry.noop())
    manager.add_controller(controller)
    manager.add("forever", forever)
    controller.enqueue(A)
    act(manager)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(manager.run)
            await anyio.wait_all_tasks_blocked()
            manager.cancel()
    return forever, script


async def test_manager_ends_in_order() -> None:
    forever, script = await managed(lambda manager: None)
    assert forever.cancelled
    assert script.runs == [A]


async def test_manager_raises_what_failed_after_stopping_the_rest() -> None:
    manager, forever = Manager(telemetry.noop()), Forever()
    manager.add("forever", forever)
    manager.add("failing", Failing())
    with anyio.fail_after(5), pytest.raises(LookupError, match="lost"):
        await manager.run()
    assert forever.cancelled


async def test_manager_ends_on_sigterm() -> None:
    import os
    import signal

    manager, forever = Manager(telemetry.noop()), Forever()
    manager.add("forever", forever)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(manager.run)
            await anyio.wait_all_tasks_blocked()
            os.kill(os.getpid(), signal.SIGTERM)
    assert forever.cancelled
