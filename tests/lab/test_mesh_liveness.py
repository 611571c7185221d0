# SPDX-License-Identifier: Apache-2.0
"""A dead agent in a real mesh: who says so, how soon, and that the packets do not notice."""

from __future__ import annotations

import time

import pytest

TOPOLOGY = "pair"
A, B = "home-a", "home-b"
NOTICED = 60.0  # the bound

pytestmark = pytest.mark.timeout(180)


def says(mesh, status, reason):
    return lambda: [mesh.condition(A, "Ready").get(field) for field in ("status", "reason")] == [status, reason]


def test_a_killed_agent_makes_its_peer_silent_within_a_minute_and_a_new_one_ready_again(mesh, measured):
    mesh.until(lambda: mesh.all_ready(A, B), 30, "both are Ready")
    renew_time = ("get", "lease", A, "-n", "wirekube-node-lease", "-o", "jsonpath={.spec.renewTime}")
    first = mesh.lab.kubectl(*renew_time)
    mesh.until(lambda: mesh.lab.kubectl(*renew_time) != first, 25, "the agent renews its Lease")
    other = mesh.lab.kubectl("get", "wirekubepeer", B, "-o", "jsonpath={.status.conditions[?(@.type=='Ready')]}")
    with mesh.pinging((A, B), (B, A)) as pings:
        mesh.lab.kill_agent(A)
        died = time.monotonic()
        mesh.until(says(mesh, "False", "AgentSilent"), NOTICED, "the operator calls the agent silent")
        measured("a killed agent is noticed", time.monotonic() - died, "60 s")
        assert f"spec.nodeName={A}" in mesh.condition(A, "Ready")["message"]
        mesh.lab.start_agent(A)
        begin = time.monotonic()
        mesh.until(says(mesh, "True", "Ready"), 20, "the new agent renews the Lease")
        measured("a new agent is noticed", time.monotonic() - begin, "20 s")
        pings.more(25)
    pings.assert_none_lost()
    # The other one's condition has not moved at all.
    now = mesh.lab.kubectl("get", "wirekubepeer", B, "-o", "jsonpath={.status.conditions[?(@.type=='Ready')]}")
    assert now == other
    for kind in ("wirekubemesh/default", f"wirekubepeer/{A}", f"wirekubepeer/{B}"):
        mesh.lab.kubectl("wait", "--for=condition=Ready", "--timeout=5s", kind)
