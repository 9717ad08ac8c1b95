"""Any cluster that a kubeconfig points to. Nothing of it is started or stopped; tests use namespaces of their own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import yaml

from cluster import paths
from cluster.kube import Kube, summary
from cluster.say import ClusterError


@dataclass(frozen=True)
class Existing:
    """The cluster of ``KUBECONFIG``, with images that its nodes can already pull."""

    name: str

    @property
    def kubeconfig(self) -> Path:
        """The file that ``KUBECONFIG`` names (the first, when it names several)."""
        value = os.environ.get("KUBECONFIG", "")
        if not value:
            raise ClusterError("--provider existing needs KUBECONFIG set to the cluster's kubeconfig")
        return Path(value.split(os.pathsep)[0])

    @property
    def logs(self) -> Path:
        """Always empty: the programs' logs are the cluster's owner's."""
        return paths.state_dir(self.name) / "logs"

    @property
    def kube(self) -> Kube:
        """A client with the rights of the kubeconfig."""
        return Kube(self.kubeconfig)

    def described(self) -> str:
        """Which cluster it is, and why this one: a contributor's shell may have the setting for another purpose."""
        try:
            context = (yaml.safe_load(self.kubeconfig.read_text()) or {}).get("current-context", "no context")
        except (OSError, yaml.YAMLError, AttributeError) as error:
            raise ClusterError(f"KUBECONFIG={self.kubeconfig} cannot be read: {error}") from None
        return f"the end-to-end tests use {context}, by KUBECONFIG={self.kubeconfig}; unset it to use make cluster's"

    def up(self) -> None:
        """Say whether the cluster answers."""
        if not self.kube.ready():
            raise ClusterError(f"the cluster of {self.kubeconfig} does not answer")

    def down(self) -> None:
        """Nothing: it is not ours."""

    def collect_logs(self) -> Path:
        """Nothing, see :attr:`logs`."""
        return self.logs

    def status(self) -> list[str]:
        """Its nodes."""
        self.up()
        return [summary(node) for node in self.kube.list("Node")]

    def image(self, name: str) -> str:
        """The image that the nodes pull for ``trainer`` or ``operator``, from the environment."""
        variable = f"TRAINWRIGHT_{name.upper()}_IMAGE"
        if not os.environ.get(variable):
            raise ClusterError(f"set {variable} to the {name} image that the nodes of this cluster can pull")
        return os.environ[variable]
