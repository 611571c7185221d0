# SPDX-License-Identifier: Apache-2.0
"""The relay's process: `wirekube-relay`."""

from __future__ import annotations

import argparse
import base64
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.health import HealthServer
from ..runtime.limits import raise_file_limit
from ..telemetry import Telemetry, setup
from ..telemetry.logs import configure
from ..wire import relay as wire
from ..wire.endpoint import Endpoint
from .counters import export
from .keys import AllowFile, Unusable, load_or_create
from .server import RelayServer
from .sessions import Admission

if TYPE_CHECKING:
    from .cluster import Cluster

STUCK_SECONDS = 30.0

Poll = Callable[[], Admission | None]


def _endpoint(text: str) -> Endpoint:
    try:
        return Endpoint.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _name(text: str) -> tuple[str, str]:
    namespace, _, name = text.partition("/")
    if not namespace or not name or "/" in name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAMESPACE/NAME")
    return namespace, name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("wirekube-relay", description="Passes WireGuard's packets between agents.")
    parser.add_argument("--listen", type=_endpoint, default=_endpoint("0.0.0.0:3478"), metavar="ADDRESS:PORT")
    parser.add_argument("--stun", type=_endpoint, metavar="ADDRESS:PORT", help="answer STUN here, over UDP")
    key = parser.add_mutually_exclusive_group(required=True)
    key.add_argument("--key", type=Path, metavar="FILE", help="private key; made when absent")
    key.add_argument(
        "--key-secret", type=_name, metavar="NAMESPACE/NAME", help="Secret with the private key; filled when empty"
    )
    parser.add_argument(
        "--publish-key", type=_name, metavar="NAMESPACE/NAME", help="ConfigMap that gets the public key"
    )
    parser.add_argument("--allow-key", type=Path, metavar="FILE", help="admitted public keys, one a line")
    parser.add_argument("--allow-peers", action="store_true", help="admit the accepted keys of the cluster's Peers")
    parser.add_argument("--open", action="store_true", help="admit every key")
    parser.add_argument(
        "--metrics", type=_endpoint, metavar="ADDRESS:PORT", help="serve /metrics, /healthz and /readyz here"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the relay until SIGTERM or SIGINT.

    Returns:
        0 after a clean stop, 1 when a file, a port, the credentials or the Secret cannot be used, 2 when it was not
        said who is admitted.
    """
    options = _parser().parse_args(arguments)
    if [bool(options.allow_key), options.allow_peers, options.open].count(True) != 1:
        print("wirekube-relay: give one of --allow-key FILE, --allow-peers and --open", file=sys.stderr)  # noqa: T201
        return 2
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))  # until there is a server to stop; a pod's first process needs it
    configure("info", json=not sys.stderr.isatty())
    raise_file_limit()  # a socket for each session
    telemetry = setup("wirekube-relay")
    try:
        with contextlib.ExitStack() as stack:
            _serve(options, telemetry, stack)
    except Unusable as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"cannot listen: {error.strerror or error}")
    finally:
        telemetry.shutdown()
    return 0


def _serve(options: argparse.Namespace, telemetry: Telemetry, stack: contextlib.ExitStack) -> None:
    health = HealthServer(options.metrics.sockaddr(), telemetry) if options.metrics else None
    serving = threading.Event()
    if health is not None:
        health.add_check("relay", lambda: None if serving.is_set() else "not serving yet")
        health.start()
        stack.callback(health.close)
    asked = options.key_secret or options.publish_key or options.allow_peers
    cluster = _cluster(telemetry, stack) if asked else None
    private = (
        cluster.private_key(*options.key_secret) if cluster and options.key_secret else load_or_create(options.key)
    )
    public = wire.public_key(private)
    if cluster is not None and options.publish_key:
        stack.enter_context(cluster.published(public, *options.publish_key))
    admission, poll = _admission(options, cluster, health, stack)
    server = RelayServer(private, options.listen, admission, stun=options.stun, poll=poll, tracer=telemetry.tracer)
    export(telemetry.meter, server.counters)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    _say(f"relay public key: {base64.b64encode(public).decode()}")
    _say(f"listening on {server.address}" + (f", STUN on {server.stun_address}" if server.stun_address else ""))
    if health is not None:
        health.add_check("turns", lambda: "no turn for long" if server.silence() > STUCK_SECONDS else None, "live")
    serving.set()
    server.run()


def _admission(
    options: argparse.Namespace, cluster: Cluster | None, health: HealthServer | None, stack: contextlib.ExitStack
) -> tuple[Admission, Poll]:
    """Return who is admitted at first, and what tells of a change."""
    if options.allow_key:
        allowed = AllowFile(options.allow_key)
        return allowed.admission, _poll(allowed)
    if cluster is not None and options.allow_peers:
        peers = stack.enter_context(cluster.peers())
        if health is not None:
            health.add_check("peers", peers.unready)
        return Admission([]), peers.poll
    return Admission(None), lambda: None


def _cluster(telemetry: Telemetry, stack: contextlib.ExitStack) -> Cluster:
    from .cluster import connected  # noqa: PLC0415 - half a second that only a relay in a cluster needs

    return stack.enter_context(connected(telemetry))


def _poll(allowed: AllowFile) -> Poll:
    """Look at the file, and say once what is wrong with it."""
    said: str | None = None

    def poll() -> Admission | None:
        nonlocal said
        admission = allowed.poll()
        if allowed.problem != said:
            said = allowed.problem
            if said is not None:
                _fail(f"{said}; the keys read before stay admitted")
        return admission

    return poll


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - the two lines are the command's output


def _fail(line: str) -> int:
    print(f"wirekube-relay: {line}", file=sys.stderr)  # noqa: T201
    return 1


if __name__ == "__main__":
    sys.exit(main())
