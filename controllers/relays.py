# SPDX-License-Identifier: Apache-2.0
"""The relays of the Mesh, external or managed, with the addresses of their names."""

from __future__ import annotations

import socket
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import anyio

from ..api.v1alpha1 import RelaySpec
from ..wire.endpoint import Endpoint
from .relay.state import RELAY_READY, Managed, Seen, managed, name_of, nothing_seen
from .verdicts import Verdict

REFRESH = 300.0  # seconds until a name is resolved again
RETRY = 15.0  # the same, after a failure
TIMEOUT = 5.0
MOST_ENDPOINTS = 16

Lookup = Callable[[str, int], Awaitable[list[str]]]


class LookupFailed(Exception):
    """A name could not be resolved; the message is for people."""


@dataclass(frozen=True)
class Relays:
    """What goes into the Mesh's status, and seconds until it is to be looked at again (None: only on a change)."""

    entries: list[dict[str, Any]]
    verdict: Verdict
    again: float | None = None


@dataclass
class _Answer:
    endpoints: list[str]
    error: str
    expires: float


async def look_up(host: str, port: int) -> list[str]:
    """Resolve a name with the system's resolver, in a thread; return IP:PORT, IPv4 first, sorted.

    Raises:
        LookupFailed: no answer in time, or no such name.
    """
    try:
        with anyio.fail_after(TIMEOUT):
            found = await anyio.to_thread.run_sync(
                lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM), abandon_on_cancel=True
            )
    except TimeoutError:
        raise LookupFailed(f"no answer about {host} within {TIMEOUT:.0f} s") from None
    except (OSError, UnicodeError) as error:
        raise LookupFailed(f"cannot resolve {host}: {getattr(error, 'strerror', None) or error}") from error
    endpoints = {Endpoint.of(str(info[4][0]), port) for info in found}
    ordered = sorted(endpoints, key=lambda each: (each.ip.version, int(each.ip)))
    return [str(each) for each in ordered[:MOST_ENDPOINTS]]


class RelayResolver:
    """Resolves the relay of a Mesh; answers are kept for a while, and beyond when the name cannot be resolved again.

    Args:
        lookup: resolves a name.
        clock: monotonic seconds.
        seen: returns the objects of the managed relay.
    """

    def __init__(
        self,
        lookup: Lookup = look_up,
        clock: Callable[[], float] = time.monotonic,
        seen: Callable[[], Seen] = nothing_seen,
    ) -> None:
        self._lookup = lookup
        self._clock = clock
        self._seen = seen
        self._answers: dict[str, _Answer] = {}

    async def resolve(self, relay: RelaySpec, published: list[dict[str, Any]]) -> Relays:
        """Return the relays in use.

        Args:
            relay: of the Mesh.
            published: status.relays now; its addresses stay when a name cannot be resolved.
        """
        if relay.mode == "never":
            return Relays([], Verdict(RELAY_READY, "False", "Disabled", "relay.mode is never"))
        if relay.provider is None:
            return Relays([], Verdict(RELAY_READY, "False", "NotConfigured", "relay.provider is not set"))
        if relay.provider == "managed":
            return await self._managed(published)
        if relay.external is None:
            return Relays([], Verdict(RELAY_READY, "False", "EndpointMissing", "relay.external.endpoint is not set"))
        name = relay.external.endpoint
        answer = await self._answer(name, published)
        self._keep([name])
        entry: dict[str, Any] = {"name": name, "endpoints": answer.endpoints}
        if relay.external.public_key is not None:
            entry["publicKey"] = relay.external.public_key
        again = max(0.1, answer.expires - self._clock())
        return Relays([entry], _verdict(name, answer), None if _literal(name) else again)

    async def _answer(self, name: str, published: list[dict[str, Any]]) -> _Answer:
        literal = _literal(name)
        if literal is not None:
            return _Answer([str(literal)], "", float("inf"))
        known = self._answers.get(name)
        if known is not None and known.expires > self._clock():
            return known
        host, _, port = name.rpartition(":")
        try:
            endpoints = await self._lookup(host, int(port))
            answer = _Answer(endpoints, "", self._clock() + REFRESH)
        except LookupFailed as error:
            old = known.endpoints if known else _published(name, published)
            answer = _Answer(old, str(error), self._clock() + RETRY)
        self._answers[name] = answer
        return answer

    def _keep(self, names: Iterable[str]) -> None:
        self._answers = {name: answer for name, answer in self._answers.items() if name in names}

    async def _managed(self, published: list[dict[str, Any]]) -> Relays:
        """Return the managed relay: one entry with all its addresses, once a relay has said what its key is."""
        state = managed(self._seen(), published)
        answers = [await self._answer(name, published) for name in state.reach.names]
        self._keep(state.reach.names)
        found = dict.fromkeys([*state.reach.endpoints, *(each for answer in answers for each in answer.endpoints)])
        endpoints = list(found)[:MOST_ENDPOINTS]
        entry = {"name": name_of(state.reach), "endpoints": endpoints, "publicKey": state.key}
        entries = [entry | {"readyReplicas": state.reach.ready}] if endpoints and state.key else []
        again = min((max(0.1, each.expires - self._clock()) for each in answers), default=None)
        return Relays(entries, state.problem or _managed_verdict(state, answers, endpoints), again)


def _literal(name: str) -> Endpoint | None:
    try:
        return Endpoint.parse(name)
    except ValueError:
        return None


def _published(name: str, entries: list[dict[str, Any]]) -> list[str]:
    return next((list(each.get("endpoints") or []) for each in entries if each.get("name") == name), [])


def _verdict(name: str, answer: _Answer) -> Verdict:
    if not answer.endpoints:
        return Verdict(RELAY_READY, "False", "NameNotResolved", answer.error or f"{name} has no address")
    if answer.error:
        return Verdict(RELAY_READY, "True", "UsingLastAddresses", f"{answer.error}; the last addresses stay in use")
    return Verdict(RELAY_READY, "True", "Resolved", f"agents use the relay {name}")


def _managed_verdict(state: Managed, answers: list[_Answer], endpoints: list[str]) -> Verdict:
    error = next((each.error for each in answers if each.error), "")
    if error or not endpoints:
        return _verdict(name_of(state.reach), _Answer(endpoints, error, 0.0))
    ready = "1 relay is" if state.reach.ready == 1 else f"{state.reach.ready} relays are"
    return Verdict(RELAY_READY, "True", "Resolved", f"{ready} ready, reached at {', '.join(endpoints)}")
