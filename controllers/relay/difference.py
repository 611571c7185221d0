# SPDX-License-Identifier: Apache-2.0
"""Whether an object is as the operator wants it. Pure.

Only what the operator sends is compared: the API server adds defaults, and others own other fields. What it sent before
and does not want any more cannot be seen so: therefore each object carries a digest of all that was sent.
"""

from __future__ import annotations

import hashlib
import json
from decimal import Decimal
from typing import Any, Final

from ...api.constants import GROUP
from ...runtime.objects import Object

DIGEST: Final = f"{GROUP}/applied"
# Lists that server-side apply merges by these fields: entries of others may stand beside ours. All others are ours whole.
_MERGED: Final[dict[str, tuple[str, ...]]] = {
    "metadata.ownerReferences": ("uid",),
    "spec.ports": ("port", "protocol"),
    "spec.template.spec.containers": ("name",),
    "spec.template.spec.containers.ports": ("containerPort", "protocol"),
    "spec.template.spec.containers.volumeMounts": ("mountPath",),
    "spec.template.spec.imagePullSecrets": ("name",),
    "spec.template.spec.topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "spec.template.spec.volumes": ("name",),
}
_AMOUNTS: Final = frozenset({"cpu", "memory", "sizeLimit"})
_UNITS: Final = {
    "m": Decimal("0.001"),
    "": Decimal(1),
    "k": Decimal(1000),
    "M": Decimal(1000**2),
    "G": Decimal(1000**3),
    "T": Decimal(1000**4),
    "Ki": Decimal(1 << 10),
    "Mi": Decimal(1 << 20),
    "Gi": Decimal(1 << 30),
    "Ti": Decimal(1 << 40),
}


def signed(wanted: Object) -> Object:
    """Return the object with the digest of itself as an annotation."""
    text = json.dumps(wanted, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    metadata = wanted["metadata"]
    annotations = {**(metadata.get("annotations") or {}), DIGEST: digest}
    return {**wanted, "metadata": {**metadata, "annotations": annotations}}


def difference(wanted: Any, live: Any, path: str = "") -> str:
    """Return the path of the first field that is not as wanted, empty when all are.

    Args:
        wanted: of `signed`, or a part of it.
        live: the same part of what the API server has.
        path: of the part.
    """
    if isinstance(wanted, dict):
        return _in_mapping(wanted, live if isinstance(live, dict) else {}, path)
    if isinstance(wanted, list):
        return _in_list(wanted, live if isinstance(live, list) else [], path)
    if wanted == live or (path.rpartition(".")[2] in _AMOUNTS and _same_amount(wanted, live)):
        return ""
    return path


def _in_mapping(wanted: dict[str, Any], live: dict[str, Any], path: str) -> str:
    for name, value in wanted.items():
        found = difference(value, live.get(name), f"{path}.{name}" if path else name)
        if found:
            return found
    return ""


def _in_list(wanted: list[Any], live: list[Any], path: str) -> str:
    keys = _MERGED.get(path)
    if keys is not None:
        by_key = {tuple(each.get(key) for key in keys): each for each in live if isinstance(each, dict)}
        live = [by_key.get(tuple(each.get(key) for key in keys)) for each in wanted]
    if len(wanted) != len(live):
        return path
    return next((found for one, other in zip(wanted, live, strict=True) if (found := difference(one, other, path))), "")


def _same_amount(wanted: Any, live: Any) -> bool:
    """Compare what the API server writes in its own way: 1000m is 1, 1024Mi is 1Gi."""
    one, other = _amount(wanted), _amount(live)
    return one is not None and one == other


def _amount(text: Any) -> Decimal | None:
    whole = str(text)
    number = whole.rstrip("mkMGTi")
    unit = _UNITS.get(whole[len(number) :])
    return Decimal(number) * unit if unit is not None and number.replace(".", "", 1).isdecimal() else None
