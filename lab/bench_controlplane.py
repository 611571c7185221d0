# SPDX-License-Identifier: Apache-2.0
"""What N nodes cost the API server, the operator and each other: `python -m wirekube.lab.bench_controlplane`.

For each N a fresh control plane, an operator and N simulated agents, each with the token of its Node (`simulation/`). Two of
the agents are the agent's own control side in processes of their own; the others make the same requests in two processes
that share the decoding, for a thousand whole agents do not fit into a machine. There is no data plane.

Everything runs on one machine, so API server, operator and N agents share its cores: in a cluster each agent has its own.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .bench_path import verdict
from .controlplane import BinariesMissing
from .idle import WATCHED, WRITES, Usage
from .processes import ProcessError
from .progress import Progress
from .simulation.light import endpoint_of
from .simulation.wire import HttpError
from .simulation.world import World, world

COUNTS: Final = (10, 100, 1000)
SETTLE_SECONDS: Final = 35.0  # two status budgets of 15 s, and the longest wait of a slice
JOIN_AIM, CHANGE_AIM = 30.0, 2.0  # seconds, at N = 1000
OPERATOR_AIM, AGENT_AIM = 200.0, 80.0  # MiB
MOST_SECONDS: Final = 600.0
CHANGE_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Figures:
    """What was measured with so many nodes.

    Attributes:
        count: of nodes.
        labelling: seconds from the first label to the last.
        joined: seconds from the last label to the last agent that knows all.
        join_cpu: seconds of processor of each process, from the first label until then.
        changes: seconds from a node's new address to each other agent's knowing it.
        a_change: requests, watch events and seconds of the operator's processor for one change.
        idle: seconds of the steady state.
        requests: of that time, by verb and resource.
        events: of watches, in that time.
        changed: watched objects that have another version after it.
        before: processes' usage at its beginning.
        after: the same at its end.
    """

    count: int
    labelling: float
    joined: float
    join_cpu: dict[str, float]
    changes: tuple[float, ...]
    a_change: tuple[float, float, float]
    idle: float
    requests: Counter[tuple[str, str]]
    events: int
    changed: tuple[str, ...]
    before: dict[str, Usage]
    after: dict[str, Usage]

    def share(self, name: str) -> float:
        """Return a process's part of one core in the steady state."""
        return (self.after[name].cpu - self.before[name].cpu) / self.idle

    def writes(self) -> int:
        """Return the requests of the steady state that write a watched object."""
        return sum(
            count
            for (verb, what), count in self.requests.items()
            if verb in WRITES and what.partition("/")[0] in WATCHED
        )


def percentile(values: Sequence[float], part: float) -> float:
    """Return the smallest value that at least this part of all is not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


async def join(here: World) -> tuple[float, float, dict[str, float]]:
    """Label all Nodes.

    Returns:
        Seconds of labelling, seconds from the last label to the last agent that knows all, and each process's seconds of
        processor.
    """
    here.tell(expect=len(here.names))
    before = here.usage()
    first, last = await here.label()
    known = await here.answers("known", MOST_SECONDS)
    cpu = {name: each.cpu - before[name].cpu for name, each in here.usage().items()}
    return last - first, max(each["at"] for each in known) - last, cpu


async def change(here: World, name: str, endpoint: str) -> list[float]:
    """Give a node another address; return the seconds until each other agent knew it."""
    here.tell(watch=name, endpoint=endpoint)
    here.tell(move=name, endpoint=endpoint)
    owner = next(each for each in here.agents if name in each.names)
    moved = (await owner.answer("moved", CHANGE_SECONDS))["at"]
    seen = await here.answers("seen", CHANGE_SECONDS)
    return [at - moved for each in seen for at in each["at"]]


async def changes(here: World, number: int) -> tuple[tuple[float, ...], tuple[float, float, float]]:
    """Change addresses, one after the other; return the times, and what one cost."""
    rng, found = random.Random(7), list[float]()  # noqa: S311 - picks nodes
    (requests, events), usage = await here.counters(), here.usage()["operator"]
    for step in range(number):
        name = rng.choice(here.names)
        found += await change(here, name, endpoint_of(name, step + 1))
    (requests_after, events_after), usage_after = await here.counters(), here.usage()["operator"]
    made = sum(count for (verb, what), count in (requests_after - requests).items() if _caused(verb, what))
    cost = made / number, (events_after - events) / number, (usage_after.cpu - usage.cpu) / number
    return tuple(found), cost


def _caused(verb: str, what: str) -> bool:
    return what.partition("/")[0].startswith("wirekube") and verb != "WATCH"


async def measure(count: int, number: int, idle: float, progress: Progress) -> Figures:
    """Measure one mesh."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="wirekube-bench-"))
        with progress.step(f"{count} nodes: control plane, operator and agents started"):
            here = await stack.enter_async_context(world(Path(folder), count))
        with progress.step(f"{count} nodes: join") as details:
            labelling, joined, join_cpu = await join(here)
            details.append(f"{joined:.1f} s after the last label")
        await asyncio.sleep(SETTLE_SECONDS)
        with progress.step(f"{count} nodes: {number} changes of an address") as details:
            times, a_change = await changes(here, number)
            details.append(f"p99 {percentile(times, 0.99):.2f} s")
        await asyncio.sleep(SETTLE_SECONDS)
        with progress.step(f"{count} nodes: steady for {idle:.0f} s"):
            steady = await rest(here, idle)
    return Figures(count, labelling, joined, join_cpu, times, a_change, *steady)


