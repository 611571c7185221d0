# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from wirekube.runtime.client import Client, Kind
from wirekube.runtime.errors import Unavailable, from_response
from wirekube.runtime.reflector import Event, Pause, Reflector

THING = Kind("example.io/v1", "things", "Thing")
EXPIRED = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
Running = Callable[..., AbstractAsyncContextManager[tuple[Reflector, list[str]]]]


@pytest.fixture
def running(kubeconfig: Path) -> Running:
    """Run a reflector with short pauses; gives it and the events, as TYPE name."""

    @asynccontextmanager
    async def run(**options: Any) -> AsyncIterator[tuple[Reflector, list[str]]]:
        client = await Client.connect(kubeconfig=str(kubeconfig), timeout=5)
        options.setdefault("pause", Pause(random.Random(1), 0.02, 0.05))
        reflector = Reflector(client, THING, **options)
        seen: list[str] = []

        def note(event: Event) -> None:
            seen.append(f"{event.type} {event.key[1]}{' low' if event.low else ''}")

        reflector.add_handler(note)
        async with anyio.create_task_group() as group:
            group.start_soon(reflector.run)
            try:
                yield reflector, seen
            finally:
                group.cancel_scope.cancel()
        await client.close()

    return run


async def test_list_then_watch(stub: Any, thing: Any, until: Any, running: Running) -> None:
    stub.items("5", "a", "b")
    changes = [("MODIFIED", "a", "6"), ("ADDED", "c", "7"), ("DELETED", "b", "8"), ("BOOKMARK", "", "9")]
    stub.watch(*({"type": t, "object": thing(n, v)} for t, n, v in changes))
    async with running() as (reflector, seen):
        await until(lambda: len(stub.requests) == 3)
        assert seen == ["ADDED a low", "ADDED b low", "MODIFIED a", "ADDED c", "DELETED b"]
        assert sorted(name for _, name in reflector.store.items()) == ["a", "c"]
        assert "managedFields" not in reflector.store.items()["", "a"]["metadata"]
        assert reflector.synced.is_set()
        await until(reflector.fresh)
    assert stub.sorts() == ["LIST", "WATCH@5", "WATCH@9"]


@pytest.mark.parametrize("way", ["stream", "status"])
async def test_gone_lists_again_and_notices_deletions(stub: Any, until: Any, running: Running, way: str) -> None:
    stub.items("5", "a", "b")
    if way == "stream":
        stub.watch({"type": "ERROR", "object": EXPIRED})
    else:
        stub.watch(EXPIRED, status=410)
    stub.items("7", "b")
    async with running() as (reflector, seen):
        await until(lambda: "WATCH@7" in stub.sorts())
        assert seen[2:] == ["DELETED a", "MODIFIED b"]
        assert reflector.store.get(("", "a")) is None
    assert stub.sorts() == ["LIST", "WATCH@5", "LIST", "WATCH@7"]


async def test_gone_every_time_does_not_loop_at_full_speed(stub: Any, until: Any, running: Running) -> None:
    for _ in range(500):
        stub.items("5")
        stub.watch({"type": "ERROR", "object": EXPIRED})
    async with running(pause=Pause(random.Random(1), 5, 5)) as (reflector, _):
        await until(lambda: reflector.last_error is not None)
        await anyio.sleep(0.2)
    assert stub.sorts() == ["LIST", "WATCH@5"] * 2


async def test_throttled_watch_waits_and_keeps_its_place(stub: Any, until: Any, running: Running) -> None:
    stub.items("5", "a")
    stub.watch("slow down", status=429)
    async with running() as (reflector, _):
        await until(lambda: len(stub.requests) == 3)
        await until(reflector.fresh)
    assert stub.sorts() == ["LIST", "WATCH@5", "WATCH@5"]


