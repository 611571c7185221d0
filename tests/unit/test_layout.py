# SPDX-License-Identifier: Apache-2.0
"""The repository's own rules: packages, licence headers, docstrings, one importer of kr8s, what the README promises."""

from __future__ import annotations

import ast
import subprocess
import tomllib
from pathlib import Path

import pytest

import wirekube

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {p.parent.name for p in ROOT.glob("*/__init__.py")}
MARKERS = {"src/wirekube/__init__.py", "src/wirekube/py.typed"}
SOURCES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))


def test_tests_are_not_a_package() -> None:
    assert "tests" not in PACKAGES
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_package_comes_from_src() -> None:
    assert wirekube.__file__ is not None
    assert Path(wirekube.__file__).parent == ROOT / "src" / "wirekube"


def test_every_package_has_its_symlink() -> None:
    links = {p.name: p.readlink().as_posix() for p in (ROOT / "src/wirekube").iterdir() if p.is_symlink()}
    assert links == {name: f"../../{name}" for name in PACKAGES}


def test_every_package_is_in_the_wheel() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert build["sources"] == {name: f"wirekube/{name}" for name in PACKAGES} | {"src/wirekube": "wirekube"}
    assert set(build["only-include"]) == PACKAGES | MARKERS


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_source_has_licence_and_docstring(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n")
    assert ast.get_docstring(ast.parse(text)), "a module says what it is for"


def test_only_the_client_imports_kr8s() -> None:
    importers = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Import) and any(a.name.split(".")[0] == "kr8s" for a in node.names))
        or (isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "kr8s")
    }
    assert importers <= {"runtime/client.py"}


def test_the_lock_names_hashes_and_no_hosts() -> None:
    lock = (ROOT / "requirements.txt").read_text()
    assert "--hash=sha256:" in lock
    assert "://" not in lock


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = next(line for line in makefile.splitlines() if line.startswith(".PHONY")).split()[1:]
    helped = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [t for t in targets if f"make {t} " not in helped] == []
