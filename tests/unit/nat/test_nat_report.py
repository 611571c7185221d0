# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import pytest

from wirekube.agent.nat.report import (
    Behaviour,
    NatReport,
    Round,
    Udp,
    classify,
    classify_filtering,
    needs_second_round,
)
from wirekube.wire.endpoint import Endpoint

SERVERS = [Endpoint.of(f"198.51.100.{number}", 3478) for number in (1, 2, 3)]
X, Y, Z = (Endpoint.of("203.0.113.9", port) for port in (51820, 40001, 40002))
SEEN = (None, X, Y, Z)


def around(*seen: Endpoint | None, second: Endpoint | None = None) -> Round:
    return Round(dict(zip(SERVERS, seen, strict=False)), second)


def expected_mapping(seen: tuple[Endpoint | None, ...], second: Endpoint | None) -> Behaviour:
    """RFC 5780 section 4.3, read aloud."""
    answers = [each for each in seen if each is not None]
    if len(answers) < 2:
        return Behaviour.UNKNOWN
    if all(each == answers[0] for each in answers):
        return Behaviour.ENDPOINT_INDEPENDENT
    if second == answers[-1]:
        return Behaviour.ADDRESS_DEPENDENT
    return Behaviour.ADDRESS_AND_PORT_DEPENDENT


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_combination_of_what_servers_can_see(count: int) -> None:
    for seen in itertools.product(SEEN, repeat=count):
        for second in SEEN:
            report = classify([around(*seen, second=second)], frozenset(), Behaviour.ADDRESS_DEPENDENT)
            answers = [each for each in seen if each is not None]
            if not answers:
                assert report == NatReport(udp=Udp.BLOCKED)
                continue
            assert report.udp is Udp.OPEN
            assert report.filtering is Behaviour.ADDRESS_DEPENDENT
            assert report.mapping is expected_mapping(seen, second)
            assert set(report.mapped) == set(answers)
            assert answers.count(report.mapped[0]) == max(map(answers.count, answers))
            symmetric = (Behaviour.ADDRESS_DEPENDENT, Behaviour.ADDRESS_AND_PORT_DEPENDENT)
            assert report.symmetric == (report.mapping in symmetric)


def test_no_servers_no_word_about_udp() -> None:
    assert classify([around()], frozenset(), Behaviour.UNKNOWN) == NatReport()


@pytest.mark.parametrize(
    ("seen", "again"),
    [((X, X), False), ((X,), False), ((X, None), False), ((X, Y), True), ((None, None), True), ((None,), True)],
)
def test_a_difference_and_a_silence_are_asked_about_again(seen: tuple[Endpoint | None, ...], again: bool) -> None:
    assert needs_second_round(around(*seen)) is again


def test_two_nodes_with_one_port_behind_one_nat_look_symmetric_once() -> None:
    """The port changes at the first clash and stays: the later one is published."""
    report = classify([around(X, Y, second=Z), around(Y, Y)], frozenset(), Behaviour.UNKNOWN)
    assert report.mapping is Behaviour.ENDPOINT_INDEPENDENT
    assert report.mapped == (Y,)


def test_a_symmetric_nat_stays_symmetric_in_the_second_round() -> None:
    report = classify([around(X, Y), around(Y, Z, second=X)], frozenset(), Behaviour.UNKNOWN)
    assert report.mapping is Behaviour.ADDRESS_AND_PORT_DEPENDENT


def test_a_silent_second_round_does_not_undo_the_first() -> None:
    report = classify([around(X, Y), around(None, None)], frozenset(), Behaviour.UNKNOWN)
    assert report.udp is Udp.OPEN
    assert report.mapped == (X, Y)


def test_a_single_second_answer_does_not_make_a_symmetric_nat_unknown_port_published_first() -> None:
    report = classify([around(X, Y), around(Y, None)], frozenset(), Behaviour.UNKNOWN)
    assert report.mapping is Behaviour.UNKNOWN
    assert report.mapped == (Y,)


def test_an_outside_address_of_our_own_is_no_nat() -> None:
    assert classify([around(X, X)], frozenset({X.ip}), Behaviour.UNKNOWN).no_nat
    assert classify([around(X, X)], frozenset({X.ip}), Behaviour.UNKNOWN).summary() == "None"
    assert not classify([around(X, X)], frozenset({SERVERS[0].ip}), Behaviour.UNKNOWN).no_nat


@pytest.mark.parametrize("address", [None, False, True])
@pytest.mark.parametrize("port", [None, False, True])
def test_filtering(address: bool | None, port: bool | None) -> None:
    expected = {
        (True, True): Behaviour.ENDPOINT_INDEPENDENT,
        (True, False): Behaviour.ENDPOINT_INDEPENDENT,  # the answer from the port alone was lost
        (False, True): Behaviour.ADDRESS_DEPENDENT,
        (False, False): Behaviour.ADDRESS_AND_PORT_DEPENDENT,
    }
    known = expected.get((address, port), Behaviour.UNKNOWN) if None not in (address, port) else Behaviour.UNKNOWN  # type: ignore[arg-type]
    assert classify_filtering(address, port) is known


@pytest.mark.parametrize(
    ("report", "word"),
    [
        (NatReport(), "Unknown"),
        (NatReport(udp=Udp.BLOCKED), "UDP blocked"),
        (NatReport(Behaviour.ENDPOINT_INDEPENDENT, udp=Udp.OPEN), "Easy"),
        (NatReport(Behaviour.ADDRESS_DEPENDENT, udp=Udp.OPEN), "Symmetric"),
        (NatReport(Behaviour.ADDRESS_AND_PORT_DEPENDENT, udp=Udp.OPEN), "Symmetric"),
        (NatReport(Behaviour.ENDPOINT_INDEPENDENT, udp=Udp.OPEN, no_nat=True), "None"),
    ],
)
def test_the_word_for_the_printer_column(report: NatReport, word: str) -> None:
    assert report.summary() == word
