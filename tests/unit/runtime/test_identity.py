# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PROGRAM = """
import sys, time
from pathlib import Path
from wirekube.runtime.identity import inherited_identity
print(inherited_identity(Path(sys.argv[1])), flush=True)
time.sleep(300)
"""


@contextmanager
def living(path: Path) -> Iterator[str]:
    """A process with an identity, which is killed at the end."""
    with subprocess.Popen([sys.executable, "-c", PROGRAM, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.kill()


def test_the_next_process_inherits_from_a_dead_one_only(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    with living(path) as first, living(path) as second:
        assert first.startswith(f"{socket.gethostname()}_")
        assert first != second
    assert path.read_text() == first
    assert path.stat().st_mode & 0o777 == 0o600
    with living(path) as third:
        assert third == first


@pytest.mark.parametrize("text", ["", "another-host_00000000-0000-4000-8000-000000000000", "nonsense\n" * 1000])
def test_what_is_no_identity_of_this_host_is_replaced(tmp_path: Path, text: str) -> None:
    path = tmp_path / "identity"
    path.write_text(text)
    with living(path) as identity:
        assert path.read_text() == identity != text


@pytest.mark.parametrize("way", ["link", "folder", "absent"])
def test_a_file_that_cannot_be_used_is_none(tmp_path: Path, way: str) -> None:
    path = tmp_path / "identity"
    target = tmp_path / "target"
    target.write_text("precious")
    if way == "link":
        path.symlink_to(target)
    elif way == "folder":
        path.mkdir()
    else:
        path = tmp_path / "nowhere" / "identity"
    with living(path) as identity:
        assert identity.startswith(f"{socket.gethostname()}_")
    assert target.read_text() == "precious"
