# SPDX-License-Identifier: Apache-2.0
"""Where etcd, kube-apiserver, kubectl and wireguard-go come from.

In this order: `KUBEBUILDER_ASSETS` (the convention of envtest), the project's cache, a build from the Go module proxy.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

CONTROL_PLANE = ("etcd", "kube-apiserver", "kubectl")
BUILD = Path(__file__).resolve().parents[2] / "hack" / "controlplane" / "build"


class BinariesMissing(Exception):
    """The binaries are neither there nor can be built; the message says what to do."""


def find_or_build() -> Path:
    """Return the folder that holds etcd, kube-apiserver and kubectl; the first build takes about 5 minutes.

    Raises:
        BinariesMissing: with the remedy.
    """
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets:
        absent = [name for name in CONTROL_PLANE if not os.access(Path(assets) / name, os.X_OK)]
        if absent:
            raise BinariesMissing(f"KUBEBUILDER_ASSETS={assets} has no {', '.join(absent)}; correct or unset it")
        return Path(assets)
    return _built()


def wireguard_go() -> Path:
    """Return a wireguard-go that sends trains (2023-12-11 or newer): ours.

    Raises:
        BinariesMissing: with the remedy.
    """
    named = os.environ.get("WIREKUBE_WIREGUARD_GO")
    if named:
        found = shutil.which(named)
        if not found:
            raise BinariesMissing(f"WIREKUBE_WIREGUARD_GO={named} is not a program; correct or unset it")
        return Path(found)
    return _built() / "wireguard-go"


def _built() -> Path:
    if not BUILD.exists():
        raise BinariesMissing(
            "set KUBEBUILDER_ASSETS, or run from a checkout, whose hack/controlplane/build makes them"
        )
    done = subprocess.run([BUILD], stdout=subprocess.PIPE, text=True, check=False)  # progress goes to our stderr
    if done.returncode:
        raise BinariesMissing(f"{BUILD.name} failed, see above")
    return Path(done.stdout.strip())
