# SPDX-License-Identifier: Apache-2.0
"""`wirekube lab demo`: the default topology from nothing to a whole mesh, a path broken and healed, and nothing left.

Times of a pair count from the moment when both agents ran: when each had answered at its own socket, which is the first
thing that it opens.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import combinations, permutations
from types import FrameType

from . import reports, wait
from .down import down
from .expect import DIRECT, HEADER, RELAYED, FaultResult, PairResult, allowed_paths
from .lab import Lab
from .prober import Flow, Prober, longest_gap, median_rtt
from .progress import Progress
from .up import dead_agents, up

TOPOLOGY = "default"
AIM_SECONDS = 60.0
SETTLE_SECONDS = 60.0
CALM_SECONDS = 1.0  # RTTs are taken when all is settled
PING_SECONDS = 0.2
FAULT_PING_SECONDS = 0.05
FAULT_SECONDS = 15.0
RELAYED_SECONDS = 1.5  # that its ping goes on over the relay is to be seen
HEAL_SECONDS = 40.0
MOST_GAP_SECONDS = 3.0  # the design's bound of 2 s, and a second of a busy machine's noise
SECOND_PROBER = 1000
STATUS_SECONDS, STATUS_POLL_SECONDS = 25.0, 0.5
POLL_SECONDS = 0.1
KUBECTL_SECONDS = 0.5  # it costs 0.1 s of a processor each time, while agents start


class Interrupted(Exception):
    """Somebody wants the demo to end."""


def run(name: str) -> int:
    """Run the demo in a lab of this name; return 0 only if everything holds. The lab is removed in any case.

    Raises:
        LabError, NetworkError, ProcessError, BinariesMissing: the lab could not be made.
    """
    progress = Progress(sys.stdout)
    lab = Lab(name, progress)
    faults: list[str] = []
    with _interruptible():
        try:
            down(lab)  # what an earlier demo left that was killed
            faults = _demo(lab)
        except Interrupted:
            faults = ["interrupted"]
        finally:
            _ignore_signals()
            down(lab)
    _print_budget(progress)
    for fault in faults:
        print(f"FAILED: {fault}")
    if not faults:
        print("Everything holds.")
    return 1 if faults else 0


@contextmanager
def _interruptible() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into an exception, so that the lab is removed."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Interrupted

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _demo(lab: Lab) -> list[str]:
    up(lab, TOPOLOGY)
    running = _Running(lab)
    with lab.progress.step("mesh") as details:
        flows = _flows(lab)
        prober = Prober(flows, lab.namespace, PING_SECONDS)
        prober.start()
        try:
            pairs = _until_settled(lab, flows, running)
            time.sleep(CALM_SECONDS)
            calm = time.monotonic() - CALM_SECONDS
            pairs = _results(lab, flows, running.since, calm)
        finally:
            running.close()
            prober.close()
        details.append(f"{sum(pair.settled() for pair in pairs)} of {len(pairs)} pairs have the path that they should")
    faults = _until_kubectl_agrees(lab)
    _show(lab, pairs)
    faults += dead_agents(lab) + [fault for pair in pairs for fault in pair.faults()]
    pair = next((each for each in pairs if each.settled() and _breakable(lab, each)), None)
    if pair is None:
        return [*faults, "there is no direct pair behind two routers to break"]
    result = _break_and_heal(lab, pair.first, pair.second)
    return faults + result.faults(MOST_GAP_SECONDS)


class _Running:
    """Watches for the moment when each agent first answers at its socket."""

    def __init__(self, lab: Lab) -> None:
        self.since: dict[str, float] = {}
        self._lab, self._stop = lab, threading.Event()
        self._thread = threading.Thread(target=self._watch, name="running", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while len(self.since) < len(self._lab.nodes) and not self._stop.wait(POLL_SECONDS / 2):
            for node in self._lab.nodes:
                if node not in self.since and reports.fetch(self._lab.run_dir(node)) is not None:
                    self.since[node] = time.monotonic()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


def _flows(lab: Lab) -> list[Flow]:
    """Return a flow for each direction of each pair and each family, as soon as all nodes have addresses."""
    found: dict[str, list[str]] = {}

    def addressed() -> bool:
        found.update(lab.mesh_addresses())
        return all(found.values())

    wait.until(addressed, SETTLE_SECONDS, KUBECTL_SECONDS)
    return [Flow(here, there, address) for here, there in permutations(lab.nodes, 2) for address in found[there]]


def _until_settled(lab: Lab, flows: list[Flow], running: _Running) -> list[PairResult]:
    results: list[PairResult] = []

    def settled() -> bool:
        if not all(flow.answers for flow in flows):
            return bool(dead_agents(lab))
        results[:] = _results(lab, flows, running.since, time.monotonic())
        return all(pair.settled() for pair in results) or bool(dead_agents(lab))

    wait.until(settled, SETTLE_SECONDS, POLL_SECONDS)
    return results


def _results(lab: Lab, flows: list[Flow], since: Mapping[str, float], calm: float) -> list[PairResult]:
    now, bodies = time.monotonic(), {node: reports.fetch(lab.run_dir(node)) or {} for node in lab.nodes}
    said = {node: reports.parse(body) for node, body in bodies.items()}
    ages = {
        (node, each["name"]): each["sinceSeconds"] for node, body in bodies.items() for each in body.get("peers", ())
    }
    results = []
    for a, b in combinations(lab.nodes, 2):
        began = max(since.get(a, now), since.get(b, now))
        those = [flow for flow in flows if {flow.source, flow.target} == {a, b}]
        old = [ages[way] for way in ((a, b), (b, a)) if way in ages]
        answers = [answer for flow in those if flow.version == 4 for answer in flow.answers]
        results.append(
            PairResult(
                a, b, reports.states(said, a, b), allowed_paths(lab.topology, a, b), median_rtt(answers, calm),
                _first([flow for flow in those if flow.version == 4], began),
                _first([flow for flow in those if flow.version == 6], began),
                now - min(old) - began if len(old) == 2 else None,
            )
        )  # fmt: skip
    return results


def _first(flows: list[Flow], began: float) -> float | None:
    """Return when the last of the flows got its first answer, in seconds since then."""
    times = [flow.first_answer() for flow in flows]
    known = [each for each in times if each is not None]
    return max(0.0, max(known) - began) if known and len(known) == len(times) else None


def _until_kubectl_agrees(lab: Lab) -> list[str]:
    """Wait until each Peer counts its paths as its agent does: a status is written at most once in 15 s."""
    with lab.progress.step("status"):
        agrees = wait.until(lambda: not _disagreeing(lab), STATUS_SECONDS, STATUS_POLL_SECONDS)
    return [] if agrees else [f"kubectl does not show what the agent of {name} says" for name in _disagreeing(lab)]


def _disagreeing(lab: Lab) -> list[str]:
    """Return the nodes whose Peer counts other paths than their agent."""
    shown = {
        peer["metadata"]["name"]: (peer.get("status") or {}).get("peers") or {}
        for peer in json.loads(lab.kubectl("get", "wirekubepeers", "-o", "json"))["items"]
    }
    wrong = []
    for node in lab.topology.nodes:
        report = lab.report(node.name)
        states = [view.state for view in report.pairs.values()] if report is not None else []
        counts = {"direct": states.count(DIRECT), "relayed": states.count(RELAYED)}
        if not states or any(shown.get(node.name, {}).get(name) != count for name, count in counts.items()):
            wrong.append(node.name)
    return wrong


def _show(lab: Lab, pairs: list[PairResult]) -> None:
    print(f"\n{lab.kubectl('get', 'wirekubepeers')}")
    print(reports.table(HEADER, [pair.row() for pair in pairs]))
    print("Times count from the moment when both agents of the pair ran.\n", flush=True)


def _breakable(lab: Lab, pair: PairResult) -> bool:
    behind = all(lab.plan.places[node].router for node in (pair.first, pair.second))
    return behind and pair.allowed == {DIRECT}


def _break_and_heal(lab: Lab, a: str, b: str) -> FaultResult:
    """Lose UDP between two nodes that reach each other directly, and give it back, while one pings the other."""
    flow = Flow(a, b, lab.mesh_addresses()[b][0])
    prober = Prober([flow], lab.namespace, FAULT_PING_SECONDS, SECOND_PROBER)
    before = {node: _endpoints(lab, node) for node in (a, b)}
    prober.start()
    begin = time.monotonic()
    try:
        wait.until(lambda: len(flow.answers) >= 10, FAULT_SECONDS)
        with lab.progress.step("a direct path lost", f"{a} <-> {b} lost UDP and") as details:
            lab.block_udp(a, b)
            to_relay = _until_both(lab, a, b, RELAYED, FAULT_SECONDS)
            details.append(f"moved to the relay after {_after(to_relay)}")
            time.sleep(RELAYED_SECONDS)
        with lab.progress.step("the path healed", f"{a} <-> {b} got UDP back and") as details:
            lab.unblock_udp(a, b)
            to_direct = _until_both(lab, a, b, DIRECT, HEAL_SECONDS)
            details.append(f"returned to direct after {_after(to_direct)}")
        time.sleep(FAULT_PING_SECONDS * 10)
    finally:
        end = time.monotonic()
        prober.close()
    moved = [f"on {node}: {line}" for node in (a, b) for line in sorted(_endpoints(lab, node) ^ before[node])]
    result = FaultResult(to_relay, to_direct, longest_gap(flow.answers, begin, end), _lost(flow), len(flow.sent), moved)
    _show_fault(result)
    return result


def _until_both(lab: Lab, a: str, b: str, state: str, seconds: float) -> float | None:
    """Wait until both sides have this state; return how long it took, None for not in time."""
    begin = time.monotonic()

    def there() -> bool:
        return set(reports.states({a: lab.report(a), b: lab.report(b)}, a, b)) == {state}

    return time.monotonic() - begin if wait.until(there, seconds, POLL_SECONDS) else None


def _lost(flow: Flow) -> int:
    answered = {sent for sent, _ in flow.answers}
    return sum(sent not in answered for sent in flow.sent[:-2])  # the last ones may have been under way


def _endpoints(lab: Lab, node: str) -> frozenset[str]:
    return frozenset(lab.exec(node, "wg", "show", "wire_kube", "endpoints").stdout.splitlines())


def _after(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.1f} s"


def _show_fault(result: FaultResult) -> None:
    header = ("LOST UDP: RELAYED AFTER", "HEALED: DIRECT AFTER", "LONGEST GAP", "PINGS LOST", "ENDPOINTS MOVED")
    cells = [
        _after(result.to_relay), _after(result.to_direct), f"{result.gap:.2f} s",
        f"{result.lost} of {result.sent}", ", ".join(result.endpoints_moved) or "none",
    ]  # fmt: skip
    print(f"\n{reports.table(header, [cells])}\n", flush=True)


def _print_budget(progress: Progress) -> None:
    print("\nTime budget (steps may overlap):")
    for step in progress.steps:
        print(f"  {step.begin:5.1f} s  +{step.seconds:4.1f} s  {step.name}")
    total = progress.elapsed
    judged = f"{total - AIM_SECONDS:.1f} s above" if total > AIM_SECONDS else f"{AIM_SECONDS - total:.1f} s below"
    print(f"  {total:5.1f} s in all, {judged} the aim of {AIM_SECONDS:.0f} s for a run with everything cached\n")
