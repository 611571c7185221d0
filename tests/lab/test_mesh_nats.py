# SPDX-License-Identifier: Apache-2.0
"""Six nodes behind different NATs: what is on the wire, in `wg show`, at the agents' sockets and in kubectl agrees."""

from __future__ import annotations

import json
import selectors
import socket
import subprocess
import sys
import threading
import time
from itertools import combinations

import pytest

from wirekube.lab import idle, netns
from wirekube.lab.expect import allowed_paths
from wirekube.lab.plan import UPLINK

TOPOLOGY = "default"
CLOUD, HOME, OTHER_HOME, SYMMETRIC, OTHER_SYMMETRIC, OFFICE = (
    "cloud", "home-a", "home-b", "cloudnat-a", "cloudnat-b", "office",
)  # fmt: skip
STUN_COOKIE = b"\x21\x12\xa4\x42"
IP_HEADER, UDP, OUTGOING = 20, 17, 4
RELAYED_PAUSE = 3.0  # the design's bound
NOISE = 3.0  # what six agents on two cores may add

pytestmark = pytest.mark.timeout(180)


class Wire:
    """What leaves the uplink of each node by UDP, from before the first agent on: (kind, source port), counted."""

    def __init__(self):
        self.seen = {}
        self._selector = selectors.DefaultSelector()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wire", daemon=True)

    def open(self, lab):
        for node in lab.nodes:
            self.seen[node] = {}
            with netns.inside(lab.namespace(node)):
                tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0003))
                tap.bind((UPLINK, 0x0003))
            tap.setblocking(False)
            self._selector.register(tap, selectors.EVENT_READ, node)
        self._thread.start()

    def close(self):
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()
        self._selector.close()

    def _run(self):
        while not self._stop.is_set():
            for key, _ in self._selector.select(0.2):
                while True:
                    try:
                        data, address = key.fileobj.recvfrom(128)
                    except OSError:
                        break
                    if address[2] == OUTGOING and len(data) > IP_HEADER + 12 and data[0] == 0x45 and data[9] == UDP:
                        self._note(self.seen[key.data], data[IP_HEADER:])

    @staticmethod
    def _note(counts, datagram):
        payload = datagram[8:]
        kind = "wireguard" if payload[0] in {1, 2, 3, 4} and payload[1:4] == b"\0\0\0" else "other"
        kind = "probe" if payload[:4] == b"WKP\1" else "stun" if payload[4:8] == STUN_COOKIE else kind
        seen = kind, int.from_bytes(datagram[:2], "big")
        counts[seen] = counts.get(seen, 0) + 1


WIRE = Wire()


def before_agents(lab):
    WIRE.open(lab)


@pytest.fixture(scope="module", autouse=True)
def wire(mesh):
    yield WIRE
    WIRE.close()


def test_every_pair_has_the_path_that_its_nats_allow_and_answers_by_both_families(mesh):
    pairs = list(combinations(mesh.lab.nodes, 2))

    def settled():
        answers = {pair: mesh.states(*pair) for pair in pairs}
        return all(a == b and a in allowed_paths(mesh.lab.topology, *pair) for pair, (a, b) in answers.items())

    mesh.until(settled, 60, "every pair has the path that its NATs allow")
    for version in (4, 6):
        with mesh.pinging(*pairs, interval=0.2, version=version) as pings:
            pings.more(5)


def test_wireguard_leaves_every_node_from_its_own_port(mesh, wire):
    """Also where kube-proxy masquerades by a mark, where INPUT drops, and where rp_filter is strict."""
    topology = {node.name: node for node in mesh.lab.topology.nodes}
    assert topology[CLOUD].kube_proxy
    assert topology[HOME].input_drop
    assert topology[OTHER_HOME].rp_filter == 1
    for node in mesh.lab.nodes:
        counts = dict(wire.seen[node])
        # STUN has a second port on purpose: how a NAT filters shows at a port that has asked nobody.
        assert {port for kind, port in counts if kind != "stun"} <= {51820}, f"{node}: {counts}"
        assert counts.get(("stun", 51820), 0) > 0, f"{node}: {counts}"
        assert (counts.get(("wireguard", 51820), 0) > 10) == (node != OFFICE), f"{node}: {counts}"


