# SPDX-License-Identifier: Apache-2.0
"""The operator behind an API server that is slow, refuses or talks nonsense: it bears it, and is back within 10 s."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from faultproxy import Fault, FaultProxy, Request
from operators import NAMESPACE, Operator, World
from ports import free_ports

from wirekube.lab.wait import eventually, until

# Operators start in some seconds, on a busy machine in many.
pytestmark = pytest.mark.timeout(240)

BACK = 10.0  # seconds from a server that answers again to a Peer for a new Node
NOISE = 3.0  # of a busy machine, and of kubectl, which asks for the Peer
TROUBLE = 6.0
MOST = 20  # of one request in a trouble: pauses of 5 ms that double make 12 in ten seconds
NAMES = (f"rb-{number}" for number in itertools.count())
EXPIRED = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}


@pytest.fixture(scope="module")
def proxy(world: World) -> Iterator[FaultProxy]:
    proxy = FaultProxy(world.plane)
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def operator(world: World, proxy: FaultProxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """One operator for all of the troubles: it must live through them one after the other."""
    folder = tmp_path_factory.mktemp("operator")
    world.plane.service_account_kubeconfig(
        NAMESPACE, "wirekube-operator", None, folder / "kubeconfig", server=proxy.url
    )
    operator = Operator(str(folder / "kubeconfig"), folder / "log", *free_ports(1))
    eventually(operator.leads, 30, "it leads")
    eventually(operator.ready, 30, "it is ready")
    world.joins(next(NAMES))
    yield operator
    assert operator.end() == 0
    assert "Traceback" not in operator.log()


def all_but_leases(fault: Fault) -> Callable[[Request], Fault | None]:
    return lambda request: None if request.lease else fault


def watches(fault: Fault) -> Callable[[Request], Fault | None]:
    return lambda request: fault if request.watch else None


def writes(fault: Fault) -> Callable[[Request], Fault | None]:
    return lambda request: fault if request.method != "GET" and not request.lease else None


def assert_no_storm(requests: list[Request]) -> None:
    """No request is repeated more often than pauses that double allow within some seconds."""
    asked = Counter((each.method, each.path, each.watch) for each in requests if not each.lease)
    assert asked.most_common(1)[0][1] <= MOST, asked.most_common(5)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(all_but_leases(Fault(status=500)), id="500"),
        pytest.param(all_but_leases(Fault(status=503)), id="503"),
        pytest.param(all_but_leases(Fault(status=429, headers={"Retry-After": "2"})), id="429"),
        pytest.param(all_but_leases(Fault(status=401)), id="401"),
        pytest.param(all_but_leases(Fault(status=403)), id="403"),
        pytest.param(all_but_leases(Fault(delay=4)), id="slow"),
        pytest.param(watches(Fault(status=410)), id="410"),
        pytest.param(watches(Fault(event={"type": "ERROR", "object": EXPIRED})), id="410-in-the-stream"),
        pytest.param(watches(Fault(cut="start")), id="watches-end-at-once"),
        pytest.param(watches(Fault(cut="line")), id="watches-end-within-a-line"),
        pytest.param(watches(Fault(event={"type": "ADDED", "object": {"metadata": None}})), id="nonsense"),
        pytest.param(watches(Fault(event={"no": "type"})), id="no-event"),
        pytest.param(writes(Fault(status=500)), id="no-writes"),
    ],
)
def test_it_bears_it_and_is_back(
    world: World, proxy: FaultProxy, operator: Operator, fault: Callable[[Request], Fault | None]
) -> None:
    proxy.breaks(fault)
    before = len(proxy.requests)
    name = next(NAMES)
    world.node(name)
    eventually(lambda: len(proxy.faulted) >= 2, 20, "the trouble is there")
    until(lambda: False, TROUBLE)
    assert_no_storm(proxy.requests[before:])
    assert operator.process.poll() is None
    proxy.heals()
    eventually(lambda: world.get("wkpeer", name), BACK + NOISE, "the Node that came meanwhile has its Peer")
    world.joins(next(NAMES), BACK + NOISE)
    assert operator.leads()


def test_long_trouble_does_not_make_it_slow(world: World, proxy: FaultProxy, operator: Operator) -> None:
    """Pauses that go on doubling, those of a list or those of a key, would be longer than that by then."""
    for fault in (all_but_leases(Fault(status=503)), writes(Fault(status=500))):
        proxy.breaks(fault)
        world.node(name := next(NAMES))
        until(lambda: False, 45)
        proxy.heals()
        eventually(lambda: world.get("wkpeer", name), BACK + NOISE)


def test_rights_that_are_taken_and_given_back(world: World, proxy: FaultProxy, operator: Operator) -> None:
    binding = world.kubectl("get", "clusterrolebinding", "wirekube-operator", "-o", "json").stdout
    world.kubectl("delete", "clusterrolebinding", "wirekube-operator")
    before = len(proxy.requests)
    proxy.cut()
    world.node(name := next(NAMES))
    eventually(lambda: "is forbidden" in operator.log(), 20)
    until(lambda: False, TROUBLE)
    assert_no_storm(proxy.requests[before:])
    assert world.get("wkpeer", name) is None
    made = json.loads(binding)
    made["metadata"] = {"name": made["metadata"]["name"]}
    world.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=json.dumps(made))
    eventually(lambda: world.get("wkpeer", name), BACK + NOISE)


def test_a_peer_that_passed_an_older_schema_harms_itself_alone(world: World, operator: Operator) -> None:
    world.joins("malformed")
    crd = world.get("crd", "wirekubepeers.wirekube.io")
    loose = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    versions = [each | {"schema": {"openAPIV3Schema": loose}} for each in crd["spec"]["versions"]]
    patch = json.dumps({"spec": {"versions": versions}})
    world.kubectl("patch", "crd", "wirekubepeers.wirekube.io", "--type=merge", "-p", patch)
    # No allowedIPs: with the admission policies in force those would not pass, whatever the schema says.
    spec = {"persistentKeepalive": "often", "endpoint": ["x"], "podCIDRs": "10.0.0.0/8"}
    status = {"publicKey": 7, "conditions": "none", "candidates": {"x": None}, "nat": [1]}
    malform = ("patch", "wkpeer", "malformed", "--type=merge", "-p")
    try:
        # The schema is in force some moments after it is written.
        accepted = partial(world.kubectl, *malform, json.dumps({"spec": spec}), check=False)
        eventually(lambda: accepted().returncode == 0, 20)
        world.kubectl(*malform, json.dumps({"status": status}), "--subresource=status")
    finally:
        world.install_crds()
    world.joins(next(NAMES), BACK + NOISE)
    world.joins(next(NAMES), BACK + NOISE)
    peer = world.get("wkpeer", "malformed")
    assert (peer["spec"]["persistentKeepalive"], peer["status"]["publicKey"]) == ("often", 7)
    assert peer["spec"]["addresses"]
    assert operator.leads()
    world.kubectl("label", "node", "malformed", "wirekube.io/vpn-enabled-")
    eventually(lambda: world.get("wkpeer", "malformed") is None, BACK + NOISE)
