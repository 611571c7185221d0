# SPDX-License-Identifier: Apache-2.0
"""`wirekube lab`: a whole mesh on this machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..lab.lab import Lab

app = typer.Typer(no_args_is_help=True, help="A whole mesh on this machine, with real parts (needs root).")

Name = Annotated[str, typer.Option("--name", "-n", help="Which lab, when there are several.", envvar="WIREKUBE_LAB")]
DEFAULT = "default"
PASS_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False}


@contextmanager
def _one_line() -> Iterator[None]:
    """Turn what a lab can fail with into one line and exit status 1."""
    from ..lab.controlplane import BinariesMissing  # noqa: PLC0415
    from ..lab.netns import NetworkError  # noqa: PLC0415
    from ..lab.processes import ProcessError  # noqa: PLC0415
    from ..lab.state import LabError  # noqa: PLC0415
    from ..lab.topology import TopologyError  # noqa: PLC0415

    try:
        yield
    except (BinariesMissing, LabError, NetworkError, ProcessError, TopologyError) as error:
        print(f"wirekube: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(1) from None


def _lab(name: str, *, progress: bool = False) -> Lab:
    from ..lab.lab import Lab  # noqa: PLC0415
    from ..lab.progress import Progress  # noqa: PLC0415

    return Lab(name, Progress() if progress else None)


def _run(argv: list[str], env: dict[str, str] | None = None) -> None:
    """Run a command on this terminal and end with its status."""
    raise typer.Exit(subprocess.run(argv, env=env, check=False).returncode)


@app.command()
def up(
    topology: Annotated[str, typer.Argument(help="Name of a topology, or path of a YAML file.")] = DEFAULT,
    name: Name = DEFAULT,
    wait: Annotated[bool, typer.Option(help="Wait until every pair is reached.")] = True,
) -> None:
    """Make a lab: namespaces, NATs, API server, STUN, relay, operator and agents."""
    from ..lab.up import dead_agents, wait_for_mesh  # noqa: PLC0415
    from ..lab.up import up as make  # noqa: PLC0415

    with _one_line():
        lab = _lab(name, progress=True)
        make(lab, topology)
        missing = wait_for_mesh(lab) if wait else dead_agents(lab)
    for line in missing:
        print(f"wirekube: {line}", file=sys.stderr)
    if missing:
        print(f"wirekube: the lab is up but not complete; its logs are in {lab.folder.run}", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def status(name: Name = DEFAULT) -> None:
    """Show the Peers, and each pair with the real leg behind its virtual endpoint."""
    from ..lab import reports  # noqa: PLC0415

    with _one_line():
        lab = _lab(name)
        print(lab.kubectl("get", "wirekubepeers"))
        print(reports.table(reports.PAIR_HEADER, reports.pair_rows(lab.reports())))


@app.command()
def ping(
    source: Annotated[str, typer.Argument(help="Node that pings.")],
    target: Annotated[str, typer.Argument(help="Node that is pinged.")],
    count: Annotated[int, typer.Option("--count", "-c", min=1)] = 4,
    ipv6: Annotated[bool, typer.Option("--ipv6", "-6", help="Use the IPv6 mesh address.")] = False,
    name: Name = DEFAULT,
) -> None:
    """Ping a node from another one by its mesh address."""
    from ..lab.state import LabError  # noqa: PLC0415

    with _one_line():
        lab = _lab(name)
        lab.command(target, ["true"])
        addresses = [each for each in lab.mesh_addresses()[target] if (":" in each) == ipv6]
        if not addresses:
            raise LabError(f"{target} has no {'IPv6' if ipv6 else 'IPv4'} mesh address yet")
        argv, env = lab.command(source, ["ping", "-n", "-c", str(count), "-i", "0.2", addresses[0]])
    _run(argv, env)


@app.command("exec", context_settings=PASS_ON)
def execute(
    node: Annotated[str, typer.Argument(help="Node.")],
    command: Annotated[list[str], typer.Argument(help="Command and its arguments.")],
    name: Name = DEFAULT,
) -> None:
    """Run a command on a node, with the environment of its agent: `lab exec home-a -- wg show`."""
    with _one_line():
        argv, env = _lab(name).command(node, command[1:] if command[0] == "--" else command)
    _run(argv, env)


@app.command(context_settings=PASS_ON)
def kubectl(
    arguments: Annotated[list[str], typer.Argument(help="Arguments of kubectl.")], name: Name = DEFAULT
) -> None:
    """Run kubectl on the lab's API server: `lab kubectl -- describe wirekubepeer home-a`."""
    with _one_line():
        argv = _lab(name).kubectl_command(arguments)
    _run(argv)


@app.command()
def down(
    name: Annotated[str, typer.Argument(help="Which lab.", envvar="WIREKUBE_LAB")] = DEFAULT,
    every: Annotated[bool, typer.Option("--all", help="All labs of this machine.")] = False,
) -> None:
    """Remove a lab with everything that it put on this machine."""
    from ..lab.down import down as remove  # noqa: PLC0415
    from ..lab.state import labs  # noqa: PLC0415

    with _one_line():
        for each in labs() if every else [name]:
            remove(_lab(each, progress=True))


@app.command()
def demo(name: Name = "demo") -> None:
    """Make the default topology, ping every pair, break a direct path and heal it, and remove everything."""
    from ..lab.demo import run  # noqa: PLC0415

    with _one_line():
        raise typer.Exit(run(name))
