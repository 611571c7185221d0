# SPDX-License-Identifier: Apache-2.0
"""Two machines behind simulated NATs, pumped by hand: no sockets, no clock but ours.

Each has the path machine, a steering table, and as much of WireGuard as matters here: it sends to the leg of the table,
and to where it last heard an authentic packet from when the table did not know that address (it roamed).
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from wirekube.agent.paths import search
from wirekube.agent.paths.machine import Paths
from wirekube.agent.paths.model import Mode, NatFacts, Policy, SendPing, SendPong, SendSignal, State, Steer, Transition
from wirekube.agent.paths.seal import Signal
from wirekube.wire.endpoint import Endpoint

HANDSHAKE, CAP = 30.0, 120.0
DELAY, RELAY_DELAY = 0.01, 0.03  # seconds, one way
DATA_EVERY, STATS_EVERY = 0.1, 1.0
LISTEN = 51820


@dataclass
class Nat:
    """A NAT by RFC 4787: what leaves from where, and who may come in."""

    outside: str
    symmetric: bool = False
    restricted: bool = True
    blocked: bool = False
    first: int = LISTEN
    ports: dict[Endpoint | None, int] = field(default_factory=dict)
    spoken: set[tuple[int, Endpoint]] = field(default_factory=set)

    def out(self, to: Endpoint) -> Endpoint:
        key = to if self.symmetric else None
        port = self.ports.setdefault(key, self.first + len(self.ports))
        self.spoken.add((port, to))
        return Endpoint.of(self.outside, port)

    def admits(self, port: int, source: Endpoint) -> bool:
        known = port in self.ports.values()
        return known and (not self.restricted or (port, source) in self.spoken)

    def reboot(self) -> None:
        """Forget all; what leaves next gets another port."""
        self.first += 1000
        self.ports.clear()
        self.spoken.clear()

    @property
    def facts(self) -> NatFacts:
        return NatFacts(
            udp_blocked=self.blocked,
            symmetric=self.symmetric,
            port_restricted=self.restricted,
            public=not self.restricted and not self.symmetric,
            addresses=frozenset({self.outside}),
        )

    @property
    def candidates(self) -> list[Endpoint]:
        if self.symmetric or self.blocked:
            return []
        return [Endpoint.of(self.outside, self.ports.setdefault(None, self.first))]


KINDS: dict[str, Callable[[str], Nat]] = {
    "easy": Nat,
    "public": lambda ip: Nat(ip, restricted=False),
    "hard": lambda ip: Nat(ip, symmetric=True),
    "blocked": lambda ip: Nat(ip, blocked=True),
}


def next_timer(paths: Paths) -> float | None:
    """Ask when the machine is due next, and look at all its paths whether that is right."""
    times = [paths._due(path) for path in paths._paths.values()]
    serve_at = search.serve_at(paths._node)
    slow = min((time for time in (*times, serve_at) if time is not None and time < float("inf")), default=None)
    assert paths.next_timer() == slow
    return slow


class Host:
    def __init__(self, name: str, nat: Nat, mode: Mode, seed: int) -> None:
        self.name, self.nat, self.mode = name, nat, mode
        self.other: Host
        self.paths = Paths(random.Random(seed), Policy(mode, HANDSHAKE, CAP))
        self.table: frozenset[Endpoint] = frozenset()
        self.direct: Endpoint | None = None
        self.roamed: Endpoint | None = None
        self.states: list[State] = []
        self.sent = self.probes = 0
        self.used = self.got = self.went = self.down = False
        self.heard = self.gap = 0.0

    @property
    def key(self) -> bytes:
        return self.name.encode() * 32

    @property
    def state(self) -> State:
        return self.paths.view(self.other.name).state


class World:
    """Both machines, what is between them, and what went wrong.

    Args:
        a: kind of the first one's NAT.
        b: of the second one's.
        loss: share of datagrams that are lost.

    Attributes:
        cut: indices of the machines whose datagrams do not arrive.
        filtered: of those whose direct WireGuard packets do not, while their probes do.
        busy: WireGuard packets go both ways, ten a second.
        unmapped: WireGuard packets from an address that the receiver's table did not know.
        unexpected: those of them that nothing had happened to which makes an address new.
    """

    def __init__(
        self, a: str, b: str, mode: Mode = Mode.AUTO, *, relay: bool = True, loss: float = 0.0, seed: int = 1
    ) -> None:
        self.now, self.loss, self.rng, self.seed = 0.0, loss, random.Random(seed), seed
        self.cut: set[int] = set()
        self.filtered: set[int] = set()
        self.relay, self.busy, self.unmapped, self.unexpected, self.strange_until = relay, False, 0, 0, 0.0
        nats = KINDS[a]("203.0.113.1"), KINDS[b]("203.0.113.2")
        self.hosts = [Host("a", nats[0], mode, seed + 1), Host("b", nats[1], mode, seed + 2)]
        self.a, self.b = self.hosts
        self.a.other, self.b.other = self.b, self.a
        self._wire: list[tuple[float, int, Callable[[], None]]] = []
        self._count, self._data_at, self._stats_at = 0, 0.0, 0.0
        for host in self.hosts:
            self.join(host)

    # Events.

    def join(self, host: Host) -> None:
        """The agent has started and learns all that it needs."""
        nat = host.nat
        if self.relay:
            host.paths.relay(True, "", self.now)
        host.paths.set_local(nat.facts, nat.candidates, self.now)
        host.paths.upsert_peer(
            host.other.name, host.other.key, host.other.nat.candidates, host.other.nat.facts, self.now
        )
        self.act(host)
        for each in self.hosts:
            each.paths.presence(each.other.name, self.relay and not each.other.down, self.now)
            self.act(each)

    def kill(self, host: Host) -> None:
        """The agent is gone; kernel and WireGuard go on."""
        host.down = True
        host.other.paths.presence(host.name, False, self.now)
        self.act(host.other)

    def restart(self, host: Host, *, adopt: bool) -> None:
        """The agent is started again; with `adopt` the kernel's table was found and is continued."""
        if not host.down:
            self.kill(host)
        host.down = False
        direct, table = host.direct, host.table
        self.seed += 10
        host.paths = Paths(random.Random(self.seed), Policy(host.mode, HANDSHAKE, CAP))
        if not adopt:
            host.direct, host.table = None, frozenset()
            self.strange_until = self.now + 60.0
        self.join(host)
        if adopt:
            host.paths.adopt(host.other.name, direct, table, self.now)
        self.act(host)

    def set_mode(self, host: Host, mode: Mode) -> None:
        host.mode = mode
        host.paths.set_policy(Policy(mode, HANDSHAKE, CAP), self.now)
        self.act(host)

    def set_relay(self, up: bool) -> None:
        self.relay = up
        for host in self.hosts:
            host.paths.relay(up, "" if up else "it is down", self.now)
            if up and not host.other.down:
                host.paths.presence(host.other.name, True, self.now)
            self.act(host)

    def reboot_nat(self, host: Host) -> None:
        """The NAT forgets; STUN sees the new mapping a second later, and the API server tells the other side."""
        host.nat.reboot()
        self.strange_until = self.now + 60.0
        self._at(self.now + 1.0, lambda: self.stun(host))

    def stun(self, host: Host) -> None:
        host.paths.set_local(host.nat.facts, host.nat.candidates, self.now)
        self.act(host)
        host.other.paths.upsert_peer(host.name, host.key, host.nat.candidates, host.nat.facts, self.now)
        self.act(host.other)

    # What the shell does.

    def act(self, host: Host) -> None:
        if host.down:
            return
        while effects := host.paths.effects():
            for effect in effects:
                match effect:
                    case SendPing() | SendPong():
                        host.sent += 1
                        host.probes += isinstance(effect, SendPing)
                        self.send(host, effect.to, lambda source, e=effect: self.probed(host.other, source, e))  # type: ignore[misc]
                    case Steer(name, direct, accept):
                        host.direct, host.table = direct, accept
                        host.paths.installed(name, accept, self.now)
                    case SendSignal(_, signal):
                        self.signal(host, signal)
                    case Transition():
                        host.states.append(effect.new)

    def signal(self, host: Host, signal: Signal) -> None:
        def deliver() -> None:
            if self.relay and not host.other.down:
                host.other.paths.signal(host.name, signal, self.now)
                self.act(host.other)

        self._at(self.now + RELAY_DELAY, deliver)

    def send(self, host: Host, to: Endpoint, arrive: Callable[[Endpoint], None]) -> None:
        """Send a datagram through both NATs."""
        source, target = host.nat.out(to), host.other.nat
        if self.hosts.index(host) in self.cut or host.nat.blocked or self.rng.random() < self.loss:
            return

        def deliver() -> None:
            if str(to.ip) == target.outside and not target.blocked and target.admits(to.port, source):
                arrive(source)

        self._at(self.now + DELAY, deliver)

    def probed(self, host: Host, source: Endpoint, what: SendPing | SendPong) -> None:
        if host.down:
            return
        tell = host.paths.ping_received if isinstance(what, SendPing) else host.paths.pong_received
        tell(host.other.name, source, what.txid, what.mapped, self.now)
        self.act(host)

    # WireGuard.

    def data(self, host: Host) -> None:
        """Send one WireGuard packet on the leg in use."""
        host.used = host.went = True
        to = host.roamed or host.direct
        if to is not None and self.hosts.index(host) in self.filtered:
            return
        if to is not None:
            self.send(host, to, lambda source: self.data_arrived(host.other, source))
        elif self.relay and Mode.NEVER not in (host.mode, host.other.mode) and not (host.down or host.other.down):
            self._at(self.now + RELAY_DELAY, lambda: self.relayed(host.other))

    def relayed(self, host: Host) -> None:
        host.roamed = None
        self.received(host)

    def data_arrived(self, host: Host, source: Endpoint) -> None:
        if source in host.table:
            host.roamed = None
        else:
            self.unmapped += 1
            self.unexpected += self.now > self.strange_until
            host.roamed = source
        self.received(host)

    def received(self, host: Host) -> None:
        host.used = host.got = True
        host.gap = max(host.gap, self.now - host.heard)
        host.heard = self.now

    def stats(self, host: Host) -> None:
        if host.down:
            return
        if host.went:
            host.paths.sent(host.other.name, self.now)
        if host.got:
            host.paths.received(host.other.name, self.now)
        host.paths.traffic(host.other.name, host.used, self.now)
        host.used = host.got = host.went = False
        if host.roamed is not None and host.roamed not in host.table:
            host.paths.roamed(host.other.name, host.roamed, self.now)
        elif host.roamed is not None:
            host.roamed = None  # confirmed: WireGuard gets its constant endpoint back
        self.act(host)

    def measure(self) -> None:
        """Forget the longest gaps so far."""
        for host in self.hosts:
            host.gap, host.heard = 0.0, self.now

    @property
    def gaps(self) -> list[float]:
        """The longest time without a packet at each side, the one that runs included."""
        return [max(host.gap, self.now - host.heard) for host in self.hosts]

    # Time.

    def _at(self, when: float, what: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._wire, (when, self._count, what))

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            due = [
                until,
                self._stats_at,
                *([self._data_at] if self.busy else []),
                *([self._wire[0][0]] if self._wire else []),
            ]
            awake = [host for host in self.hosts if not host.down]
            due += [t for t in (next_timer(host.paths) for host in awake) if t is not None]
            self.now = max(self.now, min(due))
            while self._wire and self._wire[0][0] <= self.now:
                heapq.heappop(self._wire)[2]()
            for host in awake:
                host.paths.handle_timer(self.now)
                self.act(host)
            if self._stats_at <= self.now:
                self._stats_at = self.now + STATS_EVERY
                for host in self.hosts:
                    self.stats(host)
            if self.busy and self._data_at <= self.now:
                self._data_at = self.now + DATA_EVERY
                for host in self.hosts:
                    self.data(host)

    @property
    def state(self) -> tuple[State, State]:
        return self.a.state, self.b.state


@pytest.fixture(scope="session")
def checked_timer() -> Callable[[Paths], float | None]:
    return next_timer


@pytest.fixture(scope="session")
def world() -> type[World]:
    return World
