# SPDX-License-Identifier: Apache-2.0
"""The folder of a lab: what it is made from, its processes, its nodes' files. It exists before anything else is made.

    BASE/NAME/lab.json          the topology's text, so that later commands know what was built
             /controlplane      certificates, etcd's data, the administrator's kubeconfig
             /run               PID records and logs of all processes
             /nodes/NODE        kubeconfig, resolv.conf files, state/ (the private key), run/ (laid over /run)

Whoever changes the lab holds a lock on the folder; the kernel frees it when its holder dies.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .netns import RUN_NETNS, remove_mount_point
from .topology import Topology, parse

ENV_BASE = "WIREKUBE_LAB_DIR"
DEFAULT_BASE = Path("/var/lib/wirekube-lab")
NAME = re.compile(r"[a-z]([-a-z0-9]{0,30}[a-z0-9])?")
_NETNS_MARK = ".netns-mount"


class LabError(Exception):
    """The lab cannot do what was asked; the message is one line with the remedy."""


def base() -> Path:
    """Return the folder of all labs."""
    return Path(os.environ.get(ENV_BASE) or DEFAULT_BASE)


class Folder:
    """One lab's folder.

    Args:
        name: of the lab; part of names of namespaces.

    Raises:
        LabError: the name is not usable.
    """

    def __init__(self, name: str) -> None:
        if not NAME.fullmatch(name):
            raise LabError(f"{name!r} cannot name a lab: lower-case letters, digits and '-', at most 32")
        self.name, self.path = name, base() / name

    @property
    def nodes(self) -> Path:
        """Where the nodes' files are."""
        return self.path / "nodes"

    @property
    def run(self) -> Path:
        """Where PID records and logs are."""
        return self.path / "run"

    @property
    def control_plane(self) -> Path:
        """Where the control plane's files are."""
        return self.path / "controlplane"

    def exists(self) -> bool:
        """Tell whether the lab was begun and not removed."""
        return self.path.is_dir()

    def create(self) -> None:
        """Make the folder; private keys will lie in it.

        Raises:
            LabError: it exists, or cannot be made.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            if not RUN_NETNS.exists():
                (self.path.parent / _NETNS_MARK).touch()
            self.path.mkdir(mode=0o700)
        except FileExistsError:
            raise LabError(f"lab {self.name} is there already; wirekube lab down {self.name} removes it") from None
        except OSError as error:
            raise LabError(f"{self.path}: {error.strerror}; set {ENV_BASE} to a folder that can be written") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lab's lock.

        Raises:
            LabError: there is no such lab, or another command is changing it.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise LabError(f"no lab {self.name}; wirekube lab up makes one") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError(f"another command is changing lab {self.name}; wait for it, or end it") from None
        else:
            yield
        finally:
            os.close(descriptor)

    def record(self, topology: Topology, source: str) -> None:
        """Write down what the lab is made from."""
        content = {"source": source, "topology": topology.model_dump(mode="json", by_alias=True)}
        (self.path / "lab.json").write_text(json.dumps(content))

    def topology(self) -> Topology:
        """Return what the lab was made from.

        Raises:
            LabError: it was not recorded: `up` was interrupted at its very beginning.
        """
        try:
            content = json.loads((self.path / "lab.json").read_text())
        except (OSError, ValueError):
            if not self.exists():
                raise LabError(f"no lab {self.name}; wirekube lab up makes one") from None
            raise LabError(f"lab {self.name} is unfinished; wirekube lab down {self.name} removes it") from None
        return parse(content["topology"], str(self.path / "lab.json"))

    def delete(self) -> None:
        """Remove the folder; with the last lab's, everything that labs leave on a machine."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self.exists():
            raise LabError(f"{self.path} cannot be removed")
        parent = self.path.parent
        if labs():
            return
        if (parent / _NETNS_MARK).exists():
            remove_mount_point()
            (parent / _NETNS_MARK).unlink()
        try:
            parent.rmdir()
        except OSError:
            return  # somebody keeps something else there


def labs() -> list[str]:
    """Return the names of all labs that were begun and not removed."""
    try:
        return sorted(path.name for path in base().iterdir() if path.is_dir() and NAME.fullmatch(path.name))
    except OSError:
        return []
