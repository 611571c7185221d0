# SPDX-License-Identifier: Apache-2.0
"""The helper that runs wireguard-go for an agent: the real script under busybox's shell, as in its container.

A container is a PID namespace here: when its first process dies, all of it does.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from wirekube.agent.wireguard import helper, userspace
from wirekube.agent.wireguard.backend import BackendError
from wirekube.agent.wireguard.choose import choose_backend
from wirekube.agent.wireguard.device import DeviceChange
from wirekube.agent.wireguard.kernel import kernel_has_wireguard
from wirekube.agent.wireguard.userspace import ENV_BINARY, SOCKET_DIR, UserspaceBackend
from wirekube.lab.controlplane.binaries import wireguard_go
from wirekube.lab.wait import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]
SCRIPT = Path(userspace.__file__).with_name("userspace.sh")
NAME = f"wkh{os.getpid() % 100000}"


def links() -> str:
    return subprocess.run(["ip", "link"], check=True, capture_output=True, text=True).stdout


class Helper:
    """The container: its FIFO, its log, its first process."""

    def __init__(self, folder: Path) -> None:
        self.fifo, self._log = folder / "userspace", folder / "helper.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, program: str | None = None) -> None:
        busybox = shutil.which("busybox")
        assert busybox is not None, "busybox is missing: run hack/setup"
        folder = self.fifo.parent / "bin"
        folder.mkdir(exist_ok=True)
        (folder / "wireguard-go").unlink(missing_ok=True)
        (folder / "wireguard-go").symlink_to(program or wireguard_go())
        environment = {"PATH": f"{folder}:/usr/bin:/bin", "WIREKUBE_RUN_DIR": str(self.fifo.parent)}
        argv = ["unshare", "--pid", "--fork", "--kill-child", busybox, "sh", str(SCRIPT)]
        waits = self.said("waiting")
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, env=environment)
        eventually(lambda: self.said("waiting") > waits)

    def first(self) -> int:
        """Return the PID of the container's first process."""
        assert self.process is not None
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()[0])

    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def said(self, words: str) -> int:
        return self.log().count(f"userspace: {words}")

    def kill(self) -> None:
        os.kill(self.first(), signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        assert self.process is not None
        code, self.process = self.process.wait(10), None
        return code

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)


@pytest.fixture
async def helper_here(network_namespace: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Helper]:
    monkeypatch.delenv(ENV_BINARY, raising=False)
    if await kernel_has_wireguard("wkhprobe"):
        pytest.skip("the kernel has WireGuard")
    assert userspace.find_binary() is None, "the agent has a wireguard-go of its own on this machine"
    made = Helper(tmp_path)
    yield made
    await UserspaceBackend(fifo=made.fifo).remove(NAME)
    made.close()
    (SOCKET_DIR / f"{NAME}.sock").unlink(missing_ok=True)


async def test_the_agent_asks_adopts_and_removes_and_the_helper_waits_again(helper_here: Helper) -> None:
    helper_here.start()
    assert stat.S_IMODE(helper_here.fifo.stat().st_mode) == 0o600
    for turn in range(2):
        backend = await choose_backend(NAME, helper_here.fifo)
        assert await backend.ensure(NAME, 1380) is True
        await backend.apply(NAME, DeviceChange(private_key=b"\x42" * 32))
        again = await choose_backend(NAME, helper_here.fifo)  # an agent that was started again
        assert again.kind == "userspace"
        assert await again.ensure(NAME, 1380) is False
        assert any((await again.read(NAME)).private_key)
        await again.remove(NAME)
        eventually(lambda turn=turn: helper_here.said("waiting") == turn + 2)
    assert (helper_here.said("starting"), helper_here.said(f"{NAME} ended")) == (2, 2)


async def test_a_helper_that_was_killed_and_runs_again_gives_a_new_interface(helper_here: Helper) -> None:
    helper_here.start()
    backend = UserspaceBackend(fifo=helper_here.fifo)
    assert await backend.ensure(NAME, 1420) is True
    helper_here.kill()
    assert not await backend.answers(NAME)
    helper_here.start()
    assert await backend.ensure(NAME, 1420) is True
    assert helper_here.said("starting") == 2


async def test_without_a_helper_the_line_says_what_helps(helper_here: Helper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helper, "PATIENCE", 0.3)
    backend = await choose_backend(NAME, helper_here.fifo)
    for _ in range(2):  # without the FIFO, and with one that a dead helper left
        with pytest.raises(BackendError, match=f"no helper container listens on {helper_here.fifo}: load the module"):
            await backend.ensure(NAME, 1420)
        helper_here.start()
        helper_here.kill()
        assert helper_here.fifo.is_fifo()


async def test_a_host_without_tun_is_named(helper_here: Helper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(userspace, "TUN", helper_here.fifo.parent / "no-tun")
    with pytest.raises(BackendError, match=r"no-tun is missing.*load the module tun"):
        await choose_backend(NAME, helper_here.fifo)


async def test_a_program_that_fails_points_to_its_log(helper_here: Helper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(userspace, "START_DEADLINE", 0.5)
    helper_here.start("/bin/false")
    with pytest.raises(BackendError, match="see the log of the container wireguard"):
        await UserspaceBackend(fifo=helper_here.fifo).ensure(NAME, 1420)
    eventually(lambda: helper_here.said(f"{NAME} ended with status 1") == 1)
    eventually(lambda: helper_here.said("waiting") == 2)


async def test_sigterm_ends_program_and_helper(helper_here: Helper) -> None:
    helper_here.start()
    os.kill(helper_here.first(), signal.SIGTERM)
    assert helper_here.wait() == 0
    helper_here.start()
    backend = UserspaceBackend(fifo=helper_here.fifo)
    await backend.ensure(NAME, 1420)
    os.kill(helper_here.first(), signal.SIGTERM)
    assert helper_here.wait() == 0
    assert not await backend.answers(NAME)
    assert NAME not in links()
    assert helper_here.said("stopped") == 2
    assert "Interrupted" not in helper_here.log()


@pytest.mark.parametrize("request_", ["", "x y", "sixteen-letters-", "1abc", "$(id)", "../up", "unfinished"])
async def test_what_is_no_name_starts_nothing_and_does_not_spin(helper_here: Helper, request_: str) -> None:
    helper_here.start()
    line = request_.encode() + (b"" if request_ == "unfinished" else b"\n")
    helper._write(helper_here.fifo, line)
    eventually(lambda: helper_here.said("waiting") == 2)
    await helper.ask(helper_here.fifo, NAME)
    eventually(lambda: helper_here.said("starting") == 1)
    assert helper_here.said("waiting") == 2
    assert helper_here.said(f"starting {NAME}") == 1


async def test_a_plain_file_in_its_place_is_left_alone(helper_here: Helper) -> None:
    helper_here.fifo.write_text("mine")
    with pytest.raises(BackendError, match="no FIFO"):
        await helper.ask(helper_here.fifo, NAME)
    assert helper_here.fifo.read_text() == "mine"
