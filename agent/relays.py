# SPDX-License-Identifier: Apache-2.0
"""The relays of the Mesh as this node knows them: where they are, by which keys, and how the sessions with them stand."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..telemetry.logs import get_logger
from .facts import RelayFacts
from .relayclient import RelayDown, RelayEvent, RelayLost, RelayServer, RelayUp
from .report import RelayView
from .resolve import Resolver

log = get_logger("agent.relays")


class Relays:
    """What is known of the relays.

    Args:
        resolver: asks for the addresses of names.
        keys: relay name to the key that it showed first; kept up to date here.
        up: returns the names of the relays that have a session, in the order of configuration.
        pinned: called when a relay has shown its key: from now on no other one is taken for this relay's.
        changed: called when `view` is another one.

    Attributes:
        named: those that the Mesh names.
        view: how it stands, for status and people.
    """

    def __init__(
        self,
        resolver: Resolver,
        keys: dict[str, bytes],
        *,
        up: Callable[[], Iterable[str]],
        pinned: Callable[[], None],
        changed: Callable[[], None],
    ) -> None:
        self._resolver, self._keys = resolver, keys
        self._up, self._pinned, self._changed = up, pinned, changed
        self.named: tuple[RelayFacts, ...] = ()
        self.view = RelayView()

    async def servers(self) -> list[RelayServer]:
        """Return all of them as the relay client takes them; asks for the addresses of those that go by a name."""
        return [await self._server(relay) for relay in self.named]

    async def _server(self, relay: RelayFacts) -> RelayServer:
        # The operator's word first, then our own: it may be away when the relay moves. A managed relay may have no name.
        own = await self._resolver.resolve(relay.name) if ":" in relay.name else ()
        endpoints = dict.fromkeys((*relay.endpoints, *own))
        return RelayServer(relay.name, tuple(endpoints), relay.public_key or self._keys.get(relay.name), relay.replicas)

    def event(self, event: RelayEvent) -> None:
        """Take what the relay client tells of its sessions; other events are not for here."""
        match event:
            case RelayUp(server, rtt, key):
                if self._keys.get(server.name) != key:
                    self._keys[server.name] = key
                    self._pinned()
                log.info("relay session up", relay=server.name, rtt_ms=round(rtt * 1000, 2))
                self._show_first()
            case RelayLost(server, reason):
                log.warning("a relay session is lost, others stand", relay=server.name, reason=reason)
                self._show_first()
            case RelayDown(server, reason):
                if self._show(RelayView(None, reason)):
                    log.warning("no relay session", relay=server.name, reason=reason)

    def _show_first(self) -> None:
        """Show the first of the relays that have a session."""
        name = next(iter(self._up()), None)
        known = any(relay.name == name and relay.public_key for relay in self.named)
        if name is not None:
            self._show(RelayView(name, "", trusted_at_first_sight=not known))

    def _show(self, view: RelayView) -> bool:
        if view == self.view:
            return False
        self.view = view
        self._changed()
        return True
