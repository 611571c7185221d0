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

While a direct leg carries traffic it is pinged each second, idle each 25 s. A ping without an answer in max(3 RTT,
200 ms) puts it in doubt: it is pinged every 200 ms, and three more silences in a row move the traffic away.

They move it only where it can go: a peer whose agent is being restarted has no relay session either, while its WireGuard
goes on. So without one the leg stays, as long as WireGuard receives something from the peer within 35 s.

`always` sends no probe and answers none. `never` has no relay: what cannot be sent directly is held back.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from ...wire.endpoint import Endpoint
from .candidates import better
from .limits import ProbeBudget
from .model import (
    Effect,
    Mode,
    NatFacts,
    PathView,
    Policy,
    SendPing,
    SendPong,
    SendSignal,
    State,
    Steer,
    Transition,
)
from .possible import Reason, why_not_direct
from .probe import TXID_BYTES
from .record import FRESH_SECONDS, Address, Attempt, Path, Sent
from .seal import CallMeMaybe, Known, Signal

ATTEMPT_SECONDS = 5.0
ROUNDS = (0.0, 0.1, 0.3, 0.8, 1.8)  # seconds from the start of an attempt: five pings to a candidate
FIRST_BACKOFF = 5.0
PING_ACTIVE, PING_IDLE, PING_FAST = 1.0, 25.0, 0.2
ANSWER_FACTOR, ANSWER_LEAST = 3.0, 0.2  # an answer is due after max(3 RTT, 200 ms)
SILENCES = 4  # the one that raised the doubt, and three in a row after it: at most 1.8 s after a path died
PATIENCE = 35.0  # without a relay to move to, a leg on which WireGuard's keepalives (25 s) still come is kept
PING_LIFE = 5.0  # a pong that comes later proves nothing about now
CALL_SECONDS = 2.0  # at most one call-me-maybe in this time is acted on, and one is sent


