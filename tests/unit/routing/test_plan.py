# SPDX-License-Identifier: Apache-2.0
"""The host plan: only differences, in a safe order, and stable once reached (a model stands for the kernel)."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wirekube.agent.routing.model import (
    HostPlan,
    HostState,
    RestoreSysctls,
    Route,
    Rule,
    SetAddress,
    SetLink,
    SetRoute,
    SetRule,
    SetSysctl,
)
from wirekube.agent.routing.plan import LOCAL, MAIN, host_actions, is_ours, mark_priority, removal, wanted_rules
from wirekube.api.constants import FIRST_TABLE, FWMARK, ROUTE_PROTOCOL, TABLE

SYSTEM = frozenset(
    rule for version in (4, 6) for rule in (Rule(version, 0, LOCAL, protocol=2), Rule(version, 32766, MAIN, protocol=2))
)
PLAN = HostPlan(
    "wk",
    1420,
    (ip_interface("10.200.0.1/32"), ip_interface("fd57::1/128")),
    frozenset(map(ip_network, ("10.200.0.2/32", "fd57::2/128", "0.0.0.0/0", "::/0"))),
    IPv4Address("10.200.0.1"),
    IPv6Address("fd57::1"),
)
PREFERRING = replace(
    PLAN,
    preferred=frozenset(map(ip_network, ("10.1.0.5/32", "fd77::5/128", "10.244.2.0/24"))),
    outside=frozenset(map(ip_address, ("10.1.0.1", "10.2.0.1"))),
    loose=frozenset({IPv4Address("10.1.0.1")}),
)
FRESH = HostState(
    link=7,
    mtu=1500,
    versions=frozenset((4, 6)),
    rules=SYSTEM,
    sysctls={"rp_filter": "0", "disable_xfrm": "0", "disable_policy": "0"},
    spare={4: 2, 6: 3},
)


def performed(state, actions):
    """What the kernel has after the actions."""
    routes, rules, addresses = set(state.routes), set(state.rules), set(state.addresses)
    strict, loosened = dict(state.strict), set(state.loosened)
    for action in actions:
        match action:
            case SetLink(_, mtu):
                state = replace(state, mtu=mtu, up=True)
            case SetSysctl(interface, _, "2", _) if interface != PLAN.interface:
                del strict[interface]
                loosened.add(interface)
            case RestoreSysctls(interface):
                loosened.discard(interface)
            case SetSysctl(_, name, value, _):
                state = replace(state, sysctls=state.sysctls | {name: value})
            case SetAddress(_, address, present):
                (addresses.add if present else addresses.discard)(address)
            case SetRule(rule, present):
                (rules.add if present else rules.discard)(rule)
            case SetRoute(route, present):
                same = {r for r in routes if (r.destination, r.table) == (route.destination, route.table)}
                routes -= same if present and route.destination.version == 4 else {route}
                routes |= {route} if present else set()
    state = replace(state, strict=strict, loosened=frozenset(loosened))
    return replace(state, routes=frozenset(routes), rules=frozenset(rules), addresses=frozenset(addresses))


foreign_routes = st.frozensets(
    st.builds(
        Route,
        st.sampled_from([*PLAN.routes, ip_network("10.66.0.0/16"), ip_network("192.0.2.1/32")]),
        st.sampled_from([TABLE, MAIN]),
        st.sampled_from([2, 7]),
    )
)
foreign_rules = st.frozensets(
    st.builds(
        Rule,
        st.sampled_from([4, 6]),
        st.sampled_from([100, 110, 150, 199, 200]),
        st.sampled_from([TABLE, MAIN, LOCAL, 99]),
        fwmark=st.sampled_from([None, FWMARK]),
        suppress=st.sampled_from([None, 0]),
        protocol=st.sampled_from([0, ROUTE_PROTOCOL]),
        source=st.sampled_from([None, None, IPv4Address("10.2.0.1"), IPv4Address("10.3.0.1")]),
    )
)


plans = st.sampled_from([PLAN, PREFERRING])


@given(foreign_routes, foreign_rules, st.sampled_from([(4,), (4, 6)]), st.frozensets(st.sampled_from([4, 6])), plans)
def test_one_pass_reaches_the_plan_and_touches_nothing_of_others(routes, rules, versions, defaults, plan):
    before = replace(
        FRESH, routes=routes, rules=SYSTEM | rules, versions=frozenset(versions), defaults=defaults, up=True
    )
    after = performed(before, host_actions(plan, before))
    # A rule for `local` that was ours by its tag is gone now and may let the mark's rule move down: a second pass.
    after = performed(after, host_actions(plan, after))
    assert host_actions(plan, after) == []
    assert {r for r in before.rules if not is_ours(r)} == {r for r in after.rules if not is_ours(r)}
    assert not any(r.destination.prefixlen == 0 for r in after.routes if r.table == TABLE)
    removed = performed(after, removal(after))
    assert not removed.routes
    assert not any(is_ours(rule) for rule in removed.rules)
    assert removal(removed) == []


@pytest.mark.parametrize(("local", "expected"), [(0, 110), (99, 110), (100, 110), (150, 160), (189, 199), (198, 199)])
def test_the_mark_comes_after_local_and_never_after_the_mesh(local, expected):
    assert mark_priority([Rule(4, local, LOCAL), Rule(6, 180, LOCAL)], 4) == expected


def test_the_order_of_the_rules():
    mark, main, mesh = wanted_rules(SYSTEM, 4)
    assert (mark.priority, mark.table, mark.fwmark, mark.suppress) == (110, MAIN, 0x574B, None)
    assert (main.priority, main.table, main.fwmark, main.suppress) == (199, MAIN, None, 0)
    assert (mesh.priority, mesh.table, mesh.fwmark, mesh.suppress) == (200, 22347, None, 0)


def test_what_is_preferred_is_asked_after_the_mark_and_before_main():
    after = performed(FRESH, host_actions(PREFERRING, FRESH))
    four = sorted((rule for rule in after.rules - SYSTEM if rule.version == 4), key=lambda rule: rule.priority)
    assert [(rule.priority, rule.table) for rule in four] == [
        (110, MAIN),
        (197, MAIN),
        (197, MAIN),
        (198, FIRST_TABLE),
        (199, MAIN),
        (200, TABLE),
    ]
    assert {rule.source for rule in four if rule.priority == 197} == PREFERRING.outside
    assert [rule.priority for rule in after.rules if rule.version == 6 and rule.table == FIRST_TABLE] == [198]
    assert {route.destination for route in after.routes if route.table == FIRST_TABLE} == PREFERRING.preferred
    without = performed(after, host_actions(PLAN, after))
    assert without.rules == performed(FRESH, host_actions(PLAN, FRESH)).rules
    assert not [route for route in without.routes if route.table == FIRST_TABLE]


def test_where_there_is_no_place_before_main_nothing_is_preferred():
    crowded = replace(FRESH, rules=SYSTEM | {Rule(4, 188, LOCAL)})
    rules = performed(crowded, host_actions(PREFERRING, crowded)).rules
    assert [rule.version for rule in rules if rule.table == FIRST_TABLE] == [6]


def test_a_strict_filter_is_made_loose_first_and_given_back_last():
    state = replace(FRESH, strict={"eth0": "1"}, underlay=frozenset({"eth0"}))
    actions = host_actions(PREFERRING, state)
    loosen = actions.index(SetSysctl("eth0", "rp_filter", "2", "1"))
    assert all(loosen < at for at, action in enumerate(actions) if isinstance(action, SetRule | SetRoute))
    after = replace(performed(state, actions), underlay=frozenset())
    assert host_actions(PLAN, after)[-1] == RestoreSysctls("eth0")
    assert str(RestoreSysctls("eth0")) == "restore the sysctls of eth0"


def test_protecting_rules_stand_before_the_first_route():
    kinds = [type(action) for action in host_actions(PLAN, FRESH)]
    assert max(i for i, k in enumerate(kinds) if k is SetRule) < min(i for i, k in enumerate(kinds) if k is SetRoute)
    rules = [action.rule for action in host_actions(PLAN, FRESH) if isinstance(action, SetRule)]
    assert [rule.priority for rule in rules if rule.version == 4] == [110, 199, 200]


def test_without_ipv6_nothing_of_it_is_done():
    actions = host_actions(PLAN, replace(FRESH, versions=frozenset((4,))))
    assert actions
    assert not [a for a in actions if isinstance(a, SetRule) and a.rule.version == 6]
    assert not [a for a in actions if isinstance(a, SetAddress) and a.address.version == 6]
    assert not [a for a in actions if isinstance(a, SetRoute) and a.route.destination.version == 6]


def test_without_the_interface_nothing_is_done():
    assert host_actions(PLAN, replace(FRESH, link=None)) == []


def test_a_rule_with_an_added_selector_is_not_taken_for_ours_and_is_replaced():
    reached = performed(FRESH, host_actions(PLAN, FRESH))
    mesh = wanted_rules(SYSTEM, 4)[2]
    crippled = replace(mesh, plain=False)
    actions = host_actions(PLAN, replace(reached, rules=reached.rules - {mesh} | {crippled}))
    assert actions == [SetRule(mesh, present=True), SetRule(crippled, present=False)]


def test_descriptions():
    shown = [str(action) for action in host_actions(PLAN, FRESH)]
    assert "sysctl net.ipv4.conf.wk.rp_filter from 0 to 2" in shown
    assert "add IPv4 rule 110: fwmark 0x574b lookup 254" in shown
    assert "install route 10.200.0.2/32 link 7 table 22347 src 10.200.0.1" in shown
    assert "install route 192.0.2.1/32 link 2 table 254" in shown
