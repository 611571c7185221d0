# SPDX-License-Identifier: Apache-2.0
"""How fast a lab's paths are and what an idle mesh costs: `python -m wirekube.lab.bench_path`, or `make bench-path`.

One lab, two public nodes and a home. In each round TCP goes once through a bare wireguard-go, once through the mesh's
direct path and once through its relayed path, between the same two nodes, so that a drift of the machine meets all three;
what counts are the medians and their ratios. Then the lab is left alone for a minute, and removed; at last the relay is
measured alone (bench_relay).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from . import bench_relay, idle, reports, wait
from .controlplane import BinariesMissing
from .down import down
from .lab import Lab
from .netns import NetworkError
from .processes import ProcessError
from .progress import Progress
from .state import LabError
from .tcp import BareTunnel, Stream, throughput
from .topology import TopologyError
from .up import up, wait_for_mesh

NAME: Final = "bench"
SOURCE: Final = "one"
TARGET: Final = "two"
SWITCH_SECONDS: Final = 60.0
SETTLE_SECONDS: Final = 20.0  # agents write a status at most once in 15 s

BARE: Final = "bare wireguard-go"
DIRECT: Final = "direct pair"
RELAYED: Final = "relayed pair"
MODES: Final = {DIRECT: ("auto", "Direct"), RELAYED: ("always", "Relayed")}
TCP_AIMS: Final = {DIRECT: 0.9, RELAYED: 0.5}
RSS_AIM: Final = 90.0  # MiB
CPU_AIM: Final = 0.005

Samples = dict[str, list[float]]


def switch(lab: Lab, kind: str) -> None:
    """Make the path between the two nodes direct or relayed, by the Mesh's relay mode.

    Raises:
        LabError: the agents do not get there.
    """
    mode, state = MODES[kind]
    lab.kubectl(
        "patch", "wirekubemesh", "default", "--type=merge", "-p", json.dumps({"spec": {"relay": {"mode": mode}}})
    )
    if not wait.until(lambda: _is(lab, state), SWITCH_SECONDS, 0.1):
        raise LabError(f"{SOURCE} and {TARGET} do not get {state}: {reports.states(_two(lab), SOURCE, TARGET)}")


def _two(lab: Lab) -> dict[str, reports.Report | None]:
    return {node: lab.report(node) for node in (SOURCE, TARGET)}


def _is(lab: Lab, state: str) -> bool:
    return reports.states(_two(lab), SOURCE, TARGET) == (state, state)


def one_round(lab: Lab, bare: BareTunnel, samples: Samples, stream: Stream) -> None:
    """Measure each kind of path once.

    Raises:
        LabError: a path was not what it should be, before or after.
    """
    address = lab.mesh_addresses()[TARGET][0]
    samples.setdefault(BARE, []).append(throughput(lab, SOURCE, TARGET, bare.addresses[TARGET], stream))
    for kind in (DIRECT, RELAYED):
        switch(lab, kind)
        samples.setdefault(kind, []).append(throughput(lab, SOURCE, TARGET, address, stream))
        if not _is(lab, MODES[kind][1]):
            raise LabError(f"the {kind} did not stay so: {reports.states(_two(lab), SOURCE, TARGET)}")


def measure_paths(lab: Lab, rounds: int, stream: Stream) -> Samples:
    """Run the rounds, with a line of progress for each."""
    bare, samples = BareTunnel(lab, SOURCE, TARGET), Samples()
    for number in range(rounds):
        with lab.progress.step(f"round {number + 1} of {rounds}") as details:
            one_round(lab, bare, samples, stream)
            details.extend(f"{kind} {each[-1]:.0f}" for kind, each in samples.items())
    switch(lab, DIRECT)
    return samples


def path_lines(samples: Mapping[str, Sequence[float]]) -> Iterator[str]:
    """Yield the table of TCP through the three kinds of path."""
    base = statistics.median(samples[BARE])
    yield f"{'TCP, one stream, Mbit/s':32}{'median':>9}{'min':>9}{'max':>9}{'of bare':>9}"
    for kind, each in samples.items():
        ratio = statistics.median(each) / base
        line = f"{kind:32}{statistics.median(each):9.0f}{min(each):9.0f}{max(each):9.0f}{ratio:9.2f}"
        yield line + (f"   {verdict(ratio, TCP_AIMS[kind])}" if kind in TCP_AIMS else "")


def idle_lines(cost: idle.Cost) -> Iterator[str]:
    """Yield what an idle lab costs."""
    rss, pss = (max(getattr(each, name) for each in cost.memory.values()) for name in ("rss", "pss"))
    cpu = max(cost.cpu.values())
    yield f"idle for {cost.seconds:.0f} s, {len(cost.cpu)} nodes; the most that one agent uses:"
    yield f"  memory: {rss:.1f} MiB resident, {pss:.1f} MiB proportional   {verdict(rss, RSS_AIM, most=True)}"
    yield f"  processor: {100 * cpu:.2f} % of one core   {verdict(100 * cpu, 100 * CPU_AIM, most=True)}"
    yield f"  API requests of the whole lab: {cost.requests_a_minute:.1f} a minute, the API server's own among them"
    for (verb, resource), count in cost.requests.most_common(8):
        yield f"    {count:4} {verb} {resource or '(no resource)'}"
    changed = ", ".join(cost.changed) or "none"
    yield f"  watched objects changed: {changed}; requests to write one: {cost.writes}   {verdict(cost.writes, 0, most=True)}"


def relay_lines(results: bench_relay.Results) -> Iterator[str]:
    """Yield the relay's table and what to say of it."""
    yield "the relay alone"
    yield from results.lines()
    slowest = min(results.median(feed, pairs) for feed, pairs in results.batched())
    yield f"  slowest median of those that send batches: {slowest:.2f} Gbit/s   {verdict(slowest, bench_relay.AIM)}"
    lost = results.dropped(bench_relay.AT_AIM)
    yield f"  frames that its queues dropped{bench_relay.AT_AIM}: {lost}   {verdict(lost, 0, most=True)}"
    yield f"  frames that its queues dropped{bench_relay.BELOW} limit: {results.dropped(bench_relay.BELOW)}"


