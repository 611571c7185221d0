# SPDX-License-Identifier: Apache-2.0
"""The path machine: decides, for each remote peer, by which leg its packets are sent. Pure: time and randomness come in.

    peer known ──> Connecting ──────────────────────────── proven ──────────────> Direct
                     │   packets go by the relay at once      ^                      │ pings unanswered
                     │                                        │ proven               v
                     │ handshake time-out, or impossible      ├──────────────── Relayed     (the relay has the peer)
                     └────────────────────────────────────────┴──────────────── Unreachable (it has not)

An address is *proven* when all of this holds, each learned from a message with a valid MAC:
  1. our ping to it was answered from it (both directions pass),
  2. our steering table takes its packets for this peer's (the shell said so by `installed`),
  3. the peer said the same of our address (`mapped`).
Because of 2 and 3 neither WireGuard ever sees a packet from an address that is not in its table, and never roams.

An exchange between A and B, both behind easy NATs, both told of the other's candidates:

    A ──ping──> B      lost in B's NAT, but opens A's
    A <──ping── B      arrives; A answers and asks back, for it wants a proof of its own
    A ──pong, ping──> B        B: answered (1); its table takes A's address (2)
    A <──pong── B      A: answered (1), table (2)
    A ──ping mapped──> B, A <──ping mapped── B       each hears that the other is ready (3) and moves its sending leg

The legs of the two sides are chosen alone: A may send directly while B still sends by the relay; both are always heard.

How a path is searched for is told in search.py, how the one in use is watched in keep.py and silence.py. A leg in doubt gives way to
any other proven address (a peer whose NAT rebound has a new one that is no faster), a dead one to the relay.

`always` sends no probe and answers none; a direct leg that it finds is left as soon as the relay has the peer, at the
latest after the handshake time-out. `never` has no relay: what cannot be sent directly is held back.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from ...wire.endpoint import Endpoint
from . import keep, search, silence, timers
from .candidates import better
from .model import Effect, Mode, NatFacts, PathView, Policy, SendPong, SendSignal, State, Steer, Transition
from .node import Node
from .possible import Reason
from .record import FRESH_SECONDS, NEVER, Address, Path
from .seal import CallMeMaybe, Known, Signal, Unheard
from .timers import Timers
from .verdict import SILENT, UNANSWERED, verdict

ASK_AGAIN = 0.1  # seconds in which an address that was asked is not asked again on its own ping
PING_LIFE = 5.0  # a pong that comes later proves nothing about now
CALL_SECONDS = 2.0  # at most one call-me-maybe in this time is acted on


class Paths:
    """All pairs of this node.

    Args:
        rng: for the session of our pings.
        policy: the Mesh's relay settings.
        epoch: Unix time minus the clock that is passed as `now`.
    """

    def __init__(self, rng: random.Random, policy: Policy | None = None, epoch: float = 0.0) -> None:
        self._node = Node(rng, policy or Policy(), epoch)
        self._timers = Timers()
        self._paths: dict[str, Path] = {}

    # What the shell tells.

    def set_policy(self, policy: Policy, now: float) -> None:
        """Take the Mesh's settings; a change of mode acts on every pair at once."""
        old, self._node.policy = self._node.policy, policy
        if old.mode is policy.mode:
            return
        for path in self._paths.values():
            path.lost = None
            path.deadline = now + policy.handshake_timeout
            if policy.mode is Mode.ALWAYS and path.present:
                self._leave(path)
            search.begin(self._node, path, now)
            self._settle(path, now)

    def upsert_peer(self, name: str, key: bytes, candidates: Iterable[Endpoint], nat: NatFacts, now: float) -> None:
        """Add a peer, or take news of it; a new key makes it a new peer."""
        listed = tuple(candidates)
        path = self._paths.get(name)
        if path is None or path.key != key:
            steered = path.steered if path is not None else (None, frozenset[Endpoint]())
            deadline = now + self._node.policy.handshake_timeout
            path = Path(name, key, listed, nat, since=now, deadline=deadline, steered=steered)
            self._paths[name] = path
            self._node.waiting.pop(name, None)
        elif (path.candidates, path.nat) == (listed, nat):
            return
        path.candidates, path.nat = listed, nat
        silence.release(path)
        search.begin(self._node, path, now)
        self._settle(path, now)

    def remove_peer(self, name: str) -> None:
        """Forget a peer; its steering is the shell's to remove."""
        self._paths.pop(name, None)
        self._node.waiting.pop(name, None)
        self._node.changed.add(name)

    def adopt(self, name: str, direct: Endpoint | None, accept: frozenset[Endpoint], now: float) -> None:
        """Continue what an agent before us left in the steering table; a direct leg is asked at once.

        All addresses stay accepted, also where our own packets went by the relay: the peer may send directly.
        """
        path = self._paths[name]
        for endpoint in accept | ({direct} if direct else set()):
            address = path.address(endpoint)
            if address is not None:
                address.accept, address.heard = True, now
        path.installed = path.accept
        adopted = path.address(direct) if direct else None
        if adopted is not None and self._node.probes:
            adopted.ponged = adopted.peer_mapped = now
            path.direct, path.next_keep = direct, now
        path.steered = (direct, path.accept)
        self._settle(path, now)

    def set_local(self, nat: NatFacts, candidates: Iterable[Endpoint], now: float) -> None:
        """Take news of this node's own NAT and addresses: every pair that is not direct is tried again."""
        own = tuple(candidates)
        if (nat, own) == (self._node.nat, self._node.own):
            return
        self._node.nat, self._node.own = nat, own
        self.network_changed(now)

    def network_changed(self, now: float) -> None:
        """Try everything again at once, and ask direct legs whether they still work."""
        for path in self._paths.values():
            silence.release(path)
            if path.direct is not None:
                keep.soon(path, now)
            else:
                search.begin(self._node, path, now)
            self._settle(path, now)

    def ping_received(self, name: str, source: Endpoint, txid: bytes, mapped: bool, now: float) -> None:
        """Take an authenticated ping: answer it, and ask back where that proves something new; a recording is nothing."""
        path = self._paths.get(name)
        if path is None or not self._node.probes or not self._node.is_new(path, txid):
            return
        address = path.address(source)
        if address is None:
            return
        self._node.effects.append(SendPong(name, source, txid, source in path.installed, source))
        address.heard = now
        if mapped:
            address.peer_mapped = now
        old = now - address.ponged > FRESH_SECONDS / 2
        if old and not self._asked(path, source, now) and not silence.is_held(path, source, now):
            self._node.ask_back(path, source, now)
        self._settle(path, now)

    def pong_received(self, name: str, source: Endpoint, txid: bytes, mapped: bool, now: float) -> None:
        """Take an authenticated pong; it counts only for a ping that was sent to its very source."""
        path = self._paths.get(name)
        sent = path.pings.pop(txid, None) if path else None
        if path is None or sent is None or sent.to != source or now - sent.at > PING_LIFE:
            return
        address = path.addresses.get(source) or path.address(source)
        if address is None:
            return
        address.ponged = address.heard = now
        address.rtt = max(now - sent.at, 1e-6)
        address.accept = True
        if mapped:
            address.peer_mapped = now
        if source == path.direct:
            keep.answered(path, now)
        self._settle(path, now)

    def installed(self, name: str, accept: frozenset[Endpoint], now: float) -> None:
        """Take the word that the steering table is written; tell the peer by pings that say `mapped`."""
        path = self._paths.get(name)
        if path is None or path.installed == accept:
            return
        new, path.installed = accept - path.installed, accept
        if self._node.probes:
            for endpoint in sorted(new, key=str):
                self._node.ping(path, endpoint, now)
        self._settle(path, now)

    def traffic(self, name: str, active: bool, now: float) -> None:
        """Take whether the pair carries traffic; a leg with traffic is asked more often."""
        path = self._paths.get(name)
        if path is None or path.active == active:
            return
        path.active = active
        self._node.changed.add(name)
        if active:
            keep.soon(path, now)

    def sent(self, name: str, now: float) -> None:
        """Take WireGuard's word that it sent more than keepalives to the peer; told before `received` of the same time."""
        path = self._paths.get(name)
        if path is not None and silence.sent(path, now):
            self._node.effects.append(SendSignal(name, Unheard()))
            self._lose(path, SILENT, now)
            self._settle(path, now)

    def received(self, name: str, now: float) -> None:
        """Take WireGuard's word that valid packets of the peer came since the last time."""
        path = self._paths.get(name)
        if path is not None:
            path.received = now
            silence.received(path)

    def roamed(self, name: str, endpoint: Endpoint, now: float) -> None:
        """Take WireGuard's word that a valid packet came from another address: the peer's NAT has a new mapping."""
        path = self._paths.get(name)
        if path is None or not self._node.probes:
            return
        keep.soon(path, now)
        self._node.changed.add(name)
        if not self._asked(path, endpoint, now):
            self._node.ask_back(path, endpoint, now)

    def relay(self, up: bool, reason: str, now: float) -> None:
        """Take whether the relay session is up; without one nobody is present."""
        self._node.relay_up, self._node.relay_reason = up, reason
        for path in self._paths.values():
            path.present = path.present and up
            self._settle(path, now)

    def presence(self, name: str, present: bool, now: float) -> None:
        """Take whether the relay has the peer; one that comes is called, for both sides must send at once."""
        path = self._paths.get(name)
        if path is None:
            return
        came, path.present = present and not path.present, present
        if present and not self._node.probes:
            self._leave(path)
        if came and path.direct is None:
            search.begin(self._node, path, now)
        elif came:
            keep.fresh_chance(path, now)  # before its packets go another way
        self._settle(path, now)

    def signal(self, name: str, signal: Signal, now: float) -> None:
        """Take an authenticated signal of the peer."""
        path = self._paths.get(name)
        if path is None:
            return
        if isinstance(signal, Known):
            if signal.answer:
                self._node.effects.append(SendSignal(name, Known()))
        elif isinstance(signal, Unheard):
            self._unheard(path, now)
        else:
            self._called(path, signal, now)

    def _unheard(self, path: Path, now: float) -> None:
        if path.direct is not None:
            self._lose(path, SILENT, now)
            self._settle(path, now)
            return
        for endpoint in path.held:  # both sides hold alike, also where only the other one tried again
            silence.hold(path, endpoint, now)

    def _called(self, path: Path, signal: CallMeMaybe, now: float) -> None:
        if not self._node.probes or now - path.called < CALL_SECONDS:
            return
        path.called = now
        self._node.changed.add(path.name)
        if signal.answer:
            self._node.effects.append(SendSignal(path.name, CallMeMaybe(self._node.own)))
        if path.direct is None:
            search.called(self._node, path, signal.endpoints, now)

    # What the shell asks.

    def effects(self) -> list[Effect]:
        """Return what is to be done since the last call, in order."""
        done, self._node.effects = self._node.effects, []
        return done

    def next_timer(self) -> float | None:
        """Return when `handle_timer` is due next; None when nothing is."""
        self._set_timers()
        times = (self._timers.first(), search.serve_at(self._node))
        return min((time for time in times if time is not None), default=None)

    def handle_timer(self, now: float) -> None:
        """Do what is due."""
        search.serve(self._node, now)
        self._set_timers()
        for name in self._timers.take(now):
            self._tick(self._paths[name], now)

    def view(self, name: str) -> PathView:
        """Return one pair for people and for status.

        Raises:
            KeyError: there is no such peer.
        """
        path = self._paths[name]
        address = path.addresses.get(path.direct) if path.direct else None
        return PathView(
            state=path.state,
            direct=path.direct,
            accept=path.accept,
            rtt=address.rtt or None if address else None,
            reason=path.reason,
            message=path.message,
            since=path.since,
            attempts=path.attempts,
            next_retry=path.next_retry,
        )

    # Time.

    def _set_timers(self) -> None:
        for name in self._node.changed:
            path = self._paths.get(name)
            self._timers.set(name, self._due(path) if path is not None else timers.NEVER)
        self._node.changed.clear()

    def _due(self, path: Path) -> float:
        if not self._node.probes and path.direct is not None:
            return path.deadline
        deadline = path.deadline if path.state is State.CONNECTING else None
        times = (deadline, search.due(path), keep.due(path))
        return min((time for time in times if time is not None), default=timers.NEVER)

    def _tick(self, path: Path, now: float) -> None:
        path.pings = {txid: sent for txid, sent in path.pings.items() if now - sent.at <= PING_LIFE}
        path.prune(now)
        if not self._node.probes:
            if path.direct is not None and path.deadline <= now:
                self._leave(path)
        elif keep.advance(self._node, path, now):
            self._lose(path, UNANSWERED, now)
        else:
            search.advance(self._node, path, now)
        self._settle(path, now)

    def _lose(self, path: Path, why: Reason, now: float) -> None:
        if path.direct is not None:
            address = path.addresses[path.direct]
            address.ponged = address.peer_mapped = NEVER
            if why is SILENT:
                silence.hold(path, path.direct, now)
        self._leave(path)
        path.lost = why
        search.begin(self._node, path, now)

    def _leave(self, path: Path) -> None:
        path.direct, path.keep, path.fast, path.unanswered, path.unheard = None, None, False, 0, None

    def _asked(self, path: Path, endpoint: Endpoint, now: float) -> bool:
        return any(sent.to == endpoint and now - sent.at < ASK_AGAIN for sent in path.pings.values())

    # Decisions.

    def _settle(self, path: Path, now: float) -> None:
        """Choose the leg, write the table where it differs, and say what changed."""
        self._node.changed.add(path.name)
        if self._node.probes:
            self._choose(path, now)
        wanted = (path.direct, path.accept)
        if wanted != path.steered:
            path.steered = wanted
            self._node.effects.append(Steer(path.name, *wanted))
        self._announce(path, now)

    def _choose(self, path: Path, now: float) -> None:
        best: tuple[Endpoint, Address] | None = None
        for endpoint, address in path.proven(now):
            if (endpoint == path.direct and keep.in_doubt(path)) or silence.is_held(path, endpoint, now):
                continue
            if best is None or better((endpoint, address.rtt), (best[0], best[1].rtt)):
                best = (endpoint, address)
        if best is not None and best[0] != path.direct and self._gives_way(path, best):
            self._leave(path)
            path.direct, path.lost, path.next_retry, path.backoff = best[0], None, None, 0.0
            path.next_keep = now + keep.PING_ACTIVE

    def _gives_way(self, path: Path, best: tuple[Endpoint, Address]) -> bool:
        if path.direct is None or keep.in_doubt(path):
            return True
        return better((best[0], best[1].rtt), (path.direct, path.addresses[path.direct].rtt))

    def _announce(self, path: Path, now: float) -> None:
        state, (reason, message) = verdict(self._node, path, now)
        path.reason, path.message = reason, message
        if state is not path.state:
            self._node.effects.append(Transition(path.name, path.state, state, reason, message))
            path.state, path.since = state, now
