# SPDX-License-Identifier: Apache-2.0
"""What kubectl prints, against golden files in which all that changes from cluster to cluster is masked.

Written anew with WIREKUBE_GOLDEN=write; look at the difference before you commit it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).parent / "golden"
MASKS = (
    (r"[A-Za-z0-9+/]{43}=", "KEY"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "TIME"),
    (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UID"),
    (r"\d+\.\d+\.\d+\.\d+(:\d+|/\d+)?", "ADDRESS"),
    (r"[0-9a-f]{0,4}(:[0-9a-f]{0,4}){3,}(/\d+)?", "ADDRESS"),
    (r"\b(\d+[smhd]){1,2}\b", "AGE"),
    (r"(Resource Version: +|Generation: +)\d+", r"\1N"),
    (r"(?<=\S) {2,}(?=\S)", "  "),
    (r" +$", ""),
)


CONDITIONS = re.compile(r"(?<=^  Conditions:\n)(?:    .*\n)+", re.MULTILINE)


def _in_order(text: str) -> str:
    """Put conditions into the order of their types: whoever writes first stands first, and that is a race."""

    def ordered(found: re.Match[str]) -> str:
        blocks = re.findall(r"    Last Transition Time:.*\n(?:    (?!Last Transition Time:).*\n)*", found[0])
        return "".join(sorted(blocks, key=lambda block: block[block.rindex("Type:") :]))

    return CONDITIONS.sub(ordered, text)


def _masked(text: str, nodes: Any) -> str:
    """Return the text without what differs between clusters; lines that are equal then stand once."""
    text = text.partition("\nEvents:")[0]
    for name in sorted(nodes, key=len, reverse=True):
        text = text.replace(name, "NODE")
    for pattern, mask in MASKS:
        text = re.sub(pattern, mask, text, flags=re.MULTILINE)
    lines = text.strip().splitlines()
    return _in_order("\n".join(line for at, line in enumerate(lines) if line != lines[at - 1] or at == 0) + "\n")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("get-peers", ["get", "wirekubepeers"]),
        ("get-peers-wide", ["get", "wkpeer", "-o", "wide"]),
        ("get-meshes", ["get", "wirekubemeshes"]),
        ("get-meshes-wide", ["get", "wkmesh", "-o", "wide"]),
        ("get-category", ["get", "wirekube", "-o", "name"]),
        ("describe-mesh", ["describe", "wirekubemesh", "default"]),
        ("describe-peer", ["describe", "wirekubepeer", "PUBLIC"]),
        ("explain-peer-status", ["explain", "wirekubepeer.status"]),
    ],
)
def test_kubectl_prints(mesh: Any, nodes: Any, public: str, hidden: list[str], name: str, words: list[str]) -> None:
    mesh.settle()
    printed = mesh.cluster.run(*(public if word == "PUBLIC" else word for word in words))
    found = _masked(printed, nodes)
    # What stands before the nodes decides what there is to say of them.
    path = GOLDEN / ("nat" if any(nat.value != "none" for nat in nodes.values()) else "plain") / f"{name}.txt"
    if os.environ.get("WIREKUBE_GOLDEN") == "write":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(found)
    assert found == path.read_text()


def test_masks_hide_nothing_that_is_the_projects_own() -> None:
    """A golden file is worth nothing when its masks eat what it is about."""
    said = "Message:  others reach this node at 172.18.0.5:51820: it is an address of this host; NAT: None\n"
    assert (
        _masked(said, []) == "Message:  others reach this node at ADDRESS: it is an address of this host; NAT: None\n"
    )
