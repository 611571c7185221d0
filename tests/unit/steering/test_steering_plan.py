# SPDX-License-Identifier: Apache-2.0
"""The steering table's text, against a slow model that plays nft: a table is three dictionaries."""

from __future__ import annotations

import json
import re
from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wirekube.agent.steering.plan import (
    Elements,
    Inside,
    PeerSteering,
    SteeringPlan,
    elements,
    plan_of,
    render,
    render_change,
)
from wirekube.agent.steering.table import Snapshot, adopted, parse
from wirekube.wire.endpoint import Endpoint

ADDRESSES = st.sampled_from(["10.0.0.1", "10.0.0.2", "203.0.113.7", "fd00::1"])
SOURCES = st.sampled_from([None, IPv4Address("192.168.1.5"), IPv4Address("203.0.113.5")])
ENDPOINTS = st.builds(Endpoint.of, ADDRESSES, st.integers(1, 4))
PEERS = st.builds(
    PeerSteering,
    st.integers(1024, 1030),
    st.one_of(st.none(), ENDPOINTS),
    SOURCES,
    st.frozensets(ENDPOINTS, max_size=3),
)
PLANS = st.builds(
    plan_of, st.just(51820), st.just(40000), st.lists(PEERS, max_size=6, unique_by=lambda p: p.virtual_port)
)


def model(plan: SteeringPlan) -> Elements:
    """What the maps must hold, said as slowly as possible."""
    legs = {p: s for p, s in plan.peers.items() if s.send_to and s.send_to.ip.version == 4 and s.send_from}
    claims = [(port, source) for port, peer in plan.peers.items() for source in peer.accept if source.ip.version == 4]
    back = {}
    for _, source in claims:
        owner = min(port for port, claimed in claims if claimed == source)
        back[f"{source.ip} . {source.port}"] = str(owner)
    return {
        "leg_src": {str(p): str(s.send_from) for p, s in legs.items()},
        "leg_addr": {str(p): str(s.send_to and s.send_to.ip) for p, s in legs.items()},
        "leg_port": {str(p): str(s.send_to and s.send_to.port) for p, s in legs.items()},
        "back": back,
    }


class Nft:
    """As much of nft as our transactions use; it refuses what the kernel refuses."""

    def __init__(self, text: str) -> None:
        self.maps: Elements = {}
        for name, body in re.findall(r"map (\w+) \{\n(.*?)\n \}\n", text, re.DOTALL):
            entries = re.search(r"elements = \{ (.*) \}", body)
            self.maps[name] = dict(pair(e) for e in entries[1].split(", ")) if entries else {}

    def run(self, transaction: str) -> None:
        for line in transaction.splitlines():
            match = re.fullmatch(r"(add|delete) element ip wirekube (\w+) \{ (.*) \}", line)
            assert match, line
            for entry in match[3].split(", "):
                if match[1] == "delete":
                    del self.maps[match[2]][entry]
                else:
                    key, value = pair(entry)
                    assert self.maps[match[2]].get(key, value) == value, "the kernel says: File exists"
                    self.maps[match[2]][key] = value


def pair(entry: str) -> tuple[str, str]:
    key, _, value = entry.rpartition(" : ")
    return key, value


def listing(plan: SteeringPlan) -> str:
    """What `nft -j list table` prints of it."""

    def key(text: str) -> Any:
        address, dot, port = text.partition(" . ")
        return {"concat": [address, int(port)]} if dot else int(text)

    def value(text: str) -> Any:
        return int(text) if text.isdigit() else text

    maps = [
        {"map": {"name": name, "handle": 1} | ({"elem": [[key(k), value(v)] for k, v in held.items()]} if held else {})}
        for name, held in elements(plan).items()
    ]
    rules = [{"chain": {"name": "out", "handle": 9}}, {"rule": {"chain": "out", "handle": 12, "expr": []}}]
    return json.dumps({"nftables": [{"metainfo": {}}, {"table": {"name": "wirekube"}}, *maps, *rules]})


@given(PLANS)
def test_the_whole_table_holds_what_the_model_says(plan: SteeringPlan) -> None:
    assert elements(plan) == model(plan)
    assert Nft(render(plan)).maps == model(plan)


@given(PLANS, PLANS)
def test_a_change_leads_from_one_table_to_the_other(old: SteeringPlan, new: SteeringPlan) -> None:
    change = render_change(old, new)
    assert change is not None
    assert (change == "") == (model(old) == model(new))
    table = Nft(render(old))
    table.run(change)
    assert table.maps == model(new)