async def test_broken_stream_watches_again_from_the_last_version(
    stub: Any, thing: Any, until: Any, running: Running
) -> None:
    stub.items("5", "a")
    stub.watch({"type": "ADDED", "object": thing("b", "6")}, '{"type": "ADD')
    async with running() as (_, seen):
        await until(lambda: len(stub.requests) == 3)
    assert stub.sorts() == ["LIST", "WATCH@5", "WATCH@6"]
    assert seen == ["ADDED a low", "ADDED b"]


async def test_list_filter_keeps_the_old_store(stub: Any, until: Any, running: Running) -> None:
    stub.items("5", "me", "b")
    stub.watch({"type": "ERROR", "object": EXPIRED})
    stub.items("6")
    stub.items("7", "me")
    async with running(list_filter=lambda objects: ("", "me") in objects) as (_, seen):
        await until(lambda: "WATCH@7" in stub.sorts())
    assert stub.sorts() == ["LIST", "WATCH@5", "LIST", "LIST", "WATCH@7"]
    assert seen == ["ADDED me low", "ADDED b low", "DELETED b", "MODIFIED me"]


async def test_refresh_leaves_the_watch_and_lists(stub: Any, until: Any, running: Running) -> None:
    stub.items("5", "a")
    stub.items("9", "a", "b")
    async with running() as (reflector, seen):
        await until(lambda: len(stub.requests) == 2)
        with anyio.fail_after(5):
            await reflector.refresh()
        assert seen == ["ADDED a low", "MODIFIED a", "ADDED b"]
        await until(lambda: len(stub.requests) == 4)
    assert stub.sorts() == ["LIST", "WATCH@5", "LIST", "WATCH@9"]


async def test_refresh_does_not_wait_out_a_pause(stub: Any, until: Any, running: Running) -> None:
    stub.answer(500, "no")
    stub.items("5", "a")
    async with running(pause=Pause(random.Random(1), 60, 60)) as (reflector, _):
        await until(lambda: reflector.last_error is not None)
        with anyio.fail_after(5):
            await reflector.refresh()
        assert reflector.store.get(("", "a")) is not None


async def test_unserved_kind_is_awaited(stub: Any, until: Any, running: Running) -> None:
    stub.answer(404, "404 page not found\n")
    stub.answer(429, {"kind": "Status", "code": 429, "details": {"retryAfterSeconds": 0.01}})
    stub.items("5", "a")
    async with running() as (reflector, _):
        await until(lambda: reflector.last_error is not None)
        assert not reflector.fresh()
        await until(reflector.synced.is_set)
        assert reflector.last_error is None


async def test_a_watch_that_ends_in_order_is_no_gap_and_one_that_fails_is(
    stub: Any, thing: Any, until: Any, running: Running
) -> None:
    stub.items("5", "a")
    stub.watch({"type": "MODIFIED", "object": thing("a", "6")})
    stub.watch({"type": "MODIFIED", "object": thing("a", "7")})
    stub.watch("not now", status=503)
    stub.items("8", "a")
    since: list[float | None] = []
    async with running() as (reflector, seen):
        assert reflector.following_since is None
        reflector.add_handler(lambda _event: since.append(reflector.following_since))
        await until(lambda: len(seen) == 4)
        first, *orderly, last = since
        assert first is not None
        assert orderly == [first, first]
        assert last is not None
        assert last > first


async def test_a_recreated_object_is_deleted_and_added(stub: Any, thing: Any, until: Any, running: Running) -> None:
    stub.items("5", "a")
    stub.watch({"type": "MODIFIED", "object": thing("a", "6", "another")})
    async with running() as (_, seen):
        await until(lambda: len(seen) == 3)
    assert seen == ["ADDED a low", "DELETED a", "ADDED a"]


async def test_resync_replays_without_a_request(stub: Any, until: Any, running: Running) -> None:
    stub.items("5", "a")
    async with running(resync=0.05) as (_, seen):
        await until(lambda: "SYNC a low" in seen and len(stub.requests) > 1)
    assert stub.sorts() == ["LIST", "WATCH@5"]


