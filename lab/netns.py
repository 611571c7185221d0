# SPDX-License-Identifier: Apache-2.0
"""Makes and removes the namespaces of a plan, and steps into them.

A thread is in one network namespace; sockets and child processes that it makes stay in the one where they were made.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from .plan import NAMESPACE_PREFIX, Box, NetworkPlan, namespace
from .processes import signal_and_wait

RUN_NETNS = Path("/run/netns")
CLONE_NEWNET = 0x40000000
WORKERS = 4

_libc = ctypes.CDLL(None, use_errno=True)


class NetworkError(Exception):
    """A namespace could not be made or entered; the message has the tool's own words."""


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Put the calling thread into a network namespace, and back at the end.

    Raises:
        NetworkError: there is no such namespace, or no permission.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(name)
        try:
            yield
        finally:
            if _libc.setns(home, CLONE_NEWNET):  # a thread that is lost in another namespace must not go on
                os.abort()
    finally:
        os.close(home)


def _enter(name: str) -> None:
    try:
        target = os.open(RUN_NETNS / name, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NetworkError(f"network namespace {name}: {error.strerror}") from error
    try:
        if _libc.setns(target, CLONE_NEWNET):
            raise NetworkError(f"network namespace {name}: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(target)


def run(argv: Sequence[str], text: str = "") -> str:
    """Run a tool in the calling thread's namespace with this standard input; return what it printed.

    Raises:
        NetworkError: it failed or is missing.
    """
    try:
        done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    except OSError as error:
        raise NetworkError(f"{argv[0]}: {error.strerror}; hack/setup installs it") from error
    if done.returncode:
        raise NetworkError(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def build(lab: str, plan: NetworkPlan) -> None:
    """Make all namespaces and links of a plan (about 0.3 s).

    Raises:
        NetworkError: something could not be made; what was made stays, for `remove`.
    """
    lines = [f"netns add {namespace(lab, box.name)}" for box in plan.boxes]
    for cable in plan.cables:
        (first, first_link), (second, second_link) = cable.first, cable.second
        lines.append(
            f"link add {first_link} netns {namespace(lab, first)} type veth"
            f" peer name {second_link} netns {namespace(lab, second)}"
        )
    run(["ip", "-batch", "-"], "\n".join(lines) + "\n")
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(lambda box: _furnish(namespace(lab, box.name), box), plan.boxes))


def _furnish(name: str, box: Box) -> None:
    with inside(name):
        for key, value in box.sysctls.items():
            _write_sysctl(key, value)
        run(["ip", "-batch", "-"], "\n".join(box.commands) + "\n")
        if box.rules:
            run(["nft", "-f", "-"], box.rules)


def _write_sysctl(key: str, value: str) -> None:
    try:
        Path("/proc/sys", key).write_text(value)
    except OSError as error:
        raise NetworkError(f"sysctl {key}={value}: {error.strerror}") from error


def names(lab: str) -> list[str]:
    """Return the lab's network namespaces that exist."""
    return sorted(path.name for path in RUN_NETNS.glob(f"{NAMESPACE_PREFIX}.{lab}.*"))


def pids(namespaces: Sequence[str]) -> list[int]:
    """Return the processes that are in one of these namespaces."""
    wanted = {identity for name in namespaces if (identity := _identity(RUN_NETNS / name))}
    numbered = (entry for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [int(entry.name) for entry in numbered if _identity(entry / "ns" / "net") in wanted]


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None  # a process that has just ended, or a namespace whose making was interrupted
    return status.st_dev, status.st_ino


def remove(lab: str) -> None:
    """End all processes in the lab's namespaces, and remove those; without any, nothing happens."""
    found = names(lab)
    for _ in range(5):  # a process may be starting another one
        running = pids(found)
        if not running:
            break
        signal_and_wait(running, signal.SIGKILL, 5.0)
    if found:
        run(["ip", "-batch", "-"], "".join(f"netns del {name}\n" for name in found))


def remove_mount_point() -> None:
    """Undo what the first `ip netns add` of a machine does besides: it makes a folder and mounts it on itself."""
    try:
        if any(RUN_NETNS.iterdir()):
            return
    except OSError:
        return
    subprocess.run(["umount", RUN_NETNS], capture_output=True, check=False)
    try:
        RUN_NETNS.rmdir()
    except OSError:
        return  # somebody has just made a namespace, or it is mounted twice: then it is not ours alone