async def rest(
    here: World, idle: float
) -> tuple[float, Counter[tuple[str, str]], int, tuple[str, ...], dict[str, Usage], dict[str, Usage]]:
    """Leave it alone; return the last six of the `Figures`."""
    (requests, events), versions, before = await here.counters(), await here.versions(), here.usage()
    start = time.monotonic()
    await asyncio.sleep(idle)
    (requests_after, events_after), after = await here.counters(), here.usage()
    seconds, versions_after = time.monotonic() - start, await here.versions()
    names = versions.keys() | versions_after.keys()
    changed = tuple(sorted(each for each in names if versions.get(each) != versions_after.get(each)))
    done = requests_after - requests - Counter({("LIST", what): 1 for what in WATCHED})
    return seconds, done, events_after - events, changed, before, after


def lines(found: Sequence[Figures]) -> Iterator[str]:
    """Yield the tables."""
    last = found[-1]
    yield f"{'nodes':58}" + "".join(f"{each.count:>12}" for each in found)
    yield _row("labels, first to last, s", [each.labelling for each in found])
    yield _row("last label to the last agent knowing all, s", [each.joined for each in found])
    for name in last.join_cpu:
        yield _row(f"joining: processor of {name}, s", [each.join_cpu[name] for each in found])
    for part, name in ((0.5, "p50"), (0.99, "p99")):
        yield _row(f"a new address known everywhere, {name}, s", [percentile(each.changes, part) for each in found])
    yield _row("a new address: requests", [each.a_change[0] for each in found])
    yield _row("a new address: watch events", [each.a_change[1] for each in found], 1)
    yield _row("a new address: operator's processor, ms", [1000 * each.a_change[2] for each in found])
    hours = [each.idle / 3600 * each.count for each in found]
    leases = [sum(count for (_, what), count in each.requests.items() if what == "leases") for each in found]
    others = [each.requests.total() - mine for each, mine in zip(found, leases, strict=True)]
    yield _row("steady: renewals of Leases, a node and hour", [a / b for a, b in zip(leases, hours, strict=True)], 0)
    yield _row("steady: other requests, a node and hour", [a / b for a, b in zip(others, hours, strict=True)], 1)
    yield _row(
        "steady: watch events, a node and hour", [each.events / b for each, b in zip(found, hours, strict=True)], 0
    )
    yield _row("steady: writes to watched objects", [each.writes() for each in found], 0)
    for name in (each for each in last.after if each != "simulators"):
        yield _row(f"steady: {name}, % of one core", [100 * each.share(name) for each in found])
        yield _row(f"steady: {name}, MiB resident", [each.after[name].rss for each in found], 0)
    yield ""
    yield f"with {last.count} nodes:"
    yield f"  joined after {last.joined:.1f} s   {verdict(last.joined, JOIN_AIM, most=True)}"
    known = percentile(last.changes, 0.99)
    yield f"  a new address known everywhere, p99: {known:.2f} s   {verdict(known, CHANGE_AIM, most=True)}"
    yield f"  writes to watched objects in {last.idle:.0f} s: {last.writes()}   {verdict(last.writes(), 0, most=True)}"
    yield f"  changed: {', '.join(last.changed[:5]) or 'none'}"
    for name, aim in (("operator", OPERATOR_AIM), ("agent", AGENT_AIM)):
        rss = last.after[name].rss
        yield f"  {name}: {rss:.0f} MiB resident   {verdict(rss, aim, most=True)}"
    yield "  most requests of the steady state:"
    for (verb, what), count in last.requests.most_common(8):
        yield f"    {count:6} {verb} {what or '(no resource)'}"


def _row(name: str, values: Sequence[float], digits: int = 2) -> str:
    return f"{name:58}" + "".join(f"{value:12.{digits}f}" for value in values)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables.

    Returns:
        0 when everything was measured, 1 with a line that says why not.
    """
    parser = argparse.ArgumentParser("bench_controlplane", description="What N nodes cost the control plane.")
    parser.add_argument("--nodes", type=int, nargs="+", default=COUNTS, help="numbers of nodes")
    parser.add_argument("--changes", type=int, default=40, help="of an address, with each number of nodes")
    parser.add_argument("--steady", type=float, default=120.0, metavar="SECONDS", help="how long it is left alone")
    options = parser.parse_args(arguments)
    progress = Progress()
    try:
        found = [asyncio.run(measure(each, options.changes, options.steady, progress)) for each in options.nodes]
    except (BinariesMissing, HttpError, ProcessError) as error:
        print(f"bench_controlplane: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print("", *lines(found), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
