# SPDX-License-Identifier: Apache-2.0
"""How fast the relay is alone: `python -m wirekube.lab.bench_relay`, or `make bench-relay`.

The relay is a process of its own (`wirekube-relay --open`) on loopback; the load are sessions that registered by proof.
In each round every variant has its turn, so that a drift of the machine meets all of them; the table shows medians.
Beside it stands what the machine gives without any relay work in the same round: TCP from sender to receiver, and a
process between them that copies without looking.
"""

from __future__ import annotations

import argparse
import base64
import re
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..wire import relay as wire
from ..wire.endpoint import Endpoint
from . import relayload as load

PAIRS: Final = (1, 4, 16)
PACED: Final = 0.7  # of what the same round reached unpaced: "below its limit"
MESSAGES: Final = 1000
START_DEADLINE: Final = 20.0
NAME: Final = 42
BELOW: Final = f", at {PACED:.0%} of that"
AIM: Final = 5.0  # Gbit/s that must pass without a loss
AT_AIM: Final = f", at {AIM:g} Gbit/s"


@dataclass(frozen=True)
class Rate:
    """One run.

    Attributes:
        gbit: Gbit/s of WireGuard's packets at the receivers.
        cpu: the relay's share of one core, 0 to 1.
        dropped_full: frames that the relay dropped because a receiver's queue was full.
        dropped_absent: frames that it dropped because there was no receiver.
        lost: the part of what was sent that did not arrive, 0 to 1.
    """

    gbit: float
    cpu: float
    dropped_full: int
    dropped_absent: int
    lost: float


class Relay:
    """The relay's process.

    Args:
        folder: for its key.
    """

    def __init__(self, folder: Path) -> None:
        metrics = _free_port()
        self._metrics = f"http://127.0.0.1:{metrics}/metrics"
        command = [sys.executable, "-m", "wirekube.relay.main", "--open", "--listen", "127.0.0.1:0"]
        self._process = subprocess.Popen(
            [*command, "--key", str(folder / "key"), "--metrics", f"127.0.0.1:{metrics}"],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.key, self.address = self._said()

    def _said(self) -> tuple[bytes, Endpoint]:
        """Read the two lines that the relay prints together once it listens."""
        stdout = self._process.stdout
        ready = stdout is not None and select.select([stdout], [], [], START_DEADLINE)[0]
        lines = [stdout.readline() for _ in range(2)] if stdout is not None and ready else []
        match = re.fullmatch(r"relay public key: (\S+)\nlistening on (\S+)\n", "".join(lines))
        if match is None:
            self.stop()
            raise RuntimeError(f"the relay did not start: {lines}")
        return base64.b64decode(match[1]), Endpoint.parse(match[2])

    def cpu(self) -> float:
        """Seconds of processor that the relay's own thread has used."""
        pid = self._process.pid
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9

    def counter(self, name: str) -> int:
        """Return one of the relay's own totals."""
        with urllib.request.urlopen(self._metrics, timeout=10) as answer:  # noqa: S310 - loopback
            text = answer.read().decode()
        match = re.search(rf"^wirekube_relay_{name}_total(?:{{.*}})? (\S+)$", text, re.MULTILINE)
        return int(float(match[1])) if match else 0

    def stop(self) -> None:
        """End it, cleanly if it can."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def relay_rate(relay: Relay, feed: load.Feed, pairs: int, seconds: float, gbit: float | None = None) -> Rate:
    """Measure the relay with `pairs` senders and as many receivers, unpaced or at `gbit` in all."""
    before = relay.counter("dropped_full"), relay.counter("dropped_absent")
    cpu: list[float] = []
    with ExitStack() as stack:
        wires = [_wire(relay, feed, stack) for _ in range(pairs)]
        rate = None if gbit is None else gbit * 1e9 / 8 * feed.frame_bytes / (feed.packets_a_frame * load.PACKET)
        window = load.run(wires, rate, seconds, lambda *window: _at(window, lambda: cpu.append(relay.cpu())))
    return Rate(
        _gbit(window, feed),
        (cpu[1] - cpu[0]) / seconds,
        relay.counter("dropped_full") - before[0],
        relay.counter("dropped_absent") - before[1],
        1 - window.received_total / window.sent_total,
    )


def _wire(relay: Relay, feed: load.Feed, stack: ExitStack) -> load.Wire:
    _, source = load.register(relay.address, relay.key)
    stack.callback(source.close)
    key, sink = load.register(relay.address, relay.key)
    stack.callback(sink.close)
    return load.Wire(source, feed.write(key), sink)


def plain_rate(copied: bool, pairs: int, seconds: float) -> float:
    """Measure TCP from the sender to the receiver, straight or through a process that copies; Gbit/s."""
    feed = load.TRAINS
    with ExitStack() as stack:
        wires, between = [], []
        for _ in range(pairs):
            source, sink = _connected(stack)
            if copied:
                arriving = sink
                leaving, sink = _connected(stack)
                between.append((arriving, leaving))
            wires.append(load.Wire(source, feed.write(bytes(wire.KEY)), sink))
        if copied:
            stack.enter_context(load.copying(between))
        window = load.run(wires, None, seconds, lambda _start, _end: None)
    return _gbit(window, feed)


def _connected(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        source = socket.create_connection(listener.getsockname())
        stack.callback(source.close)
        sink, _ = listener.accept()
        stack.callback(sink.close)
    return source, sink


def _gbit(window: load.Window, feed: load.Feed) -> float:
    """Gbit/s of the packets' bytes, without our headers."""
    return window.received / feed.frame_bytes * feed.packets_a_frame * load.PACKET * 8 / 1e9 / window.seconds


def _at(moments: Sequence[float], act: Callable[[], None]) -> None:
    for moment in moments:
        time.sleep(max(0.0, moment - time.monotonic()))
        act()


def round_trips(relay: Relay, messages: int = MESSAGES) -> tuple[list[float], list[float]]:
    """Send one packet a millisecond through an idle relay; return seconds from A to B, and to B and back to A, sorted."""
    there, back = [], []
    with ExitStack() as stack:
        key_a, a = load.register(relay.address, relay.key)
        stack.callback(a.close)
        key_b, b = load.register(relay.address, relay.key)
        stack.callback(b.close)
        to_b, to_a = load.SINGLES.write(key_b), load.SINGLES.write(key_a)
        due = time.monotonic()
        for _ in range(messages):
            due = max(due + 1e-3, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
            start = time.perf_counter()
            a.sendall(to_b)
            load.receive_exactly(b, len(to_b))
            there.append(time.perf_counter() - start)
            b.sendall(to_a)
            load.receive_exactly(a, len(to_a))
            back.append(time.perf_counter() - start)
    return sorted(there), sorted(back)


class Results:
    """Samples by row, in the order in which the rows first came."""

    def __init__(self) -> None:
        self.rates: dict[tuple[str, int], list[Rate]] = defaultdict(list)
        self.plain: dict[tuple[str, int], list[float]] = defaultdict(list)
        self.trips: dict[str, list[float]] = defaultdict(list)

    def lines(self) -> Iterator[str]:
        """Yield the table."""
        yield f"{'':{NAME}}{'pairs':>6}{'Gbit/s':>9}{'min':>8}{'max':>8}{'CPU s/Gbit':>12}{'core %':>8}{'lost %':>8}{'full':>8}{'absent':>8}"
        for (name, pairs), plain in sorted(self.plain.items()):
            yield f"{name:{NAME}}{pairs:6}{_spread(plain)}"
        for (name, pairs), rates in sorted(self.rates.items()):
            yield f"{name:{NAME}}{pairs:6}{_columns(rates)}"
        for name, samples in self.trips.items():
            ordered = sorted(samples)
            p50, p99 = (1e6 * ordered[int(len(ordered) * part)] for part in (0.5, 0.99))
            yield f"{name:{NAME}} one packet a ms, idle relay: p50 {p50:.0f} us, p99 {p99:.0f} us ({len(ordered)} of them)"

    def median(self, name: str, pairs: int) -> float:
        """Return a row's median, Gbit/s."""
        return statistics.median(rate.gbit for rate in self.rates[name, pairs])

    def batched(self) -> Iterator[tuple[str, int]]:
        """Yield the unpaced rows whose senders write batches, as agents do."""
        yield from (row for row in self.rates if row[0] in {load.TRAINS.name, load.BATCHES.name})

    def dropped(self, pace: str) -> int:
        """Return how many frames the relay's queues dropped in all runs of a pace, BELOW or AT_AIM."""
        return sum(each.dropped_full for row, rates in self.rates.items() if row[0].endswith(pace) for each in rates)


def _columns(rates: Sequence[Rate]) -> str:
    cpu = statistics.median(rate.cpu for rate in rates)
    cpu_per_gbit = statistics.median(rate.cpu / rate.gbit for rate in rates if rate.gbit)
    lost = statistics.median(rate.lost for rate in rates)
    full, absent = sum(rate.dropped_full for rate in rates), sum(rate.dropped_absent for rate in rates)
    spread = _spread([rate.gbit for rate in rates])
    return f"{spread}{cpu_per_gbit:12.3f}{100 * cpu:8.0f}{100 * lost:8.2f}{full:8}{absent:8}"


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):9.2f}{min(values):8.2f}{max(values):8.2f}"