def test_wg_show_agrees_with_what_the_agents_say(mesh):
    direct_pairs = [(CLOUD, HOME), (HOME, OTHER_HOME), (SYMMETRIC, OTHER_SYMMETRIC), (OFFICE, CLOUD)]
    with mesh.pinging(*direct_pairs, interval=0.1):
        for node in mesh.lab.nodes:
            first = mesh.wg(node)
            peers = {}

            def caught_up(node=node, first=first, peers=peers):
                peers.update({each["publicKey"]: each for each in mesh.answer(node)["peers"]})
                return all(peers[key]["rxBytes"] >= peer.rx for key, peer in first.peers.items())

            mesh.until(caught_up, 10, f"the agent of {node} has read the counters that wg showed")
            told = mesh.answer(node)
            last, now = mesh.wg(node), time.time()
            assert told["publicKey"] == first.public_key
            assert told["listenPort"] == first.listen_port == 51820
            assert first.fwmark == "0x574b"
            assert {each["publicKey"] for each in told["peers"]} == set(first.peers)
            for each in told["peers"]:
                shown, later = first.peers[each["publicKey"]], last.peers[each["publicKey"]]
                assert each["virtualEndpoint"] == shown.endpoint
                assert set(each["allowedIPs"]) == shown.allowed_ips
                assert shown.rx <= each["rxBytes"] <= later.rx
                assert shown.tx <= each["txBytes"] <= later.tx
                if later.handshake and later.handshake == shown.handshake:
                    assert abs((now - later.handshake) - each["lastHandshakeSecondsAgo"]) < 2.5
            names = {each["name"]: each["publicKey"] for each in told["peers"]}
            assert names == {other: mesh.wg(other).public_key for other in mesh.lab.nodes if other != node}


def test_lab_status_shows_the_real_leg_behind_each_virtual_endpoint(mesh):
    command = [sys.executable, "-m", "wirekube.cli.main", "lab", "status", "--name", mesh.lab.name]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = {tuple(line.split()[:2]): line.split() for line in shown.splitlines() if "192.0.2.1:" in line}
    assert len(rows) == 30
    for (node, _), (_, _, state, leg, real, virtual, *_) in rows.items():
        port = virtual.rpartition(":")[2]
        address = _element(mesh, node, "leg_addr", port)
        if leg == "direct":
            assert state == "Direct"
            assert real == f"{address}:{_element(mesh, node, 'leg_port', port)}"
        else:
            assert (state, real) == ("Relayed", "203.0.113.3:3478")
            assert address == str(mesh.lab.plan.places[node].address), "the local proxy of this peer"


def _element(mesh, node, name, key):
    listed = json.loads(mesh.net(node, f"nft -j list map ip wirekube {name}"))["nftables"]
    elements = dict(next(item["map"] for item in listed if "map" in item)["elem"])
    return str(elements[int(key)])


@pytest.mark.parametrize(
    ("node", "reason", "words"),
    [
        (CLOUD, "STUN", "others reach this node at 203.0.113.10:51820"),
        (HOME, "STUN", "others reach this node at 203.0.113.11:51820"),
        (SYMMETRIC, "SymmetricNAT", "the NAT gives each destination another port"),
        (OFFICE, "UDPBlocked", "this network blocks UDP; the node is reached by relay"),
    ],
)
def test_kubectl_describe_explains_how_a_node_is_reached(mesh, node, reason, words):
    mesh.until(
        lambda: mesh.condition(node, "PeersReachable").get("status") == "True", 30, "all are reached, and it is told"
    )
    described = mesh.lab.kubectl("describe", "wirekubepeer", node)
    assert mesh.condition(node, "EndpointDiscovered")["reason"] == reason
    for expected in (reason, words, "DataPlaneReady", "wire_kube is up (userspace WireGuard), UDP port 51820", "RelayConnected", "KeyPersisted"):  # fmt: skip
        assert expected in described
    status = mesh.status(node)
    assert sum(status["peers"].values()) == 5
    not_direct = {each["name"]: each["reason"] for each in status.get("notDirect", [])}
    assert len(not_direct) == 5 - status["peers"]["direct"]
    assert all(not_direct.values())


