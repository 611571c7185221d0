# SPDX-License-Identifier: Apache-2.0
"""Discovery against scripted STUN servers on loopback; the NAT is what they say that they see."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import cast

import pytest

from wirekube.agent.nat import classic, discovery, socket
from wirekube.agent.nat.discovery import NatWatcher, measure_filtering, one_round
from wirekube.agent.nat.report import Behaviour, NatReport, Udp
from wirekube.agent.nat.socket import ProbeSocket
from wirekube.telemetry import noop
from wirekube.wire import stun
from wirekube.wire.endpoint import Endpoint

pytestmark = pytest.mark.anyio

OUTSIDE = "203.0.113.9"
EASY = Endpoint.of(OUTSIDE, 51820)
MAIN, ALT = "127.0.0.1", "127.0.0.2"

See = Callable[["Server", Endpoint], Endpoint]


def attribute(kind: int, endpoint: Endpoint) -> bytes:
    return struct.pack("!HHBBH", kind, 8, 0, 1, endpoint.port) + endpoint.ip.packed


def with_other(answer: bytes, other: Endpoint) -> bytes:
    """Append OTHER-ADDRESS."""
    body = answer[20:] + attribute(0x802C, other)
    return answer[:2] + struct.pack("!H", len(body)) + answer[4:20] + body


def always(endpoint: Endpoint) -> See:
    return lambda _server, _source: endpoint


@dataclass
class Script:
    """How a STUN server of two addresses and two ports behaves.

    Attributes:
        see: what a server sees of us.
        admits: which changed answers pass the NAT: (another address, another port).
        noise: what is sent before each answer.
        error: answers are errors.
        silent: there are none.
        changes: CHANGE-REQUEST is honoured, else ignored.
        plain: there is one address only, and no OTHER-ADDRESS.
    """

    see: See = lambda _server, _source: EASY
    admits: tuple[bool, bool] = (True, True)
    noise: tuple[bytes, ...] = ()
    error: bool = False
    silent: bool = False
    changes: bool = True
    plain: bool = False
    asked: list[stun.Message] = field(default_factory=list)
    told: asyncio.Queue[stun.Message] = field(default_factory=asyncio.Queue)


class Server(asyncio.DatagramProtocol):
    def __init__(self, script: Script, twins: dict[tuple[bool, bool], Server], place: tuple[bool, bool]) -> None:
        self.script, self.twins, self.place = script, twins, place
        self.transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint.of(*self.transport.get_extra_info("sockname"))

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        request, script = stun.decode(data), self.script
        if request is None:
            return
        script.asked.append(request)
        script.told.put_nowait(request)
        change = (request.change_ip, request.change_port) if script.changes else (False, False)
        passes = script.admits[0] if change[0] else script.admits[1] if change[1] else True
        if script.silent or not passes:
            return
        for noise in script.noise:
            self.transport.sendto(noise.replace(b"TXID" * 3, request.txid), address)
        sender = self.twins[(self.place[0] ^ change[0], self.place[1] ^ change[1])]
        sender.transport.sendto(self.answer(request, Endpoint.of(*address)), address)

    def answer(self, request: stun.Message, source: Endpoint) -> bytes:
        if self.script.error:
            return stun.HEADER.pack(stun.BINDING_ERROR, 0, stun.COOKIE, request.txid)
        answer = stun.encode_success(request.txid, self.script.see(self, source))
        return answer if self.script.plain else with_other(answer, self.twins[(True, True)].endpoint)


@dataclass
class Box:
    """One STUN server with its four sockets."""

    servers: dict[tuple[bool, bool], Server]

    @classmethod
    async def open(cls, script: Script) -> Box:
        servers: dict[tuple[bool, bool], Server] = {}
        loop = asyncio.get_running_loop()
        for ip_changed in (False, True):
            for port_changed in (False, True):
                port = servers[(False, port_changed)].endpoint.port if ip_changed else 0
                place, address = (ip_changed, port_changed), (ALT if ip_changed else MAIN, port)
                made = lambda place=place: Server(script, servers, place)  # noqa: E731
                _, servers[place] = await loop.create_datagram_endpoint(made, local_addr=address)
        return cls(servers)

    @property
    def both(self) -> list[Endpoint]:
        return [self.servers[(False, False)].endpoint, self.servers[(True, False)].endpoint]

    def close(self) -> None:
        for server in self.servers.values():
            server.transport.close()


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is the answer in a third of the time."""
    monkeypatch.setattr(socket, "RETRANSMIT", (0.1, 0.2))


