# SPDX-License-Identifier: Apache-2.0
"""Packs folders as container images into one OCI archive that `ctr images import` takes; for binaries that need no base.

    python3 oci_archive.py ARCHIVE.tar NAME=FOLDER[:ENTRYPOINT] ...

Each image is one compressed layer, so that a node's store stays small: `docker save` writes layers uncompressed. The
format is that of the OCI image layout: blobs by SHA-256, and index.json, in which containerd wants the name as an annotation.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import sys
import tarfile
from typing import Any

OCI = "application/vnd.oci.image"
PLATFORM = {"architecture": "amd64", "os": "linux"}
SEARCH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def digest(data: bytes) -> str:
    """Return a blob's content address."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def packed(folder: str) -> bytes:
    """Return a folder as a tar file, the same whoever made it and when."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = "root"
        return member

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(folder, arcname=".", filter=plain)
    return buffer.getvalue()


class Archive:
    """An archive that is being written."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self._manifests: list[dict[str, Any]] = []

    def add(self, name: str, folder: str, entrypoint: str) -> None:
        """Add an image of one folder."""
        layer = packed(folder)
        config = {
            **PLATFORM,
            "config": {"Env": [SEARCH], "Entrypoint": [entrypoint], "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.manifest.v1+json",
            "config": self._blob(json.dumps(config).encode(), f"{OCI}.config.v1+json"),
            "layers": [self._blob(gzip.compress(layer, 3, mtime=0), f"{OCI}.layer.v1.tar+gzip")],
        }
        entry = self._blob(json.dumps(manifest).encode(), f"{OCI}.manifest.v1+json")
        self._manifests.append({**entry, "platform": PLATFORM, "annotations": {"io.containerd.image.name": name}})

    def finish(self) -> None:
        """Write the index."""
        index = {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": self._manifests}
        self._file("oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        self._file("index.json", json.dumps(index).encode())

    def _blob(self, data: bytes, media: str) -> dict[str, Any]:
        self._file("blobs/" + digest(data).replace(":", "/"), data)
        return {"mediaType": media, "digest": digest(data), "size": len(data)}

    def _file(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._tar.addfile(member, io.BytesIO(data))


def main(path: str, *images: str) -> None:
    """Write the archive."""
    with tarfile.open(path, "w") as tar:
        archive = Archive(tar)
        for image in images:
            name, _, rest = image.partition("=")
            folder, _, entrypoint = rest.partition(":")
            archive.add(name, folder, entrypoint)
        archive.finish()


if __name__ == "__main__":
    main(*sys.argv[1:])