async def test_a_failing_handler_stops_nothing(stub: Any, until: Any, running: Running) -> None:
    stub.items("5", "a")

    def fail(event: Event) -> None:
        raise RuntimeError

    async with running() as (reflector, seen):
        reflector._handlers.insert(0, fail)
        await until(lambda: seen == ["ADDED a low"])


async def test_index(stub: Any, until: Any, running: Running) -> None:
    stub.items("5", "ax", "bx", "ay")
    async with running() as (reflector, _):
        reflector.store.add_index("last", lambda obj: [obj["metadata"]["name"][-1]])
        await until(reflector.synced.is_set)
        assert [obj["metadata"]["name"] for obj in reflector.store.by_index("last", "x")] == ["ax", "bx"]
        reflector.store.remove(("", "ax"))
        assert len(reflector.store.by_index("last", "x")) == 1


async def test_a_server_that_was_away_for_long_is_followed_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody answers for long, then a server that is just starting says 503: neither may end in a long pause."""
    waits: list[float] = []
    ended = anyio.Event()

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 20:
            ended.set()
            await anyio.sleep_forever()

    class Away:
        async def list(self, *_: Any, **__: Any) -> Any:
            raise Unavailable(0 if len(waits) < 18 else 503, "connection refused")

    monkeypatch.setattr("wirekube.runtime.reflector.anyio.sleep", sleep)
    async with anyio.create_task_group() as group:
        group.start_soon(Reflector(Away(), THING).run)  # type: ignore[arg-type]
        await ended.wait()
        group.cancel_scope.cancel()
    assert max(waits) <= 5
    assert waits[10] >= 2.5
    assert len({round(wait, 6) for wait in waits[5:]}) > 10, "many that wait must not come back in step"


@pytest.mark.parametrize("status", [401, 403, 500, 503])
async def test_a_server_that_refuses_for_long_is_followed_soon(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    waits: list[float] = []
    ended = anyio.Event()

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 40:
            ended.set()
            await anyio.sleep_forever()

    class Refusing:
        async def list(self, *_: Any, **__: Any) -> Any:
            raise from_response(status, b"no", {})

    monkeypatch.setattr("wirekube.runtime.reflector.anyio.sleep", sleep)
    async with anyio.create_task_group() as group:
        group.start_soon(Reflector(Refusing(), THING).run)  # type: ignore[arg-type]
        await ended.wait()
        group.cancel_scope.cancel()
    assert max(waits) <= 8
    assert sum(waits) > 150


async def test_outages_far_apart_do_not_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each watch is silent and well for a minute, then breaks; the pause after it is that of a first failure."""
    now, waits = [0.0], list[float]()
    ended = anyio.Event()

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 10:
            ended.set()
            await anyio.sleep_forever()

    class Breaking:
        async def list(self, *_: Any, **__: Any) -> Any:
            return [], "1"

        async def watch(self, *_: Any, on_open: Callable[[], None], **__: Any) -> AsyncIterator[Any]:
            on_open()
            now[0] += 60
            raise Unavailable(0, "connection reset")
            yield

    monkeypatch.setattr("wirekube.runtime.reflector.anyio.sleep", sleep)
    monkeypatch.setattr("wirekube.runtime.reflector.time.monotonic", lambda: now[0])
    async with anyio.create_task_group() as group:
        group.start_soon(Reflector(Breaking(), THING).run)  # type: ignore[arg-type]
        await ended.wait()
        group.cancel_scope.cancel()
    assert max(waits) <= 1.6


def test_pause_grows_to_its_limit() -> None:
    pause = Pause(random.Random(2))
    waits = [pause.next() for _ in range(8)]
    assert all(0.8 * 2**n <= wait <= 1.6 * 2**n for n, wait in enumerate(waits[:3]))
    assert 4 <= waits[-1] <= 8
    pause.reset()
    assert pause.next() <= 1.6
