# SPDX-License-Identifier: Apache-2.0
"""Peers as they are read out of the API's objects, each object once. Pure.

With a thousand Peers nearly all of a change's cost is reading those that have not changed.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from pydantic import ValidationError

from .v1alpha1 import WireKubePeer

Object = Mapping[str, Any]
Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

KEY_ACCEPTED = "KeyAccepted"
_YOUNGEST = datetime.max.replace(tzinfo=UTC)
_PARTS = ("metadata", "spec", "status")


@dataclass(frozen=True)
class Problem:
    """Something that was left out.

    Attributes:
        peer: name of the Peer.
        reason: CamelCase: Malformed, KeyNotAccepted, DuplicateKey, AddressMalformed, AddressTaken, and those of `claims`
            and `nodenetworks`.
        message: for people.
    """

    peer: str
    reason: str
    message: str


class Reading:
    """One Peer, and what is made of it, at most once.

    Args:
        peer: the object.
    """

    def __init__(self, peer: WireKubePeer) -> None:
        self.peer = peer
        self.name = peer.metadata.name
        self.age = (peer.metadata.creation_timestamp or _YOUNGEST, self.name)
        self.public_key = peer.status.public_key
        verdicts = [each for each in peer.status.conditions if each.type == KEY_ACCEPTED]
        accepted = next((each.message for each in verdicts if each.status == "True"), None)
        self.accepted = accepted is not None and accepted == self.public_key
        # Unknown says that there was no key yet when the operator looked.
        self.judged = any(each.status != "Unknown" for each in verdicts)

    @cached_property
    def key(self) -> bytes:
        """The public key, 32 bytes; empty when there is none."""
        return base64.b64decode(self.public_key or "")

    @cached_property
    def addresses(self) -> tuple[tuple[str, Network | None], ...]:
        """Mesh addresses; None for what is no network."""
        return tuple((text, readable_network(text)) for text in self.peer.spec.addresses)

    @cached_property
    def allowed(self) -> tuple[tuple[str, Network | None], ...]:
        """The same of the allowedIPs."""
        return tuple((text, readable_network(text)) for text in self.peer.spec.allowed_ips)

    @cached_property
    def node_addresses(self) -> tuple[tuple[str, Network | None], ...]:
        """The same of the Node's addresses."""
        return tuple((text, readable_network(text)) for text in self.peer.spec.node_addresses)

    @cached_property
    def pod_cidrs(self) -> tuple[tuple[str, Network | None], ...]:
        """The same of the Node's pod ranges."""
        return tuple((text, readable_network(text)) for text in self.peer.spec.pod_cidrs)

    @cached_property
    def places(self) -> tuple[Network, ...]:
        """Addresses at which the node says that it is reached, as networks of one address; names are skipped."""
        manual = [self.peer.spec.endpoint] if self.peer.spec.endpoint else []
        texts = [*(each.endpoint for each in self.peer.status.candidates), *manual]
        hosts = dict.fromkeys(text.rpartition(":")[0].strip("[]") for text in texts)
        return tuple(ip_network(ip) for host in hosts if (ip := readable_address(host)) is not None)


class PeerReader:
    """Reads Peers and remembers each until its object is another one.

    An object is the same as long as its metadata, spec and status are the very same dictionaries, which nobody changes.
    Its resourceVersion would not do: an agent acts on a Peer that was made anew with the status that the old one had.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[object, ...], Reading | Problem]] = {}

    def read(self, objects: Iterable[Object]) -> tuple[Reading | Problem, ...]:
        """Return what is read of each object, the same as before for the same object; others are forgotten."""
        before, self._known = self._known, {}
        return tuple(self._read(obj, before) for obj in objects)

    def _read(
        self, obj: Object, before: Mapping[str, tuple[tuple[object, ...], Reading | Problem]]
    ) -> Reading | Problem:
        parts = tuple(map(obj.get, _PARTS))
        name = parts[0].get("name") if isinstance(parts[0], Mapping) else None
        if not isinstance(name, str):
            return read_peer(obj)
        known = before.get(name)
        if known is None or not all(one is other for one, other in zip(known[0], parts, strict=True)):
            known = parts, read_peer(obj)
        self._known[name] = known
        return known[1]


def read_peer(obj: Object) -> Reading | Problem:
    """Read one Peer; a malformed one becomes a problem that says where."""
    parsed = parse_peer(obj)
    return parsed if isinstance(parsed, Problem) else Reading(parsed)


def parse_peer(obj: Object) -> WireKubePeer | Problem:
    """Read one Peer as it is; a malformed one becomes a problem that says where."""
    try:
        return WireKubePeer.model_validate(obj)
    except ValidationError as error:
        metadata = obj.get("metadata")
        name = metadata.get("name") if isinstance(metadata, Mapping) else None
        return Problem(str(name or "?"), "Malformed", explain(error))


def explain(error: ValidationError) -> str:
    """Return the first fault of an object as one line, for people."""
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'object'}: {first['msg']}"


def readable_network(text: str, *, strict: bool = True) -> Network | None:
    """Return a network; None for what is none, or (if `strict`) has bits beyond its length."""
    try:
        return ip_network(text, strict=strict)
    except ValueError:
        return None


def readable_address(text: str) -> Address | None:
    """Return an address; None for a name."""
    try:
        return ip_address(text)
    except ValueError:
        return None
