# SPDX-License-Identifier: Apache-2.0
"""When a node believes that it is out of the mesh: scripted answers to its two questions."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from wirekube.agent import peersource
from wirekube.agent.peersource import WatchedSlices
from wirekube.runtime.errors import NotFound, Unavailable
from wirekube.telemetry import noop


def gone(*, whole_resource: bool = False) -> NotFound:
    error = NotFound(404, "not found")
    error.whole_resource = whole_resource
    return error


class Scripted:
    """Answers the questions about our own Peer; the last list is repeated for ever."""

    def __init__(self, lists: list[set[str]], get: Exception | None) -> None:
        self.lists, self._get, self.asked = lists, get, 0

    async def get(self, *_: Any) -> Any:
        if self._get is not None:
            raise self._get

    async def list(self, *_: Any) -> Any:
        self.asked += 1
        names = self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]
        return [{"metadata": {"name": "peers-1"}, "peers": [{"name": name} for name in sorted(names)]}], "1"


async def outcome(client: Scripted, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Return whether a node leaves whose Peer, and those of a and b, are known and not seen any more."""
    monkeypatch.setattr(peersource, "ASK_SECONDS", 0.001)
    changed = asyncio.Event()
    source = WatchedSlices("me", None, (None,), noop(), changed.set)
    source._members.observe({name: {"metadata": {"name": name}} for name in ("me", "a", "b")}, 0.0)
    source._members.observe({}, 1.0)
    source._absent.set()
    task = asyncio.create_task(source._ask_about_own(client))  # type: ignore[arg-type]
    try:
        await asyncio.wait_for(changed.wait(), 0.3)
    except TimeoutError:
        return False
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return source.snapshot().left


async def test_out_is_who_is_missing_twice_while_the_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Scripted([{"a", "b"}], gone())
    assert await outcome(client, monkeypatch)
    assert client.asked == 2


async def test_others_may_join_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await outcome(Scripted([{"a", "b"}, {"a", "b", "c"}], gone()), monkeypatch)


async def test_while_the_others_vanish_too_nobody_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not await outcome(Scripted([{"a", "b"}, {"b"}, set()], gone()), monkeypatch)


@pytest.mark.parametrize("get", [None, gone(whole_resource=True), Unavailable(503, "not ready")])
async def test_no_answer_but_not_found_of_the_object_makes_a_node_leave(
    monkeypatch: pytest.MonkeyPatch, get: Exception | None
) -> None:
    assert not await outcome(Scripted([{"a", "b"}], get), monkeypatch)
