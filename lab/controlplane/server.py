# SPDX-License-Identifier: Apache-2.0
"""Starts and stops etcd and kube-apiserver with TLS, RBAC, Node authorisation and real ServiceAccount tokens.

There is no controller manager and no scheduler: nothing collects owner references, and Nodes are what a test creates.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from ..processes import POLL_SECONDS, ProcessError, Processes
from .pki import Authority

READY_SECONDS = 60.0
SERVICE_RANGE = "10.96.0.0/16"


class ControlPlane:
    """One etcd and one kube-apiserver.

    Args:
        folder: state: certificates, data, logs, kubeconfigs. An existing one is continued by `stop` and `kubectl`.
        binaries: folder of etcd, kube-apiserver and kubectl.
        address: the API server's IP address, as clients use it.
        port: the API server's port; etcd takes 2379 and 2380 beside it on loopback unless `etcd_port` says otherwise.
        prefix: command words that put a process into its place, for example `("ip", "netns", "exec", NAME)`.
        hosts: more addresses and names for the server's certificate.
    """

    def __init__(
        self,
        folder: Path,
        binaries: Path,
        *,
        address: str = "127.0.0.1",
        port: int = 6443,
        etcd_port: int = 2379,
        prefix: Sequence[str] = (),
        hosts: Sequence[str] = (),
    ) -> None:
        self.folder, self._binaries, self._prefix = folder, binaries, tuple(prefix)
        self._address, self._port, self._etcd_port, self._hosts = address, port, etcd_port, tuple(hosts)
        self.processes = Processes(folder / "run")
        self.url = f"https://{address}:{port}"

    @property
    def etcd_url(self) -> str:
        """Where etcd answers, on the loopback of the place that it runs in."""
        return f"http://127.0.0.1:{self._etcd_port}"

    @property
    def kubeconfig(self) -> str:
        """Path of the administrator's kubeconfig."""
        return str(self.folder / "admin.kubeconfig")

    def start(self) -> None:
        """Start both and return when the API server is ready (about 3 s).

        Raises:
            ProcessError: one of them died or is not ready after 60 s; the message has its last words.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        authority = Authority(self.folder / "pki")
        authority.server(
            "kube-apiserver", [self._address, "127.0.0.1", "10.96.0.1", "kubernetes.default.svc", *self._hosts]
        )
        authority.signing_key("service-account")
        self._write_certificate_config("admin", authority, "admin", ["system:masters"])
        self.launch()

    def launch(self) -> None:
        """Start the processes on what `start` prepared: after `stop`, this continues with the same data."""
        self.processes.start("etcd", self._etcd())
        self.processes.start("kube-apiserver", self._apiserver())
        self._wait_ready()

    def stop(self) -> None:
        """Stop both; the API server first, for without etcd it takes 12 s to stop."""
        self.processes.stop("kube-apiserver")
        self.processes.stop("etcd")

    def kubectl(
        self,
        *arguments: str,
        input: str | None = None,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl as administrator; return what it printed.

        Raises:
            ProcessError: it failed and `check` is set.
        """
        argv = [*self._prefix, str(self._binaries / "kubectl"), "--kubeconfig", self.kubeconfig, *arguments]
        done = subprocess.run(argv, input=input, capture_output=True, text=True, check=False, env=self._kubectl_env())
        if check and done.returncode:
            raise ProcessError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done

    def service_account_kubeconfig(
        self, namespace: str, account: str, node: dict[str, Any] | None, path: Path, *, server: str | None = None
    ) -> None:
        """Write a kubeconfig whose token is one of the ServiceAccount, bound to a Node object as kubelets' are.

        Args:
            namespace: of the ServiceAccount.
            account: its name.
            node: the Node object; None for a token that is bound to nothing.
            path: where the kubeconfig goes.
            server: URL that it names, when that is not the address that we use.
        """
        spec: dict[str, Any] = {"expirationSeconds": 86400}
        if node is not None:
            metadata = node["metadata"]
            reference = {"apiVersion": "v1", "kind": "Node", "name": metadata["name"], "uid": metadata["uid"]}
            spec["boundObjectRef"] = reference
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        url = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        answer = self.kubectl("create", "--raw", url, "-f", "-", input=json.dumps(request))
        self._write_config(path, account, {"token": json.loads(answer.stdout)["status"]["token"]}, server)

    def _etcd(self) -> list[str]:
        client, peer = (f"http://127.0.0.1:{self._etcd_port + offset}" for offset in (0, 1))
        return [
            *self._prefix, str(self._binaries / "etcd"), "--data-dir", str(self.folder / "etcd"),
            "--unsafe-no-fsync",  # this data need not survive a power cut
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
            "--log-level", "warn",
        ]  # fmt: skip

    def _apiserver(self) -> list[str]:
        pki = self.folder / "pki"
        return [
            *self._prefix, str(self._binaries / "kube-apiserver"),
            f"--etcd-servers={self.etcd_url}",
            f"--bind-address={self._address}", f"--advertise-address={self._address}", f"--secure-port={self._port}",
            f"--tls-cert-file={pki}/kube-apiserver.crt", f"--tls-private-key-file={pki}/kube-apiserver.key",
            f"--client-ca-file={pki}/ca.crt", f"--cert-dir={pki}/generated",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-signing-key-file={pki}/service-account.key",
            f"--service-account-key-file={pki}/service-account.pub",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
            # Without a controller manager nobody makes the default ServiceAccounts that this plug-in asks for.
            "--disable-admission-plugins=ServiceAccount",
            # With its address on loopback the server would exit, for it cannot publish that.
            *(["--endpoint-reconciler-type=none"] if ip_address(self._address).is_loopback else []),
            "--allow-privileged=true", "--profiling=false",
        ]  # fmt: skip

    def _wait_ready(self) -> None:
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end:
            for name in ("etcd", "kube-apiserver"):
                if self.processes.pid(name) is None:
                    raise ProcessError(f"{name} died: {self.processes.tail(name)}")
            if self.kubectl("get", "--raw", "/readyz", check=False).stdout == "ok":
                return
            time.sleep(POLL_SECONDS)
        raise ProcessError(
            f"kube-apiserver is not ready after {READY_SECONDS:.0f} s: {self.processes.tail('kube-apiserver')}"
        )

    def _write_certificate_config(self, name: str, authority: Authority, user: str, groups: Sequence[str]) -> None:
        certificate, key = authority.client(user, groups)
        identity = {"client-certificate-data": _base64(certificate), "client-key-data": _base64(key)}
        self._write_config(self.folder / f"{name}.kubeconfig", user, identity)

    def _write_config(self, path: Path, user: str, identity: dict[str, str], server: str | None = None) -> None:
        authority = _base64(self.folder / "pki" / "ca.crt")
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "lab",
            "clusters": [
                {"name": "lab", "cluster": {"server": server or self.url, "certificate-authority-data": authority}}
            ],
            "users": [{"name": user, "user": identity}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": user}}],
        }
        path.touch(mode=0o600)
        path.write_text(json.dumps(content))  # JSON is YAML

    def _kubectl_env(self) -> dict[str, str]:
        # kubectl keeps a discovery cache below HOME; it belongs to this control plane and goes with it.
        return {**os.environ, "HOME": str(self.folder)}


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
