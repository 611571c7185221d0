# SPDX-License-Identifier: Apache-2.0
"""Asks STUN servers, and keeps asking: who we are outside, and how the NAT behaves.

full discovery    at start, on a change of the network, when a light one saw another address, and every 5 minutes
light binding     every 25 s to one server: keeps the mapping alive that others were told, and sees it change
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

from ...api.constants import FWMARK
from ...telemetry import Telemetry, names
from ...telemetry.logs import get_logger
from ...wire.endpoint import Endpoint, IPAddress
from ...wire.stun import Message
from .report import Behaviour, NatReport, Round, Udp, classify, classify_filtering, needs_second_round
from .socket import ProbeSocket

LIGHT_SECONDS = 25.0
FULL_EVERY = 12  # light bindings: 5 minutes
BLOCKED_SECONDS = 30.0  # UDP that is blocked is asked for again at this pace: a firewall may open

log = get_logger("wirekube.agent.nat")

Servers = Callable[[], Awaitable[Sequence[Endpoint]]]


async def one_round(probes: ProbeSocket, servers: Sequence[Endpoint]) -> Round:
    """Ask all servers at once, then the second port of the last one that said what it saw."""
    answers = await asyncio.gather(*(probes.ask(server) for server in servers))
    messages = {server: answer[0] for server, answer in zip(servers, answers, strict=True) if answer}
    telling = {server: message for server, message in messages.items() if message.mapped is not None}
    second = None
    if len({message.mapped for message in telling.values()}) > 1:
        second = await _second_port(probes, *list(telling.items())[-1])
    seen = {server: messages[server].mapped if server in messages else None for server in servers}
    return Round(seen, second, errors=len(telling) < len(messages))


async def _second_port(probes: ProbeSocket, server: Endpoint, first: Message) -> Endpoint | None:
    if first.other is None or first.other.port == server.port:
        return None
    answer = await probes.ask(Endpoint(server.ip, first.other.port))
    return answer[0].mapped if answer else None


async def measure_filtering(servers: Sequence[Endpoint], rng: random.Random, mark: int | None = FWMARK) -> Behaviour:
    """Measure who may answer, with the first server that can show it.

    Args:
        servers: to be asked in this order.
        rng: for transaction ids.
        mark: fwmark of the sockets.
    """
    for server in servers:
        fresh = ProbeSocket(lambda _data, _source: None, rng, mark)  # it has spoken to nobody, or it would see too much
        try:
            found = await _filtering(fresh, server)
        finally:
            fresh.close()
        if found is not Behaviour.UNKNOWN:
            return found
    return Behaviour.UNKNOWN


async def _filtering(fresh: ProbeSocket, server: Endpoint) -> Behaviour:
    answer = await fresh.ask(server)
    if answer is None or answer[0].other is None or answer[0].other.ip == server.ip:
        return Behaviour.UNKNOWN  # silent, or it has one address and cannot show anything
    from_address, from_port = await asyncio.gather(
        fresh.ask(server, change_ip=True, change_port=True), fresh.ask(server, change_port=True)
    )
    if any(changed is not None and changed[1] == server for changed in (from_address, from_port)):
        return Behaviour.UNKNOWN  # it does not do what it is asked for
    return classify_filtering(from_address is not None, from_port is not None)


class NatWatcher:
    """Keeps the report of this node up to date.

    Args:
        probes: the socket on WireGuard's port.
        servers: resolves the Mesh's STUN servers; called before each full discovery.
        own: this host's addresses.
        on_report: told each report that differs from the one before.
        reached: whether some peer is reached directly now. Then silence is the servers' fault, and the report stays.
    """

    def __init__(
        self,
        probes: ProbeSocket,
        servers: Servers,
        own: Callable[[], frozenset[IPAddress]],
        on_report: Callable[[NatReport], None],
        telemetry: Telemetry,
        rng: random.Random,
        reached: Callable[[], bool] = lambda: False,
    ) -> None:
        self._probes, self._servers, self._own, self._on_report = probes, servers, own, on_report
        self._reached = reached
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
            filtering = asyncio.ensure_future(measure_filtering(servers, self._rng, self._probes.mark))
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
        if report.udp is Udp.BLOCKED and self._reached():
            log.warning("no STUN server answers, though UDP works; what was known of the NAT stays")
            return
        if report != self.report:
            self.report = report
            self._on_report(report)
