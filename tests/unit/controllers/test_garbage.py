# SPDX-License-Identifier: Apache-2.0
"""A Peer that came past its schema: the operator says so on it, and goes on with all others."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from wirekube.controllers import mesh
from wirekube.controllers.keys import PeerStatusReconciler, add_indexes, peer_to_peers
from wirekube.controllers.kinds import conditions_of
from wirekube.controllers.liveness import Timing, Tracker
from wirekube.controllers.mesh import counts
from wirekube.controllers.peers import PeerReconciler, add_index
from wirekube.runtime.conditions import find_condition
from wirekube.runtime.store import Store

GARBAGE: list[dict[str, Any]] = [
    {"spec": "text"},
    {"spec": [1], "status": 7},
    {"spec": {"addresses": 7, "allowedIPs": 8}, "status": {"publicKey": ["list"], "conditions": "none"}},
    {"spec": {"addresses": ["300.1.2.3/32", 7, None]}, "status": {"publicKey": 9, "conditions": ["x", 1, {}]}},
    {"spec": {"addresses": {"a": 1}, "allowedIPs": {"a": 1}}, "status": {"publicKey": {"k": 1}, "conditions": 7}},
]
KEY = base64.b64encode(bytes(32)).decode()
NODE = {"apiVersion": "v1", "kind": "Node", "metadata": {"labels": {"wirekube.io/vpn-enabled": "true"}}}


@pytest.fixture(params=GARBAGE)
def peers(request: pytest.FixtureRequest) -> Store:
    store = Store()
    add_indexes(store)
    add_index(store)
    mesh.add_indexes(Store(), store)
    store.put({"metadata": {"name": "evil", "uid": "u"}} | request.param)
    ready = {"type": "Ready", "status": "True", "reason": "Ready", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    good = {"publicKey": KEY, "conditions": [ready]}
    store.put({"metadata": {"name": "good", "uid": "g"}, "spec": {"addresses": ["10.9.0.2/32"]}, "status": good})
    return store


async def test_it_is_judged_as_malformed(peers: Store, written: Any) -> None:
    reconciler = PeerStatusReconciler(written, Store(), Store(), peers, written, Tracker(Timing()))
    await reconciler.reconcile(("", "evil"))
    ((_, body),) = written.calls
    ready = find_condition(body["status"]["conditions"], "Ready")
    assert ready is not None
    assert (ready["status"], ready["reason"]) in {("False", "Malformed"), ("False", "NoNode")}


async def test_the_others_are_judged_counted_and_given_addresses(peers: Store, written: Any) -> None:
    members = Store()
    members.put(NODE | {"metadata": {**NODE["metadata"], "name": "good"}})  # type: ignore[dict-item]
    await PeerStatusReconciler(written, members, Store(), peers, written, Tracker(Timing())).reconcile(("", "good"))
    ((_, body),) = written.calls
    assert find_condition(body["status"]["conditions"], "KeyAccepted")["status"] == "True"  # type: ignore[index]
    assert counts(peers) == {"peers": 2, "readyPeers": 1}
    nodes, meshes = Store(), Store()
    meshes.put({"metadata": {"name": "default"}, "status": {"meshCIDRs": ["10.9.0.0/29"]}})
    for name in ("evil", "good", "new"):
        nodes.put(NODE | {"metadata": {**NODE["metadata"], "name": name, "uid": f"n-{name}"}})  # type: ignore[dict-item]
        written.calls.clear()
        await PeerReconciler(written, nodes, meshes, peers, written).reconcile(("", name))
        assert [verb for verb, _ in written.calls] == ["apply"]


def test_its_events_reach_the_reconcilers(peers: Store) -> None:
    mapper = peer_to_peers(peers)
    for event in peers.replay():
        assert mapper(event) >= {event.key}


def test_conditions_that_can_be_read() -> None:
    assert conditions_of({"status": {"conditions": ["x", {"type": "A"}]}}) == [{"type": "A"}]