def verdict(value: float, aim: float, *, most: bool = False) -> str:
    """Say whether an aim is reached; `most` when it is an upper bound."""
    reached = value <= aim if most else value >= aim
    return f"(aim: {'at most' if most else 'at least'} {aim:g}, {'reached' if reached else 'MISSED'})"


@contextmanager
def a_lab(progress: Progress) -> Iterator[Lab]:
    """A lab whose pairs all work; gone afterwards."""
    lab = Lab(NAME, progress)
    down(lab)  # what a run that was killed left
    up(lab, NAME)
    try:
        if missing := wait_for_mesh(lab):
            raise LabError("; ".join(missing))
        yield lab
    finally:
        down(lab)


def run(rounds: int, stream: Stream, idle_seconds: float) -> None:
    """Measure everything and print it."""
    progress = Progress()
    with a_lab(progress) as lab:
        samples = measure_paths(lab, rounds, stream)
        with progress.step(f"idle for {idle_seconds:.0f} s"):
            time.sleep(SETTLE_SECONDS)
            cost = idle.watch(lab, idle_seconds)
    with progress.step("the relay alone"):
        results = bench_relay.measure(rounds, 1.0, bench_relay.PAIRS)
    print(f"\nTCP streams of {stream.seconds} s with {stream.congestion}", flush=True)
    for lines in (path_lines(samples), relay_lines(results), idle_lines(cost)):
        print("", *lines, sep="\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables.

    Returns:
        0 when everything was measured, 1 with a line that says why not.
    """
    parser = argparse.ArgumentParser("bench_path", description="How fast paths are and what an idle mesh costs.")
    parser.add_argument("--rounds", type=int, default=5, help="of which the medians are printed")
    parser.add_argument("--seconds", type=int, default=3, help="of each TCP stream")
    parser.add_argument("--congestion", default="cubic", help="congestion control of the streams")
    parser.add_argument("--idle", type=float, default=60.0, metavar="SECONDS", help="how long the lab is left alone")
    options = parser.parse_args(arguments)
    try:
        run(options.rounds, Stream(options.seconds, options.congestion), options.idle)
    except (BinariesMissing, LabError, NetworkError, ProcessError, TopologyError, RuntimeError) as error:
        print(f"bench_path: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
