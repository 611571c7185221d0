# SPDX-License-Identifier: Apache-2.0
"""The process: its lines, exit codes, files, and its stop."""

from __future__ import annotations

import base64
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from wirekube.relay.keys import AllowFile, KeyFileError
from wirekube.wire import relay as wire
from wirekube.wire.endpoint import Endpoint

COMMAND = [sys.executable, "-m", "wirekube.relay.main"]
LISTEN = ["--listen", "127.0.0.1:0", "--stun", "127.0.0.1:0"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=30, check=False)


def encoded(key: bytes) -> str:
    return base64.b64encode(key).decode()


class Process:
    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen([*COMMAND, *LISTEN, *arguments], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        key, listening = self.process.stdout.readline(), self.process.stdout.readline()
        self.key = base64.b64decode(key.removeprefix("relay public key: "))
        match = re.fullmatch(r"listening on (\S+), STUN on (\S+)\n", listening)
        assert match is not None, listening
        self.address = Endpoint.parse(match[1])

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    started: list[Process] = []
    yield started
    for process in started:
        if process.process.poll() is None:
            process.stop()


def register(process: Process, private: bytes) -> socket.socket | None:
    """A registered socket, None when the relay refuses."""
    sock = socket.create_connection(process.address.sockaddr(), timeout=10)
    handshake = wire.ClientHandshake(private, bytes(16), process.key)
    sock.sendall(wire.frame(wire.HELLO, handshake.hello.body()))
    challenge = sock.recv(53, socket.MSG_WAITALL)
    sock.sendall(wire.frame(wire.PROOF, handshake.proof(wire.parse_challenge(challenge[5:]))))
    answer = sock.recv(5, socket.MSG_WAITALL)
    if answer[4:] == bytes([wire.WELCOME]):
        handshake.accept(sock.recv(32, socket.MSG_WAITALL))
        return sock
    sock.close()
    return None


def test_key_file_metrics_and_stop(tmp_path: Path, processes: list[Process]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    key = tmp_path / "key"
    processes.append(Process("--key", str(key), "--open", "--metrics", f"127.0.0.1:{port}"))
    assert key.stat().st_mode & 0o777 == 0o600
    assert wire.public_key(base64.b64decode(key.read_text())) == processes[0].key
    sock = register(processes[0], os.urandom(32))
    assert sock is not None
    with sock, urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert re.search(r"^wirekube_relay_registered_total\S* 1", answer.read().decode(), re.MULTILINE)
    for path in ("healthz", "readyz"):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10) as answer:
            assert answer.read() == b"ok"
    assert processes[0].stop() == 0
    processes.append(Process("--key", str(key), "--open"))
    assert processes[0].key == processes[1].key


def test_the_allow_file_is_read_again(tmp_path: Path, processes: list[Process]) -> None:
    first, second = os.urandom(32), os.urandom(32)
    allow = tmp_path / "allow"
    allow.write_text(f"# members\n{encoded(wire.public_key(first))} # the first\n\n")
    processes.append(Process("--key", str(tmp_path / "key"), "--allow-key", str(allow)))
    member = register(processes[0], first)
    assert member is not None
    assert register(processes[0], second) is None
    allow.write_text(f"{encoded(wire.public_key(second))}\n")
    with member:
        start = time.monotonic()
        assert wire.HEADER.unpack(member.recv(5, socket.MSG_WAITALL))[1] == wire.ERROR
        assert time.monotonic() - start < 3
    admitted = register(processes[0], second)
    assert admitted is not None
    admitted.close()


def test_an_invalid_allow_file_leaves_the_old_in_force(tmp_path: Path) -> None:
    key = os.urandom(32)
    path = tmp_path / "allow"
    path.write_text(encoded(key))
    allow = AllowFile(path)
    assert allow.admission.admits(key)
    path.write_text("not a key\n\n")
    assert allow.poll() is None
    assert allow.problem is not None
    assert "line 1" in allow.problem
    path.unlink()
    assert allow.poll() is None
    path.write_text("")
    admission = allow.poll()
    assert admission is not None
    assert not admission.admits(key)
    with pytest.raises(KeyFileError):
        AllowFile(tmp_path / "absent")


@pytest.mark.parametrize(
    "who", [[], ["--open", "--allow-peers"], ["--allow-key", "x", "--open"], ["--allow-key", "x", "--allow-peers"]]
)
def test_not_one_way_of_admission_is_refused_with_2(tmp_path: Path, who: list[str]) -> None:
    done = run("--key", str(tmp_path / "key"), *who)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert all(each in done.stderr for each in ("--allow-key", "--allow-peers", "--open"))
    assert not (tmp_path / "key").exists()


@pytest.mark.parametrize("secret", ["name", "/name", "namespace/", "a/b/c"])
def test_a_secret_has_a_namespace_and_a_name(secret: str) -> None:
    done = run("--key-secret", secret, "--open")
    assert done.returncode == 2
    assert "is not NAMESPACE/NAME" in done.stderr


def test_without_credentials_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    done = run("--key", str(tmp_path / "key"), "--allow-peers")
    assert done.returncode == 1
    assert (
        done.stderr
        == "wirekube-relay: no kubeconfig was given, KUBECONFIG is not set, and this is no pod with a service account\n"
    )


def test_one_clear_line_and_1(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("secret-but-no-key")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        in_use = f"127.0.0.1:{taken.getsockname()[1]}"
        for arguments in (
            ["--key", str(tmp_path / "key"), "--listen", in_use],
            ["--key", str(broken), "--listen", "127.0.0.1:0"],
            ["--key", str(tmp_path), "--listen", "127.0.0.1:0"],
            ["--key", str(tmp_path / "absent" / "key"), "--listen", "127.0.0.1:0"],
            ["--key", str(tmp_path / "key"), "--listen", "127.0.0.1:0", "--metrics", in_use],
        ):
            done = run("--open", *arguments)
            assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
            assert "secret" not in done.stderr
