# SPDX-License-Identifier: Apache-2.0
"""Make the Helm chart config/helm/wirekube from the manifests of config/default: `.venv/bin/python hack/chart [--check]`.

kustomize.py reads the manifests, table.py says what values there are and which fields they fill, templates.py makes a
template of an object, chart.py the text of each file.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from chart import CHART, MANIFESTS, files
from kustomize import Unsupported


def stale(wanted: dict[str, str]) -> list[str]:
    """Return the paths of generated files that are absent, differ, or have no manifest any more."""
    there = {str(path.relative_to(CHART)): path for path in CHART.glob(f"{MANIFESTS}/*")}
    there |= {name: CHART / name for name in wanted if (CHART / name).is_file()}
    different = {
        name for name in wanted if name not in there or there[name].read_text(encoding="utf-8") != wanted[name]
    }
    return sorted(different | (set(there) - set(wanted)))


def write(wanted: dict[str, str]) -> None:
    """Make the files anew and take away what nothing makes any more."""
    (CHART / MANIFESTS).mkdir(parents=True, exist_ok=True)
    for name in stale(wanted):
        if name in wanted:
            (CHART / name).write_text(wanted[name], encoding="utf-8")
        else:
            (CHART / name).unlink()


def main(given: Sequence[str]) -> int:
    """Write the files, or with --check only compare them (1 when one is out of date)."""
    if list(given) not in ([], ["--check"]):
        sys.stderr.write("usage: python hack/chart [--check]\n")
        return 2
    try:
        wanted = files()
    except Unsupported as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if not given:
        write(wanted)
        return 0
    out_of_date = stale(wanted)
    for name in out_of_date:
        sys.stderr.write(f"config/helm/wirekube/{name} is out of date: run make chart\n")
    return 1 if out_of_date else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
