# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from wirekube.agent import files, handover, keys
from wirekube.agent.lock import NodeLock
from wirekube.agent.state import CachedState, StateFile


def test_a_key_is_made_once_and_only_root_reads_it(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    first = keys.load_or_create(folder, "n1", "m1")
    assert keys.load_or_create(folder, "n1", "m1") == first
    assert stat.S_IMODE((folder / keys.FILE).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert first.problem is None


@pytest.mark.parametrize(("node", "machine"), [("n2", "m1"), ("n1", "m2")])
def test_a_cloned_disk_makes_a_key_of_its_own(tmp_path: Path, node: str, machine: str) -> None:
    first = keys.load_or_create(tmp_path / "s", "n1", "m1")
    assert keys.load_or_create(tmp_path / "s", node, machine).public != first.public


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    keys.load_or_create(tmp_path / "s", "n1", "m1")
    (tmp_path / "s" / keys.FILE).chmod(0o644)
    with pytest.raises(keys.KeyRefused, match="can be read by others"):
        keys.load_or_create(tmp_path / "s", "n1", "m1")


def test_a_lost_file_is_made_again_from_the_running_interface(tmp_path: Path) -> None:
    first = keys.load_or_create(tmp_path / "a", "n1", "m1")
    assert keys.load_or_create(tmp_path / "b", "n1", "m1", running=first.private).public == first.public


def test_a_clone_does_not_take_the_key_back_from_its_interface(tmp_path: Path) -> None:
    """A machine that was cloned while it ran has the original's interface, too."""
    first = keys.load_or_create(tmp_path / "s", "n1", "m1")
    assert keys.load_or_create(tmp_path / "s", "n1", "m2", running=first.private).public != first.public


def test_an_interface_without_a_key_gives_none_back(tmp_path: Path) -> None:
    key = keys.load_or_create(tmp_path / "s", "n1", "m1", running=bytes(32))
    assert key.private != bytes(32)


def test_a_leftover_of_a_crash_lends_its_mode_to_nothing(tmp_path: Path) -> None:
    (tmp_path / f".{keys.FILE}.part").write_text("half")
    (tmp_path / f".{keys.FILE}.part").chmod(0o666)
    first = keys.load_or_create(tmp_path, "n1", "m1")
    assert stat.S_IMODE((tmp_path / keys.FILE).stat().st_mode) == 0o600
    assert keys.load_or_create(tmp_path, "n1", "m1") == first


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_private(tmp_path / "x", b"old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_private(tmp_path / "x", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_an_unwritable_folder_is_said_and_the_key_works(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    key = keys.load_or_create(blocked / "state", "n1", "m1")
    assert key.problem
    assert len(key.public) == 32


def test_the_private_key_is_not_in_the_repr(tmp_path: Path) -> None:
    key = keys.load_or_create(tmp_path / "s", "n1", "m1")
    assert repr(key.private) not in repr(key)


def test_garbage_in_the_key_file_gives_a_new_key(tmp_path: Path) -> None:
    (tmp_path / keys.FILE).write_text("{")
    (tmp_path / keys.FILE).chmod(0o600)
    assert keys.load_or_create(tmp_path, "n1", "m1").problem is None


def test_state_survives_and_is_written_at_most_every_thirty_seconds(tmp_path: Path) -> None:
    file = StateFile(tmp_path)
    assert file.load() == CachedState()
    state = CachedState(mesh={"spec": {}}, peers=[{"a": 1}], names={"x": ["1.2.3.4"]}, relay_keys={"r": "k"})
    assert file.save(state, 100.0)
    assert StateFile(tmp_path).load() == state
    state.apiserver = "https://x"
    assert not file.save(state, 110.0)
    assert file.save(state, 130.0)


def test_a_state_that_is_changed_in_place_is_written(tmp_path: Path) -> None:
    file, state = StateFile(tmp_path), CachedState(peers=[{"a": 1}])
    assert file.save(state, 100.0)
    assert not file.save(state, 200.0)
    state.names["stun.example"] = ["203.0.113.1"]
    state.peers[0]["a"] = 2
    assert file.save(state, 300.0)
    assert StateFile(tmp_path).load() == state


def test_a_forced_write_does_not_wait_and_removal_forgets(tmp_path: Path) -> None:
    file, state = StateFile(tmp_path), CachedState()
    assert file.save(state, 100.0)
    state.apiserver = "https://x"
    assert file.save(state, 100.1, force=True)
    file.remove()
    file.remove()
    assert StateFile(tmp_path).load() == CachedState()
    assert file.save(state, 100.2)


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, '{"peers": 3, "names": [], "mesh": 1}', "\xff"])
def test_a_broken_state_file_is_an_empty_state(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    assert StateFile(tmp_path).load() == CachedState()


def test_the_second_agent_waits_and_takes_over_when_the_first_dies(tmp_path: Path) -> None:
    code = (
        "import sys,pathlib;from wirekube.agent.lock import NodeLock;l=NodeLock(pathlib.Path(sys.argv[1]));"
        "assert l.try_acquire();print('held',flush=True);sys.stdin.read()"
    )
    argv = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        lock = NodeLock(tmp_path)
        assert not lock.try_acquire()
        first.kill()
        first.wait()
        assert lock.try_acquire()
        lock.release()


@pytest.mark.anyio
async def test_a_waiting_agent_says_so_once_and_goes_on_when_the_first_is_done(tmp_path: Path) -> None:
    first, second, said = NodeLock(tmp_path), NodeLock(tmp_path), asyncio.Queue[str]()
    assert first.try_acquire()
    async with asyncio.timeout(5):
        waiting = asyncio.ensure_future(second.acquire(lambda: said.put_nowait("waiting")))
        await said.get()
        first.release()
        first.release()
        await waiting
    assert said.empty()
    assert not first.try_acquire()
    second.release()


def test_a_note_is_read_back_and_garbage_is_none(tmp_path: Path) -> None:
    note = handover.Note(handover.boot_id(), "wire_kube", 7, "userspace", handover.fingerprint(b"k" * 32), 51820)
    handover.write(tmp_path, note)
    assert handover.read(tmp_path) == note
    (tmp_path / handover.FILE).write_text('{"boot_id": "x"}')
    assert handover.read(tmp_path) is None
    handover.discard(tmp_path)
    assert handover.read(tmp_path) is None