@given(PLANS)
def test_the_text_does_not_depend_on_the_order_of_the_peers(plan: SteeringPlan) -> None:
    turned = plan_of(plan.listen_port, plan.probe_port, reversed(list(plan.peers.values())))
    assert elements(turned) == elements(plan)
    assert render(turned) == render(plan)
    assert render_change(plan, turned) == ""


@given(PLANS)
def test_each_peer_that_has_a_leg_has_an_entry_in_all_its_maps(plan: SteeringPlan) -> None:
    """A key that is missing in one map ends the rule, and the packet is dropped."""
    maps = elements(plan)
    assert maps["leg_src"].keys() == maps["leg_addr"].keys() == maps["leg_port"].keys()


def test_a_table_without_sources_keeps_its_legs() -> None:
    plan = plan_of(51820, 40000, [PeerSteering(1024, Endpoint.of("10.0.0.1", 1), IPv4Address("192.168.1.5"))])
    maps = {name: held for name, held in elements(plan).items() if name != "leg_src"}
    assert adopted(Snapshot(maps, "")) == {1024: PeerSteering(1024, Endpoint.of("10.0.0.1", 1), None)}


def test_other_ports_take_the_whole_table() -> None:
    plan = plan_of(51820, 40000, [])
    assert render_change(plan, plan_of(51821, 40000, [])) is None
    assert render_change(plan, plan_of(51820, 40001, [])) is None


def test_answers_of_addresses_outside_are_marked_and_only_then_are_connections_tracked() -> None:
    addresses = frozenset(map(IPv4Address, ("10.0.0.9", "10.0.0.10")))
    plan, bare = plan_of(51820, 40000, [], Inside("wk", outside=addresses)), plan_of(51820, 40000, [])
    rule = "ct direction reply ct original ip daddr { 10.0.0.9, 10.0.0.10 } meta mark set 0x574b"
    assert rule in render(plan)
    assert " ct " not in render(bare)
    assert "tunnels" not in render(plan)
    assert render_change(bare, plan) is render_change(plan, bare) is None


def test_only_relays_with_an_address_that_kube_proxy_knows_make_connections_tracked() -> None:
    relays = [Endpoint.of("203.0.113.81", 3478), Endpoint.of("203.0.113.80", 443), Endpoint.of("2001:db8::1", 443)]
    plain, plan = plan_of(51820, 40000, []), plan_of(51820, 40000, [], relays=relays)
    assert "type nat" not in render(plain)
    assert re.findall(r"ip daddr (\S+) tcp dport (\d+) dnat to (\S+)", render(plan)) == [
        ("203.0.113.80", "443", "203.0.113.80:443"),
        ("203.0.113.81", "3478", "203.0.113.81:3478"),
    ]
    assert render_change(plain, plan) is None


def test_what_a_tunnel_sends_to_a_nodes_address_is_routed_again() -> None:
    plan = plan_of(51820, 40000, [], Inside("wk", frozenset({IPv4Address("10.0.0.9")})))
    assert 'oifname != "wk" meta mark != 0x574b ip daddr { 10.0.0.9 } meta mark set 0x574c' in render(plan)
    assert "answers" not in render(plan)


@given(PLANS)
def test_an_adopted_table_is_the_plan_that_made_it(plan: SteeringPlan) -> None:
    snapshot = parse(listing(plan))
    assert snapshot.maps == elements(plan)
    entries = adopted(snapshot)
    again = plan_of(plan.listen_port, plan.probe_port, entries.values())
    assert elements(again) == elements(plan)
    assert all(port == entry.virtual_port for port, entry in entries.items())


def test_rules_are_compared_without_their_handles() -> None:
    plan = plan_of(51820, 40000, [])
    text = listing(plan)
    assert parse(text).rules == parse(text.replace('"handle": 12', '"handle": 77')).rules
    assert parse(text).rules != parse(text.replace('"expr": []', '"expr": [1]')).rules


@pytest.mark.parametrize(
    "table",
    [
        [{"map": {"name": "back", "elem": [["10.0.0.1", 7]]}}],
        [{"map": {"name": "back", "elem": [[{"concat": ["10.0.0.1", 5]}, "drop"]]}}],
        [{"map": {"name": "leg_addr", "elem": [["x", "10.0.0.1"]]}}, {"map": {"name": "leg_port", "elem": [["x", 4]]}}],
        [{"map": {"name": "leg_addr", "elem": [[1024, "up"]]}}, {"map": {"name": "leg_port", "elem": [[1024, 4]]}}],
        [{"map": {"name": "other", "elem": [[1024, "up"]]}}],
    ],
)
def test_a_table_of_somebody_else_by_our_name_has_no_entries(table: list[Any]) -> None:
    assert adopted(parse(json.dumps({"nftables": table}))) == {}
