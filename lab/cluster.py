# SPDX-License-Identifier: Apache-2.0
"""A cluster as kubectl sees it, for tests that run against any: nothing here knows how it was made."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterable
from typing import Any

Object = dict[str, Any]
POLL_SECONDS = 0.25


class ClusterError(Exception):
    """kubectl failed, or a condition did not come true in time; the message has its own words."""


class Cluster:
    """The cluster that kubectl takes: the current context of KUBECONFIG."""

    def run(self, *words: str, text: str = "", check: bool = True) -> str:
        """Run kubectl and return what it printed.

        Raises:
            ClusterError: it failed, or took longer than five minutes.
        """
        try:
            done = subprocess.run(
                ["kubectl", *words],
                input=text,
                capture_output=True,
                text=True,
                check=False,
                timeout=300,
            )
        except subprocess.TimeoutExpired:
            raise ClusterError(f"kubectl {' '.join(words)}: no end after 300 s") from None
        if check and done.returncode:
            raise ClusterError(f"kubectl {' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def get(self, *words: str) -> Object:
        """Return one object, or a list object, as `kubectl get … -o json` prints it."""
        found: Object = json.loads(self.run("get", *words, "-o", "json"))
        return found

    def items(self, *words: str) -> list[Object]:
        """Return the items of a list."""
        items: list[Object] = self.get(*words)["items"]
        return items

    def apply(self, objects: Iterable[Object]) -> None:
        """Apply objects."""
        self.run("apply", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))

    def patch(self, kind: str, name: str, patch: Object, *words: str, how: str = "merge") -> None:
        """Merge a patch into an object; `how` is `merge` (lists are replaced) or `strategic` (and merged)."""
        self.run("patch", kind, name, f"--type={how}", "-p", json.dumps(patch), *words)

    def until(self, said: str, condition: Callable[[], object], seconds: float) -> None:
        """Wait until a condition holds; while kubectl fails it does not hold.

        Raises:
            ClusterError: it did not in time; the message has `said`, and what the condition showed or failed with last.
        """
        end, last = time.monotonic() + seconds, ""
        while time.monotonic() < end:
            try:
                if condition():
                    return
                last = ""
            except (ClusterError, KeyError, AssertionError) as error:
                last = f": {error}"
            time.sleep(POLL_SECONDS)
        raise ClusterError(f"not within {seconds:.0f} s: {said}{last}")


def address_of(node: Object, kind: str = "InternalIP") -> str:
    """Return a Node's address of this kind, the empty string when it has none."""
    return next((str(each["address"]) for each in node["status"]["addresses"] if each["type"] == kind), "")


def condition(obj: Object, kind: str) -> Object:
    """Return a condition of an object; an empty one when it has none of this type."""
    return next((each for each in obj.get("status", {}).get("conditions", []) if each["type"] == kind), {})


def is_ready(obj: Object, kind: str = "Ready") -> bool:
    """Return whether a condition is True."""
    return condition(obj, kind).get("status") == "True"
