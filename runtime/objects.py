# SPDX-License-Identifier: Apache-2.0
"""Kubernetes objects as raw dictionaries, their keys and kinds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]
# (namespace, or empty for a cluster-scoped object, and name)
Key = tuple[str, str]


@dataclass(frozen=True)
class Kind:
    """A kind of object: `Kind("wirekube.io/v1alpha1", "wirekubepeers", "WirekubePeer")`."""

    group_version: str
    plural: str
    kind: str
    namespaced: bool = False


def key_of(obj: Object) -> Key:
    """Return (namespace, or empty for a cluster-scoped object, and name)."""
    metadata = obj["metadata"]
    return metadata.get("namespace") or "", metadata["name"]


def version_of(obj: Object) -> int:
    """Return the resource version, which grows with every write of a kind; 0 when there is none."""
    return int(obj["metadata"].get("resourceVersion") or 0)