@pytest.fixture
async def opened(fast: None) -> AsyncIterator[Callable[..., object]]:
    boxes: list[Box] = []

    async def make(script: Script) -> Box:
        boxes.append(await Box.open(script))
        return boxes[-1]

    yield make
    for box in boxes:
        box.close()


@pytest.fixture
async def probes() -> AsyncIterator[ProbeSocket]:
    heard: list[bytes] = []
    made = ProbeSocket(lambda data, _source: heard.append(data), random.Random(1), mark=None)
    made.heard = heard  # type: ignore[attr-defined]
    yield made
    made.close()


def watcher(probes: ProbeSocket, servers: list[Endpoint], told: Callable[[NatReport], None]) -> NatWatcher:
    async def found() -> list[Endpoint]:
        return servers

    return NatWatcher(probes, found, frozenset, told, noop(), random.Random(2))


async def discovered(probes: ProbeSocket, box: Box) -> NatReport:
    return await watcher(probes, box.both, lambda _report: None).discover(box.both)


# One question.


async def test_an_answer_among_everything_that_is_none(opened, probes: ProbeSocket) -> None:  # type: ignore[no-untyped-def]
    wrong = stun.encode_success(b"x" * 12, Endpoint.of("9.9.9.9", 9))
    noise = (
        b"\x00" * 20,
        b"WKP\x01 a probe",
        wrong,
        wrong[:25],
        stun.encode_request(b"TXID" * 3),
        struct.pack("!HHI12s", 0x0101, 8, stun.COOKIE, b"TXID" * 3),
    )
    box = await opened(Script(noise=noise))
    answer = await probes.ask(box.both[0])
    assert answer is not None
    assert answer[0].mapped == EASY
    assert answer[1] == box.both[0]
    assert probes.heard == [b"\x00" * 20, b"WKP\x01 a probe"]  # type: ignore[attr-defined]


async def test_an_answer_from_elsewhere_is_none_unless_it_was_asked_for(opened, probes: ProbeSocket) -> None:  # type: ignore[no-untyped-def]
    box = await opened(Script())
    box.servers[(False, False)].twins = dict.fromkeys(box.servers, box.servers[(True, True)])
    assert await probes.ask(box.both[0]) is None
    changed = await probes.ask(box.both[0], change_ip=True, change_port=True)
    assert changed is not None
    assert changed[1] == box.servers[(True, True)].endpoint


async def test_silence_ends_and_was_asked_about_more_than_once(opened, probes: ProbeSocket) -> None:  # type: ignore[no-untyped-def]
    script = Script(silent=True)
    box = await opened(script)
    assert await probes.ask(box.both[0]) is None
    assert len(script.asked) == len(socket.RETRANSMIT)
    assert len({each.txid for each in script.asked}) == 1, "a copy repeats the transaction"


async def test_a_closed_socket_answers_nothing_and_breaks_nothing(opened, probes: ProbeSocket) -> None:  # type: ignore[no-untyped-def]
    box = await opened(Script())
    asking = asyncio.ensure_future(probes.ask(box.both[0]))
    await asyncio.sleep(0)
    probes.close()
    probes.close()
    assert await asking is None
    assert not probes.send(b"x", box.both[0])


async def test_silent_servers_are_no_proof_while_a_peer_is_reached(opened, probes: ProbeSocket) -> None:  # type: ignore[no-untyped-def]
    script, direct = Script(), [True]
    box = await opened(script)

    async def found() -> list[Endpoint]:
        return box.both

    watching = NatWatcher(probes, found, frozenset, lambda _: None, noop(), random.Random(2), lambda: direct[0])
    known = await watching.discover(box.both)
    script.silent = True
    assert await watching.discover(box.both) == known
    direct[0] = False
    assert (await watching.discover(box.both)).udp is Udp.BLOCKED


# Mapping.


