# SPDX-License-Identifier: Apache-2.0
"""The shell around the path machine: feeds it what was heard, carries out what it decides.

    probe socket ──ping, pong──> ┌────────────┐ ──SendPing, SendPong──> probe socket
    relay client ──up, signal──> │   Paths    │ ──SendSignal──────────> relay client
    WireGuard stats ──traffic──> │ (decides)  │ ──Steer───────────────> data plane (which answers: installed)
    timer ─────────────────────> └────────────┘ ──Transition──────────> log, trace, Event, status

Nothing is decided here. Every datagram is authenticated before the machine hears of it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Mapping

from ..telemetry import Telemetry
from ..telemetry.logs import get_logger
from ..wire.endpoint import Endpoint, IPAddress
from .facts import Network, PeerFacts
from .nat.socket import ProbeSocket
from .paths.candidates import usable
from .paths.keys import PairKeys
from .paths.machine import Paths
from .paths.model import Effect, NatFacts, Policy, SendPing, SendPong, SendSignal, Steer, Transition
from .paths.probe import Ping, decode, encode_ping, encode_pong
from .paths.seal import CallMeMaybe, Known, Sealer, Unheard
from .plan import Legs
from .relayclient import YIELD, PeerGone, PeerPresent, RelayClient, RelayDown, RelayEvent, RelayUp, Signal
from .traces import PathTraces

log = get_logger("agent.paths")

MOST_WAITING = 1000  # probes before the table is there; the search repeats what is lost


class PathDriver:
    """Owns the path machine of this node.

    Args:
        private_key: our WireGuard key, 32 bytes.
        relay: the relay client, for signals and held initiations.
        steer: told that `legs` changed; the table is written, then `installed` is called.
        changed: told of each transition.

    Attributes:
        legs: what the machine wants, by peer.
        paths: the machine.
    """

    def __init__(
        self,
        private_key: bytes,
        relay: RelayClient,
        telemetry: Telemetry,
        node: str,
        *,
        steer: Callable[[], None],
        changed: Callable[[Transition], None],
    ) -> None:
        self._relay, self._steer, self._changed = relay, steer, changed
        self._rng = random.SystemRandom()
        self._keys = PairKeys(private_key)
        self._sealer = Sealer(self._keys, self._rng.randbytes(8))
        self._traces = PathTraces(telemetry.tracer, telemetry.meter, node)
        self._probes: ProbeSocket | None = None
        self._waiting: list[tuple[bytes, Endpoint]] = []
        self._peers: dict[str, PeerFacts] = {}
        self._names: dict[bytes, str] = {}
        self._present: set[bytes] = set()
        self._configured: frozenset[bytes] = frozenset()
        self._knowing: set[bytes] = set()  # present peers that have said that they know our key
        self._own: frozenset[IPAddress] = frozenset()
        self._forbidden: tuple[Network, ...] = ()
        self._taken: frozenset[tuple[str, int]] = frozenset()
        self._limited_anew = False
        self._timer: asyncio.TimerHandle | None = None
        self.paths = Paths(rng=self._rng, epoch=time.time() - time.monotonic())
        self.legs: dict[str, Legs] = {}

    def use(self, probes: ProbeSocket) -> None:
        """Send probes from this socket, now that the steering table gives it WireGuard's port; those before have waited.

        Earlier ones would leave from the socket's own port: a NAT would give them a mapping of their own, and a peer that
        takes it for this node's address sends WireGuard's packets to where nobody expects them.
        """
        self._probes = probes
        waiting, self._waiting = self._waiting, []
        for data, to in waiting:
            probes.send(data, to)

    # Facts.

    def set_policy(self, policy: Policy) -> None:
        """Take the Mesh's relay settings."""
        self._do(lambda now: self.paths.set_policy(policy, now))

    def set_limits(
        self, own: Iterable[IPAddress], forbidden: Iterable[Network], taken: Iterable[tuple[str, int]]
    ) -> None:
        """Take what no candidate may be: our own addresses, the mesh's and the cluster's ranges, the API server's endpoints.

        The next `set_peers` looks at all candidates again if that has changed.
        """
        before = self._own, self._forbidden, self._taken
        self._own, self._forbidden, self._taken = frozenset(own), tuple(forbidden), frozenset(taken)
        self._limited_anew |= before != (self._own, self._forbidden, self._taken)

    def set_peers(self, peers: Mapping[str, PeerFacts]) -> None:
        """Take all other nodes; those that are not listed leave."""
        now = time.monotonic()
        for name in [name for name, known in self._peers.items() if self._left(known, peers.get(name))]:
            self._forget(name, now)
        for name, peer in peers.items():
            if self._peers.get(name) == peer and not self._limited_anew:
                continue
            new = name not in self._peers
            self._peers[name], self._names[peer.key] = peer, name
            self.legs.setdefault(name, Legs())
            if new:
                self._traces.search(name, "PeerAdded", now)
            self.paths.upsert_peer(name, peer.key, self._usable(peer), peer.nat, now)
            if peer.key in self._present:
                self.paths.presence(name, True, now)
        self._limited_anew = False
        self.run()

    def set_local(self, nat: NatFacts, candidates: Iterable[Endpoint]) -> None:
        """Take news of our own NAT and addresses."""
        self._do(lambda now: self.paths.set_local(nat, candidates, now))

    def network_changed(self) -> None:
        """Take that routes, links or addresses changed."""
        self._do(self.paths.network_changed)

    def adopt(self, name: str, legs: Legs) -> None:
        """Continue what the agent before us left in the steering table."""
        self.legs[name] = legs
        self._do(lambda now: self.paths.adopt(name, legs.direct, legs.accept, now))

    def configured(self, keys: Iterable[bytes]) -> None:
        """Take which keys our WireGuard knows; each new peer hears of it, so that its handshake need not wait."""
        before, self._configured = self._configured, frozenset(keys)
        for key in (self._configured - before) & self._present:
            self._say_known(key)

    def remind(self) -> None:
        """Ask present peers again that have not said that they know our key: a signal may be lost, what it says not."""
        for key in (self._present & self._configured) - self._knowing:
            self._say_known(key)

    def installed(self, legs: Mapping[str, Legs]) -> None:
        """Take the word that the steering table is written with these legs."""
        now = time.monotonic()
        for name, leg in legs.items():
            if name in self._peers:
                self.paths.installed(name, leg.accept, now)
        self.run()

    def traffic(
        self,
        active: Mapping[str, bool],
        sent: Iterable[str],
        received: Iterable[str],
        roamed: Mapping[str, Endpoint],
    ) -> None:
        """Take from WireGuard's counters who carries traffic, who was sent some, who was heard, and who from elsewhere."""
        now = time.monotonic()
        for name in sent:
            self.paths.sent(name, now)
        for name in received:
            self.paths.received(name, now)
        for name, busy in active.items():
            self.paths.traffic(name, busy, now)
        for name, endpoint in roamed.items():
            self._traces.event(name, "roamed", address=str(endpoint))
            self.paths.roamed(name, endpoint, now)
        self.run()

    # What is heard.

    def heard(self, data: bytes, source: Endpoint) -> None:
        """Take a datagram from the shared port that is not STUN."""
        probe = decode(data, self._keys, self._names)
        if probe is None:
            return
        name, now = self._names[probe.sender], time.monotonic()
        if isinstance(probe, Ping):
            self._traces.event(name, "ping received", address=str(source), mapped=probe.mapped)
            self.paths.ping_received(name, source, probe.txid, probe.mapped, now)
        else:
            self._traces.event(name, "pong received", address=str(source), mapped=probe.mapped)
            self.paths.pong_received(name, source, probe.txid, probe.mapped, now)
        self.run()

    def relay_event(self, event: RelayEvent) -> None:
        """Take an event of the relay client."""
        match event:
            case RelayUp():
                self._do(lambda now: self.paths.relay(True, "", now))
            case RelayDown(_, reason):
                self._present.clear()
                self._knowing.clear()
                self._do(lambda now: self.paths.relay(False, reason, now))
            case PeerPresent(key):
                self._present.add(key)
                self._presence(key, True)
                if key in self._configured:
                    self._say_known(key)
            case PeerGone(key):
                self._present.discard(key)
                self._knowing.discard(key)
                self._presence(key, False)
            case Signal(key, payload):
                self._signal(key, payload)

    def no_relay(self, reason: str) -> None:
        """Take that there is no relay, and why."""
        self._do(lambda now: self.paths.relay(False, reason, now))

    def _presence(self, key: bytes, present: bool) -> None:
        name = self._names.get(key)
        if name is not None:
            self._traces.event(name, "relay presence", present=present)
            self._do(lambda now: self.paths.presence(name, present, now))

    def _signal(self, key: bytes, payload: bytes) -> None:
        name = self._names.get(key)
        signal = self._sealer.open(key, payload) if name is not None else None
        if name is None or signal is None:
            log.debug("a signal was refused", known_sender=name is not None)
            return
        self._traces.event(name, "signal received", kind=type(signal).__name__)
        if isinstance(signal, Known):
            self._knowing.add(key)
            self._relay.release(key)
        elif isinstance(signal, CallMeMaybe):
            signal = CallMeMaybe(self._allowed(signal.endpoints), signal.answer)
        taken = signal
        self._do(lambda now: self.paths.signal(name, taken, now))

    # Effects.

    def run(self) -> None:
        """Carry out what the machine decided, and set its timer."""
        steered = False
        while effects := self.paths.effects():
            for effect in effects:
                steered = self._perform(effect) or steered
        self._set_timer()
        if steered:
            self._steer()

    def close(self) -> None:
        """End timer and traces."""
        if self._timer is not None:
            self._timer.cancel()
        self._traces.close(time.monotonic())

    def _do(self, tell: Callable[[float], None]) -> None:
        tell(time.monotonic())
        self.run()

    def _perform(self, effect: Effect) -> bool:
        """Carry out one effect; True when the steering table is to be written."""
        match effect:
            case SendPing(name, to, txid, mapped):
                self._probe(encode_ping(self._keys, self._peers[name].key, txid, mapped=mapped), to)
                self._traces.event(name, "ping sent", address=str(to), mapped=mapped)
            case SendPong(name, to, txid, mapped, seen):
                self._probe(encode_pong(self._keys, self._peers[name].key, txid, mapped=mapped, seen=seen), to)
            case SendSignal(name, signal):
                self._send_signal(self._peers[name].key, signal)
            case Steer(name, direct, accept):
                self._take_leg(name, Legs(direct, accept))
                return True
            case Transition():
                self._tell(effect)
        return False

    def _probe(self, data: bytes | None, to: Endpoint) -> None:
        if data is None:
            return
        if self._probes is not None:
            self._probes.send(data, to)
        elif len(self._waiting) < MOST_WAITING:
            self._waiting.append((data, to))

    def _send_signal(self, key: bytes, signal: CallMeMaybe | Known | Unheard) -> None:
        if isinstance(signal, Known) and key not in self._configured:
            return  # it would not be true; `configured` says it as soon as it is
        sealed = self._sealer.seal(key, signal)
        if sealed is not None:
            sent = self._relay.signal(key, sealed)
            log.debug("signal", peer=self._names.get(key), kind=type(signal).__name__, sent=sent)

    def _say_known(self, key: bytes) -> None:
        self._send_signal(key, Known(answer=True))

    def _take_leg(self, name: str, legs: Legs) -> None:
        self.legs[name] = legs
        if legs.direct is not None:
            # A handshake that waits for the relay would be repeated after 5 s only; it can go now. Of two that cross
            # both are lost, so one side lets the other go first.
            if self._relay.goes_first(self._peers[name].key):
                self._send_held(name)
            else:
                asyncio.get_running_loop().call_later(YIELD, self._send_held, name)

    def _send_held(self, name: str) -> None:
        peer, legs = self._peers.get(name), self.legs.get(name)
        if peer is not None and legs is not None and legs.direct is not None:
            self._probe(self._relay.take_held(peer.key), legs.direct)

    def _tell(self, transition: Transition) -> None:
        name, old, new = transition.name, transition.old, transition.new
        log.info("path", peer=name, old=old, new=new, reason=transition.reason, message=transition.message)
        self._traces.transition(name, old, new, transition.reason, time.monotonic())
        self._changed(transition)

    def _set_timer(self) -> None:
        due = self.paths.next_timer()
        if self._timer is not None and self._timer.when() == due:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due is not None:
            self._timer = asyncio.get_running_loop().call_at(due, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._do(self.paths.handle_timer)

    # Peers.

    @staticmethod
    def _left(known: PeerFacts, now: PeerFacts | None) -> bool:
        return now is None or now.key != known.key

    def _forget(self, name: str, now: float) -> None:
        peer = self._peers.pop(name)
        self._names.pop(peer.key, None)
        self.legs.pop(name, None)
        self.paths.remove_peer(name)
        self._sealer.forget(peer.key)
        self._traces.forget(name, now)

    def _usable(self, peer: PeerFacts) -> tuple[Endpoint, ...]:
        return self._allowed((*([peer.endpoint] if peer.endpoint else ()), *peer.candidates))

    def _allowed(self, candidates: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
        kept = (each for each in candidates if (str(each.ip), each.port) not in self._taken)
        return usable(kept, self._own, self._forbidden)
