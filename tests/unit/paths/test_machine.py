# SPDX-License-Identifier: Apache-2.0
"""Two machines behind simulated NATs, pumped by hand: no sockets, no clock but ours."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wirekube.agent.paths.machine import Paths
from wirekube.agent.paths.model import Mode, NatFacts, Policy, SendPing, SendPong, SendSignal, State, Steer, Transition
from wirekube.wire.endpoint import Endpoint


@dataclass
class Nat:
    """A NAT by RFC 4787: what leaves from where, and who may come in."""

    outside: str
    symmetric: bool = False
    restricted: bool = True
    blocked: bool = False
    ports: dict[Endpoint | None, int] = field(default_factory=dict)
    spoken: set[tuple[int, Endpoint]] = field(default_factory=set)

    def out(self, to: Endpoint) -> Endpoint:
        key = to if self.symmetric else None
        port = self.ports.setdefault(key, 51820 if not self.symmetric else 40000 + len(self.ports))
        self.spoken.add((port, to))
        return Endpoint.of(self.outside, port)

    def admits(self, port: int, source: Endpoint) -> bool:
        known = port in self.ports.values()
        return known and (not self.restricted or (port, source) in self.spoken)

    @property
    def facts(self) -> NatFacts:
        return NatFacts(
            udp_blocked=self.blocked,
            symmetric=self.symmetric,
            port_restricted=self.restricted,
            public=not self.restricted and not self.symmetric,
            addresses=frozenset({self.outside}),
        )


class Host:
    def __init__(self, name: str, nat: Nat, mode: Mode, seed: int) -> None:
        self.name, self.nat = name, nat
        self.paths = Paths(random.Random(seed), Policy(mode, 30.0, 120.0))
        self.table: frozenset[Endpoint] = frozenset()
        self.direct: Endpoint | None = None
        self.states: list[State] = []
        if not nat.symmetric:
            nat.ports[None] = 51820


class World:
    def __init__(self, a: Nat, b: Nat, mode: Mode = Mode.AUTO, relay: bool = True, loss: float = 0.0, seed: int = 1):
        self.now, self.relay, self.loss, self.rng = 0.0, relay, loss, random.Random(seed)
        self.hosts = [Host("a", a, mode, seed + 1), Host("b", b, mode, seed + 2)]
        self.wire: list[tuple[float, int, int, Endpoint, Endpoint, object]] = []
        self.count, self.cut, self.unmapped = 0, False, 0
        for host in self.hosts:
            if relay:
                host.paths.relay(True, "", 0.0)
            host.paths.set_local(host.nat.facts, self.candidates(host), 0.0)
        for host in self.hosts:
            self.meet(host)

    def meet(self, host: Host) -> None:
        other = self.other(host)
        key = ip_address(other.nat.outside).packed * 8
        host.paths.upsert_peer(other.name, key, self.candidates(other), other.nat.facts, self.now)
        if self.relay:
            host.paths.presence(other.name, True, self.now)
        self.act(host)

    def candidates(self, host: Host) -> list[Endpoint]:
        return [] if host.nat.symmetric or host.nat.blocked else [Endpoint.of(host.nat.outside, 51820)]

    def other(self, host: Host) -> Host:
        return self.hosts[1 - self.hosts.index(host)]

    def act(self, host: Host) -> None:
        for effect in host.paths.effects():
            if isinstance(effect, SendPing | SendPong):
                self.send(host, effect.to, effect)
            elif isinstance(effect, Steer):
                host.direct, host.table = effect.direct, effect.accept
                host.paths.installed(effect.name, effect.accept, self.now)
                self.act(host)
            elif isinstance(effect, SendSignal):
                target = self.other(host)
                target.paths.signal(host.name, effect.signal, self.now)
                self.act(target)
            elif isinstance(effect, Transition):
                host.states.append(effect.new)

    def send(self, host: Host, to: Endpoint, what: object) -> None:
        source = host.nat.out(to)
        if self.cut or host.nat.blocked or self.rng.random() < self.loss:
            return
        self.count += 1
        heapq.heappush(self.wire, (self.now + 0.01, self.count, self.hosts.index(host), source, to, what))

    def deliver(self, sender: int, source: Endpoint, to: Endpoint, what: object) -> None:
        host = self.hosts[1 - sender]
        if str(to.ip) != host.nat.outside or host.nat.blocked or not host.nat.admits(to.port, source):
            return
        name = self.hosts[sender].name
        if isinstance(what, SendPing):
            host.paths.ping_received(name, source, what.txid, what.mapped, self.now)
        elif isinstance(what, SendPong):
            host.paths.pong_received(name, source, what.txid, what.mapped, self.now)
        self.act(host)

    def data(self) -> None:
        """Each side that sends directly sends one packet of WireGuard's: it must come from a mapped address."""
        for host in self.hosts:
            if host.direct is not None:
                source = host.nat.out(host.direct)
                target = self.other(host)
                arrives = not self.cut and target.nat.admits(host.direct.port, source)
                if arrives and source not in target.table:
                    self.unmapped += 1

    def run(self, until: float) -> None:
        while self.now < until:
            timers = [t for t in (h.paths.next_timer() for h in self.hosts) if t is not None]
            nxt = min([*timers, self.wire[0][0] if self.wire else until, until])
            self.now = max(self.now, min(nxt, until))
            while self.wire and self.wire[0][0] <= self.now:
                _, _, sender, source, to, what = heapq.heappop(self.wire)
                self.deliver(sender, source, to, what)
            for host in self.hosts:
                host.paths.handle_timer(self.now)
                self.act(host)
            self.data()

    def state(self) -> tuple[State, State]:
        return tuple(h.paths.view(self.other(h).name).state for h in self.hosts)  # type: ignore[return-value]


