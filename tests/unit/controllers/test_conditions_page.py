# SPDX-License-Identifier: Apache-2.0
"""docs/conditions.md has every condition type and every reason that the code can give, and no other.

Reasons are literals in many places: of verdicts, problems, pairs of reason and message. So each CamelCase literal of the
modules that give reasons counts as one, unless it is known to be something else. What is new there is missed here.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "conditions.md").read_text()
SOURCES = (
    *sorted((ROOT / "controllers").glob("*.py")),
    ROOT / "controllers" / "relay" / "state.py",
    *(ROOT / "api" / f"{name}.py" for name in ("claims", "nodenetworks", "effective", "reading")),
    *(ROOT / "agent" / f"{name}.py" for name in ("report", "core", "member", "dataplane")),
    *(ROOT / "agent" / "paths" / f"{name}.py" for name in ("verdict", "possible", "record")),
)
CAMEL = re.compile(r"(?:[A-Z]+[a-z0-9]+|STUN$)+[A-Za-z0-9]*")
OTHER = {
    "statuses": {"True", "False", "Unknown"},
    "types of Events": {"Normal", "Warning"},
    "actions of Events": {"Judge", "Path", "AllocateAddress", "DeletePeer", "ReadAnnotation"},
    "kinds": {
        "ClusterRoleBinding",
        "ConfigMap",
        "Deployment",
        "EndpointSlice",
        "Lease",
        "NetworkPolicy",
        "Node",
        "PodDisruptionBudget",
        "RoleBinding",
        "Secret",
        "Service",
        "ServiceAccount",
        "ServiceCIDR",
        "WireKubeMesh",
        "WireKubePeer",
        "WireKubePeerSlice",
    },
    "types of Services": {"ClusterIP", "LoadBalancer"},
    "of a Deployment's conditions": {"NewReplicaSetAvailable", "Progressing", "ReplicaFailure"},
    "an address of a Node": {"InternalIP"},
    "beginnings of reasons": {"AllowedIP", "NodeAddress", "PodCIDR"},
    "phases of an agent, for people": {"Cached", "Failing", "Idle", "Offline", "Running", "Waiting"},
}


def literals(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {text for text in texts if CAMEL.fullmatch(text)}


def of_the_page() -> set[str]:
    """Return the types, which are headings, and the reasons, which stand in the columns of that name."""
    found = set(re.findall(r"^### `(\w+)`$", PAGE, re.MULTILINE))
    column = -1
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if "reason" in cells:
            column = cells.index("reason")
        elif cells and not cells[0].startswith("---"):
            assert re.fullmatch(r"`\w+`", cells[column]), line
            assert len(cells) == column + 3, f"what it means and what to do: {line}"
            assert all(cells), line
            found.add(cells[column].strip("`"))
    return found


def test_the_page_and_the_code_name_the_same_reasons_and_types() -> None:
    code = set().union(*map(literals, SOURCES)) - set().union(*OTHER.values())
    assert len(code) > 60
    assert sorted(code - of_the_page()) == [], "not in docs/conditions.md"
    assert sorted(of_the_page() - code) == [], "in docs/conditions.md only"


def test_what_is_known_to_be_no_reason_is_still_there() -> None:
    code = set().union(*map(literals, SOURCES))
    assert sorted(set().union(*OTHER.values()) - code) == []


def test_a_literal_that_could_be_a_reason_is_seen(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text(
        'x = ("NewReason", f"words {1}"), "UDPBlocked", "NoAPIServer", "STUN", "True", "words", "KUBECONFIG"'
    )
    assert literals(source) == {"NewReason", "UDPBlocked", "NoAPIServer", "STUN", "True"}