class Paths:
    """All pairs of this node.

    Args:
        rng: for transaction ids.
        policy: the Mesh's relay settings.
        epoch: Unix time minus the clock that is passed as `now`.
    """

    def __init__(self, rng: random.Random, policy: Policy | None = None, epoch: float = 0.0) -> None:
        self._rng, self._policy, self._epoch = rng, policy or Policy(), epoch
        self._paths: dict[str, Path] = {}
        self._nat = NatFacts()
        self._own: tuple[Endpoint, ...] = ()
        self._relay_up, self._relay_reason = False, "the relay session is not up yet"
        self._effects: list[Effect] = []
        self._budget = ProbeBudget()

    # What the shell tells.

    def set_policy(self, policy: Policy, now: float) -> None:
        """Take the Mesh's settings; a change of mode acts on every pair at once."""
        old, self._policy = self._policy, policy
        if old.mode is policy.mode:
            return
        for path in self._paths.values():
            path.lost = False
            path.deadline = now + policy.handshake_timeout
            if policy.mode is Mode.ALWAYS:
                path.attempt, path.next_retry, path.keep = None, None, None
                self._leave(path)
            else:
                self._begin(path, now)
            self._settle(path, now)

    def upsert_peer(self, name: str, key: bytes, candidates: Iterable[Endpoint], nat: NatFacts, now: float) -> None:
        """Add a peer, or take news of it; a new key makes it a new peer."""
        listed = tuple(candidates)
        path = self._paths.get(name)
        if path is None or path.key != key:
            deadline = now + self._policy.handshake_timeout
            path = self._paths[name] = Path(name, key, listed, nat, since=now, deadline=deadline)
        elif (path.candidates, path.nat) == (listed, nat):
            return
        path.candidates, path.nat = listed, nat
        self._begin(path, now)
        self._settle(path, now)

    def remove_peer(self, name: str) -> None:
        """Forget a peer; its steering is the shell's to remove."""
        self._paths.pop(name, None)

    def adopt(self, name: str, direct: Endpoint, accept: frozenset[Endpoint], now: float) -> None:
        """Continue a direct leg that an agent before us left in the steering table; it is asked at once."""
        path = self._paths[name]
        for endpoint in accept | {direct}:
            address = path.address(endpoint)
            if address is not None:
                address.accept = True
        adopted = path.address(direct)
        if adopted is None or self._policy.mode is Mode.ALWAYS:
            return
        adopted.ponged = adopted.peer_mapped = now
        path.installed = path.accept
        path.direct, path.next_keep = direct, now
        path.steered = (direct, path.accept)
        self._settle(path, now)

    def set_local(self, nat: NatFacts, candidates: Iterable[Endpoint], now: float) -> None:
        """Take news of this node's own NAT and addresses: every pair that is not direct is tried again."""
        own = tuple(candidates)
        if (nat, own) == (self._nat, self._own):
            return
        self._nat, self._own = nat, own
        self.network_changed(now)

    def network_changed(self, now: float) -> None:
        """Try everything again at once, and ask direct legs whether they still work."""
        for path in self._paths.values():
            if path.direct is not None:
                path.next_keep = now
            else:
                self._begin(path, now)
            self._settle(path, now)

    def ping_received(self, name: str, source: Endpoint, txid: bytes, mapped: bool, now: float) -> None:
        """Take an authenticated ping: answer it, and ask back where that proves something new."""
        path = self._paths.get(name)
        if path is None or self._policy.mode is Mode.ALWAYS:
            return
        address = path.address(source)
        if address is None:
            return
        self._effects.append(SendPong(name, source, txid, source in path.installed, source))
        address.heard = now
        if mapped:
            address.peer_mapped = now
        if now - address.ponged > FRESH_SECONDS / 2 and not self._asked(path, source, now):
            self._ping(path, source, now)
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
            path.fast, path.unanswered, path.keep, path.next_retry = False, 0, None, None
            path.next_keep = now + (PING_ACTIVE if path.active else PING_IDLE)
        self._settle(path, now)

    def installed(self, name: str, accept: frozenset[Endpoint], now: float) -> None:
        """Take the word that the steering table is written; tell the peer by pings that say `mapped`."""
        path = self._paths.get(name)
        if path is None or path.installed == accept:
            return
        new, path.installed = accept - path.installed, accept
        if self._policy.mode is not Mode.ALWAYS:
            for endpoint in new:
                self._ping(path, endpoint, now)
        self._settle(path, now)

    def traffic(self, name: str, active: bool, now: float) -> None:
        """Take whether the pair carries traffic; a leg with traffic is asked more often."""
        path = self._paths.get(name)
        if path is None or path.active == active:
            return
        path.active = active
        if active and path.direct is not None:
            path.next_keep = min(path.next_keep, now)

    def received(self, name: str, now: float) -> None:
        """Take WireGuard's word that valid packets of the peer came since the last time."""
        path = self._paths.get(name)
        if path is not None:
            path.received = now

    def roamed(self, name: str, endpoint: Endpoint, now: float) -> None:
        """Take WireGuard's word that a valid packet came from another address: the peer's NAT has a new mapping."""
        path = self._paths.get(name)
        if path is not None and self._policy.mode is not Mode.ALWAYS and not self._asked(path, endpoint, now):
            self._ping(path, endpoint, now)

    def relay(self, up: bool, reason: str, now: float) -> None:
        """Take whether the relay session is up; without one nobody is present."""
        self._relay_up, self._relay_reason = up, reason
        for path in self._paths.values():
            path.present = path.present and up
            self._settle(path, now)

    def presence(self, name: str, present: bool, now: float) -> None:
        """Take whether the relay has the peer; one that comes is called, for both sides must send at once."""
        path = self._paths.get(name)
        if path is None:
            return
        came, path.present = present and not path.present, present
        if came and path.direct is None:
            self._begin(path, now)
        elif came and path.unanswered:
            # Its agent has just come back: it gets a fresh chance to answer before its packets go another way.
            path.unanswered, path.keep, path.next_keep = 0, None, now
        self._settle(path, now)

    def signal(self, name: str, signal: Signal, now: float) -> None:
        """Take an authenticated signal of the peer."""
        path = self._paths.get(name)
        if path is None:
            return
        if isinstance(signal, Known):
            if signal.answer:
                self._effects.append(SendSignal(name, Known()))
            return
        if self._policy.mode is Mode.ALWAYS or now - path.called < CALL_SECONDS:
            return
        path.called = now
        if signal.answer:
            self._effects.append(SendSignal(name, CallMeMaybe(self._own)))
        if path.direct is None:
            self._start_attempt(path, now, signal.endpoints)

    # What the shell asks.

    def effects(self) -> list[Effect]:
        """Return what is to be done since the last call, in order."""
        done, self._effects = self._effects, []
        return done

    def next_timer(self) -> float | None:
        """Return when `handle_timer` is due next."""
        return min((self._due(path) for path in self._paths.values()), default=None)

    def handle_timer(self, now: float) -> None:
        """Do what is due."""
        for path in self._paths.values():
            if self._due(path) <= now:
                self._tick(path, now)

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

    # Timers.

    def _due(self, path: Path) -> float:
        times = [path.deadline] if path.state is State.CONNECTING else []
        if path.attempt is not None:
            attempt = path.attempt
            rounds = [attempt.began + ROUNDS[attempt.round]] if attempt.round < len(ROUNDS) else []
            times += [*rounds, attempt.ends]
        elif path.next_retry is not None:
            times.append(path.next_retry)
        if path.direct is not None:
            times.append(self._silence(path) if path.keep else path.next_keep)
        return min(times, default=float("inf"))

    def _silence(self, path: Path) -> float:
        """When the ping on the direct leg counts as unanswered."""
        if path.keep is None:
            return float("inf")
        rtt = path.addresses[path.keep.to].rtt
        return path.keep.at + (max(rtt, PING_FAST) if path.fast else max(ANSWER_FACTOR * rtt, ANSWER_LEAST))

    def _tick(self, path: Path, now: float) -> None:
        path.pings = {txid: sent for txid, sent in path.pings.items() if now - sent.at <= PING_LIFE}
        path.prune(now)
        if path.direct is not None:
            self._watch_direct(path, now)
        if path.attempt is not None:
            self._advance(path, path.attempt, now)
        elif path.next_retry is not None and path.next_retry <= now:
            self._start_attempt(path, now)
        self._settle(path, now)

    def _watch_direct(self, path: Path, now: float) -> None:
        if path.keep is not None and self._silence(path) <= now:
            path.unanswered, path.keep = path.unanswered + 1, None
            path.fast, path.next_keep = True, now
            if path.unanswered >= SILENCES and not self._persist(path, now):
                self._lose(path, now)
                return
        if path.keep is None and path.direct is not None and path.next_keep <= now:
            self._ping(path, path.direct, now, urgent=True)
            path.keep = Sent(path.direct, now)

    def _persist(self, path: Path, now: float) -> bool:
        """Stay on a leg that does not answer when there is no better one; look for another meanwhile."""
        if path.present or now - path.alive > PATIENCE:
            return False
        path.fast, path.next_keep = False, now + PING_ACTIVE
        if path.attempt is None and path.next_retry is None:
            self._start_attempt(path, now)
        return True

    def _lose(self, path: Path, now: float) -> None:
        if path.direct is not None:
            address = path.addresses[path.direct]
            address.ponged = address.peer_mapped = float("-inf")
        self._leave(path)
        path.lost, path.backoff = True, 0.0
        self._start_attempt(path, now)

    def _leave(self, path: Path) -> None:
        path.direct, path.keep, path.fast, path.unanswered = None, None, False, 0

    # Attempts.

    def _begin(self, path: Path, now: float) -> None:
        """Start over: something changed that may make a direct path possible."""
        path.backoff = 0.0
        self._start_attempt(path, now)

    def _start_attempt(self, path: Path, now: float, extra: tuple[Endpoint, ...] = ()) -> None:
        path.next_retry = None
        if self._policy.mode is Mode.ALWAYS or (self._why_not(path) and not extra):
            path.attempt = None
            return
        fresh = path.attempt is None or path.attempt.round > 0
        path.attempt = Attempt(now, now + ATTEMPT_SECONDS, extra=extra)
        if fresh:
            path.attempts += 1
            self._call(path)
        self._advance(path, path.attempt, now)

    def _call(self, path: Path) -> None:
        if self._relay_up and path.present and self._policy.mode is Mode.AUTO:
            self._effects.append(SendSignal(path.name, CallMeMaybe(self._own, answer=True)))

    def _advance(self, path: Path, attempt: Attempt, now: float) -> None:
        while attempt.round < len(ROUNDS) and attempt.began + ROUNDS[attempt.round] <= now:
            attempt.round += 1
            proven = {endpoint for endpoint, _ in path.proven(now)}
            for endpoint in dict.fromkeys((*path.candidates, *attempt.extra, *sorted(path.accept))):
                if endpoint not in proven:
                    self._ping(path, endpoint, now)
        if now >= attempt.ends:
            path.attempt = None
            if path.direct is None or path.unanswered >= SILENCES:
                path.backoff = min(max(path.backoff * 2, FIRST_BACKOFF), self._policy.retry_cap)
                path.next_retry = self._retry_at(path, now)

    def _retry_at(self, path: Path, now: float) -> float:
        """With a relay the peer is called at any time; without one both sides must come to the same instant alone.

        Back-offs are 5 s times powers of two, so the instants of a longer one are among those of a shorter one.
        """
        if self._relay_up and path.present:
            return now + path.backoff
        return now + path.backoff - (now + self._epoch) % path.backoff

    def _asked(self, path: Path, endpoint: Endpoint, now: float) -> bool:
        return any(sent.to == endpoint and now - sent.at < ROUNDS[1] for sent in path.pings.values())

    def _ping(self, path: Path, to: Endpoint, now: float, *, urgent: bool = False) -> None:
        if not self._budget.take(now, urgent=urgent):
            return
        txid = self._rng.randbytes(TXID_BYTES)
        path.pings[txid] = Sent(to, now)
        self._effects.append(SendPing(path.name, to, txid, to in path.installed))

    # Decisions.

    def _settle(self, path: Path, now: float) -> None:
        """Choose the leg, write the table where it differs, and say what changed."""
        if self._policy.mode is not Mode.ALWAYS:
            self._choose(path, now)
        wanted = (path.direct, path.accept)
        if wanted != path.steered:
            path.steered = wanted
            self._effects.append(Steer(path.name, *wanted))
        self._announce(path, now)

    def _choose(self, path: Path, now: float) -> None:
        best: tuple[Endpoint, Address] | None = None
        for endpoint, address in path.proven(now):
            if best is None or better((endpoint, address.rtt), (best[0], best[1].rtt)):
                best = (endpoint, address)
        if best is None or best[0] == path.direct:
            return
        current = path.addresses.get(path.direct) if path.direct else None
        silent = path.unanswered >= SILENCES
        if (
            path.direct is None
            or current is None
            or silent
            or better((best[0], best[1].rtt), (path.direct, current.rtt))
        ):
            self._leave(path)
            path.direct, path.lost, path.next_retry, path.backoff = best[0], False, None, 0.0
            path.next_keep = now + PING_ACTIVE

    def _why_not(self, path: Path) -> Reason | None:
        return why_not_direct(self._nat, path.nat)

    def _announce(self, path: Path, now: float) -> None:
        state, (reason, message) = self._verdict(path, now)
        path.reason, path.message = reason, message
        if state is not path.state:
            self._effects.append(Transition(path.name, path.state, state, reason, message))
            path.state, path.since = state, now

    def _verdict(self, path: Path, now: float) -> tuple[State, Reason]:
        if path.direct is not None and path.unanswered >= SILENCES:
            return State.DIRECT, (
                "ProbesUnanswered",
                f"sends directly to {path.direct}; the peer's agent does not answer",
            )
        if path.direct is not None:
            return State.DIRECT, ("ProbeAnswered", f"sends directly to {path.direct}")
        if self._policy.mode is Mode.NEVER:
            why = self._why_not(path)
            waiting = State.CONNECTING if now < path.deadline and not why and not path.lost else State.UNREACHABLE
            return waiting, why or ("RelayModeNever", "no direct path was found, and the Mesh's relay.mode is never")
        why = self._why_not_direct_now(path)
        if path.present:
            return (State.CONNECTING if why is None and now < path.deadline else State.RELAYED), why or (
                "NoDirectPath",
                "no candidate of the peer has answered; packets go over the relay",
            )
        if now < path.deadline and not path.lost:
            return State.CONNECTING, why or ("Probing", "looking for a direct path")
        if not self._relay_up:
            return State.UNREACHABLE, ("RelayDown", f"no direct path, and {self._relay_reason}")
        return State.UNREACHABLE, ("PeerNotAtRelay", "no direct path, and the relay does not have the peer")

    def _why_not_direct_now(self, path: Path) -> Reason | None:
        if self._policy.mode is Mode.ALWAYS:
            return "RelayModeAlways", "the Mesh's relay.mode is always"
        if path.lost:
            return "DirectPathLost", "the direct path stopped answering; packets go over the relay"
        return self._why_not(path)
