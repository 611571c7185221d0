# SPDX-License-Identifier: Apache-2.0
"""What an idle lab costs: memory and processor of each agent, requests to the API server, writes to watched objects."""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .lab import Lab
from .state import LabError

WATCHED: Final = ("wirekubemeshes", "wirekubepeers", "wirekubepeerslices", "nodes")
WRITES: Final = ("POST", "PUT", "PATCH", "APPLY", "DELETE")
_REQUESTS = re.compile(r"^apiserver_request_total\{(.*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_TICKS = os.sysconf("SC_CLK_TCK")

Requests = Counter[tuple[str, str]]


@dataclass(frozen=True)
class Usage:
    """A process: seconds of processor so far, resident and proportional memory in MiB."""

    cpu: float
    rss: float
    pss: float


@dataclass(frozen=True)
class Snapshot:
    """A lab at one moment.

    Attributes:
        at: monotonic seconds.
        agents: by node.
        requests: served by the API server so far, by verb and resource.
        versions: resourceVersion of each watched object.
    """

    at: float
    agents: Mapping[str, Usage]
    requests: Requests
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Cost:
    """What happened between two snapshots.

    Attributes:
        seconds: between them.
        cpu: each agent's share of one core, 0 to 1.
        memory: each agent at the end.
        requests: by verb and resource; those of the snapshots themselves are left out.
        changed: watched objects that have another resourceVersion.
    """

    seconds: float
    cpu: Mapping[str, float]
    memory: Mapping[str, Usage]
    requests: Requests
    changed: tuple[str, ...]

    @property
    def requests_a_minute(self) -> float:
        """All requests that ended, the API server's own among them; a watch counts when it ends."""
        return self.requests.total() * 60 / self.seconds

    @property
    def writes(self) -> int:
        """Requests that would write a watched object, were they without effect."""
        return sum(
            count
            for (verb, resource), count in self.requests.items()
            if verb in WRITES and resource.partition("/")[0] in WATCHED
        )


def usage(pid: int) -> Usage:
    """Read a process's processor time and memory.

    Raises:
        OSError: it is gone.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    sizes = dict(re.findall(r"^(Rss|Pss): +(\d+) kB$", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE))
    return Usage((int(fields[11]) + int(fields[12])) / _TICKS, int(sizes["Rss"]) / 1024, int(sizes["Pss"]) / 1024)


def requests(metrics: str) -> Requests:
    """Read the API server's counters of requests, from the text of /metrics."""
    counts: Requests = Counter()
    for labels, value in _REQUESTS.findall(metrics):
        named = dict(_LABEL.findall(labels))
        resource = named.get("resource", "") + (f"/{named['subresource']}" if named.get("subresource") else "")
        counts[named.get("verb", ""), resource] += int(float(value))
    return counts


def snapshot(lab: Lab) -> Snapshot:
    """Look at a lab.

    Raises:
        LabError: an agent has ended.
    """
    versions = dict(_versions(json.loads(lab.kubectl("get", ",".join(WATCHED), "-o", "json"))))
    agents = {}
    for node in lab.nodes:
        pid = lab.agent_pid(node)
        if pid is None:
            raise LabError(f"the agent of {node} has ended: {lab.processes.tail(f'agent-{node}', 1)}")
        agents[node] = usage(pid)
    return Snapshot(time.monotonic(), agents, requests(lab.kubectl("get", "--raw", "/metrics")), versions)


def _versions(answer: Mapping[str, list[dict[str, dict[str, str]]]]) -> Iterator[tuple[str, str]]:
    for each in answer["items"]:
        yield f"{each['kind']} {each['metadata']['name']}", each["metadata"]["resourceVersion"]


def between(before: Snapshot, after: Snapshot) -> Cost:
    """Compare two snapshots of one lab."""
    seconds = after.at - before.at
    done = after.requests - before.requests - Counter({("LIST", resource): 1 for resource in WATCHED})
    names = sorted({*before.versions, *after.versions})
    return Cost(
        seconds,
        {node: (each.cpu - before.agents[node].cpu) / seconds for node, each in after.agents.items()},
        after.agents,
        done,
        tuple(name for name in names if before.versions.get(name) != after.versions.get(name)),
    )


def watch(lab: Lab, seconds: float) -> Cost:
    """Leave a lab alone for a while and say what it cost."""
    before = snapshot(lab)
    time.sleep(seconds)
    return between(before, snapshot(lab))
