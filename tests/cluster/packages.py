"""Debian packages that the harness needs: installed by itself where it may, named in one line where it may not."""

from __future__ import annotations

import os
import shutil
import subprocess

from cluster.say import ClusterError, say

WAIT_FOR_LOCK = "-oDPkg::Lock::Timeout=300"


def ensure(*names: str) -> None:
    """Install what is missing, without starting services: such a Docker would be in nobody's hands."""
    missing = [name for name in names if not _installed(name)]
    if not missing:
        return
    wanted = " ".join(missing)
    if shutil.which("apt-get") is None:
        raise ClusterError(
            f"this needs Debian's packages {wanted} (or what your system calls them): install them first"
        )
    if os.geteuid() != 0:
        raise ClusterError(f"this needs packages that only root can install: sudo apt-get install {wanted}")
    say(f"installing Debian packages: {wanted}")
    _apt("update", "-qq")
    _apt("install", "-qq", "-y", "--no-install-recommends", *missing)


def _installed(name: str) -> bool:
    if shutil.which("dpkg-query") is None:
        return False
    query = ["dpkg-query", "--show", "--showformat=${db:Status-Abbrev}", name]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.startswith("ii")


def _apt(*arguments: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    command = ["apt-get", WAIT_FOR_LOCK, *arguments]
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        last = "\n".join(done.stdout.strip().splitlines()[-5:])
        raise ClusterError(f"`{' '.join(command)}` failed:\n{last}")
