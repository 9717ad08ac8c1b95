"""Root filesystems of Debian packages as Docker images, for where no registry of images can be reached."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cluster import packages
from cluster.kind.engine import Engine
from cluster.say import ClusterError, timed

SUITE = "trixie"
LEAN = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale", "info")]
CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


@dataclass(frozen=True)
class RootFs:
    """A recipe: packages, files of this machine to copy in, commands to run with ``$1`` as the root, image settings."""

    name: str
    packages: tuple[str, ...]
    files: tuple[tuple[Path, str], ...] = ()
    hooks: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()

    @property
    def image_name(self) -> str:
        """The name of what this recipe makes; another recipe has another one."""
        return f"trainwright.test/{self.name}:{self._digest()}"

    def image(self, docker: Engine) -> str:
        """The image's name; made now where it is not there, from a recipe that has changed too."""
        name = self.image_name
        if not docker.succeeds("image", "inspect", name):
            with timed(f"making {name} of Debian packages"):
                self._make(docker, name)
        return name

    def _make(self, docker: Engine, name: str) -> None:
        packages.ensure("mmdebstrap")
        changes = [argument for change in self.changes for argument in ("--change", change)]
        with tempfile.TemporaryFile() as errors:
            making = subprocess.Popen(self._mmdebstrap(), stdout=subprocess.PIPE, stderr=errors)
            importing = docker.pipe("import", *changes, "-", name, stdin=making.stdout)
            assert making.stdout is not None
            making.stdout.close()
            importing.communicate()
            if making.wait() or importing.returncode:
                docker.succeeds("image", "rm", name)
                errors.seek(0)
                last = "\n".join(errors.read().decode(errors="replace").splitlines()[-5:])
                raise ClusterError(f"mmdebstrap could not make {name}:\n{last}")

    def _mmdebstrap(self) -> list[str]:
        copies = [f'install -D "{source}" "$1{target}"' for source, target in self.files]
        hooks = [f"--customize-hook={hook}" for hook in (*copies, *self.hooks)]
        included = f"--include={','.join(self.packages)}"
        return ["mmdebstrap", "--variant=minbase", "--quiet", included, *LEAN, *hooks, SUITE, "-"]

    def _digest(self) -> str:
        parts = [repr((SUITE, self.packages, self.hooks, self.changes)).encode()]
        parts += [target.encode() + source.read_bytes() for source, target in self.files]
        return hashlib.sha256(b"\n".join(parts)).hexdigest()[:12]


def python_base() -> RootFs:
    """An image of the shape of python:3.13-slim, which trusts whom this machine trusts."""
    bundle = ((Path(CA_BUNDLE), CA_BUNDLE),) if Path(CA_BUNDLE).exists() else ()
    return RootFs(
        "python",
        ("python3", "libpython3.13", "python3-pip", "python3-venv", "passwd", "ca-certificates"),
        files=bundle,
        hooks=('ln -s python3 "$1/usr/bin/python"',),
        changes=("CMD python3",),
    )
