# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import copy
import random
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wirekube import telemetry
from wirekube.runtime.election import Candidate, Timing, record_of, spec_of
from wirekube.runtime.elector import Elector, LeadershipLost
from wirekube.runtime.errors import AlreadyExists, ApiError, Conflict, NotFound, Unavailable
from wirekube.runtime.objects import Kind, Object

WALL = "2026-01-02T03:04:05.000006Z"
LATER = "2026-01-02T03:04:25.000006Z"


def lease(holder: str, version: str = "1", *, seconds: int = 15, transitions: int = 0, at: str = WALL) -> Object:
    spec = {"holderIdentity": holder, "leaseDurationSeconds": seconds, "leaseTransitions": transitions}
    return {"metadata": {"resourceVersion": version}, "spec": spec | {"acquireTime": WALL, "renewTime": at}}


def written(candidate: Candidate, now: float, wall: str = WALL) -> dict[str, Any] | None:
    claim = candidate.claim(now, wall)
    return None if claim is None else {"version": claim.version, **spec_of(claim.record)}


def test_an_absent_lease_is_made() -> None:
    candidate = Candidate("a")
    candidate.saw(None, 0)
    assert written(candidate, 0) == {
        "version": None,
        "holderIdentity": "a",
        "leaseDurationSeconds": 15,
        "leaseTransitions": 0,
        "acquireTime": WALL,
        "renewTime": WALL,
    }


def test_anothers_lease_is_taken_when_we_saw_no_change_for_its_duration() -> None:
    candidate = Candidate("a")
    candidate.saw(lease("b", "1"), 100)
    candidate.saw(lease("b", "2", at=LATER), 110)
    candidate.saw(lease("b", "3", at=LATER), 120)  # only an annotation, say
    assert candidate.claim(124.9, WALL) is None
    taken = written(candidate, 125, LATER)
    assert taken is not None
    assert (taken["version"], taken["holderIdentity"], taken["leaseTransitions"]) == ("3", "a", 1)
    assert (taken["acquireTime"], taken["renewTime"]) == (LATER, LATER)


def test_its_times_are_not_believed() -> None:
    candidate = Candidate("a")
    candidate.saw(lease("b", at="1970-01-01T00:00:00.000000Z"), 100)
    assert candidate.claim(101, WALL) is None


def test_a_released_lease_is_taken_at_once() -> None:
    candidate = Candidate("a")
    candidate.saw(lease("", seconds=1, transitions=4), 100)
    taken = written(candidate, 100)
    assert taken is not None
    assert (taken["leaseTransitions"], taken["leaseDurationSeconds"]) == (5, 15)


def test_a_lease_that_is_deleted_under_its_holder_is_not_free() -> None:
    candidate = Candidate("a")
    candidate.saw(lease("b"), 100)
    candidate.saw(None, 101)
    assert candidate.claim(114, WALL) is None
    assert written(candidate, 115) is not None


def test_leading_lasts_from_sending_and_ends_with_what_is_seen() -> None:
    candidate = Candidate("a")
    candidate.saw(None, 0)
    candidate.confirmed(lease("a"), sent=1, now=4)
    assert candidate.leads(10.9)
    assert not candidate.leads(11)
    renewal = written(candidate, 5, LATER)
    assert renewal is not None
    assert (renewal["acquireTime"], renewal["renewTime"], renewal["leaseTransitions"]) == (WALL, LATER, 0)
    candidate.saw(lease("thief", "2"), 6)
    assert not candidate.leads(6)


def test_resigning_frees_only_what_is_ours() -> None:
    candidate = Candidate("a")
    candidate.confirmed(lease("a", "7", transitions=3), sent=0, now=0)
    claim = candidate.resign(LATER)
    assert claim is not None
    assert (claim.version, spec_of(claim.record)) == (
        "7",
        {
            "holderIdentity": "",
            "leaseDurationSeconds": 1,
            "leaseTransitions": 3,
            "acquireTime": LATER,
            "renewTime": LATER,
        },
    )
    assert not candidate.leads(0)
    candidate.saw(lease("b"), 1)
    assert candidate.resign(LATER) is None


@pytest.mark.parametrize("spec", [None, [], {}, {"holderIdentity": 5, "leaseDurationSeconds": "x", "renewTime": {}}])
def test_a_malformed_lease_is_an_empty_one(spec: Any) -> None:
    assert record_of({"spec": spec}).holder == ""


def test_a_timing_that_allows_two_leaders_is_refused() -> None:
    with pytest.raises(ValueError, match="outlast"):
        Timing(lease=10, renew=10)


# The real Elector, in a world whose time jumps from one event to the next, with a server that answers late or never.