async def test_an_easy_nat(opened, probes: ProbeSocket) -> None:  # type: ignore[no-untyped-def]
    script = Script()
    report = await discovered(probes, await opened(script))
    assert report == NatReport(Behaviour.ENDPOINT_INDEPENDENT, Behaviour.ENDPOINT_INDEPENDENT, Udp.OPEN, (EASY,))


async def test_a_symmetric_nat(opened, probes: ProbeSocket) -> None:  # type: ignore[no-untyped-def]
    ports = iter(range(40000, 50000))
    seen: dict[tuple[Endpoint, Endpoint], int] = {}

    def see(server: Server, source: Endpoint) -> Endpoint:
        return Endpoint.of(OUTSIDE, seen.setdefault((server.endpoint, source), next(ports)))

    report = await discovered(probes, await opened(Script(see, admits=(False, False))))
    assert report.mapping is report.filtering is Behaviour.ADDRESS_AND_PORT_DEPENDENT
    assert len(report.mapped) == 2


async def test_a_nat_that_looks_at_the_address_alone(opened, probes: ProbeSocket) -> None:  # type: ignore[no-untyped-def]
    def see(server: Server, _source: Endpoint) -> Endpoint:
        return Endpoint.of(OUTSIDE, 40000 + int(str(server.endpoint.ip).rpartition(".")[2]))

    report = await discovered(probes, await opened(Script(see, admits=(False, True))))
    assert report.mapping is report.filtering is Behaviour.ADDRESS_DEPENDENT


async def test_the_second_port_is_asked_of_a_server_whose_word_counts(opened, probes: ProbeSocket) -> None:  # type: ignore[no-untyped-def]
    def see(server: Server, _source: Endpoint) -> Endpoint:
        return Endpoint.of(OUTSIDE, 40000 + int(str(server.endpoint.ip).rpartition(".")[2]))

    box, broken = await opened(Script(see)), await opened(Script(error=True))
    seen = await one_round(probes, [*box.both, broken.both[0]])
    assert len(seen.answers) == 2
    assert seen.second_port == seen.answers[-1]


async def test_a_neighbour_with_our_port_makes_one_change_and_no_more(opened, probes: ProbeSocket) -> None:  # type: ignore[no-untyped-def]
    """Two nodes listen on 51820 behind one NAT: the port changes at the first clash, and stays."""
    later = Endpoint.of(OUTSIDE, 60003)
    first: set[Endpoint] = set()

    def see(server: Server, _source: Endpoint) -> Endpoint:
        if server.endpoint.ip == box.both[0].ip and server.endpoint not in first:
            first.add(server.endpoint)
            return EASY
        return later

    box = await opened(Script(see))
    report = await discovered(probes, box)
    assert report.mapping is Behaviour.ENDPOINT_INDEPENDENT
    assert report.mapped == (later,)


async def test_blocked_udp(opened, probes: ProbeSocket) -> None:  # type: ignore[no-untyped-def]
    assert await discovered(probes, await opened(Script(silent=True))) == NatReport(udp=Udp.BLOCKED)


async def test_servers_that_answer_with_errors_prove_that_udp_passes(opened, probes: ProbeSocket) -> None:  # type: ignore[no-untyped-def]
    assert await discovered(probes, await opened(Script(error=True))) == NatReport(udp=Udp.OPEN)


async def test_one_server_of_two_is_not_enough_to_judge(opened, probes: ProbeSocket) -> None:  # type: ignore[no-untyped-def]
    box, dead = await opened(Script()), await opened(Script(silent=True))
    servers = [dead.both[0], box.both[0]]
    report = await watcher(probes, servers, lambda _report: None).discover(servers)
    assert (report.mapping, report.udp, report.mapped) == (Behaviour.UNKNOWN, Udp.OPEN, (EASY,))
    assert report.filtering is Behaviour.ENDPOINT_INDEPENDENT


# Filtering.


@pytest.mark.parametrize(
    ("admits", "expected"),
    [
        ((True, True), Behaviour.ENDPOINT_INDEPENDENT),
        ((False, True), Behaviour.ADDRESS_DEPENDENT),
        ((False, False), Behaviour.ADDRESS_AND_PORT_DEPENDENT),
    ],
)
async def test_who_may_answer(opened, admits: tuple[bool, bool], expected: Behaviour) -> None:  # type: ignore[no-untyped-def]
    box = await opened(Script(admits=admits))
    assert await measure_filtering(box.both, random.Random(1), None) is expected


