# SPDX-License-Identifier: Apache-2.0
"""The relay of a cluster: its process, a real API server, sessions over the wire."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wirekube.controllers.kinds import CLUSTER_ROLE_BINDING, CONFIG_MAP, ROLE_BINDING, SECRET, SERVICE_ACCOUNT
from wirekube.controllers.relay.objects import desired, secret
from wirekube.controllers.relay.placement import Placement
from wirekube.controllers.relay.settings import Image, Settings
from wirekube.lab.wait import eventually
from wirekube.wire import relay as wire
from wirekube.wire.endpoint import Endpoint

ROOT = Path(__file__).resolve().parents[2]
API = "wirekube.io/v1alpha1"
COMMAND = [sys.executable, "-m", "wirekube.relay.main", "--listen", "127.0.0.1:0"]
NAMESPACE = "wirekube-system"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


class Relay:
    """A relay's process, as the manifests start it."""

    def __init__(self, kubeconfig: str, log: Path, *arguments: str) -> None:
        self.health, self._log, self._out = free_port(), log, log.with_suffix(".out")
        argv = [*COMMAND, "--metrics", f"127.0.0.1:{self.health}", *arguments]
        environment = os.environ | {"KUBECONFIG": kubeconfig}
        with log.open("wb") as err, self._out.open("wb") as out:
            self.process = subprocess.Popen(argv, stdout=out, stderr=err, env=environment)

    def log(self) -> str:
        return self._log.read_text() + self._out.read_text()

    def started(self) -> Relay:
        listening = eventually(lambda: re.search(r"^listening on (\S+)\n", self._out.read_text(), re.MULTILINE))
        key = re.search(r"^relay public key: (\S+)\n", self._out.read_text())
        assert key is not None
        self.key, self.address = base64.b64decode(key[1]), Endpoint.parse(listening[1])
        return self

    def ready(self) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health}/readyz", timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return int(error.code)
        except OSError:
            return 0

    def register(self, private: bytes) -> socket.socket | None:
        """A registered session, None when the relay refuses the key."""
        sock = socket.create_connection(self.address.sockaddr(), timeout=10)
        handshake = wire.ClientHandshake(private, bytes(16), self.key)
        sock.sendall(wire.frame(wire.HELLO, handshake.hello.body()))
        challenge = sock.recv(53, socket.MSG_WAITALL)
        sock.sendall(wire.frame(wire.PROOF, handshake.proof(wire.parse_challenge(challenge[5:]))))
        if sock.recv(5, socket.MSG_WAITALL)[4:] == bytes([wire.WELCOME]):
            handshake.accept(sock.recv(32, socket.MSG_WAITALL))
            return sock
        sock.close()
        return None

    def admits(self, private: bytes) -> bool:
        sock = self.register(private)
        if sock is not None:
            sock.close()
        return sock is not None

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


class Cluster:
    """What a person and the operator write, and a kubeconfig with the relay's own rights."""

    def __init__(self, plane: Any, folder: Path) -> None:
        self.plane, self.kubectl = plane, plane.kubectl
        self.kubeconfig = str(folder / "relay.kubeconfig")
        plane.service_account_kubeconfig(NAMESPACE, "wirekube-relay", None, Path(self.kubeconfig))

    def peer(self, name: str, private: bytes | None, verdict: str = "True") -> None:
        key = base64.b64encode(wire.public_key(private)).decode() if private else ""
        body = {"apiVersion": API, "kind": "WireKubePeer", "metadata": {"name": name}}
        self.kubectl("apply", "-f", "-", input=json.dumps(body))
        condition = {"type": "KeyAccepted", "status": verdict, "reason": "X", "message": key}
        status = {"publicKey": key, "conditions": [condition | {"lastTransitionTime": "2026-01-01T00:00:00Z"}]}
        patch = json.dumps({"status": status if private else None})
        self.kubectl("patch", "wkpeer", name, "--subresource=status", "--type=merge", "-p", patch)

    def empty_secret(self) -> None:
        self.kubectl("patch", "secret", "wirekube-relay", "-n", NAMESPACE, "-p", '{"data": null}')

    def patch_config_map(self, text: str) -> None:
        patch = json.dumps({"data": {"publicKey": text}})
        self.kubectl("patch", "configmap", "wirekube-relay", "-n", NAMESPACE, "-p", patch)

    def published(self) -> bytes | None:
        shown = json.loads(self.kubectl("get", "configmap", "wirekube-relay", "-n", NAMESPACE, "-o", "json").stdout)
        text = shown.get("data", {}).get("publicKey", "")
        return base64.b64decode(text) if len(text) == 44 else None

    def secret(self) -> bytes | None:
        shown = json.loads(self.kubectl("get", "secret", "wirekube-relay", "-n", NAMESPACE, "-o", "json").stdout)
        text = shown.get("data", {}).get("private-key")
        return base64.b64decode(base64.b64decode(text)) if text else None


