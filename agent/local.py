# SPDX-License-Identifier: Apache-2.0
"""What this node is to others: its addresses, its NAT, and the list of candidates that follows from them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace

from ..telemetry import Telemetry
from ..telemetry.logs import get_logger
from ..wire.endpoint import Endpoint, IPAddress
from .nat.discovery import NatWatcher
from .nat.report import NatReport
from .nat.socket import ProbeSocket
from .paths.candidates import Candidate, own_candidates
from .resolve import Resolver
from .routing.host import HostNetwork
from .routing.model import Interface
from .surroundings import Surroundings

log = get_logger("agent.local")


class Local:
    """Follows the host's addresses, its NAT and the Node's annotation.

    Args:
        host: the host's network.
        resolver: for STUN servers and the annotation.
        probes: the socket on WireGuard's port.
        changed: called when something below changed.
        reached: whether some peer is reached directly now.

    Attributes:
        attached: addresses that others may try, with their networks.
        underlay: the address that WireGuard's packets leave with; None without a route.
        candidates: what others are told, best first.
        around: what stands around this host.
    """

    def __init__(
        self,
        host: HostNetwork,
        resolver: Resolver,
        probes: ProbeSocket,
        telemetry: Telemetry,
        changed: Callable[[], None],
        reached: Callable[[], bool],
    ) -> None:
        self._host, self._resolver, self._changed = host, resolver, changed
        self._manual: tuple[Endpoint, ...] = ()
        self._listen_port = 0
        self._stun_servers: tuple[str, ...] = ()
        self.attached: tuple[Interface, ...] = ()
        self.underlay: str | None = None
        self.candidates: tuple[Candidate, ...] = ()
        self.around = Surroundings()
        self._nat = NatWatcher(
            probes, self._servers, self._own, self._report, telemetry, random.SystemRandom(), reached
        )

    @property
    def nat(self) -> NatReport:
        """The NAT as measured."""
        return self._nat.report

    def configure(self, listen_port: int, stun_servers: tuple[str, ...]) -> None:
        """Take the Mesh's port and STUN servers."""
        if (self._listen_port, self._stun_servers) != (listen_port, stun_servers):
            self._nat.network_changed()
        self._listen_port, self._stun_servers = listen_port, stun_servers
        self._publish()

    async def annotate(self, endpoint: str | None) -> None:
        """Take what the Node's annotation says, HOST:PORT."""
        self._manual = await self._resolver.resolve(endpoint) if endpoint else ()
        self._publish()

    async def look(self) -> bool:
        """Read addresses and underlay; True when they changed, and the NAT is asked again then.

        Raises:
            OSError: the kernel cannot be asked.
        """
        before = (self.attached, self.underlay)
        self.attached = tuple(await self._host.attached())
        own, hops = await self._host.surroundings()
        self.around = Surroundings(own, hops, self._resolver.servers())
        underlay = await self._host.underlay()
        self.underlay = str(underlay.address) if underlay else None
        if before == (self.attached, self.underlay):
            return False
        log.info("addresses", attached=list(map(str, self.attached)), underlay=self.underlay)
        self._nat.network_changed()
        self._publish()
        return True

    def read_resolvers(self) -> bool:
        """Read the name servers again, of whose change nobody notifies; True when there are others."""
        before, self.around = self.around, replace(self.around, resolvers=self._resolver.servers())
        return before != self.around

    async def discover(self) -> None:
        """Ask STUN servers until cancelled; the steering table must stand, for they are asked through WireGuard's port."""
        await self._nat.run()

    def _own(self) -> frozenset[IPAddress]:
        return frozenset(each.ip for each in self.attached)

    async def _servers(self) -> list[Endpoint]:
        found = await asyncio.gather(*(self._resolver.resolve(name) for name in self._stun_servers))
        # One address of each name: two of one server would look like two servers.
        first = (next((each for each in endpoints if each.ip.version == 4), None) for endpoints in found)
        return list(dict.fromkeys(each for each in first if each is not None))

    def _report(self, report: NatReport) -> None:
        log.info("nat", summary=report.summary(), mapping=report.mapping, filtering=report.filtering, udp=report.udp)
        self._publish()

    def _publish(self) -> None:
        self.candidates = own_candidates(
            self._manual,
            [each.ip for each in self.attached if each.version == 4],  # the steering table's family
            self.nat.mapped,
            listen_port=self._listen_port,
            symmetric=self.nat.symmetric,
        )
        self._changed()
