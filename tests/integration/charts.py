"""The chart and kubectl as people use them: the real programs, against the cluster of a kubeconfig."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster import programs
from cluster.kube import Kube
from cluster.paths import CHECKOUT
from trainwright_operator.api.manifest import read

CHART = CHECKOUT / "charts" / "trainwright"
RELEASE = "trainwright"
HOOK = "helm.sh/hook"


class ProgramError(AssertionError):
    """A program that ended with an error; the text is what it said."""


def run(program: str, *arguments: object, kubeconfig: Path | None = None) -> str:
    """What the program prints; its errors as :class:`ProgramError`."""
    command = [str(programs.program(program)), *map(str, arguments)]
    if kubeconfig:
        command += ["--kubeconfig", str(kubeconfig)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    if done.returncode:
        raise ProgramError(done.stderr + done.stdout)
    return done.stdout


def render(namespace: str = "trainwright-system", *arguments: str, chart: Path = CHART) -> list[dict[str, Any]]:
    """The objects that the chart would install; ``arguments`` are helm's, such as ``--set``."""
    text = run("helm", "template", RELEASE, chart, "--namespace", namespace, *arguments)
    return [document.content for document in read(text, str(chart))]


def installed(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that belong to the release: hooks are run, not kept."""
    return [obj for obj in objects if HOOK not in obj["metadata"].get("annotations", {})]


def only(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = [obj for obj in objects if obj["kind"] == kind]
    return found


@dataclass(frozen=True)
class Helm:
    """Helm against one cluster and one namespace."""

    kube: Kube
    namespace: str

    def run(self, *arguments: object) -> str:
        return run("helm", *arguments, "--namespace", self.namespace, kubeconfig=self.kube.kubeconfig)

    def install(self, *arguments: str, chart: Path = CHART) -> str:
        return self.run("install", RELEASE, chart, "--wait", "--timeout", "60s", *arguments)

    def upgrade(self, *arguments: str, chart: Path = CHART) -> str:
        return self.run("upgrade", RELEASE, chart, "--wait", "--timeout", "60s", *arguments)

    def uninstall(self) -> str:
        return self.run("uninstall", RELEASE, "--wait")


def as_service_account(kube: Kube, namespace: str, name: str, path: Path) -> Kube:
    """A client that has the rights of the ServiceAccount and no others."""
    request = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"expirationSeconds": 3600},
    }
    made = kube.request("POST", kube.path("ServiceAccount", namespace, name, "token"), request)
    config = yaml.safe_load(kube.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": made["status"]["token"]}
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(config))
    return Kube(path)


def settings(objects: list[dict[str, Any]]) -> dict[str, str]:
    """The operator's own variables, as the Deployment gives them to its pods."""
    (container,) = only(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    return {one["name"].removeprefix("TRAINWRIGHT_"): one["value"] for one in container["env"] if "value" in one}
