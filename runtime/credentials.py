# SPDX-License-Identifier: Apache-2.0
"""Where a process finds its kubeconfig, and a bearer token that follows its file.

kr8s reads a pod's token once, unstripped, and takes the namespace `default`; so a pod's files become a kubeconfig here.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from .errors import Misconfigured

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_LIFE = 60.0


def load_config(kubeconfig: str | None, service_account: Path, environ: Mapping[str, str]) -> str | dict[str, Any]:
    """Return a checked kubeconfig path (a colon-separated list is allowed), or a pod's kubeconfig as a dictionary.

    The order: the argument, the variable KUBECONFIG, the pod's service account.

    Raises:
        Misconfigured: none of them is there, or a file cannot be read or is no kubeconfig.
    """
    paths = kubeconfig or environ.get("KUBECONFIG")
    if paths:
        _check(paths)
        return paths
    if environ.get("KUBERNETES_SERVICE_HOST") and service_account.is_dir():
        return _pod_config(service_account, environ)
    raise Misconfigured("no kubeconfig was given, KUBECONFIG is not set, and this is no pod with a service account")


def _check(paths: str) -> None:
    """Refuse what kr8s would pass over in silence; the file's text never gets into a message, it may hold a token."""
    for path in paths.split(":"):
        try:
            parsed = yaml.safe_load(Path(path).expanduser().read_text())
        except OSError as error:
            raise Misconfigured(f"cannot read kubeconfig {path}: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError):
            raise Misconfigured(f"kubeconfig {path} is not YAML") from None
        if not isinstance(parsed, dict) or not parsed.get("clusters") or not parsed.get("contexts"):
            raise Misconfigured(f"kubeconfig {path} has no clusters and contexts")


def _pod_config(directory: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    host = environ["KUBERNETES_SERVICE_HOST"]
    port = environ.get("KUBERNETES_SERVICE_PORT", "443")
    cluster = {"server": f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"}
    if (directory / "ca.crt").exists():
        cluster["certificate-authority"] = str(directory / "ca.crt")
    context = {"cluster": "pod", "user": "pod", "namespace": read_text(directory / "namespace") or "default"}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "pod", "cluster": cluster}],
        "users": [{"name": "pod", "user": {"tokenFile": str(directory / "token")}}],
        "contexts": [{"name": "pod", "context": context}],
        "current-context": "pod",
    }


def read_text(path: Path) -> str:
    """Return the stripped text of a small file; empty when it cannot be read."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


class TokenSource:
    """The bearer token of a client; rereads it every 60 seconds if it is in a file, and on demand.

    Args:
        path: the file it is in, or None.
        reload: gets a fresh token where there is no file (reads the kubeconfig again, runs its plug-in).
        token: the first token where there is no file.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        path: Path | None,
        reload: Callable[[], Awaitable[str | None]],
        token: str | None,
        clock: Callable[[], float],
    ) -> None:
        self._path = path
        self._reload = reload
        self._clock = clock
        self._read_at = clock()
        self._token = token if path is None else read_text(path)

    def header(self) -> dict[str, str]:
        """Return the Authorization header of the next request; empty without a token."""
        if self._path is not None and self._clock() - self._read_at >= TOKEN_LIFE:
            self._read(self._path)
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    async def refresh(self) -> bool:
        """Get the token again at once; returns whether it is another one."""
        old = self._token
        if self._path is not None:
            self._read(self._path)
        else:
            self._token = await self._reload()
        return self._token != old

    def _read(self, path: Path) -> None:
        # An unreadable file, as while the kubelet replaces it, leaves the old token in use.
        self._token = read_text(path) or self._token
        self._read_at = self._clock()


def drop_temporary(paths: list[str]) -> None:
    """Remove key and certificate files that kr8s wrote from embedded data and would leave behind."""
    for path in paths:
        Path(path).unlink(missing_ok=True)


def environment() -> Mapping[str, str]:
    """Return the environment of this process."""
    return os.environ
