# SPDX-License-Identifier: Apache-2.0
"""Asks STUN servers, and keeps asking: who we are outside, and how the NAT behaves.

full discovery    at start, on a change of the network, when a light one saw another address, and every 5 minutes
light binding     every 25 s to one server: keeps the mapping alive that others were told, and sees it change
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

from ...telemetry import Telemetry, names
from ...telemetry.logs import get_logger
from ...wire.endpoint import Endpoint, IPAddress
from .report import Behaviour, NatReport, Round, Udp, classify, classify_filtering, needs_second_round
from .socket import ProbeSocket

LIGHT_SECONDS = 25.0
FULL_EVERY = 12  # light bindings: 5 minutes
BLOCKED_SECONDS = 30.0  # UDP that is blocked is asked for again at this pace: a firewall may open

log = get_logger("wirekube.agent.nat")

Servers = Callable[[], Awaitable[Sequence[Endpoint]]]


async def one_round(probes: ProbeSocket, servers: Sequence[Endpoint]) -> Round:
    """Ask all servers at once, then the second port of the last one that answered."""
    answers = await asyncio.gather(*(probes.ask(server) for server in servers))
    seen = {server: answer[0].mapped if answer else None for server, answer in zip(servers, answers, strict=True)}
    second = None
    if len({mapped for mapped in seen.values() if mapped}) > 1:
        second = await _second_port(probes, servers, answers)
    return Round(seen, second)


async def _second_port(probes: ProbeSocket, servers: Sequence[Endpoint], answers: Sequence[object]) -> Endpoint | None:
    server = next(s for s, answer in zip(reversed(servers), reversed(answers), strict=True) if answer)
    first = await probes.ask(server)
    if first is None or first[0].other is None or first[0].other.port == server.port:
        return None
    answer = await probes.ask(Endpoint(server.ip, first[0].other.port))
    return answer[0].mapped if answer else None


async def measure_filtering(servers: Sequence[Endpoint], rng: random.Random) -> Behaviour:
    """Measure who may answer, from a socket that has spoken to one server only."""
    fresh = ProbeSocket(lambda _data, _source: None, rng)
    try:
        for server in servers:
            answer = await fresh.ask(server)
            if answer is None:
                continue
            other = answer[0].other
            if other is None or other.ip == server.ip:
                return Behaviour.UNKNOWN  # the server has one address, and cannot show it
            from_address, from_port = await asyncio.gather(
                fresh.ask(server, change_ip=True, change_port=True), fresh.ask(server, change_port=True)
            )
            return classify_filtering(
                from_address is not None and from_address[1].ip != server.ip, from_port is not None
            )
        return Behaviour.UNKNOWN
    finally:
        fresh.close()


class NatWatcher:
    """Keeps the report of this node up to date.

    Args:
        probes: the socket on WireGuard's port.
        servers: resolves the Mesh's STUN servers; called before each full discovery.
        own: this host's addresses.
        on_report: told each report that differs from the one before.
    """

    def __init__(
        self,
        probes: ProbeSocket,
        servers: Servers,
        own: Callable[[], frozenset[IPAddress]],
        on_report: Callable[[NatReport], None],
        telemetry: Telemetry,
        rng: random.Random,
    ) -> None:
        self._probes, self._servers, self._own, self._on_report = probes, servers, own, on_report
        self._tracer, self._rng = telemetry.tracer, rng
        self._rounds = telemetry.meter.create_counter(names.STUN_DISCOVERIES, description="full STUN discoveries")
        self._again = asyncio.Event()
        self.report = NatReport()

    def network_changed(self) -> None:
        """Discover again at once."""
        self._again.set()

    async def run(self) -> None:
        """Discover, then keep the mapping alive, for ever."""
        while True:
            self._again.clear()
            servers = list(await self._servers())
            await self.discover(servers)
            await self._keep(servers)

    async def discover(self, servers: Sequence[Endpoint]) -> NatReport:
        """Run one full discovery. The mapping is reported as soon as it is known, the filtering when it is."""
        with self._tracer.start_as_current_span("stun discovery") as span:
            filtering = asyncio.ensure_future(measure_filtering(servers, self._rng))
            try:
                rounds = [await one_round(self._probes, servers)]
                if servers and needs_second_round(rounds[0]):
                    rounds.append(await one_round(self._probes, servers))
                self._tell(classify(rounds, self._own(), self.report.filtering))
                self._tell(classify(rounds, self._own(), await filtering))
            finally:
                filtering.cancel()
            report = self.report
            span.set_attributes(
                {
                    "stun.servers": len(servers),
                    "stun.answers": len(rounds[-1].answers),
                    "nat.mapping": report.mapping,
                    "nat.filtering": report.filtering,
                    "nat.udp": report.udp,
                }
            )
            self._rounds.add(1, {"udp": report.udp})
        return report

    async def _keep(self, servers: Sequence[Endpoint]) -> None:
        """Send light bindings until it is time for a full discovery."""
        if self.report.udp is not Udp.OPEN or not servers:
            await self._sleep(BLOCKED_SECONDS)
            return
        for count in range(FULL_EVERY):
            if await self._sleep(LIGHT_SECONDS):
                return
            server = servers[count % len(servers)]
            answer = await self._probes.ask(server)
            mapped = answer[0].mapped if answer else None
            if mapped is not None and not self.report.symmetric and mapped not in self.report.mapped:
                log.info("our outside address changed", address=str(mapped))
                return

    async def _sleep(self, seconds: float) -> bool:
        """Wait; return True when the network changed meanwhile."""
        try:
            async with asyncio.timeout(seconds):
                await self._again.wait()
        except TimeoutError:
            return False
        return True

    def _tell(self, report: NatReport) -> None:
        if report != self.report:
            self.report = report
            self._on_report(report)
