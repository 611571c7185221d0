# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from typing import Any

import anyio

from wirekube import telemetry
from wirekube.runtime.client import Forbidden, Kind, Object
from wirekube.runtime.events import EventRecorder, SeriesCache, SpamFilter

NODE = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "uid": "u"}}


class Api:
    def __init__(self) -> None:
        self.created: list[Object] = []
        self.patched: list[Object] = []
        self.error: Exception | None = None

    async def create(self, kind: Kind, obj: Object, *, field_manager: str) -> Object:
        if self.error is not None:
            raise self.error
        self.created.append(obj)
        return obj

    async def patch(self, kind: Kind, name: str, body: Object, **_more: Any) -> Object:
        self.patched.append(body)
        return body


async def write(recorder: EventRecorder) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(recorder.run)
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()


async def test_an_event_and_its_series() -> None:
    api = Api()
    recorder = EventRecorder(api, "wirekube.io/agent", "n1", telemetry.noop())
    for _ in range(4):
        recorder.event(NODE, "Normal", "PathDirect", "Probe", "ü" * 2000)
    await write(recorder)
    (event,) = api.created
    assert event["metadata"]["namespace"] == "default"
    assert event["regarding"] == {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u"}
    assert len(event["note"].encode()) <= 1024
    assert re.fullmatch(r".*T\d\d:\d\d:\d\d\.\d{6}Z", event["eventTime"])
    assert [p["series"]["count"] for p in api.patched] == [4]


async def test_refused_and_surplus_events_are_counted() -> None:
    tele = telemetry.setup("test")
    api = Api()
    api.error = Forbidden(403, "no")
    recorder = EventRecorder(api, "c", "i", tele, clock=lambda: 0.0)
    for number in range(30):
        recorder.event(NODE, "Warning", f"R{number}", "A", "")
    await write(recorder)
    value = tele.registry.get_sample_value
    assert value("wirekube_events_dropped_total", {"reason": "spam"}) == 5
    assert value("wirekube_events_dropped_total", {"reason": "api"}) == 25
    tele.shutdown()


def test_a_full_queue_drops() -> None:
    tele = telemetry.setup("test")
    recorder = EventRecorder(Api(), "c", "i", tele)
    for number in range(1003):
        recorder.event({**NODE, "metadata": {"name": f"n{number}"}}, "Normal", "R", "A", "")
    assert tele.registry.get_sample_value("wirekube_events_dropped_total", {"reason": "queue"}) == 3
    tele.shutdown()


def test_spam_filter_refills() -> None:
    spam = SpamFilter()
    assert [spam.allow(("a",), 0) for _ in range(26)] == [True] * 25 + [False]
    assert spam.allow(("b",), 0)
    assert not spam.allow(("a",), 299)
    assert spam.allow(("a",), 301)
    spam.sweep(10**6)
    assert spam._buckets == {}


def test_series_is_written_at_two_each_half_hour_and_at_its_end() -> None:
    cache = SeriesCache()
    verdicts = [cache.observe(("k",), "e", "ns", minute * 60.0, "t")[0] for minute in range(0, 40, 5)]
    assert verdicts == ["create", "update", "count", "count", "count", "count", "count", "update"]
    cache.observe(("k",), "e", "ns", 36 * 60.0, "t")
    assert cache.sweep(37 * 60.0) == []
    assert [s.count for s in cache.sweep(43 * 60.0)] == [9]
    assert cache.observe(("k",), "e", "ns", 44 * 60.0, "t")[0] == "create"
