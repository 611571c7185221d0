# SPDX-License-Identifier: Apache-2.0
"""The search for a direct path to one peer: attempts, and when to try again. Pure.

    event ──> attempt ─── 5 s, rounds of pings at 0, 0.1, 0.3, 0.8, 1.8 s ──> direct
                 ^                        │
                 └── 5, 10, 20 ... cap ───┘ nothing answered

An event (new candidates, the network changed, the peer came to the relay) starts over at once with the shortest pause.
NATs open from inside, so both sides must send at the same time: over the relay the peer is called; without one both
come to the same instants by the clock.

The pings of all searches share one budget. Who finds it used up waits in a queue and loses nothing: the rest of his
attempt moves. Each place in the queue is good for one round, so that a thousand peers are asked in turns.
"""

from __future__ import annotations

from ...wire.endpoint import Endpoint
from . import keep, silence
from .model import Mode, SendSignal
from .node import Node
from .record import Attempt, Path
from .seal import CallMeMaybe

PAUSES = (0.1, 0.2, 0.5, 1.0, 3.2)  # seconds after each round of an attempt: five pings to a candidate
FIRST_BACKOFF = 5.0


def begin(node: Node, path: Path, now: float) -> None:
    """Start over: something changed that may make a direct path possible."""
    path.backoff = 0.0
    start(node, path, now)


def start(node: Node, path: Path, now: float) -> None:
    """Start an attempt and call the peer, unless no path can exist."""
    path.next_retry, path.attempt = None, None
    if node.probes and node.why_not(path) is None:
        _launch(node, path, Attempt(now, call=True), now)


def called(node: Node, path: Path, endpoints: tuple[Endpoint, ...], now: float) -> None:
    """Start an attempt because the peer says that it sends now; `endpoints` are its own."""
    if node.probes and (endpoints or node.why_not(path) is None):
        path.next_retry = None
        _launch(node, path, Attempt(now, endpoints), now)


def due(path: Path) -> float | None:
    """Return when the search needs the clock next."""
    attempt = path.attempt
    if attempt is None:
        return path.next_retry
    return None if attempt.left else attempt.next


def advance(node: Node, path: Path, now: float) -> None:
    """Do what is due: a round of pings, the end of an attempt, the next attempt."""
    retry_due = keep.silent(path) if path.next_retry is None else path.next_retry <= now
    if path.attempt is not None:
        _advance(node, path, path.attempt, now)
    elif retry_due:
        start(node, path, now)


def serve(node: Node, now: float) -> None:
    """Make the rounds that wait, as far as the budget goes."""
    while node.waiting:
        path = next(iter(node.waiting.values()))
        attempt = path.attempt
        if attempt is not None and attempt.left and not _make_round(node, path, attempt, now):
            return
        del node.waiting[path.name]


def serve_at(node: Node) -> float | None:
    """Return when `serve` is due next."""
    return node.budget.ready() if node.waiting else None


def _launch(node: Node, path: Path, attempt: Attempt, now: float) -> None:
    path.attempt = attempt
    path.attempts += 1
    _advance(node, path, attempt, now)


def _unproven(path: Path, endpoints: tuple[Endpoint, ...], now: float) -> tuple[Endpoint, ...]:
    proven = {endpoint for endpoint, _ in path.proven(now)}
    return tuple(e for e in endpoints if e not in proven and not silence.is_held(path, e, now))


def _call_once(node: Node, path: Path, attempt: Attempt) -> None:
    if not attempt.call:
        return
    attempt.call = False
    if node.relay_up and path.present and node.policy.mode is Mode.AUTO:
        node.effects.append(SendSignal(path.name, CallMeMaybe(node.own, answer=True)))


def _advance(node: Node, path: Path, attempt: Attempt, now: float) -> None:
    if attempt.left or now < attempt.next:
        return
    if attempt.round < len(PAUSES):
        listed = dict.fromkeys((*path.candidates, *attempt.extra, *sorted(path.accept, key=str)))
        attempt.left = _unproven(path, tuple(listed), now)
        if attempt.left:
            node.waiting.setdefault(path.name, path)
            serve(node, now)
        else:
            _make_round(node, path, attempt, now)
        return
    path.attempt = None
    if path.direct is None or keep.silent(path):
        path.backoff = min(max(path.backoff * 2, FIRST_BACKOFF), node.policy.retry_cap)
        path.next_retry = _retry_at(node, path, now)


def _make_round(node: Node, path: Path, attempt: Attempt, now: float) -> bool:
    """Ask what is left of a round; False when the budget is used up before."""
    attempt.left = _unproven(path, attempt.left, now)  # what was proven while it waited need not be asked
    while attempt.left:
        if not node.budget.take(now):
            return False
        _call_once(node, path, attempt)  # no sooner: the peer's pings must find our NAT opened by ours
        node.ping(path, attempt.left[0], now)
        attempt.left = attempt.left[1:]
    _call_once(node, path, attempt)
    attempt.next, attempt.round = now + PAUSES[attempt.round], attempt.round + 1
    node.changed.add(path.name)
    return True


def _retry_at(node: Node, path: Path, now: float) -> float:
    """With a relay the peer is called at any time; without one both sides must come to the same instant alone.

    Back-offs are 5 s times powers of two, so the instants of a longer one are among those of a shorter one.
    """
    if node.relay_up and path.present:
        return now + path.backoff
    return now + path.backoff - (now + node.epoch) % path.backoff
