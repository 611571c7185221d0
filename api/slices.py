# SPDX-License-Identifier: Apache-2.0
"""Between Peers and the slices that carry them to agents: one way for the operator, the other for agents. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from .constants import GROUP_VERSION
from .reading import KEY_ACCEPTED, Object, Problem, read_peer

Entry = dict[str, Any]
"""One of a slice's `peers`, see `v1alpha1.slice.SlicedPeer`."""

_METADATA: Final = ("name", "uid", "generation", "creationTimestamp")
_STATUS: Final = ("publicKey", "candidates", "nat")
_NO_TIME: Final = "1970-01-01T00:00:00Z"


def entry_of(peer: Object) -> Entry | None:
    """Return what agents get of a Peer; None for a malformed one. It shares its parts with the Peer."""
    reading = read_peer(peer)
    if isinstance(reading, Problem):
        return None
    metadata, status = peer["metadata"], peer.get("status") or {}
    shown = {name: status[name] for name in _STATUS if status.get(name)}
    if reading.judged:
        shown["keyAccepted"] = reading.accepted
    named = {name: metadata[name] for name in _METADATA if metadata.get(name)}
    return named | {"spec": peer.get("spec") or {}, "status": shown}


def peer_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Peer that an entry stands for, as the API server would send it, as far as the entry knows it."""
    status = dict(entry.get("status") or {})
    accepted = status.pop("keyAccepted", None)
    if accepted is not None:
        word, key = ("True", status.get("publicKey") or "") if accepted is True else ("False", "")
        verdict = {"type": KEY_ACCEPTED, "status": word, "reason": "Accepted" if key else "NotAccepted", "message": key}
        status["conditions"] = [verdict | {"lastTransitionTime": entry.get("creationTimestamp") or _NO_TIME}]
    metadata = {name: entry[name] for name in _METADATA if name in entry}
    spec = entry.get("spec") or {}
    return {"apiVersion": GROUP_VERSION, "kind": "WireKubePeer", "metadata": metadata, "spec": spec, "status": status}


def entries(found: Object) -> list[Entry]:
    """Return the entries of a slice that have a name; anything else in there is skipped."""
    listed = found.get("peers")
    listed = listed if isinstance(listed, list) else []
    return [each for each in listed if isinstance(each, dict) and isinstance(each.get("name"), str)]


class SliceReader:
    """Reads the Peers out of slices. An entry that stays the same keeps giving the very same object.

    So what is behind it reads only what has changed, though a slice comes as a whole (see `reading.PeerReader`).
    """

    def __init__(self) -> None:
        self._slices: dict[str, tuple[Object, dict[str, tuple[Entry, dict[str, Any]]]]] = {}

    def read(self, slices: Iterable[Object]) -> dict[str, dict[str, Any]]:
        """Return the Peers of all slices by name; of a name that stands in several slices, the first slice has it."""
        before, self._slices = self._slices, {}
        peers: dict[str, dict[str, Any]] = {}
        for found in sorted(slices, key=lambda each: str(each["metadata"]["name"])):
            name = found["metadata"]["name"]
            known = before.get(name)
            if known is None or known[0] is not found:
                known = found, _updated(known[1] if known else {}, entries(found))
            self._slices[name] = known
            for peer, (_, obj) in known[1].items():
                peers.setdefault(peer, obj)
        return peers


def _updated(
    known: Mapping[str, tuple[Entry, dict[str, Any]]], listed: Iterable[Entry]
) -> dict[str, tuple[Entry, dict[str, Any]]]:
    result: dict[str, tuple[Entry, dict[str, Any]]] = {}
    for entry in listed:
        old = known.get(entry["name"])
        result[entry["name"]] = old if old is not None and old[0] == entry else (entry, _readable(entry))
    return result


def _readable(entry: Entry) -> dict[str, Any]:
    """Return the Peer of an entry; one that cannot be read becomes a Peer that says so, as a malformed one does."""
    try:
        return peer_of(entry)
    except (TypeError, ValueError):
        return {"metadata": {"name": entry["name"]}, "spec": entry.get("spec"), "status": entry.get("status")}