class JumpingLoop(asyncio.SelectorEventLoop):
    """Time stands still while something can run, and then jumps to the next timer; `look` is called in between."""

    def __init__(self, look: Callable[[], None]) -> None:
        selector = selectors.SelectSelector()
        super().__init__(selector)
        self._seconds = 0.0
        plain = selector.select

        def select(timeout: float | None = None) -> Any:
            look()
            self._seconds += max(timeout or 0.0, 1e-6)  # to turn takes time, or a last moment would never pass
            return plain(0)

        selector.select = select  # type: ignore[method-assign]

    def time(self) -> float:
        return self._seconds


def run(main: Callable[[], Coroutine[Any, Any, None]], look: Callable[[], None] = lambda: None) -> None:
    with asyncio.Runner(loop_factory=lambda: JumpingLoop(look)) as runner:
        runner.run(main())


class Server:
    """One Lease with optimistic locking."""

    def __init__(self, lease: Object | None = None) -> None:
        self.lease = lease
        self._version = 1

    def get(self) -> Object:
        if self.lease is None:
            raise NotFound(404, "no Lease")
        return copy.deepcopy(self.lease)

    def create(self, spec: dict[str, Any]) -> Object:
        if self.lease is not None:
            raise AlreadyExists(409, "there is one")
        return self.put(spec)

    def patch(self, version: str, spec: dict[str, Any]) -> Object:
        if self.get()["metadata"]["resourceVersion"] != version:
            raise Conflict(409, "changed")
        return self.put(spec)

    def put(self, spec: dict[str, Any]) -> Object:
        self._version += 1
        self.lease = {"metadata": {"resourceVersion": str(self._version)}, "spec": dict(spec)}
        return copy.deepcopy(self.lease)


class Link:
    """The way of one candidate to the server: a request takes a while to come and its answer to go; either gets lost.

    Args:
        server: at its end.
        rng: draws the delays and the losses.
        slow: how much of all takes up to 10 s.
        lossy: how much of all gets lost.
    """

    def __init__(self, server: Server, rng: random.Random, slow: float = 0.0, lossy: float = 0.0) -> None:
        self.requests = 0
        self.down_until = 0.0
        self.server = server
        self._rng, self._slow, self._lossy = rng, slow, lossy
        self._under_way: set[asyncio.Task[Object]] = set()

    async def get(self, kind: Kind, name: str, namespace: str | None = None) -> Object:
        return await self._call(self.server.get)

    async def create(self, kind: Kind, obj: Object, *, field_manager: str) -> Object:
        return await self._call(lambda: self.server.create(obj["spec"]))

    async def patch(
        self, kind: Kind, name: str, body: Object, *, namespace: str | None = None, field_manager: str
    ) -> Object:
        return await self._call(lambda: self.server.patch(body["metadata"]["resourceVersion"], body["spec"]))

    async def _call(self, act: Callable[[], Object]) -> Object:
        self.requests += 1
        # Who gives up waiting does not call the request back.
        task = asyncio.create_task(self._served(act))
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Object]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()

    async def _served(self, act: Callable[[], Object]) -> Object:
        await self._pass()
        answer = act()
        await self._pass()
        return answer

    async def _pass(self) -> None:
        await asyncio.sleep(self._rng.uniform(0, 10 if self._rng.random() < self._slow else 0.05))
        if asyncio.get_running_loop().time() < self.down_until or self._rng.random() < self._lossy:
            raise Unavailable(0, "lost on its way")


class Process:
    """One candidate with a clock of its own; it acts from its election to its end."""

    def __init__(self, link: Link, name: str, rate: float = 1.0, offset: float = 0.0) -> None:
        loop = asyncio.get_running_loop()
        self.elector = Elector(
            link,
            "ns",
            "lease",
            telemetry.noop(),
            identity=name,
            clock=lambda: offset + rate * loop.time(),
            rng=random.Random(name),
        )
        self.task = asyncio.create_task(self.elector.run())

    @property
    def acts(self) -> bool:
        return self.elector.elected.is_set() and not self.task.done()

    async def kill(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    slow=st.sampled_from([0.0, 0.1, 0.5]),
    lossy=st.sampled_from([0.0, 0.1, 0.3]),
    rates=st.tuples(*[st.floats(0.9, 1.1)] * 2),
    offset=st.floats(-1e6, 1e6),
)
def test_never_two_leaders(seed: int, slow: float, lossy: float, rates: tuple[float, float], offset: float) -> None:
    rng = random.Random(seed)
    alive: list[Process] = []

    most = 0

    def count() -> None:
        nonlocal most
        most = max(most, sum(process.acts for process in alive))

    async def main() -> None:
        server = Server()
        links = [Link(server, rng, slow, lossy) for _ in rates]

        def start(index: int, number: int) -> Process:
            name = f"{index}-{number if rng.random() < 0.5 else 0}"  # or one inherits the name of the dead
            return Process(links[index], name, rates[index], offset * index)

        alive.extend(start(index, 0) for index in range(2))
        for number in range(1, 30):
            await asyncio.sleep(rng.uniform(0, 20))
            leader = next((index for index in range(2) if alive[index].acts), rng.randrange(2))
            if rng.random() < 0.6:
                links[leader].down_until = asyncio.get_running_loop().time() + rng.uniform(0, 40)
            else:
                await alive[leader].kill()
                if rng.random() < 0.5:
                    await alive[leader].elector.release()
            for index in range(2):
                if alive[index].task.done():
                    alive[index] = start(index, number)
        for process in alive:
            await process.kill()

    run(main, count)
    assert most <= 1


