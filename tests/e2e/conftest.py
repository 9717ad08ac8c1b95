"""The cluster of `make cluster`, or any other that KUBECONFIG points to; skipped in one line where there is none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import programs
from cluster.existing import Existing
from cluster.fixtures import namespace, pytest_runtest_makereport, skip_as_one  # noqa: F401
from cluster.kind.faults import Faults
from cluster.kind.provider import Kind
from cluster.kube import Kube
from cluster.say import ClusterError, say
from demo import install
from integration.charts import Helm

NAME = os.environ.get("TRAINWRIGHT_CLUSTER", "trainwright")
SYSTEM = "trainwright-e2e"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Say once why tests cannot run here."""
    mine = [item for item in items if item.path.is_relative_to(Path(__file__).parent)]
    if mine and os.environ.get("KUBECONFIG"):
        try:
            say(Existing(NAME).described())
        except ClusterError as error:
            raise pytest.UsageError(str(error)) from None
        ours = [item for item in mine if "kind" in item.fixturenames]
        skip_as_one(
            config, items, ours, "nodes are changed and broken on a kind cluster alone, never on one of KUBECONFIG"
        )
    elif mine and not Kind(NAME).answers():
        found = (
            f"the cluster {NAME} does not answer"
            if Kind(NAME).kubeconfig.exists()
            else f"no cluster called {NAME} is up"
        )
        reason = f"{found} (make cluster starts it; or set KUBECONFIG to use any other)"
        skip_as_one(config, items, mine, reason)


@pytest.fixture(scope="session")
def cluster() -> Kind | Existing:
    """A running cluster with the project's images: these tests start none, which takes minutes."""
    if os.environ.get("KUBECONFIG"):
        return Existing(NAME)
    kind = Kind(NAME)
    try:
        kind.image("trainer")
    except (OSError, KeyError):
        pytest.skip(f"the cluster {NAME} has none of the project's images yet: make images")
    return kind


@pytest.fixture(scope="session")
def kube(cluster: Kind | Existing) -> Kube:
    """A client with the rights of the kubeconfig."""
    return cluster.kube


@pytest.fixture(scope="session")
def trainer_image(cluster: Kind | Existing) -> str:
    """The trainer image as the nodes know it."""
    return _image(cluster, "trainer")


@pytest.fixture(scope="session")
def operator_image(cluster: Kind | Existing) -> str:
    """The operator image as the nodes know it."""
    return _image(cluster, "operator")


@pytest.fixture(scope="session")
def kind(cluster: Kind | Existing) -> Kind:
    """A cluster whose nodes are ours to change and to break, never one that KUBECONFIG points to."""
    assert isinstance(cluster, Kind)
    return cluster


@pytest.fixture(scope="module")
def release(kube: Kube, operator_image: str, trainer_image: str) -> Iterator[Helm]:
    """The chart, installed with the images of this checkout."""
    if programs.missing(["helm"]):
        pytest.skip("helm is not built: python -m cluster build --programs all, in tests/")
    kube.delete("Namespace", SYSTEM, None)
    kube.wait_gone("Namespace", SYSTEM, None)
    kube.namespace(SYSTEM)
    helm = Helm(kube, SYSTEM)
    install(helm, operator_image, trainer_image)
    yield helm
    helm.uninstall()
    kube.delete("Namespace", SYSTEM, None)


@pytest.fixture
def faults(kind: Kind) -> Iterator[Faults]:
    """Faults of nodes and containers; all of them undone after the test."""
    made = Faults(kind)
    yield made
    made.heal()


def _image(cluster: Kind | Existing, name: str) -> str:
    try:
        return cluster.image(name)
    except ClusterError as error:
        pytest.skip(str(error))
