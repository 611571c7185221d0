# SPDX-License-Identifier: Apache-2.0
"""What `kubectl kustomize` prints for the kustomizations of config/, without a kubectl.

`make lint` compares the chart with the manifests, and must need nothing but Python. So this knows what those
kustomizations use, `resources` and `images`, and refuses all else, lest it be silently wrong; tests/integration compares
its result with kubectl's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
Source = tuple[str, list[Object]]
_KNOWN = {"apiVersion", "kind", "resources", "images"}
_FILE = "kustomization.yaml"


class Unsupported(Exception):
    """A kustomization has a field that this does not know; the message names both."""


def sources(folder: Path) -> list[Source]:
    """Return the files of a kustomization, in order, as (FOLDER-FILE, its objects) with the images put in.

    Raises:
        Unsupported: a kustomization uses more than `resources` and `images`.
    """
    names = images(folder)
    return [(name, [_with_images(each, names) for each in objects]) for name, objects in _files(folder)]


def images(folder: Path) -> dict[str, str]:
    """Return by the name that manifests use what a kustomization makes of it: `{"wirekube": "example.com/wirekube:1"}`."""
    given = _kustomization(folder).get("images", [])
    return {each["name"]: f"{each.get('newName', each['name'])}:{each['newTag']}" for each in given}


def _kustomization(folder: Path) -> Object:
    found: Object = yaml.safe_load((folder / _FILE).read_text(encoding="utf-8"))
    if unknown := set(found) - _KNOWN:
        raise Unsupported(f"{folder / _FILE}: hack/chart/kustomize.py does not know {', '.join(sorted(unknown))}")
    return found


def _files(folder: Path) -> Iterator[Source]:
    for name in _kustomization(folder)["resources"]:
        path = folder / name
        if path.is_dir():
            yield from _files(path.resolve())
        else:
            objects = [each for each in yaml.safe_load_all(path.read_text(encoding="utf-8")) if each]
            yield f"{folder.name}-{path.stem}", objects


def _with_images(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, list):
        return [_with_images(each, names) for each in value]
    if isinstance(value, dict):
        return {
            key: names.get(each, each) if key == "image" and isinstance(each, str) else _with_images(each, names)
            for key, each in value.items()
        }
    return value