def link(server: Server) -> Link:
    return Link(server, random.Random(1))


def test_one_leads_the_other_follows_at_once_after_a_release_and_in_time_after_a_crash() -> None:
    async def main() -> None:
        server = Server()
        loop = asyncio.get_running_loop()
        first = Process(link(server), "a")
        await first.elector.elected.wait()
        second = Process(link(server), "b")
        await asyncio.sleep(60)
        assert first.acts
        assert not second.elector.elected.is_set()
        await first.kill()
        await first.elector.release()
        begin = loop.time()
        await second.elector.elected.wait()
        assert loop.time() - begin < 2.2
        third = Process(link(server), "c")
        await asyncio.sleep(10)
        begin = loop.time()
        await second.kill()
        await third.elector.elected.wait()
        assert 10 < loop.time() - begin < 18
        assert server.lease is not None
        assert server.lease["spec"]["leaseTransitions"] == 2
        await third.kill()

    run(main)


def test_who_has_the_name_of_the_dead_need_not_wait() -> None:
    async def main() -> None:
        server = Server()
        first = Process(link(server), "a")
        await first.elector.elected.wait()
        await first.kill()
        begin = asyncio.get_running_loop().time()
        second = Process(link(server), "a")
        await second.elector.elected.wait()
        assert asyncio.get_running_loop().time() - begin < 1
        await second.kill()

    run(main)


def test_a_silent_server_ends_leadership_after_the_deadline() -> None:
    async def main() -> None:
        server = Server()
        way = link(server)
        process = Process(way, "a")
        await asyncio.sleep(30)
        way.down_until = 1000
        begin = asyncio.get_running_loop().time()
        with pytest.raises(LeadershipLost, match="not renewed for 10 s: lost on its way"):
            await process.task
        assert 7.9 < asyncio.get_running_loop().time() - begin <= 10.1

    run(main)


def test_a_stolen_lease_ends_leadership_at_the_next_renewal() -> None:
    async def main() -> None:
        server = Server()
        process = Process(link(server), "a")
        await process.elector.elected.wait()
        assert server.lease is not None
        server.put(server.lease["spec"] | {"holderIdentity": "thief"})
        begin = asyncio.get_running_loop().time()
        with pytest.raises(LeadershipLost, match="thief holds it now"):
            await process.task
        assert asyncio.get_running_loop().time() - begin < 2.3

    run(main)


def test_a_deleted_lease_is_made_again_by_its_leader() -> None:
    async def main() -> None:
        server = Server()
        first = Process(link(server), "a")
        await first.elector.elected.wait()
        second = Process(link(server), "b")
        await asyncio.sleep(5)
        server.lease = None
        await asyncio.sleep(30)
        assert first.acts
        assert not second.acts
        for process in (first, second):
            await process.kill()

    run(main)


def test_who_waits_asks_about_twice_in_three_seconds_and_writes_nothing() -> None:
    async def main() -> None:
        server = Server(lease("somebody", seconds=3600))
        way = link(server)
        process = Process(way, "b")
        await asyncio.sleep(120)
        assert 60 <= way.requests <= 101
        assert server.lease is not None
        assert server.lease["metadata"]["resourceVersion"] == "1"
        await process.kill()

    run(main)


class Broken:
    """A server that throttles: once asked, wait."""

    def __init__(self, error: ApiError) -> None:
        self.error, self.requests = error, 0

    async def get(self, kind: Kind, name: str, namespace: str | None = None) -> Object:
        self.requests += 1
        raise self.error

    async def create(self, kind: Kind, obj: Object, *, field_manager: str) -> Object:
        raise self.error

    async def patch(
        self, kind: Kind, name: str, body: Object, *, namespace: str | None = None, field_manager: str
    ) -> Object:
        raise self.error


def test_retry_after_is_kept() -> None:
    async def main() -> None:
        server = Broken(ApiError(429, "slow down", retry_after=20.0))
        elector = Elector(server, "ns", "lease", telemetry.noop())
        with anyio.move_on_after(65):
            await elector.run()
        assert server.requests == 4

    run(main)
