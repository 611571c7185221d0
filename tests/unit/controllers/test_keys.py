# SPDX-License-Identifier: Apache-2.0
"""The operator's verdicts on Peers."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Any

import pytest

from wirekube.controllers import networks
from wirekube.controllers.keys import OWNED, PATIENCE, PeerStatusReconciler, add_indexes, mesh_to_peers, peer_to_peers
from wirekube.controllers.readiness import READY_MESSAGE, REPORT_SECONDS
from wirekube.runtime.conditions import find_condition
from wirekube.runtime.store import Event, Store

KEY = base64.b64encode(bytes(32)).decode()
OTHER = base64.b64encode(bytes([1]) * 32).decode()
STAMP = "2026-01-01T00:00:00Z"


class World:
    def __init__(self, written: Any) -> None:
        self.nodes, self.meshes, self.peers, self.written = Store(), Store(), Store(), written
        add_indexes(self.peers)
        networks.add_indexes(self.nodes, self.peers)
        self.now = datetime.fromisoformat(STAMP).timestamp() + 3600
        self.quiet: bool | None = None
        self.namespace = "wirekube-system"
        self.restart()

    def restart(self) -> None:
        stores = (self.nodes, self.meshes, self.peers)
        self.reconciler = PeerStatusReconciler(
            self.written, *stores, self.written, self, namespace=self.namespace, clock=lambda: self.now
        )

    def silent(self, _name: str, *, shown: bool) -> bool:
        return shown if self.quiet is None else self.quiet

    def node(self, name: str, **metadata: Any) -> None:
        labels = {"wirekube.io/vpn-enabled": "true"}
        self.nodes.put({"metadata": {"name": name, "labels": labels} | metadata})

    def put(
        self, name: str, key: str | None, *, minute: int = 0, ready: bool = False, stray: bool = False, **spec: Any
    ) -> Any:
        if not stray:
            self.node(name)
        status: dict[str, Any] = {"publicKey": key} if key else {}
        if ready:
            status["conditions"] = [
                {"type": "DataPlaneReady", "status": "True", "reason": "Up", "lastTransitionTime": STAMP}
            ]
        stamp = f"2026-01-01T00:{minute:02}:00Z"
        obj = {
            "metadata": {"name": name, "uid": f"u-{name}", "creationTimestamp": stamp},
            "spec": spec,
            "status": status,
        }
        return self.peers.put(obj)

    async def conditions(self, name: str, *, store: bool = True) -> Any:
        """Reconcile; return the conditions that were written, or None."""
        self.written.calls.clear()
        self.again = (await self.reconciler.reconcile(("", name))).after
        if not self.written.calls:
            return None
        ((_, body),) = self.written.calls
        if store:
            old = self.peers.get(("", name)) or {}
            sent = body["status"]["conditions"]
            others = [c for c in old["status"].get("conditions", []) if c["type"] == "DataPlaneReady"]
            self.peers.put(old | {"status": old["status"] | {"conditions": sent + others}})
        return body["status"]["conditions"]


@pytest.fixture
def world(written: Any) -> World:
    return World(written)


def shown(conditions: Any, type: str) -> tuple[str, str, str]:
    found = find_condition(conditions, type)
    assert found is not None
    return found["status"], found["reason"], found["message"]


async def test_without_a_key_nothing_is_known(world: World) -> None:
    world.put("a", None)
    assert shown(await world.conditions("a"), "KeyAccepted")[:2] == ("Unknown", "NoKey")


async def test_an_accepted_key_is_the_message_and_is_written_once(world: World) -> None:
    world.put("a", KEY, ready=True)
    written = await world.conditions("a")
    assert shown(written, "KeyAccepted") == ("True", "Accepted", KEY)
    assert shown(written, "Ready") == ("True", "Ready", READY_MESSAGE)
    assert await world.conditions("a") is None


@pytest.mark.parametrize("key", [None, KEY])
async def test_an_agent_that_has_not_reported_is_given_time_and_then_named_with_the_remedy(
    world: World, key: str | None
) -> None:
    world.put("a", key)
    world.now = datetime.fromisoformat(STAMP).timestamp() + 12
    assert shown(await world.conditions("a"), "Ready")[:2] == ("Unknown", "AgentNotReported")
    assert world.again == REPORT_SECONDS - 12
    assert ("a", "AgentNotReported") not in world.written.events
    world.now += world.again
    status, reason, message = shown(await world.conditions("a"), "Ready")
    assert (status, reason) == ("False", "AgentNotReported")
    assert message.endswith("is its pod running? kubectl -n wirekube-system get pods --field-selector spec.nodeName=a")
    assert world.written.events.count(("a", "AgentNotReported")) == 1
    assert world.again is None


async def test_a_silent_agent_is_named_with_the_remedy_and_is_forgiven_when_it_renews(world: World) -> None:
    world.put("a", KEY, ready=True)
    await world.conditions("a")
    world.quiet = True
    status, reason, message = shown(await world.conditions("a"), "Ready")
    assert (status, reason) == ("False", "AgentSilent")
    assert message.endswith("kubectl -n wirekube-system get pods --field-selector spec.nodeName=a")
    world.quiet = None  # a new operator, which knows no better than what is shown
    world.restart()
    assert await world.conditions("a") is None
    world.quiet = False
    assert shown(await world.conditions("a"), "Ready")[:2] == ("True", "Ready")
    assert [reason for _, reason in world.written.events if reason != "Accepted"] == ["Ready", "AgentSilent", "Ready"]


async def test_an_agent_that_never_reported_is_not_called_silent(world: World) -> None:
    world.put("a", KEY)
    world.quiet = True
    assert shown(await world.conditions("a"), "Ready")[1] == "AgentNotReported"


@pytest.mark.parametrize("key", [None, KEY, "short"])
async def test_all_conditions_are_there_from_the_first_visit_on_with_reason_message_and_generation(
    world: World, key: str | None
) -> None:
    ((event,),) = (world.put("a", key),)
    world.peers.put(event.new | {"metadata": event.new["metadata"] | {"generation": 3}})
    written = await world.conditions("a")
    assert [each["type"] for each in written] == list(OWNED)
    assert all(each["reason"] and each["message"] and each["observedGeneration"] == 3 for each in written)
    assert ("a", "NotRequested") not in world.written.events


async def test_a_data_plane_that_fails_before_there_is_a_key_is_what_ready_says(world: World) -> None:
    ((event,),) = (world.put("a", None),)
    failure = {"type": "DataPlaneReady", "status": "False", "reason": "WireGuardUnavailable", "message": "load it"}
    world.peers.put(event.new | {"status": {"conditions": [failure | {"lastTransitionTime": STAMP}]}})
    written = await world.conditions("a")
    assert shown(written, "Ready") == ("False", "WireGuardUnavailable", "load it")
    assert shown(written, "KeyAccepted")[:2] == ("Unknown", "NoKey")


async def test_a_peer_without_a_node_is_left_out_and_holds_no_key_back(world: World) -> None:
    world.put("stray", KEY, ready=True, stray=True)
    written = await world.conditions("stray")
    assert shown(written, "KeyAccepted")[:2] == shown(written, "Ready")[:2] == ("False", "NoNode")
    assert "kubectl delete wkpeer stray" in shown(written, "Ready")[2]
    world.put("young", KEY, minute=9, ready=True)
    assert shown(await world.conditions("young"), "KeyAccepted")[0] == "True"
    # Its Node is there, and later it has the label.
    world.node("stray", labels={})
    status, reason, message = shown(await world.conditions("stray"), "Ready")
    assert (status, reason) == ("False", "NodeNotInMesh")
    assert "kubectl label node stray wirekube.io/vpn-enabled=true" in message
    world.node("stray")
    assert shown(await world.conditions("stray"), "KeyAccepted")[1] == "DuplicateKey"


async def test_a_peer_that_goes_with_its_node_needs_no_verdict(world: World) -> None:
    (event,) = world.put("a", KEY, ready=True, stray=True)
    owner = {"apiVersion": "v1", "kind": "Node", "name": "a", "uid": "n-a"}
    world.peers.put(event.new | {"metadata": event.new["metadata"] | {"ownerReferences": [owner]}})
    assert shown(await world.conditions("a"), "Ready")[0] == "True"


async def test_the_first_to_publish_keeps_its_key_against_an_older_peer(world: World) -> None:
    world.put("young", KEY, minute=9)
    await world.conditions("young", store=False)  # the store does not show our write yet
    world.put("old", KEY, minute=1)
    assert shown(await world.conditions("old"), "KeyAccepted")[:2] == ("False", "DuplicateKey")
    assert shown(await world.conditions("young"), "KeyAccepted")[0] == "True"


async def test_a_new_operator_reads_the_owner_from_the_condition(world: World) -> None:
    world.put("young", KEY, minute=9)
    await world.conditions("young")
    world.restart()
    world.put("old", KEY, minute=1)
    assert shown(await world.conditions("old"), "KeyAccepted")[1] == "DuplicateKey"
    assert ("old", "DuplicateKey") in world.written.events


async def test_a_key_is_free_when_its_owner_changes_it(world: World) -> None:
    world.put("a", KEY)
    await world.conditions("a")
    world.put("b", KEY, minute=1)
    await world.conditions("b")
    old = world.peers.get(("", "a"))
    world.put("a", OTHER)
    event = Event("MODIFIED", ("", "a"), old, world.peers.get(("", "a")))
    assert peer_to_peers(world.peers)(event) == {("", "a"), ("", "b")}
    assert shown(await world.conditions("b"), "KeyAccepted")[0] == "True"


async def test_a_peer_that_was_made_again_does_not_inherit_the_key(world: World) -> None:
    world.put("a", KEY)
    await world.conditions("a")
    world.put("b", KEY, minute=1)
    obj = world.peers.get(("", "a")) or {}
    world.peers.remove(("", "a"))
    assert shown(await world.conditions("b"), "KeyAccepted")[0] == "True"
    world.peers.put({**obj, "metadata": obj["metadata"] | {"uid": "u-new"}, "status": {"publicKey": KEY}})
    assert shown(await world.conditions("a"), "KeyAccepted")[1] == "DuplicateKey"


async def test_a_network_of_an_older_peer_is_named(world: World) -> None:
    world.put("old", KEY, allowedIPs=["10.5.0.0/24"])
    world.put("young", OTHER, minute=1, allowedIPs=["10.5.0.128/25"])
    status, reason, message = shown(await world.conditions("young"), "AllowedIPsAccepted")
    assert (status, reason) == ("False", "AllowedIPOverlaps")
    assert "the Peer old" in message


async def test_a_condition_without_a_cause_says_so(world: World) -> None:
    world.put("a", KEY)
    world.node("a", annotations={"wirekube.io/endpoint": "nonsense"})
    assert shown(await world.conditions("a"), "EndpointAccepted")[0] == "False"
    world.node("a", resourceVersion="2")
    assert shown(await world.conditions("a"), "EndpointAccepted")[:2] == ("True", "NotRequested")


async def test_a_malformed_peer_loses_its_acceptance(world: World) -> None:
    world.put("a", "short")
    written = await world.conditions("a")
    assert shown(written, "Ready")[:2] == ("False", "Malformed")
    assert shown(written, "KeyAccepted")[:2] == ("Unknown", "Malformed")


async def test_a_node_that_appears_inside_a_network_concerns_who_announces_it(world: World) -> None:
    world.put("b", KEY, allowedIPs=["203.0.113.0/24"])
    assert shown(await world.conditions("b"), "AllowedIPsAccepted")[0] == "True"
    old = world.put("c", OTHER, minute=1)[0].new
    status = old["status"] | {"candidates": [{"endpoint": "203.0.113.12:51820", "type": "host"}]}
    ((event,),) = (world.peers.put({**old, "status": status}),)
    assert peer_to_peers(world.peers)(event) == {("", "b"), ("", "c")}
    status, reason, message = shown(await world.conditions("b"), "AllowedIPsAccepted")
    assert (status, reason) == ("False", "AllowedIPOverlaps")
    assert message == "left out: 203.0.113.0/24 overlaps 203.0.113.12, an address of the node c"


@pytest.mark.parametrize("field", ["meshCIDRs", "clusterCIDRs", "apiServers"])
def test_news_of_what_is_reserved_concern_who_announces_networks(world: World, field: str) -> None:
    world.put("b", KEY, allowedIPs=["203.0.113.0/24"])
    world.put("c", OTHER)
    text = "203.0.113.5" if field == "apiServers" else "203.0.113.0/24"
    old = {"metadata": {"name": "default"}, "status": {"peers": 1}}
    new = {"metadata": {"name": "default"}, "status": {"peers": 2, field: [text]}}
    mapper = mesh_to_peers(world.peers)
    assert mapper(Event("MODIFIED", ("", "default"), old, new)) == [("", "b")]
    assert mapper(Event("MODIFIED", ("", "default"), old, old | {"status": {"peers": 3}})) == []


async def test_a_new_peer_is_first_written_about_when_its_agent_has_reported_or_after_ten_seconds(
    world: World,
) -> None:
    world.put("a", None)
    world.now = datetime.fromisoformat(STAMP).timestamp() + 1
    assert await world.conditions("a") is None
    assert world.again == PATIENCE - 1
    world.now += world.again
    assert shown(await world.conditions("a"), "Ready")[:2] == ("Unknown", "AgentNotReported")
    world.put("b", OTHER, ready=True)
    world.now = datetime.fromisoformat(STAMP).timestamp() + 1
    assert shown(await world.conditions("b"), "Ready")[:2] == ("True", "Ready")


async def test_the_remedy_names_the_namespace_that_the_agents_are_in(world: World) -> None:
    world.namespace = "elsewhere"
    world.restart()
    world.put("a", None)
    assert "kubectl -n elsewhere get pods" in shown(await world.conditions("a"), "Ready")[2]
