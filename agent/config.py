# SPDX-License-Identifier: Apache-2.0
"""What the agent is told by its environment. Everything else it is told by the Mesh and its own Peer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..api.constants import ENV_APISERVER, ENV_NODE_NAME, RUN_DIR, STATE_DIR
from ..telemetry.logs import LEVELS
from .wireguard.helper import FIFO

DEFAULT_HEALTH = "127.0.0.1:9586"  # loopback: the agent shares the host's network, and metrics name every node
HOST_RESOLV_CONFS = ("/host/etc/resolv.conf", "/host/run/systemd/resolve/resolv.conf")
NODE_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")  # a DNS subdomain, as Kubernetes names Nodes


class ConfigError(Exception):
    """The environment is not usable; the message names the variable and the remedy."""


@dataclass(frozen=True)
class Config:
    """The agent's environment, checked.

    Attributes:
        node: name of the Node, and so of our Peer.
        kubeconfig: path of a kubeconfig; None means in-cluster credentials.
        apiserver: URL that replaces the one of the credentials; the CA stays.
        state_dir: private key and last known mesh; survives a reboot.
        run_dir: socket, lock and hand-over note; gone after a reboot.
        health: address and port of /healthz, /readyz and /metrics.
        resolv_conf: resolver of the pod, which knows cluster names.
        host_resolv_confs: resolvers of the host, which work before the mesh does; absent files are skipped.
        log_level: debug, info, warning or error.
    """

    node: str
    kubeconfig: str | None
    apiserver: str | None
    state_dir: Path
    run_dir: Path
    health: tuple[str, int]
    resolv_conf: Path
    host_resolv_confs: tuple[Path, ...]
    log_level: str

    @property
    def sysctl_record(self) -> Path:
        """Where the old values of changed sysctls are kept until they are restored."""
        return self.run_dir / "sysctls.json"

    @property
    def socket(self) -> Path:
        """Where the agent serves what it knows about each pair."""
        return self.run_dir / "agent.sock"

    @property
    def helper(self) -> Path:
        """Where a helper container is asked for a WireGuard process, on a node whose kernel has no WireGuard."""
        return self.run_dir / FIFO.name


def from_environment(environment: Mapping[str, str]) -> Config:
    """Read and check the environment.

    Raises:
        ConfigError: a variable is missing or malformed.
    """
    node = environment.get(ENV_NODE_NAME, "")
    if not node:
        raise ConfigError(f"{ENV_NODE_NAME} is not set; the DaemonSet sets it by the downward API (spec.nodeName)")
    if not NODE_NAME.fullmatch(node):
        raise ConfigError(f"{ENV_NODE_NAME}={node!r} is not a Node name (lower-case letters, digits, '-' and '.')")
    apiserver = environment.get(ENV_APISERVER) or None
    if apiserver and not apiserver.startswith("https://"):
        raise ConfigError(f"{ENV_APISERVER}={apiserver!r} must start with https://")
    return Config(
        node=node,
        kubeconfig=environment.get("KUBECONFIG") or None,
        apiserver=apiserver,
        state_dir=Path(environment.get("WIREKUBE_STATE_DIR", STATE_DIR)),
        run_dir=Path(environment.get("WIREKUBE_RUN_DIR", RUN_DIR)),
        health=_address(environment.get("WIREKUBE_METRICS", DEFAULT_HEALTH)),
        resolv_conf=Path("/etc/resolv.conf"),
        host_resolv_confs=tuple(Path(path) for path in HOST_RESOLV_CONFS),
        log_level=_level(environment.get("WIREKUBE_LOG_LEVEL", "info")),
    )


def _level(text: str) -> str:
    if text.lower() not in LEVELS:
        raise ConfigError(f"WIREKUBE_LOG_LEVEL={text!r} must be one of {', '.join(LEVELS)}")
    return text.lower()


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"WIREKUBE_METRICS={text!r} must be ADDRESS:PORT, for example {DEFAULT_HEALTH}")
    return host.strip("[]"), int(port)