@pytest.fixture(scope="module")
def cluster(control_plane: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    control_plane.kubectl("apply", "-f", str(ROOT / "config/default/namespace.yaml"))
    for part in ("config/crd", "config/rbac"):
        control_plane.kubectl("apply", "--server-side", "--force-conflicts", "-k", str(ROOT / part))
    control_plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
    made = identity()
    control_plane.kubectl("apply", "-f", "-", input=json.dumps(made))
    yield Cluster(control_plane, tmp_path_factory.mktemp("relay"))
    control_plane.kubectl("delete", "wkpeer", "--all")
    control_plane.kubectl("delete", "-f", "-", input=json.dumps(made))


def identity() -> dict[str, Any]:
    """What the operator makes for its relays, but for what only kubelets and load balancers give a meaning to."""
    settings = Settings(NAMESPACE, "owner", 1, "ClusterIP", 3478, Image("x"), {}, Placement({}, True, False), ())
    kinds = (CONFIG_MAP, SERVICE_ACCOUNT, ROLE_BINDING, CLUSTER_ROLE_BINDING)
    chosen = [*((kind, obj) for kind, obj in desired(settings) if kind in kinds), (SECRET, secret(settings))]
    items = [{"apiVersion": kind.group_version, "kind": kind.kind, **obj} for kind, obj in chosen]
    for each in items:
        del each["metadata"]["ownerReferences"]
    return {"apiVersion": "v1", "kind": "List", "items": items}


@pytest.fixture
def relays(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., Relay]]:
    made: list[Relay] = []

    def start(*arguments: str, kubeconfig: str = cluster.kubeconfig) -> Relay:
        made.append(Relay(kubeconfig, tmp_path / f"log{len(made)}", *arguments))
        return made[-1]

    yield start
    codes = [each.stop() for each in made]
    logs = [each.log() for each in made]
    assert set(codes) <= {0, 1}, logs
    assert not any("Traceback" in log for log in logs), logs
    cluster.kubectl("delete", "wkpeer", "--all")


KEY = ("--key-secret", f"{NAMESPACE}/wirekube-relay")
PUBLISH = ("--publish-key", f"{NAMESPACE}/wirekube-relay")


def test_only_accepted_keys_are_admitted_and_a_session_ends_with_its_peer(
    cluster: Cluster, relays: Callable[..., Relay]
) -> None:
    one, two, other, stranger = (os.urandom(32) for _ in range(4))
    cluster.peer("one", one)
    cluster.peer("other", other, verdict="False")
    begin = time.monotonic()
    relay = relays(*KEY, "--allow-peers").started()
    eventually(lambda: relay.ready() == 200)
    print(f"MEASURED a relay is ready {time.monotonic() - begin:.2f} s after its start")
    eventually(lambda: relay.admits(one))
    assert not relay.admits(other)
    assert not relay.admits(stranger)
    cluster.peer("two", two)
    eventually(lambda: relay.admits(two))
    session = relay.register(two)
    assert session is not None
    with session:
        cluster.kubectl("delete", "wkpeer", "two")
        begin = time.monotonic()
        assert wire.HEADER.unpack(session.recv(5, socket.MSG_WAITALL))[1] == wire.ERROR
        print(f"MEASURED a session ended {time.monotonic() - begin:.1f} s after its Peer was deleted")
    assert not relay.admits(two)
    assert relay.admits(one)


def test_an_accident_to_all_peers_or_to_the_server_leaves_the_last_in_force(
    cluster: Cluster, relays: Callable[..., Relay]
) -> None:
    key, late = os.urandom(32), os.urandom(32)
    cluster.peer("one", key)
    relay = relays(*KEY, "--allow-peers").started()
    session = eventually(lambda: relay.register(key))
    with session:
        cluster.kubectl("delete", "wkpeer", "--all")
        cluster.peer("late", None)
        cluster.plane.stop()
        try:
            eventually(lambda: "list or watch failed" in relay.log(), 30)
            session.sendall(wire.frame(wire.PING, b"12345678"))
            assert session.recv(13, socket.MSG_WAITALL) == wire.frame(wire.PONG, b"12345678")
            assert relay.admits(key)
            assert relay.ready() == 200
        finally:
            cluster.plane.launch()
    cluster.peer("late", late)
    eventually(lambda: relay.admits(late), 30)
    eventually(lambda: not relay.admits(key), 10)


