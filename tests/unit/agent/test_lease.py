# SPDX-License-Identifier: Apache-2.0
"""When an agent renews its Lease, and when it must not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from typing import Any

import pytest

from wirekube.agent.lease import STUCK_SECONDS, LeaseKeeper, Turns, lease_of, retry_after
from wirekube.runtime.errors import Unavailable

EVERY = 0.05


class Server:
    """Takes Leases, refuses them, or has nobody for them."""

    def __init__(self) -> None:
        self.taken: list[tuple[float, Any]] = []
        self.asked = self.looks = 0
        self.member, self.failures, self.is_stuck = True, 0, False

    async def renew(self, lease: Any) -> bool:
        self.asked += 1
        if self.failures:
            self.failures -= 1
            raise Unavailable(0, "connection refused")
        if self.member:
            self.taken.append((asyncio.get_running_loop().time(), lease))
        return self.member

    def stuck(self) -> bool:
        self.looks += 1
        return self.is_stuck

    @asynccontextmanager
    async def kept(self, noise: float = 0.5) -> Any:
        keeper = LeaseKeeper("n1", self.renew, self.stuck, every=EVERY, noise=lambda: noise)
        task = asyncio.create_task(keeper.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])


async def until(probe: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not probe():  # noqa: ASYNC110 - one poll for all conditions
            await asyncio.sleep(0.005)


@pytest.fixture
def server() -> Server:
    return Server()


def test_the_lease_as_the_api_server_takes_it() -> None:
    lease = lease_of("n1", datetime(2026, 1, 2, 3, 4, 5, 6, timezone(timedelta(hours=1))))
    assert lease == {
        "metadata": {"name": "n1", "namespace": "wirekube-node-lease"},
        "spec": {"holderIdentity": "n1", "leaseDurationSeconds": 50, "renewTime": "2026-01-02T02:04:05.000006Z"},
    }
    assert lease_of("n1", datetime(2026, 1, 2, tzinfo=UTC))["spec"]["renewTime"] == "2026-01-02T00:00:00.000000Z"


async def test_it_is_renewed_at_once_and_then_again_and_again(server: Server) -> None:
    async with server.kept():
        await until(lambda: len(server.taken) >= 4)
    times = [at for at, _ in server.taken]
    assert times[1] - times[0] >= EVERY * 0.5
    assert all(later - earlier >= EVERY * 0.9 for earlier, later in pairwise(times[1:]))
    renewals = [lease["spec"]["renewTime"] for _, lease in server.taken]
    assert sorted(set(renewals)) == renewals


async def test_a_failure_is_tried_again_soon(server: Server) -> None:
    server.failures = 1
    async with server.kept():
        await until(lambda: server.taken)
    assert server.asked >= 2


def test_retries_come_after_a_second_and_at_most_five_and_not_all_at_once() -> None:
    assert [retry_after(n, 0.0) for n in (1, 2, 3, 4, 50)] == [1, 2, 4, 5, 5]
    assert retry_after(4, 1.0) == 3.75


@pytest.mark.parametrize("why", ["no member", "stuck"])
async def test_who_is_no_member_or_stuck_renews_nothing_until_that_ends(server: Server, why: str) -> None:
    server.member, server.is_stuck = why != "no member", why == "stuck"
    async with server.kept():
        await until(lambda: server.looks == 2)
        assert server.taken == []
        server.member, server.is_stuck = True, False
        await until(lambda: server.taken)


def test_a_turn_that_does_not_end_is_noticed() -> None:
    now = 0.0
    turns = Turns(lambda: now)
    assert not turns.stuck()
    with turns:
        now = STUCK_SECONDS - 0.1
        assert not turns.stuck()
        now = STUCK_SECONDS
        assert turns.stuck()
    assert not turns.stuck()
    with pytest.raises(ValueError, match="boom"), turns:
        raise ValueError("boom")
    assert not turns.stuck()
