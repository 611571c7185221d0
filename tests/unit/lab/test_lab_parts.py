# SPDX-License-Identifier: Apache-2.0
"""The prober's packets and figures, what agents say, the lab's folder, the command line."""

from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from wirekube.cli.main import app
from wirekube.lab import prober, reports
from wirekube.lab.noderoot import environment
from wirekube.lab.progress import Progress
from wirekube.lab.state import ENV_BASE, Folder, LabError, labs
from wirekube.lab.topology import load


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ENV_BASE, str(tmp_path / "labs"))
    return tmp_path / "labs"


def test_an_echo_request_has_a_right_checksum_and_comes_back() -> None:
    request = prober.encode(4, 7, 70000, 12.5)
    assert prober.checksum(request) == 0
    reply = b"\x45" + bytes(19) + b"\0" + request[1:]
    assert prober.decode(4, reply) == (7, 12.5)
    assert prober.decode(6, b"\x81" + prober.encode(6, 7, 1, 2.5)[1:]) == (7, 2.5)
    assert prober.decode(4, b"\x45" + bytes(19) + request) is None


@given(st.sampled_from([4, 6]), st.binary(max_size=64))
def test_decoding_is_total(version: int, data: bytes) -> None:
    prober.decode(version, data)


def test_the_longest_gap_lies_between_answered_requests_or_at_an_end() -> None:
    answers = [(1.0, 1.1), (1.5, 1.6), (3.0, 3.1), (3.2, 3.3)]
    assert prober.longest_gap(answers, 1.0, 3.5) == 1.5
    assert prober.longest_gap(answers, 1.0, 9.25) == pytest.approx(6.05)
    assert prober.longest_gap([], 1.0, 2.0) == 1.0


def test_the_median_is_of_late_requests() -> None:
    answers = [(0.0, 9.0), (1.0, 1.1), (2.0, 2.3), (3.0, 3.2)]
    assert prober.median_rtt(answers, 0.5) == pytest.approx(0.2)
    assert prober.median_rtt(answers, 5.0) is None


def report(name: str, **states: str) -> dict[str, Any]:
    peers = [{"name": peer, "state": state, "leg": "direct", "rttMs": 1.25} for peer, state in states.items()]
    return {"node": name, "phase": "Running", "addresses": ["198.18.0.1/32"], "peers": peers}


def parsed(*bodies: dict[str, Any]) -> dict[str, reports.Report | None]:
    return {body["node"]: reports.parse(body) for body in bodies}


def test_a_mesh_is_complete_when_both_sides_of_each_pair_say_so() -> None:
    good = parsed(report("a", b="Direct"), report("b", a="Relayed"))
    assert reports.complete(good)
    assert not reports.complete(parsed(report("a", b="Direct"), report("b", a="Connecting")))
    assert not reports.complete({**good, "c": None})


def test_what_is_missing_is_said() -> None:
    found = {**parsed(report("a", b="Direct"), report("b", a="Unreachable")), "c": None}
    assert reports.missing(found) == ["c: the agent does not answer", "a <-> b: Direct / Unreachable"]


def test_the_table_has_a_row_for_each_direction_also_of_an_agent_that_is_down() -> None:
    rows = reports.pair_rows({**parsed(report("a", b="Direct")), "b": None})
    assert rows[0] == ["a", "b", "Direct", "direct", "-", "-", "1.2 ms", ""]
    assert rows[1] == ["b", "a", "-", "-", "-", "-", "-", "agent down"]
    lines = reports.table(("X", "LONGER"), [["wide cell", "y"]]).splitlines()
    assert lines == ["X           LONGER", "wide cell   y"]


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Path]:
    """A run folder whose path is longer than a socket's may be, with an agent that answers once."""
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    short = Path(f"/proc/self/cwd/{folder}")
    assert len(str(short)) > 107
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        server.bind("agent.sock")
    server.listen()
    body = json.dumps(report("a")).encode()

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    thread = threading.Thread(target=serve)
    thread.start()
    yield folder
    thread.join(10)
    server.close()


def test_an_agent_is_asked_at_its_socket(agent: Path) -> None:
    body = reports.fetch(agent)
    assert body is not None
    assert reports.parse(body).addresses == ("198.18.0.1/32",)


def test_an_agent_that_is_not_there_says_nothing(tmp_path: Path) -> None:
    assert reports.fetch(tmp_path) is None
    assert reports.fetch(tmp_path / "absent") is None


def test_a_lab_is_recorded_and_locked_and_leaves_no_file(base: Path) -> None:
    folder = Folder("one")
    folder.create()
    with pytest.raises(LabError, match="unfinished; wirekube lab down one"):
        folder.topology()
    folder.record(load("bootstrap"), "bootstrap")
    assert Folder("one").topology() == load("bootstrap")
    with folder.locked(), pytest.raises(LabError, match="another command"), Folder("one").locked():
        pass
    with folder.locked():
        assert labs() == ["one"]
    with pytest.raises(LabError, match="is there already"):
        folder.create()
    folder.delete()
    assert labs() == []
    assert not base.exists()


def test_another_labs_folder_stays(base: Path) -> None:
    one, two = Folder("one"), Folder("two")
    one.create()
    two.create()
    one.delete()
    assert labs() == ["two"]
    two.delete()
    assert not base.exists()


@pytest.mark.parametrize("name", ["", "Upper", "a.b", "a/b", "-a", "a" * 33, "a*"])
def test_a_name_that_could_hit_others_is_refused(name: str) -> None:
    with pytest.raises(LabError, match="cannot name a lab"):
        Folder(name)


def test_the_environment_of_another_cluster_is_left_behind() -> None:
    inherited = {"PATH": "/bin", "KUBECONFIG": "/mine", "WIREKUBE_STATE_DIR": "/mine", "OTEL_SDK_DISABLED": "true"}
    made = environment([("KUBECONFIG", "/lab"), ("WIREKUBE_APISERVER", None)], inherited)
    assert made == {"PATH": "/bin", "OTEL_SDK_DISABLED": "true", "KUBECONFIG": "/lab"}


def test_progress_prints_a_line_a_step_and_keeps_the_budget() -> None:
    out = io.StringIO()
    progress = Progress(out)
    with progress.step("network") as details:
        details += ["3 namespaces", "2 links"]
    with pytest.raises(LabError), progress.step("broken"):
        raise LabError("no")
    assert out.getvalue().splitlines()[0].endswith("network: 3 namespaces, 2 links (0.0 s)")
    assert [step.name for step in progress.steps] == ["network"]


def test_the_command_line_says_what_is_wrong_in_one_line(base: Path) -> None:
    run = CliRunner().invoke
    for words, said in (
        (["status"], "no lab default; wirekube lab up makes one"),
        (["exec", "a", "--", "true"], "no lab default; wirekube lab up makes one"),
        (["kubectl", "--", "get", "nodes"], "no lab default; wirekube lab up makes one"),
        (["up", "nowhere"], "no topology nowhere; give one of "),
        (["up", "-n", "A.B"], "'A.B' cannot name a lab"),
    ):
        result = run(app, ["lab", *words])
        assert result.exit_code == 1, words
        assert said in result.output
        assert "Traceback" not in result.output
        assert result.output.count("\n") == 1
    assert run(app, ["lab", "down"]).exit_code == 0
    assert run(app, ["lab", "nonsense"]).exit_code == 2
    assert not base.exists()