def test_relays_that_start_together_share_one_key_and_a_reapplied_manifest_leaves_it(
    cluster: Cluster, relays: Callable[..., Relay]
) -> None:
    cluster.empty_secret()
    three = [relays(*KEY, "--open") for _ in range(3)]
    keys = {each.started().key for each in three}
    private = cluster.secret()
    assert private is not None
    assert keys == {wire.public_key(private)}
    cluster.kubectl("apply", "-f", "-", input=json.dumps(identity()))
    assert cluster.secret() == private
    assert base64.b64encode(private).decode() not in "".join(each.log() for each in three)


def test_the_public_key_is_published_and_again_when_the_config_map_was_lost(
    cluster: Cluster, relays: Callable[..., Relay]
) -> None:
    cluster.patch_config_map("left by an older relay")
    relay = relays(*KEY, *PUBLISH, "--open").started()
    eventually(lambda: cluster.published() == relay.key)
    cluster.kubectl("delete", "configmap", "wirekube-relay", "-n", NAMESPACE)
    eventually(lambda: "cannot use the ConfigMap" in relay.log(), 30)
    cluster.kubectl("apply", "-f", "-", input=json.dumps(identity()))
    eventually(lambda: cluster.published() == relay.key, 30)
    # A relay that starts takes the place of what an older one has left.
    cluster.patch_config_map("of another relay")
    other = relays(*KEY, *PUBLISH, "--open").started()
    eventually(lambda: cluster.published() == other.key)


def test_what_is_no_key_is_refused_without_showing_it(cluster: Cluster, relays: Callable[..., Relay]) -> None:
    text = base64.b64encode(b"hardly-a-key").decode()
    cluster.kubectl(
        "patch", "secret", "wirekube-relay", "-n", NAMESPACE, "-p", json.dumps({"data": {"private-key": text}})
    )
    try:
        relay = relays(*KEY, "--open")
        assert relay.process.wait(20) == 1
        assert "private-key of the Secret wirekube-system/wirekube-relay does not hold" in relay.log()
        assert "hardly" not in relay.log()
    finally:
        cluster.empty_secret()


def test_a_server_that_is_away_is_waited_for_and_said_once(
    cluster: Cluster, relays: Callable[..., Relay], tmp_path: Path
) -> None:
    config = json.loads(Path(cluster.kubeconfig).read_text())
    port = free_port()
    url, config["clusters"][0]["cluster"]["server"] = (
        config["clusters"][0]["cluster"]["server"],
        f"https://127.0.0.1:{port}",
    )
    (tmp_path / "away").write_text(json.dumps(config))
    relay = relays(*KEY, "--allow-peers", kubeconfig=str(tmp_path / "away"))
    eventually(lambda: "cannot use the API server yet" in relay.log())
    assert relay.ready() == 500
    # It comes: a door to the real one.
    target = Endpoint.parse(url.removeprefix("https://"))
    with subprocess.Popen([sys.executable, "-c", DOOR, str(port), str(target.ip), str(target.port)]) as door:
        try:
            relay.started()
            eventually(lambda: relay.ready() == 200)
            assert relay.log().count("cannot use the API server yet") == 1
        finally:
            door.kill()


DOOR = """
import asyncio, sys
async def copy(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()
async def serve(reader, writer):
    there, back = await asyncio.open_connection(sys.argv[2], int(sys.argv[3]))
    await asyncio.gather(copy(reader, back), copy(there, writer))
async def main():
    async with await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1])) as server:
        await server.serve_forever()
asyncio.run(main())
"""


def test_a_signal_ends_a_relay_that_still_waits(cluster: Cluster, relays: Callable[..., Relay]) -> None:
    relay = relays("--key-secret", f"{NAMESPACE}/another", "--open")
    eventually(lambda: "cannot use the Secret wirekube-system/another yet" in relay.log())
    assert "cannot get resource" in relay.log()
    assert relay.stop() == 0
