# SPDX-License-Identifier: Apache-2.0
"""What a process on a lab node sees as its file system: this machine's, with a few files of the node's own.

wireguard-go's sockets lie in /var/run/wireguard whatever the node, and the agent reads /etc/resolv.conf and
/host/etc/resolv.conf. So each process gets a root in a mount namespace of its own, that ends with it: every top folder
of the machine, bound; the node's `run` folder as /run; and /host, as a DaemonSet mounts it.

The root is put together on /mnt. No process inside finds that place again below the lab's folder: a removal of the lab
that is started by mistake inside a node must not walk into the machine's own folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from .plan import namespace

ROOT = Path("/mnt")
MARK = Path("/.wirekube-lab")  # there inside a node only
RESOLV_CONF = Path("/etc/resolv.conf")
CLUSTER_SEARCH = "default.svc.cluster.local svc.cluster.local cluster.local"


@dataclass(frozen=True)
class Resolvers:
    """DNS servers of the host and of the pod on it; None for none."""

    host: IPv4Address | None = None
    cluster: IPv4Address | None = None

    def own_file(self) -> str:
        """Return /etc/resolv.conf as the process sees it: cluster DNS, as ClusterFirstWithHostNet has it, else the host's."""
        if self.cluster is None:
            return self.host_file()
        return f"nameserver {self.cluster}\nsearch {CLUSTER_SEARCH}\noptions ndots:5\n"

    def host_file(self) -> str:
        """Return the host's resolv.conf; without a server it says so, for the machine's own must not be used instead."""
        return f"nameserver {self.host}\n" if self.host else "# this host has no DNS server\n"


class NodeRoot:
    """The files of one box and the words that start a process in it.

    Args:
        lab: name of the lab.
        box: name of the box.
        folder: the box's folder; made by `prepare`.
    """

    def __init__(self, lab: str, box: str, folder: Path) -> None:
        self.folder, self._namespace = folder, namespace(lab, box)

    @property
    def prefix(self) -> tuple[str, ...]:
        """Return the words before a command that run it in the box."""
        return ("ip", "netns", "exec", self._namespace, str(self.folder / "enter"))

    @property
    def run(self) -> Path:
        """The box's /run, as this machine sees it."""
        return self.folder / "run"

    @property
    def state(self) -> Path:
        """Where the node's agent keeps its key."""
        return self.folder / "state"

    def prepare(self, resolvers: Resolvers) -> None:
        """Write the files. A second time changes nothing for processes that run."""
        skeleton = self.folder / "skeleton"
        for folder in (self.run / "wirekube", self.run / "wireguard", self.state, skeleton / "host" / "etc"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        skeleton.chmod(0o755)
        (skeleton / MARK.name).touch()
        (skeleton / "host").chmod(0o755)
        (skeleton / "host" / "etc").chmod(0o755)
        (skeleton / "host" / "etc" / "resolv.conf").write_text(resolvers.host_file())
        own = self.folder / "resolv.conf"
        own.write_text(resolvers.own_file())
        binds = [*self._bind_top_folders(skeleton), (self.run, Path("/run"), "bind"), *self._resolv_conf(own)]
        (self.folder / "fstab").write_text("".join(_fstab_line(*bind) for bind in binds))
        script = self.folder / "enter"
        script.write_text(_script(skeleton, self.folder / "fstab"))
        script.chmod(0o755)

    def _bind_top_folders(self, skeleton: Path) -> list[tuple[Path, Path, str]]:
        binds = []
        for entry in sorted(Path("/").iterdir()):
            here = skeleton / entry.name
            if entry.is_symlink():
                if not here.is_symlink():
                    here.symlink_to(entry.readlink())
            elif entry.is_dir() and entry.name != "host":
                here.mkdir(exist_ok=True)
                if entry not in (ROOT, Path("/run")):
                    binds.append((entry, entry, "rbind"))
        return binds

    def _resolv_conf(self, own: Path) -> list[tuple[Path, Path, str]]:
        """Return the bind that puts our resolv.conf in place of the machine's."""
        real = RESOLV_CONF.resolve()
        if real.is_relative_to("/run"):  # systemd-resolved's: a link into /run, which is the node's own here
            here = self.run / real.relative_to("/run")
            here.parent.mkdir(parents=True, exist_ok=True)
            here.write_text(own.read_text())
            return []
        return [(own, real, "bind")] if real.exists() else []


def _fstab_line(source: Path, target: Path, option: str) -> str:
    return f"{_escape(source)} {_escape(ROOT / target.relative_to('/'))} none {option} 0 0\n"


def _escape(path: Path) -> str:
    return str(path).replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011")


def _script(skeleton: Path, fstab: Path) -> str:
    return (
        "#!/bin/sh\n"
        "# Runs a command on this node; `ip netns exec` has made the mount namespace.\n"
        "set -e\n"
        f"mount -t tmpfs -o mode=755,size=1m lab {ROOT}\n"
        f"cp -a {_quote(skeleton)}/. {ROOT}\n"
        f"mount -a -T {_quote(fstab)}\n"
        f'exec chroot {ROOT} "$@"\n'
    )


def _quote(path: Path) -> str:
    return "'" + str(path).replace("'", "'\\''") + "'"


def environment(values: Sequence[tuple[str, str | None]], inherited: dict[str, str]) -> dict[str, str]:
    """Return a process's environment: what it inherits, without what concerns another cluster, and these values."""
    kept = {key: value for key, value in inherited.items() if key != "KUBECONFIG" and not key.startswith("WIREKUBE_")}
    return kept | {key: value for key, value in values if value is not None}
