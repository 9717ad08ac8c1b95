"""Kubeconfig files: how a client finds a cluster and who it is there."""

from __future__ import annotations

import base64
import json
from pathlib import Path


def write(path: Path, server: str, pki: Path, stem: str, context: str) -> Path:
    """A kubeconfig for the user whose certificate is ``<stem>.crt``, with everything in the one file.

    JSON is YAML, and every client reads it.
    """
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": context,
        "clusters": [
            {"name": context, "cluster": {"server": server, "certificate-authority-data": _data(pki / "ca.crt")}}
        ],
        "users": [
            {
                "name": stem,
                "user": {
                    "client-certificate-data": _data(pki / f"{stem}.crt"),
                    "client-key-data": _data(pki / f"{stem}.key"),
                },
            }
        ],
        "contexts": [{"name": context, "context": {"cluster": context, "user": stem}}],
    }
    path.touch(mode=0o600)
    path.write_text(json.dumps(config, indent=1))
    return path


def _data(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