def one_round(relay: Relay, results: Results, pairs: Sequence[int], seconds: float) -> None:
    """Give every variant one turn."""
    for count in pairs:
        results.plain["TCP, no relay", count].append(plain_rate(False, count, seconds))
        results.plain["TCP, copied by a process", count].append(plain_rate(True, count, seconds))
        for feed in (load.TRAINS, load.BATCHES, load.SINGLES):
            reached = relay_rate(relay, feed, count, seconds)
            results.rates[feed.name, count].append(reached)
            if feed is not load.SINGLES:
                paced = relay_rate(relay, feed, count, seconds, reached.gbit * PACED)
                results.rates[feed.name + BELOW, count].append(paced)
                results.rates[feed.name + AT_AIM, count].append(relay_rate(relay, feed, count, seconds, AIM))
    there, back = round_trips(relay)
    results.trips["A to B"] += there
    results.trips["A to B to A"] += back


@contextmanager
def a_relay() -> Iterator[Relay]:
    """A relay that is gone afterwards, with its key."""
    with tempfile.TemporaryDirectory(prefix="wirekube-bench-") as folder:
        relay = Relay(Path(folder))
        try:
            yield relay
        finally:
            relay.stop()


def measure(repeats: int, seconds: float, pairs: Sequence[int]) -> Results:
    """Run the rounds, with a line of progress for each."""
    results = Results()
    with a_relay() as relay:
        for number in range(repeats):
            started = time.monotonic()
            one_round(relay, results, pairs, seconds)
            print(f"round {number + 1} of {repeats}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 0 when it could be measured."""
    parser = argparse.ArgumentParser("bench_relay", description="How fast the relay is alone.")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, of which the medians are printed")
    parser.add_argument("--seconds", type=float, default=1.5, help="measured window of each run")
    parser.add_argument("--pairs", type=int, nargs="+", default=PAIRS)
    options = parser.parse_args(arguments)
    for line in measure(options.repeats, options.seconds, options.pairs).lines():
        print(line)
    return 0


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())
