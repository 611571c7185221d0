# SPDX-License-Identifier: Apache-2.0
"""What is shipped: a wheel built from the sdist has every package, and each module of it can be imported."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMPORT_ALL = """
import importlib, pkgutil, wirekube
found = [m.name for m in pkgutil.walk_packages(wirekube.__path__, "wirekube.")]
for name in found:
    importlib.import_module(name)
print(wirekube.__file__, *found)
"""


@pytest.mark.timeout(180)
def test_the_wheel_from_the_sdist_is_whole(tmp_path: Path) -> None:
    # Without --sdist or --wheel, `build` makes the wheel from the sdist.
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert list(tmp_path.glob("*.tar.gz"))
    unpacked = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(unpacked)
    assert (unpacked / "wirekube/py.typed").exists()
    assert (unpacked / "wirekube/lab/topologies/default.yaml").exists()
    environment = os.environ | {"PYTHONPATH": str(unpacked), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], env=environment, cwd=tmp_path, check=True, capture_output=True, text=True
    )
    place, *found = done.stdout.split()
    assert place.startswith(str(unpacked))
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages <= {name.split(".")[1] for name in found}
