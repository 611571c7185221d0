# SPDX-License-Identifier: Apache-2.0
"""What the Dockerfile copies is there, and is all that the package consists of."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COPIED = {
    source for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE) for source in line.split()[:-1]
}
PINS = re.compile(r"^([a-z0-9][-a-z0-9_.]*(?:\[[a-z,-]+\])?==\S+)", re.MULTILINE | re.IGNORECASE)


def test_every_package_of_the_wheel_is_copied():
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {path.partition("/")[0] for path in wheel["only-include"]} <= COPIED


def test_what_is_copied_exists_and_is_not_ignored():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for source in COPIED:
        made = source.startswith("build/image/")
        assert made or (ROOT / source).exists(), source
        assert any(source == each[1:] or source.startswith(f"{each[1:]}/") for each in ignored if each[:1] == "!"), (
            source
        )


def test_the_image_has_the_versions_that_the_tests_run_with():
    tested = set(PINS.findall((ROOT / "requirements.txt").read_text()))
    pins = set(PINS.findall((ROOT / "hack" / "wheels" / "runtime.txt").read_text()))
    assert pins
    assert pins <= tested


def test_no_download_host_is_recorded():
    for path in (ROOT / "hack" / "wheels").glob("*.txt"):
        assert "://" not in path.read_text()
        assert "--find-links" not in path.read_text()
