"""What the nodes are made of: the node image of kind's release where that can be had, else the harness's own.

The two differ in what they bring along. kind's has a network for pods, systemd and every image of the control plane;
the harness's gets its network from :mod:`cluster.kind.network` and its images from archives or from the store.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import programs
from cluster.kind import node_image
from cluster.kind.engine import Engine
from cluster.say import ClusterError, timed

OFFICIAL = "kindest/node:v1.37.0@sha256:a1ed56cfb0e7b93589bdf97c8cd566405a265939e3620fc4f5de89adff580ae5"
"""The image that this release of kind was tested with by its makers."""
OFFICIAL_STORAGE = f"rancher/local-path-provisioner:{programs.version(programs.module_of('local-path-provisioner'))}"
SETTING = "TRAINWRIGHT_NODE_IMAGE"
KUBELET = {
    "kind": "KubeletConfiguration",
    "cgroupDriver": "cgroupfs",
    "failCgroupV1": False,
    "failSwapOn": False,
    "resolvConf": "/kind/resolv.conf",
}


@dataclass(frozen=True)
class Nodes:
    """A node image; ``image`` is empty for the harness's own before it is made, which needs the programs."""

    image: str
    official: bool

    @property
    def programs(self) -> tuple[str, ...]:
        """What has to be built from modules for such nodes, and for the tests on them."""
        return ("kind", "registry", "kubectl") if self.official else programs.NODES

    @property
    def storage_image(self) -> str:
        """The provisioner's image as the nodes know it: pulled, or brought along."""
        return OFFICIAL_STORAGE if self.official else node_image.STORAGE_IMAGE

    def made(self, docker: Engine) -> str:
        """The image's name, made now where it is the harness's own and is not there."""
        return self.image or node_image.node_image(docker)

    def mounts(self, docker: Engine, image: str, store: Path | None) -> list[dict[str, Any]]:
        """Where a node finds the images that Kubernetes itself runs from."""
        if self.official:
            return []
        what = (store, "/kind/store") if store else (node_image.archives(docker, image), "/kind/images")
        return [{"hostPath": str(what[0]), "containerPath": what[1], "readOnly": True}]

    @property
    def settings(self) -> dict[str, Any]:
        """The part of kind's configuration that depends on the image."""
        if self.official:
            return {"networking": {"apiServerAddress": "127.0.0.1"}}
        networking = {"disableDefaultCNI": True, "kubeProxyMode": "nftables", "apiServerAddress": "127.0.0.1"}
        return {"networking": networking, "kubeadmConfigPatches": [json.dumps(KUBELET)]}


def choose(docker: Engine) -> Nodes:
    """The image that the setting names; else kind's own, where Docker has it or can pull it; else the harness's."""
    named = os.environ.get(SETTING, "")
    if named:
        if not _can_be_had(docker, named):
            raise ClusterError(f"{SETTING}={named}: Docker neither has this image nor can it pull it")
        return Nodes(named, official=not node_image.is_ours(docker, named))
    if not docker.own and _can_be_had(docker, OFFICIAL):
        return Nodes(OFFICIAL, official=True)
    return Nodes("", official=False)


def _can_be_had(docker: Engine, image: str) -> bool:
    if docker.succeeds("image", "inspect", image):
        return True
    with timed(f"asking for {image.partition('@')[0]}"):
        return docker.succeeds("pull", "--quiet", image)
