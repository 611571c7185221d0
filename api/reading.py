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


Texts = tuple[tuple[str, Network | None], ...]
"""Networks as they are written and as they are; None for what is no network."""


class Reading:
    """What matters of one Peer. The object that it was read from is not kept: there are many, and it takes ten times as much.

    Args:
        peer: the object.

    Attributes:
        name: of the Peer and its Node.
        age: sort key; of two that claim the same, the lower one has it.
        public_key: base64; None while there is none.
        accepted: the operator has accepted that key.
        judged: it has judged a key; Unknown says that there was none yet when it looked.
        addresses: mesh addresses.
        allowed: allowedIPs.
        node_addresses: the Node's own.
        pod_cidrs: the Node's pod ranges.
        endpoint: the annotation's, HOST:PORT.
        keepalive: seconds; None leaves it to agents.
        candidates: type and IP:PORT, best first.
        nat: what stands before the node.
    """

    def __init__(self, peer: WireKubePeer) -> None:
        spec, status = peer.spec, peer.status
        self.name = peer.metadata.name
        self.age = (peer.metadata.creation_timestamp or _YOUNGEST, self.name)
        self.public_key = status.public_key
        verdicts = [each for each in status.conditions if each.type == KEY_ACCEPTED]
        accepted = next((each.message for each in verdicts if each.status == "True"), None)
        self.accepted = accepted is not None and accepted == self.public_key
        self.judged = any(each.status != "Unknown" for each in verdicts)
        self.addresses = _networks(spec.addresses)
        self.allowed = _networks(spec.allowed_ips)
        self.node_addresses = _networks(spec.node_addresses)
        self.pod_cidrs = _networks(spec.pod_cidrs)
        self.endpoint, self.keepalive = spec.endpoint, spec.persistent_keepalive
        self.candidates = tuple((each.type, each.endpoint) for each in status.candidates)
        self.nat = status.nat

    @property
    def key(self) -> bytes:
        """The public key, 32 bytes; empty when there is none."""
        return base64.b64decode(self.public_key or "")

    @cached_property
    def places(self) -> tuple[Network, ...]:
        """Addresses at which the node says that it is reached, as networks of one address; names are skipped."""
        texts = [*(endpoint for _, endpoint in self.candidates), *([self.endpoint] if self.endpoint else [])]
        hosts = dict.fromkeys(text.rpartition(":")[0].strip("[]") for text in texts)
        return tuple(ip_network(ip) for host in hosts if (ip := readable_address(host)) is not None)


def _networks(texts: Iterable[str]) -> Texts:
    return tuple((text, readable_network(text)) for text in texts)


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
