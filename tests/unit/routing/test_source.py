# SPDX-License-Identifier: Apache-2.0
"""Source addresses as this machine's kernel chooses them; tests/lab/test_steering.py has a host with two networks."""

from ipaddress import IPv4Address, IPv6Address

import pytest

from wirekube.agent.routing.source import Sources

LOOPBACK, OTHER = IPv4Address("127.0.0.1"), IPv4Address("127.9.9.9")


def test_the_kernel_is_asked_once_until_something_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    sources, asked = Sources(mark=None), []
    ask = sources._ask
    monkeypatch.setattr(sources, "_ask", lambda destination: asked.append(destination) or ask(destination))
    assert sources.of([LOOPBACK, OTHER]) == {LOOPBACK: LOOPBACK, OTHER: LOOPBACK}
    assert sources.of([OTHER, LOOPBACK]) == {LOOPBACK: LOOPBACK, OTHER: LOOPBACK}
    assert asked == [LOOPBACK, OTHER]
    assert sources.of([OTHER]) == {OTHER: LOOPBACK}
    sources.of([LOOPBACK])
    sources.forget()
    sources.of([LOOPBACK])
    assert asked == [LOOPBACK, OTHER, LOOPBACK, LOOPBACK], "what is not wanted any more is not remembered"


def test_what_has_no_route_is_left_out_and_asked_again() -> None:
    sources = Sources(mark=None)
    for _ in range(2):
        assert sources.of([IPv4Address("255.255.255.255"), LOOPBACK, IPv6Address("::1")]) == {LOOPBACK: LOOPBACK}
