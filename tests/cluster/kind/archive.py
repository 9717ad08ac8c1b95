"""Image archives for a node's container runtime, of a few files each: the control plane's images are one binary."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Image:
    """An image: files of this machine by their path in it, links by theirs, and what it starts.

    ``layer`` is a tar that is the layer already, and ``files`` come on top of it.
    """

    name: str
    files: Mapping[str, Path]
    entrypoint: tuple[str, ...] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    layer: bytes = b""

    def write(self, path: Path) -> None:
        """Write the archive in Docker's format."""
        layers = [self._layer(), *([self.layer] if self.layer else [])]
        config = json.dumps(self._config(layers)).encode()
        config_name = f"{hashlib.sha256(config).hexdigest()}.json"
        names = [f"{index}/layer.tar" for index in range(len(layers))]
        manifest = [{"Config": config_name, "RepoTags": [self.name], "Layers": names}]
        with tarfile.open(path, "w") as tar:
            for name, data in zip(names, layers, strict=True):
                _add(tar, name, data)
            _add(tar, config_name, config)
            _add(tar, "manifest.json", json.dumps(manifest).encode())

    def _layer(self) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for target, source in sorted(self.files.items()):
                tar.add(source, target.lstrip("/"), filter=_owned_by_root)
            for target, source in sorted(self.links.items()):
                link = tarfile.TarInfo(target.lstrip("/"))
                link.type, link.linkname = tarfile.SYMTYPE, source
                tar.addfile(link)
        return buffer.getvalue()

    def _config(self, layers: list[bytes]) -> dict[str, Any]:
        return {
            "architecture": ARCHITECTURE.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": {"Entrypoint": list(self.entrypoint), "Env": [f"PATH={PATH}"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in layers]},
        }


def _owned_by_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    info.mtime = 0
    info.mode = 0o755
    return info


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