def test_the_relayed_pairs_pause_while_an_agent_is_replaced_and_the_direct_ones_do_not(mesh, measured):
    with (
        mesh.pinging((SYMMETRIC, CLOUD), (CLOUD, SYMMETRIC)) as direct,
        mesh.pinging((SYMMETRIC, OTHER_SYMMETRIC)) as relayed,
    ):
        mesh.lab.kill_agent(SYMMETRIC)
        begin = time.monotonic()
        mesh.lab.start_agent(SYMMETRIC)
        mesh.until(lambda: relayed.flows[0].answers[-1][0] > begin + 0.1, 20, "relayed pings are answered again")
        pause = relayed.flows[0].answers[-1][1] - begin
        direct.more(100)
    measured("a relayed pair's pause, from the kill on", pause, "3 s")
    direct.assert_none_lost()
    assert pause < RELAYED_PAUSE + NOISE


MODES = ("always", "never", "auto", "never", "always", "auto")  # each to each


def test_relay_mode_is_switched_without_a_restart_and_loses_no_ping_of_a_direct_pair(mesh):
    pids = {node: mesh.lab.agent_pid(node) for node in mesh.lab.nodes}
    wanted = {
        "auto": ("Direct", "Relayed"),
        "always": ("Relayed", "Relayed"),
        "never": ("Direct", "Unreachable"),
    }
    before = mesh.wg(HOME).identity
    with mesh.pinging((HOME, OTHER_HOME), (OTHER_HOME, HOME)) as pings:
        for mode in MODES:
            mesh.lab.kubectl(
                "patch",
                "wirekubemesh",
                "default",
                "--type=merge",
                "-p",
                json.dumps({"spec": {"relay": {"mode": mode}}}),
            )
            easy, hard = wanted[mode]
            took = mesh.until(mesh.both(HOME, OTHER_HOME, easy), 30, f"{mode}: two homes are {easy}")
            mesh.until(mesh.both(SYMMETRIC, OTHER_SYMMETRIC, hard), 30, f"{mode}: two symmetric NATs are {hard}")
            print(f"MEASURED {mode}: two homes are {easy} after {took:.1f} s")
            if mode == "never":
                _check_unreachable(mesh)
            pings.more(25)
    pings.assert_none_lost()
    assert mesh.wg(HOME).identity == before
    assert {node: mesh.lab.agent_pid(node) for node in mesh.lab.nodes} == pids
    with mesh.pinging((SYMMETRIC, OTHER_SYMMETRIC), (OFFICE, CLOUD)) as pings:
        pings.more(25)


def _check_unreachable(mesh):
    (pair,) = [each for each in mesh.answer(SYMMETRIC)["peers"] if each["name"] == OTHER_SYMMETRIC]
    assert pair["state"] == "Unreachable"
    assert "never" in pair["message"] or "symmetric" in pair["message"].lower(), pair
    mesh.until(
        lambda: mesh.condition(SYMMETRIC, "RelayConnected").get("reason") == "RelayModeNever", 20, "the Peer tells"
    )
    told = {each["name"]: each for each in mesh.status(SYMMETRIC)["notDirect"]}
    assert told[OTHER_SYMMETRIC]["path"] == "Unreachable"
    assert told[OTHER_SYMMETRIC]["reason"]


def test_an_idle_mesh_writes_nothing_for_a_minute(mesh):
    everyone = list(mesh.lab.nodes)
    mesh.until(lambda: mesh.all_ready(*everyone), 30, "all Peers are ready")
    mesh.until(
        lambda: all(mesh.condition(node, "PeersReachable").get("status") == "True" for node in everyone),
        40,
        "all is told",
    )
    cost = idle.watch(mesh.lab, 20)
    # What the tests before have caused may still be told, at most once in 15 s.
    cost = idle.watch(mesh.lab, 60 if cost.changed else 40)
    print(f"MEASURED {cost.seconds:.0f} s idle: {cost.requests_a_minute:.0f} requests a minute, {cost.writes} writes")
    assert cost.changed == ()