def easy(ip: str) -> Nat:
    return Nat(ip)


def public(ip: str) -> Nat:
    return Nat(ip, restricted=False)


def hard(ip: str) -> Nat:
    return Nat(ip, symmetric=True)


def blocked(ip: str) -> Nat:
    return Nat(ip, blocked=True)


DIRECT = [(easy, easy), (public, easy), (easy, public), (public, hard), (hard, public), (public, public)]
RELAYED = [(hard, hard), (blocked, easy), (hard, easy), (easy, blocked), (blocked, hard)]


@pytest.mark.parametrize(("a", "b"), DIRECT)
def test_pairs_that_can_meet_go_direct(a, b) -> None:  # type: ignore[no-untyped-def]
    world = World(a("203.0.113.1"), b("203.0.113.2"))
    world.run(2.0)
    assert world.state() == (State.DIRECT, State.DIRECT)
    assert world.unmapped == 0


@pytest.mark.parametrize(("a", "b"), RELAYED)
def test_pairs_that_cannot_meet_are_relayed_at_once_and_say_why(a, b) -> None:  # type: ignore[no-untyped-def]
    world = World(a("203.0.113.1"), b("203.0.113.2"))
    world.run(0.1)
    assert world.state() == (State.RELAYED, State.RELAYED)
    assert all(h.paths.view(world.other(h).name).message for h in world.hosts)


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from(DIRECT), st.floats(0, 0.3))
def test_loss_delays_a_direct_path_but_wireguard_never_hears_an_unmapped_address(seed, pair, loss) -> None:  # type: ignore[no-untyped-def]
    world = World(pair[0]("203.0.113.1"), pair[1]("203.0.113.2"), loss=loss, seed=seed)
    world.run(200.0)
    assert world.unmapped == 0
    if loss < 0.05:
        assert State.DIRECT in world.hosts[0].states


def test_a_cut_moves_traffic_to_the_relay_within_two_seconds_and_back() -> None:
    world = World(easy("203.0.113.1"), easy("203.0.113.2"))
    world.run(3.0)
    for host in world.hosts:
        host.paths.traffic(world.other(host).name, True, world.now)
    world.run(10.0)
    world.cut = True
    world.run(12.0)
    assert world.state() == (State.RELAYED, State.RELAYED)
    assert [h.direct for h in world.hosts] == [None, None]
    world.run(15.0)
    world.cut = False
    world.run(26.0)
    assert world.state() == (State.DIRECT, State.DIRECT)
    assert world.unmapped == 0


def test_always_sends_no_probe_and_answers_none() -> None:
    world = World(public("203.0.113.1"), public("203.0.113.2"), Mode.ALWAYS)
    world.run(60.0)
    assert world.count == 0
    assert world.state() == (State.RELAYED, State.RELAYED)


def test_never_finds_a_direct_path_without_signals() -> None:
    world = World(easy("203.0.113.1"), easy("203.0.113.2"), Mode.NEVER, relay=False)
    world.run(20.0)
    assert world.state() == (State.DIRECT, State.DIRECT)


