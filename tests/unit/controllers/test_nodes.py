# SPDX-License-Identifier: Apache-2.0
"""What is read out of Nodes."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from wirekube.controllers.nodes import EndpointError, annotated_endpoint, node_networks, service_networks, wants_mesh


def node(**metadata: Any) -> dict[str, Any]:
    return {"metadata": {"name": "a", **metadata}}


def annotated(text: str) -> dict[str, Any]:
    return node(annotations={"wirekube.io/endpoint": text})


@pytest.mark.parametrize(
    ("metadata", "wanted"),
    [
        ({"labels": {"wirekube.io/vpn-enabled": "true"}}, True),
        ({"labels": {"wirekube.io/vpn-enabled": "false"}}, False),
        ({"labels": None}, False),
        ({"labels": {"wirekube.io/vpn-enabled": "true"}, "deletionTimestamp": "2026-01-01T00:00:00Z"}, False),
    ],
)
def test_membership(metadata: dict[str, Any], wanted: bool) -> None:
    assert wants_mesh(node(**metadata)) is wanted
    assert not wants_mesh(None)


@pytest.mark.parametrize("text", ["203.0.113.5:51820", "[2001:db8::5]:51820", "home.example.org:51820"])
def test_endpoints(text: str) -> None:
    assert annotated_endpoint(annotated(text)) == text


def test_no_annotation_is_no_endpoint() -> None:
    assert annotated_endpoint(node()) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "203.0.113.5",
        "203.0.113.5:0",
        "203.0.113.5:65536",
        "1.2.3:1",
        "300.1.1.1:1",
        "127.0.0.1:1",
        "0.0.0.0:1",
        "224.0.0.1:1",
        "169.254.1.1:1",
        "[::1]:1",
        "2001:db8::5:51820",
        "a b:1",
        "x" * 300 + ":1",
        "host:1\n",
    ],
)
def test_malformed_endpoints_are_refused(text: str) -> None:
    with pytest.raises(EndpointError):
        annotated_endpoint(annotated(text))


def test_networks_that_are_taken() -> None:
    one = node() | {
        "spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24", "fd01::/64"]},
        "status": {"addresses": [{"address": "192.168.1.7"}, {"address": "hostname"}]},
    }
    expected = {ip_network(text) for text in ("192.168.1.7/32", "10.244.0.0/24", "fd01::/64")}
    assert set(node_networks([one, node()])) == expected
    found = service_networks([{"spec": {"cidrs": ["10.96.0.0/16"]}}], {"spec": {"clusterIPs": ["10.96.0.1", "None"]}})
    assert set(found) == {ip_network("10.96.0.0/16"), ip_network("10.96.0.1/32")}
