# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

from wirekube.agent.report import DATA_PLANE_READY, NodeView, conditions

UP = NodeView("home", "Running", interface="wire_kube", backend="userspace", problem=None)


def _data_plane(view: NodeView) -> dict[str, object]:
    found = conditions(view, [], 1, "2026-01-01T00:00:00Z")
    return next(each for each in found if each["type"] == DATA_PLANE_READY)


def test_a_host_without_ipv6_takes_part_and_says_so():
    found = _data_plane(replace(UP, ipv4_only=True))
    assert (found["status"], found["reason"]) == ("True", "UpWithoutIPv6")
    assert "disable_ipv6" in str(found["message"])


def test_a_host_with_both_families_says_nothing_of_them():
    assert _data_plane(UP)["reason"] == "Up"
