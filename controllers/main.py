# SPDX-License-Identifier: Apache-2.0
"""The operator's process: `wirekube-operator`."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import anyio

from ..api.constants import NAMESPACE
from ..runtime.client import Client
from ..runtime.credentials import SERVICE_ACCOUNT, read_text
from ..runtime.elector import Elector, LeadershipLost
from ..runtime.errors import ApiError, Misconfigured
from ..runtime.health import HealthServer
from ..runtime.identity import inherited_identity
from ..telemetry import Telemetry, setup
from ..telemetry.logs import configure, get_logger
from .assembly import assemble

log = get_logger("operator")

DEFAULT_HEALTH = "127.0.0.1:9585"  # loopback: the operator shares the host's network
ELECTION = "wirekube-operator"
RETRY = 2.0


class ConfigError(Exception):
    """The environment is not usable; the message names the variable."""


@dataclass(frozen=True)
class Config:
    """The operator's environment, checked.

    Attributes:
        kubeconfig: path of a kubeconfig; None means in-cluster credentials.
        health: address and port of /healthz, /readyz and /metrics.
        log_level: debug, info, warning or error.
        election: whether to lead only with the Lease.
        namespace: of the operator, of its Lease, and of what it makes.
        relay_image: of managed relays; empty for the operator's own.
    """

    kubeconfig: str | None
    health: tuple[str, int]
    log_level: str
    election: bool
    namespace: str
    relay_image: str = ""


def from_environment(environment: Mapping[str, str]) -> Config:
    """Read KUBECONFIG, and WIREKUBE_ HEALTH, LOG_LEVEL, LEADER_ELECTION, NAMESPACE and RELAY_IMAGE.

    Raises:
        ConfigError: a variable is malformed.
    """
    text = environment.get("WIREKUBE_HEALTH") or DEFAULT_HEALTH
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ConfigError(f"WIREKUBE_HEALTH={text!r} must be ADDRESS:PORT, for example {DEFAULT_HEALTH}")
    level = environment.get("WIREKUBE_LOG_LEVEL", "info").lower()
    if level not in {"debug", "info", "warning", "error"}:
        raise ConfigError(f"WIREKUBE_LOG_LEVEL={level!r} must be debug, info, warning or error")
    election = environment.get("WIREKUBE_LEADER_ELECTION") or "true"
    if election not in {"true", "false"}:
        raise ConfigError(f"WIREKUBE_LEADER_ELECTION={election!r} must be true or false")
    return Config(
        environment.get("KUBECONFIG") or None,
        (host.strip("[]"), int(port)),
        level,
        election == "true",
        environment.get("WIREKUBE_NAMESPACE") or read_text(SERVICE_ACCOUNT / "namespace") or NAMESPACE,
        environment.get("WIREKUBE_RELAY_IMAGE", ""),
    )


async def run(config: Config, telemetry: Telemetry) -> None:
    """Run until a signal.

    Raises:
        Misconfigured: no usable credentials.
        OSError: the health server cannot listen.
        LeadershipLost: the Lease is lost.
    """
    # It answers before the API server does: a kubelet kills what is silent, again and again and ever more rarely.
    health = HealthServer(config.health, telemetry)
    connected = anyio.Event()
    health.add_check("apiserver", lambda: None if connected.is_set() else "never connected yet")
    health.start()
    client = await _connect_or_stop(config, telemetry)
    if client is None:
        health.close()
        telemetry.shutdown()
        return
    connected.set()
    log.info("started", server=client.server)
    election = _elector(client, config.namespace, telemetry) if config.election else None
    try:
        namespace, image = config.namespace, config.relay_image
        await assemble(client, telemetry, health, namespace=namespace, relay_image=image, election=election).run()
    finally:
        with anyio.CancelScope(shield=True):
            await client.close()


def _elector(client: Client, namespace: str, telemetry: Telemetry) -> Elector:
    identity = inherited_identity(Path(tempfile.gettempdir()) / f"{ELECTION}.identity")
    return Elector(client, namespace, ELECTION, telemetry, identity=identity)


async def _connect_or_stop(config: Config, telemetry: Telemetry) -> Client | None:
    """Connect, however long it takes; None when a signal comes first."""
    client: Client | None = None
    failure: Misconfigured | None = None
    async with anyio.create_task_group() as group:

        async def stop_on_signal() -> None:
            with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
                async for _ in received:
                    group.cancel_scope.cancel()

        group.start_soon(stop_on_signal)
        try:
            client = await _connect(config, telemetry)
        except Misconfigured as error:
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return client


async def _connect(config: Config, telemetry: Telemetry) -> Client:
    said = ""
    while True:
        try:
            return await Client.connect(kubeconfig=config.kubeconfig, telemetry=telemetry)
        except Misconfigured:
            raise
        except ApiError as error:
            if error.message != said:
                said = error.message
                log.warning("cannot use the API server yet; trying again", error=said, every_seconds=RETRY)
            await anyio.sleep(RETRY)


def main() -> int:
    """Run the operator until SIGTERM or SIGINT.

    Returns:
        0 after a clean stop, 1 when a port or the credentials cannot be used or the Lease is lost, 2 when a variable
        is malformed.
    """
    try:
        config = from_environment(os.environ)
    except ConfigError as error:
        sys.stderr.write(f"wirekube-operator: {error}\n")
        return 2
    configure(config.log_level, json=not sys.stderr.isatty())
    telemetry = setup("wirekube-operator")
    try:
        anyio.run(run, config, telemetry)
    except Misconfigured as error:
        sys.stderr.write(f"wirekube-operator: {error.message}\n")
        return 1
    except LeadershipLost as error:
        sys.stderr.write(f"wirekube-operator: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"wirekube-operator: {error.strerror or error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
