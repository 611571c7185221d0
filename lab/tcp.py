# SPDX-License-Identifier: Apache-2.0
"""TCP between two lab nodes: a bare WireGuard tunnel to compare with, and iperf3 through any address."""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import time
from dataclasses import dataclass
from typing import Final

from ..wire.relay import public_key
from . import wait
from .controlplane.binaries import wireguard_go
from .lab import Lab
from .state import LabError

INTERFACE: Final = "bare0"
PORT: Final = 51821
MTU: Final = 1420
START_SECONDS: Final = 10.0
OMIT_SECONDS: Final = 1


class BareTunnel:
    """wireguard-go between two nodes with nothing of ours in its way.

    Its addresses are link-local: agents never take those for a way to a peer.

    Args:
        lab: which is up.
        first, second: nodes that see each other's public addresses without a NAT.

    Raises:
        LabError: it does not come up.
    """

    def __init__(self, lab: Lab, first: str, second: str) -> None:
        self._lab = lab
        keys = {node: os.urandom(32) for node in (first, second)}
        self.addresses = {first: "169.254.77.1", second: "169.254.77.2"}
        for here, there in ((first, second), (second, first)):
            binary, (_, environment) = wireguard_go(), lab.command(here, [])
            lab.start(f"bare-{here}", here, [str(binary), "-f", INTERFACE], environment, own_root=True)
            self._configure(here, there, keys[here], public_key(keys[there]))

    def _configure(self, here: str, there: str, private: bytes, peer: bytes) -> None:
        if not wait.until(
            lambda: not self._lab.exec(here, "wg", "show", INTERFACE, check=False).returncode, START_SECONDS
        ):
            raise LabError(f"{here}: {INTERFACE} does not answer: {self._lab.processes.tail(f'bare-{here}')}")
        endpoint = f"{self._lab.plan.places[there].public}:{PORT}"
        self._wg(
            here, private, "listen-port", str(PORT), "private-key", "/dev/stdin",
            "peer", base64.b64encode(peer).decode(), "allowed-ips", self.addresses[there], "endpoint", endpoint,
        )  # fmt: skip
        self._lab.exec(here, "ip", "address", "add", f"{self.addresses[here]}/24", "dev", INTERFACE)
        self._lab.exec(here, "ip", "link", "set", INTERFACE, "mtu", str(MTU), "up")

    def _wg(self, node: str, private: bytes, *arguments: str) -> None:
        words, environment = self._lab.command(node, ["wg", "set", INTERFACE, *arguments])
        key = base64.b64encode(private).decode()
        done = subprocess.run(words, env=environment, input=key, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LabError(f"{node}: wg set {INTERFACE}: {done.stderr.strip()}")


@dataclass(frozen=True)
class Stream:
    """One TCP stream.

    Attributes:
        seconds: that count.
        congestion: the sender's congestion control. Hosts differ in their default, and bbr's pacing costs processor
            time; cubic is the kernel's own.
    """

    seconds: int = 3
    congestion: str = "cubic"


def throughput(lab: Lab, source: str, target: str, address: str, stream: Stream) -> float:
    """Send one TCP stream from node to node; return what arrived, Mbit/s. The first second does not count.

    Raises:
        LabError: iperf3 could not do it.
    """
    words, environment = lab.command(target, ["iperf3", "--server", "--one-off", "--forceflush", "--bind", address])
    server = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        _until_listening(server)
        options = [
            "--congestion",
            stream.congestion,
            "--time",
            str(stream.seconds),
            "--omit",
            str(OMIT_SECONDS),
            "--json",
            "--connect-timeout",
            "5000",
        ]
        answer = json.loads(lab.exec(source, "iperf3", "--client", address, *options, check=False).stdout or "{}")
        if "end" not in answer or "error" in answer:
            raise LabError(f"iperf3 from {source} to {target}: {answer.get('error', 'no answer')}")
        return float(answer["end"]["sum_received"]["bits_per_second"]) / 1e6
    finally:
        server.kill()
        server.communicate()


def _until_listening(server: subprocess.Popen[bytes]) -> None:
    """Read what the server says until it says that it listens."""
    assert server.stdout is not None  # noqa: S101 - it was started with a pipe
    said, end = b"", time.monotonic() + START_SECONDS
    while b"listening" not in said:
        ready = select.select([server.stdout], [], [], max(0.0, end - time.monotonic()))[0]
        more = os.read(server.stdout.fileno(), 4096) if ready else b""
        if not more:
            raise LabError(f"iperf3 does not listen: {said.decode(errors='replace').strip()}")
        said += more