def test_never_says_unreachable_when_the_nats_do_not_allow_it() -> None:
    world = World(hard("203.0.113.1"), hard("203.0.113.2"), Mode.NEVER, relay=False)
    world.run(40.0)
    assert world.state() == (State.UNREACHABLE, State.UNREACHABLE)
    assert world.hosts[0].paths.view("b").reason == "BothSymmetric"


@pytest.mark.parametrize("first", list(Mode))
@pytest.mark.parametrize("then", list(Mode))
def test_the_mode_can_be_switched_at_any_time(first: Mode, then: Mode) -> None:
    world = World(easy("203.0.113.1"), easy("203.0.113.2"), first)
    world.run(30.0)
    for host in world.hosts:
        host.paths.set_policy(Policy(then, 30.0, 120.0), world.now)
        world.act(host)
    world.run(60.0)
    expected = State.RELAYED if then is Mode.ALWAYS else State.DIRECT
    assert world.state() == (expected, expected)
    assert world.unmapped == 0


def test_an_adopted_leg_is_used_without_a_gap_and_asked_at_once() -> None:
    world = World(easy("203.0.113.1"), easy("203.0.113.2"))
    world.run(3.0)
    old = world.hosts[0]
    world.hosts[0] = new = Host("a", old.nat, Mode.AUTO, 9)
    new.paths.relay(True, "", world.now)
    new.paths.set_local(new.nat.facts, world.candidates(new), world.now)
    new.paths.upsert_peer("b", b"k" * 32, world.candidates(world.hosts[1]), world.hosts[1].nat.facts, world.now)
    assert old.direct is not None
    new.table, new.direct = old.table, old.direct
    new.paths.adopt("b", old.direct, old.table, world.now)
    world.act(new)
    assert new.direct == old.direct
    world.run(6.0)
    assert world.state() == (State.DIRECT, State.DIRECT)
    assert new.paths.view("b").rtt is not None


def test_a_pong_from_elsewhere_proves_nothing() -> None:
    paths = Paths(random.Random(1))
    here, there = Endpoint.of("203.0.113.9", 1), Endpoint.of("203.0.113.9", 2)
    paths.upsert_peer("b", b"k" * 32, [here], NatFacts(), 0.0)
    ping = next(e for e in paths.effects() if isinstance(e, SendPing))
    paths.pong_received("b", there, ping.txid, True, 0.1)
    assert not [e for e in paths.effects() if isinstance(e, Steer)]


def test_no_more_than_fifty_probes_a_second() -> None:
    paths = Paths(random.Random(1))
    for number in range(200):
        listed = [Endpoint.of(f"198.51.100.{i}", 1000 + number) for i in range(8)]
        paths.upsert_peer(f"n{number}", number.to_bytes(32, "big"), listed, NatFacts(), 0.0)
    sent = 0
    for tick in range(100):
        paths.handle_timer(tick / 10)
        sent += sum(isinstance(e, SendPing) for e in paths.effects())
    assert sent <= 100 + 50 * 10


def test_a_leg_stays_while_the_peers_agent_restarts_and_its_wireguard_goes_on() -> None:
    world = World(easy("203.0.113.1"), easy("203.0.113.2"))
    world.run(3.0)
    a = world.hosts[0]
    direct = a.direct
    assert direct is not None
    a.paths.traffic("b", True, world.now)
    a.paths.presence("b", False, world.now)  # the session of a killed agent ends at once
    world.cut = True  # and nobody answers probes
    for second in range(4, 60):
        world.run(float(second))
        a.paths.received("b", world.now)
        world.act(a)
    assert (a.direct, a.paths.view("b").state) == (direct, State.DIRECT)
    assert a.paths.view("b").reason == "ProbesUnanswered"
    # The new agent is at the relay a moment before it answers probes.
    a.paths.presence("b", True, world.now)
    world.run(world.now + 0.1)
    assert a.direct == direct
    world.cut = False
    world.run(world.now + 3.0)
    assert (a.direct, a.paths.view("b").reason) == (direct, "ProbeAnswered")


def test_a_leg_without_any_sign_of_life_is_given_up_after_a_while() -> None:
    world = World(easy("203.0.113.1"), easy("203.0.113.2"), Mode.NEVER, relay=False)
    world.run(30.0)
    assert world.state() == (State.DIRECT, State.DIRECT)
    world.cut = True
    world.run(100.0)
    assert world.state() == (State.UNREACHABLE, State.UNREACHABLE)
