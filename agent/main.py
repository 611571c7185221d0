# SPDX-License-Identifier: Apache-2.0
"""The agent's process: `wirekube-agent`, and `wirekube-agent cleanup [--stale]`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import anyio

from ..api.constants import ENV_NODE_NAME
from ..runtime.errors import Misconfigured
from ..runtime.limits import raise_file_limit
from ..telemetry import Telemetry, setup
from ..telemetry.logs import configure, get_logger
from .cleanup import CleanupError, clean
from .config import Config, ConfigError, from_environment
from .core import Agent
from .lock import NodeLock

log = get_logger("agent")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "wirekube-agent", description="Owns one node's WireGuard interface, routes and paths."
    )
    commands = parser.add_subparsers(dest="command")
    cleanup = commands.add_parser("cleanup", help="take everything of WireKube off this host")
    cleanup.add_argument("--stale", action="store_true", help="keep what a clean stop left alive")
    return parser


async def run(config: Config, telemetry: Telemetry) -> None:
    """Wait for this node's lock, then run until a signal.

    Raises:
        Misconfigured: no usable credentials.
        OSError: the run folder or the health port cannot be used.
    """
    from ..runtime.health import HealthServer  # noqa: PLC0415 - a command that ends at once needs neither
    from ..runtime.manager import Manager  # noqa: PLC0415

    lock = NodeLock(config.run_dir)
    await lock.acquire(lambda: log.warning("another agent runs on this node; waiting for it to end"))
    try:
        agent = Agent(config, telemetry)
        health = HealthServer(config.health, telemetry)
        health.add_check("data-plane", agent.unready, "ready")
        manager = Manager(telemetry, health)
        manager.add("agent", agent)
        await manager.run()
    finally:
        lock.release()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the agent until SIGTERM or SIGINT, or clean the host.

    Returns:
        0 after a clean stop, 1 when something on the host or the credentials cannot be used, 2 when a variable is
        missing or malformed.
    """
    options = _parser().parse_args(arguments)
    try:
        # Cleaning is the same on any node.
        config = from_environment(({ENV_NODE_NAME: "any"} if options.command == "cleanup" else {}) | os.environ)
    except ConfigError as error:
        return _fail(str(error), 2)
    configure(config.log_level, json=not sys.stderr.isatty())
    if options.command == "cleanup":
        return _cleanup(config, stale=options.stale)
    raise_file_limit()  # a proxy socket for each peer
    telemetry = setup("wirekube-agent", instance=config.node)
    try:
        anyio.run(run, config, telemetry)
    except Misconfigured as error:
        return _fail(error.message, 1)
    except PermissionError as error:
        return _fail(
            f"no permission ({error.strerror}: {error.filename or 'a socket'}); the agent runs as root with NET_ADMIN",
            1,
        )
    except OSError as error:
        return _fail(f"{error.filename or 'the health address'}: {error.strerror or error}", 1)
    return 0


def _cleanup(config: Config, *, stale: bool) -> int:
    try:
        print(f"wirekube-agent: {anyio.run(lambda: clean(config, stale=stale))}")  # noqa: T201 - the command's answer
    except CleanupError as error:
        return _fail(str(error), 1)
    return 0


def _fail(line: str, code: int) -> int:
    print(f"wirekube-agent: {line}", file=sys.stderr)  # noqa: T201
    return code


if __name__ == "__main__":
    sys.exit(main())
