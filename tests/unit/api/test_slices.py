# SPDX-License-Identifier: Apache-2.0
"""Peers to slices and back: agents decide as the operator does."""

from __future__ import annotations

import base64
import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wirekube.api.effective import EffectivePeers
from wirekube.api.slices import SliceReader, entry_of, peer_of
from wirekube.api.v1alpha1 import WireKubePeerSlice

CREATED = "2026-01-02T03:04:05Z"


def key(number: int) -> str:
    return base64.b64encode(bytes([number]) * 32).decode()


def peer(name: str, number: int | None = None, verdict: str | None = None, **spec: Any) -> dict[str, Any]:
    """A Peer that publishes a key, with the operator's verdict on it: True, False, Unknown, or None for none yet."""
    status: dict[str, Any] = {"candidates": [{"endpoint": "203.0.113.7:51820", "type": "host"}], "listenPort": 7}
    if number is not None:
        status["publicKey"] = key(number)
    if verdict is not None:
        message = key(number) if number is not None and verdict == "True" else ""
        condition = {"type": "KeyAccepted", "status": verdict, "reason": "Because", "message": message}
        status["conditions"] = [condition | {"lastTransitionTime": CREATED}]
    metadata = {"name": name, "uid": f"u-{name}", "generation": 2, "creationTimestamp": CREATED, "resourceVersion": "9"}
    return {"metadata": metadata, "spec": {"addresses": [f"10.0.0.{len(name)}/32"]} | spec, "status": status}


peers = st.builds(
    peer,
    st.sampled_from(["a", "bb", "ccc"]),
    st.none() | st.integers(1, 2),
    st.sampled_from([None, "True", "False", "Unknown"]),
    allowedIPs=st.sampled_from([[], ["10.1.0.0/16"], ["10.1.2.0/24"]]),
)


def keys_and_networks(objects: list[dict[str, Any]], *, unjudged: bool) -> Any:
    effective = EffectivePeers(unjudged=unjudged).decide(None, objects)
    return [(each.name, each.public_key, each.networks) for each in effective.peers]


@given(st.lists(peers, unique_by=lambda each: each["metadata"]["name"]), st.booleans())
def test_through_slices_the_mesh_is_decided_as_from_the_peers_themselves(
    objects: list[dict[str, Any]], unjudged: bool
) -> None:
    through = [peer_of(entry) for each in objects if (entry := entry_of(each)) is not None]
    assert keys_and_networks(through, unjudged=unjudged) == keys_and_networks(objects, unjudged=unjudged)


def test_what_nobody_acts_on_is_not_in_it() -> None:
    one = peer("a", 1, "True")
    entry = entry_of(one)
    assert entry is not None
    assert entry["status"] == {
        "publicKey": key(1),
        "keyAccepted": True,
        "candidates": [{"endpoint": "203.0.113.7:51820", "type": "host"}],
    }
    other = copy.deepcopy(one)
    other["metadata"]["resourceVersion"] = "10"
    other["status"] |= {"peers": {"direct": 3}, "relay": "r:1", "endpoint": "203.0.113.7:51820"}
    other["status"]["conditions"].append({**other["status"]["conditions"][0], "type": "Ready"})
    assert entry_of(other) == entry
    assert WireKubePeerSlice.model_validate({"metadata": {"name": "peers-1"}, "peers": [entry]}).peers[0].name == "a"


def test_a_malformed_peer_has_no_entry() -> None:
    assert entry_of(peer("a", 1, "True", addresses=7)) is None


def sliced(name: str, *listed: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "peers": list(listed)}


def test_what_stays_the_same_in_a_slice_that_is_another_one_gives_the_very_same_object() -> None:
    reader, a, b = SliceReader(), entry_of(peer("a", 1, "True")), entry_of(peer("bb", 2, "True"))
    before = reader.read([sliced("peers-1", a, b)])
    after = reader.read([sliced("peers-1", copy.deepcopy(a), copy.deepcopy(b) | {"generation": 3})])  # type: ignore[operator]
    assert after["a"] is before["a"]
    assert after["bb"] is not before["bb"]
    assert reader.read([sliced("peers-1", a)]).keys() == {"a"}
    assert reader.read([]) == {}


def test_a_name_in_two_slices_is_that_of_the_first() -> None:
    found = SliceReader().read(
        [sliced("peers-2", {"name": "a", "uid": "2"}), sliced("peers-1", {"name": "a", "uid": "1"})]
    )
    assert found["a"]["metadata"]["uid"] == "1"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "uid", "spec", "status", "publicKey", "keyAccepted"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@given(JSON)
def test_no_slice_makes_an_agent_stumble(garbage: Any) -> None:
    good = entry_of(peer("good", 1, "True"))
    listed = garbage if isinstance(garbage, list) else [garbage]
    found = SliceReader().read([{"metadata": {"name": "peers-1"}, "peers": [*listed, good]}])
    SliceReader().read([{"metadata": {"name": "peers-1"}, "peers": garbage}])
    effective = EffectivePeers(unjudged=True).decide(None, found.values())
    assert "good" in [each.name for each in effective.peers]


@pytest.mark.parametrize(("accepted", "judged"), [(True, True), (False, True), (None, False), ("yes", True)])
def test_the_verdict_comes_along(accepted: Any, judged: bool) -> None:
    status = {"publicKey": key(1)} | ({} if accepted is None else {"keyAccepted": accepted})
    conditions = peer_of({"name": "a", "status": status})["status"].get("conditions")
    assert bool(conditions) is judged
    assert (conditions or [{}])[0].get("status") == {True: "True", None: None}.get(accepted, "False")