@pytest.mark.parametrize("script", [Script(changes=False), Script(plain=True), Script(silent=True), Script(error=True)])
async def test_a_server_that_cannot_show_the_filtering_says_nothing_of_it(opened, script: Script) -> None:  # type: ignore[no-untyped-def]
    box = await opened(script)
    assert await measure_filtering(box.both[:1], random.Random(1), None) is Behaviour.UNKNOWN


@pytest.mark.parametrize("script", [Script(changes=False), Script(plain=True), Script(silent=True), Script(error=True)])
async def test_the_next_server_is_asked_then(opened, script: Script) -> None:  # type: ignore[no-untyped-def]
    poor, good = await opened(script), await opened(Script(admits=(False, True)))
    servers = [poor.both[0], good.both[0]]
    assert await measure_filtering(servers, random.Random(1), None) is Behaviour.ADDRESS_DEPENDENT


async def test_no_servers_no_word() -> None:
    assert await measure_filtering([], random.Random(1), None) is Behaviour.UNKNOWN


# Keeping the report up to date.


async def test_a_changed_mapping_is_noticed_and_told_once(
    opened,  # type: ignore[no-untyped-def]
    probes: ProbeSocket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(discovery, "LIGHT_SECONDS", 0.02)
    script, told = Script(), asyncio.Queue[NatReport]()
    box = await opened(script)
    running = asyncio.ensure_future(watcher(probes, box.both, told.put_nowait).run())
    try:
        async with asyncio.timeout(5):
            while (await told.get()).filtering is Behaviour.UNKNOWN:
                pass
            script.see = always(Endpoint.of(OUTSIDE, 7))
            assert (await told.get()).mapped == (Endpoint.of(OUTSIDE, 7),)
            while not script.told.empty():
                script.told.get_nowait()
            for _ in range(6):  # light bindings that see nothing new
                await script.told.get()
        assert told.empty()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_changed_network_is_looked_at_at_once(opened, probes: ProbeSocket) -> None:  # type: ignore[no-untyped-def]
    script, told = Script(silent=True), asyncio.Queue[NatReport]()
    box = await opened(script)
    watching = watcher(probes, box.both, told.put_nowait)
    running = asyncio.ensure_future(watching.run())
    try:
        async with asyncio.timeout(5):
            assert (await told.get()).udp is Udp.BLOCKED
            script.silent = False
            watching.network_changed()
            assert (await told.get()).udp is Udp.OPEN
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


# The second opinion.


class Ancient(asyncio.DatagramProtocol):
    """A server that pystun3 can read only by our adapter: a padded attribute, noise, an error first."""

    def __init__(self, errors_only: bool = False) -> None:
        self.errors_only = errors_only

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        body = struct.pack("!HH", 0x8022, 5) + b"short" + bytes(3) + attribute(0x0001, Endpoint.of(*address))
        right = struct.pack("!HH", 0x0101, len(body)) + data[4:20] + body
        wrong = struct.pack("!HH", 0x0101, len(body)) + bytes(16) + body
        error = struct.pack("!HH", 0x0111, 0) + data[4:20]
        for datagram in (b"garbage", error, *([] if self.errors_only else [wrong, right[:-3], right])):
            self.transport.sendto(datagram, address)


@pytest.mark.parametrize("errors_only", [False, True])
async def test_pystun3_reads_an_ordinary_server_through_the_adapter(
    monkeypatch: pytest.MonkeyPatch, errors_only: bool
) -> None:
    monkeypatch.setattr(classic, "ANSWER_SECONDS", 0.2)
    made = await asyncio.get_running_loop().create_datagram_endpoint(lambda: Ancient(errors_only), (MAIN, 0))
    transport = made[0]
    try:
        server = Endpoint.of(*transport.get_extra_info("sockname"))
        found = await classic.mapped_addresses([server])
    finally:
        transport.close()
    mapped = found[server]
    assert (mapped is None) == errors_only
    assert mapped is None or str(mapped.ip) == MAIN
