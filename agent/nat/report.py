# SPDX-License-Identifier: Apache-2.0
"""NAT behaviour in the words of RFC 4787, and how it follows from what STUN servers saw. Pure.

Mapping: which outside port one inside port gets, asked of two servers A and B (RFC 5780 section 4.3):

    A sees == B sees                          EndpointIndependent      ("easy": others can be told where we are)
    else B sees == B's second port sees       AddressDependent
    else                                      AddressAndPortDependent  ("symmetric": a new port for every destination)

Filtering: who may answer, asked of one server from a socket that has spoken to nobody else (RFC 5780 section 4.4):

    an answer from another address arrives    EndpointIndependent
    an answer from another port arrives       AddressDependent
    neither                                   AddressAndPortDependent

A difference is believed only when a second round shows it too: behind one NAT with another node that uses the same port,
the outside port changes once and then stays (two nodes of a mesh at home look so).
"""

from __future__ import annotations

from collections.abc import Mapping as MappingType
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from ...wire.endpoint import Endpoint, IPAddress


class Behaviour(StrEnum):
    """RFC 4787 sections 4.1 and 5."""

    ENDPOINT_INDEPENDENT = "EndpointIndependent"
    ADDRESS_DEPENDENT = "AddressDependent"
    ADDRESS_AND_PORT_DEPENDENT = "AddressAndPortDependent"
    UNKNOWN = "Unknown"


class Udp(StrEnum):
    """Whether any UDP came back."""

    OPEN = "Open"
    BLOCKED = "Blocked"
    UNKNOWN = "Unknown"


@dataclass(frozen=True)
class Round:
    """What each server saw once.

    Attributes:
        seen: our address as each server saw it, None where no answer came; in the order of the servers.
        second_port: what the last answering server saw on its second port; None where it has none or did not answer.
        errors: some server answered, but could not say what it saw.
    """

    seen: MappingType[Endpoint, Endpoint | None]
    second_port: Endpoint | None = None
    errors: bool = False

    @property
    def answers(self) -> list[Endpoint]:
        """Return what the servers that answered saw."""
        return [mapped for mapped in self.seen.values() if mapped is not None]


@dataclass(frozen=True)
class NatReport:
    """The NAT as far as it is known.

    Attributes:
        mapping: how outside ports are chosen.
        filtering: who may answer.
        udp: whether UDP passes at all.
        mapped: our outside addresses, the one that most servers saw first. Behind a symmetric NAT they are of no use
            to others but name the public address.
        no_nat: an outside address is one of this host's.
    """

    mapping: Behaviour = Behaviour.UNKNOWN
    filtering: Behaviour = Behaviour.UNKNOWN
    udp: Udp = Udp.UNKNOWN
    mapped: tuple[Endpoint, ...] = field(default=())
    no_nat: bool = False

    @property
    def symmetric(self) -> bool:
        """Tell whether others cannot be told where we are: each sees another port."""
        return self.mapping in (Behaviour.ADDRESS_DEPENDENT, Behaviour.ADDRESS_AND_PORT_DEPENDENT)

    def summary(self) -> str:
        """Return the NAT in a word or two, for the printer column."""
        if self.udp is Udp.BLOCKED:
            return "UDP blocked"
        if self.no_nat:
            return "None"
        return {
            Behaviour.ENDPOINT_INDEPENDENT: "Easy",
            Behaviour.ADDRESS_DEPENDENT: "Symmetric",
            Behaviour.ADDRESS_AND_PORT_DEPENDENT: "Symmetric",
            Behaviour.UNKNOWN: "Unknown",
        }[self.mapping]


def needs_second_round(first: Round) -> bool:
    """Tell whether the servers disagree, or all are silent: either may be an accident."""
    return len(set(first.answers)) != 1


def classify(rounds: Sequence[Round], own: frozenset[IPAddress], filtering: Behaviour) -> NatReport:
    """Return what the rounds show; the last one counts.

    Args:
        rounds: one round, or two where `needs_second_round`.
        own: this host's addresses.
        filtering: as measured by a socket of its own.
    """
    last = rounds[-1]
    if not last.seen:
        return NatReport(filtering=filtering)
    if not any(each.answers for each in rounds):
        return NatReport(udp=Udp.OPEN if any(each.errors for each in rounds) else Udp.BLOCKED)
    answers = last.answers or rounds[0].answers
    ranked = sorted(set(answers), key=lambda mapped: (-answers.count(mapped), answers.index(mapped)))
    return NatReport(
        mapping=_mapping(answers, last.second_port),
        filtering=filtering,
        udp=Udp.OPEN,
        mapped=tuple(ranked),
        no_nat=ranked[0].ip in own,
    )


def _mapping(answers: Sequence[Endpoint], second_port: Endpoint | None) -> Behaviour:
    if len(answers) < 2:
        return Behaviour.UNKNOWN  # one server cannot show a difference
    if len(set(answers)) == 1:
        return Behaviour.ENDPOINT_INDEPENDENT
    if second_port is not None and second_port == answers[-1]:
        return Behaviour.ADDRESS_DEPENDENT
    return Behaviour.ADDRESS_AND_PORT_DEPENDENT


def classify_filtering(other_address: bool | None, other_port: bool | None) -> Behaviour:
    """Return the filtering from which changed answers arrived; None is "not asked"."""
    if other_address is None or other_port is None:
        return Behaviour.UNKNOWN
    if other_address:
        return Behaviour.ENDPOINT_INDEPENDENT
    return Behaviour.ADDRESS_DEPENDENT if other_port else Behaviour.ADDRESS_AND_PORT_DEPENDENT
