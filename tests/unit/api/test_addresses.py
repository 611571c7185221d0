# SPDX-License-Identifier: Apache-2.0
"""Ranges and addresses: nothing twice, nothing outside, nothing moves."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wirekube.api.addresses import (
    IPV4_RANGES,
    RangeError,
    addresses_at,
    allocate,
    choose_ranges,
    place_of,
    summarise,
    unique_local,
)

RANGES = (ip_network("198.18.0.0/16"), ip_network("fd12:3456:789a::/48"))
NAMES = st.lists(st.text("abcdefgh-0123", min_size=1, max_size=6), unique=True, max_size=40)


@given(NAMES, st.integers(24, 28))
def test_every_node_has_its_own_address_or_an_error(names: list[str], length: int) -> None:
    ranges = (IPv4Network(f"10.1.2.0/{length}"),)
    taken: set[int] = set()
    usable = ranges[0].num_addresses - 2
    for index, name in enumerate(names):
        if index >= usable:
            with pytest.raises(RangeError, match="no address is free"):
                allocate(name, ranges, existing=(), taken=taken.__contains__, others=len(taken))
        else:
            place = allocate(name, ranges, existing=(), taken=taken.__contains__, others=len(taken))
            assert place not in taken
            assert 0 < place < ranges[0].num_addresses - 1
            taken.add(place)


@given(st.text(min_size=1, max_size=20), st.sets(st.integers(1, 65534), max_size=20))
def test_existing_addresses_stay(name: str, others: set[int]) -> None:
    place = allocate(name, RANGES, existing=(), taken=others.__contains__, others=len(others))
    assert (
        allocate(name, RANGES, existing=addresses_at(place, RANGES), taken=others.__contains__, others=len(others))
        == place
    )
    # One family lost its address: the place comes from the other one.
    assert (
        allocate(
            "another", RANGES, existing=addresses_at(place, RANGES)[1:], taken=others.__contains__, others=len(others)
        )
        == place
    )


def test_a_node_that_is_made_again_gets_its_address_back() -> None:
    first = allocate("node-a", RANGES, existing=(), taken=set().__contains__, others=0)
    assert allocate("node-a", RANGES, existing=(), taken={first + 1}.__contains__, others=1) == first
    assert allocate("node-a", RANGES, existing=(), taken={first}.__contains__, others=1) == first + 1


def test_one_place_counts_in_both_families() -> None:
    assert addresses_at(772, RANGES) == ("198.18.3.4/32", "fd12:3456:789a::304/128")
    assert place_of(["rubbish", "198.18.3.4/32"], RANGES) == 772


@pytest.mark.parametrize("text", ["198.19.0.1/32", "198.18.0.0/32", "198.18.255.255/32", "198.18.3.0/24"])
def test_addresses_outside_the_range_do_not_stay(text: str) -> None:
    assert place_of([text], RANGES) is None


def test_without_a_range_there_is_no_address() -> None:
    with pytest.raises(RangeError):
        allocate("a", (), existing=(), taken=set().__contains__, others=0)


def test_the_first_free_range_is_taken() -> None:
    taken = [ip_network("198.18.7.7/32"), ip_network("198.0.0.0/8"), ip_network("2001:db8::/32")]
    assert choose_ranges("uid", taken).networks == (IPV4_RANGES[2], unique_local("uid"))


def test_ipv6_is_a_unique_local_48_of_the_uid() -> None:
    one = unique_local("uid-1")
    assert one.prefixlen == 48
    assert one.subnet_of(ip_network("fd00::/8"))
    assert one != unique_local("uid-2")


def test_ranges_in_force_stay_even_when_a_node_comes_into_them() -> None:
    chosen = choose_ranges("uid", [ip_network("198.18.0.1/32")], current=RANGES)
    assert (chosen.networks, chosen.problems) == (RANGES, ())


def test_a_wanted_range_that_overlaps_is_refused_and_the_old_one_stays() -> None:
    wanted = [ip_network("10.96.0.0/16")]
    chosen = choose_ranges("uid", [ip_network("10.96.0.0/12")], current=RANGES, wanted=wanted)
    assert chosen.networks == RANGES
    assert chosen.problems == ("the range 10.96.0.0/16 overlaps 10.96.0.0/12, which the cluster uses",)


def test_a_wanted_range_replaces_its_family_only() -> None:
    wanted = ip_network("10.77.0.0/16")
    assert choose_ranges("uid", [], current=RANGES, wanted=[wanted]).networks == (wanted, RANGES[1])


def test_no_free_range_names_the_field_to_set() -> None:
    chosen = choose_ranges("uid", IPV4_RANGES)
    assert chosen.networks == (unique_local("uid"),)
    assert "spec.meshCIDR" in chosen.problems[0]


@given(
    st.lists(st.tuples(st.integers(0, 255), st.integers(24, 30)), max_size=30),
    st.lists(st.integers(0, 255), max_size=5),
    st.integers(1, 6),
)
def test_a_sum_covers_what_it_can_and_no_address_that_it_must_not(
    pairs: list[tuple[int, int]], hosts: list[int], most: int
) -> None:
    networks = [ip_network(f"10.0.{last}.0/{length}", strict=False) for last, length in pairs]
    avoid = [IPv4Address(f"10.0.{last}.1") for last in hosts]
    found = summarise(networks, avoid, most)
    assert len(found) <= most
    assert not any(address in network for address in avoid for network in found)
    if not avoid:
        assert all(any(network.subnet_of(each) for each in found) for network in networks)  # type: ignore[arg-type]
    assert summarise(found, avoid, most) == found


def test_a_thousand_pod_ranges_of_both_families_become_few() -> None:
    four = [f"10.{244 + index // 256}.{index % 256}.0/24" for index in range(1000) if index % 7]
    six = [f"fd00:10:244:{index:x}::/64" for index in range(1000)]
    found = summarise(map(ip_network, [*four, *six]), [ip_address("10.240.0.1"), ip_address("fd00:10:1::1")], 8)
    assert [network.version for network in found].count(4) <= 8
    assert ip_network("10.244.0.0/16").subnet_of(found[0])  # type: ignore[arg-type]
    assert not any(ip_address(text) in network for text in ("10.240.0.1", "10.248.0.1") for network in found)


def test_a_range_that_holds_half_the_internet_counts_for_nothing() -> None:
    """A node that was taken over may register itself with any pod range."""
    assert summarise([ip_network("0.0.0.0/1"), ip_network("10.1.0.0/24")], [], 8) == (ip_network("10.1.0.0/24"),)
