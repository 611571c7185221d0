# SPDX-License-Identifier: Apache-2.0
"""The relay's process: `wirekube-relay`."""

from __future__ import annotations

import argparse
import base64
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..runtime.health import HealthServer
from ..runtime.limits import raise_file_limit
from ..telemetry import Telemetry, setup
from ..wire import relay as wire
from ..wire.endpoint import Endpoint
from .counters import export
from .keys import AllowFile, KeyFileError, load_or_create
from .server import RelayServer
from .sessions import Admission


def _endpoint(text: str) -> Endpoint:
    try:
        return Endpoint.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("wirekube-relay", description="Passes WireGuard's packets between agents.")
    parser.add_argument("--listen", type=_endpoint, default=_endpoint("0.0.0.0:3478"), metavar="ADDRESS:PORT")
    parser.add_argument("--stun", type=_endpoint, metavar="ADDRESS:PORT", help="answer STUN here, over UDP")
    parser.add_argument("--key", type=Path, required=True, metavar="FILE", help="private key; made when absent")
    parser.add_argument("--allow-key", type=Path, metavar="FILE", help="admitted public keys, one a line")
    parser.add_argument("--open", action="store_true", help="admit every key")
    parser.add_argument("--metrics", type=_endpoint, metavar="ADDRESS:PORT", help="serve /metrics here")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the relay until SIGTERM or SIGINT.

    Returns:
        0 after a clean stop, 1 when a file or a port cannot be used, 2 when nobody was said to be admitted.
    """
    options = _parser().parse_args(arguments)
    if bool(options.allow_key) == options.open:
        print("wirekube-relay: give --allow-key FILE or --open, and not both", file=sys.stderr)  # noqa: T201
        return 2
    raise_file_limit()  # a socket for each session
    telemetry = setup("wirekube-relay")
    try:
        return _serve(options, telemetry)
    except KeyFileError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"cannot listen: {error.strerror or error}")
    finally:
        telemetry.shutdown()


def _serve(options: argparse.Namespace, telemetry: Telemetry) -> int:
    private = load_or_create(options.key)
    allowed = AllowFile(options.allow_key) if options.allow_key else None
    server = RelayServer(
        private,
        options.listen,
        allowed.admission if allowed else Admission(None),
        stun=options.stun,
        poll=_poll(allowed) if allowed else lambda: None,
        tracer=telemetry.tracer,
    )
    export(telemetry.meter, server.counters)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    health = HealthServer(options.metrics.sockaddr(), telemetry) if options.metrics else None
    if health is not None:
        health.start()
    _say(f"relay public key: {base64.b64encode(wire.public_key(private)).decode()}")
    _say(f"listening on {server.address}" + (f", STUN on {server.stun_address}" if server.stun_address else ""))
    try:
        server.run()
    finally:
        if health is not None:
            health.close()
    return 0


def _poll(allowed: AllowFile) -> Callable[[], Admission | None]:
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
