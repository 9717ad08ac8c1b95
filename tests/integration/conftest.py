"""A control plane of its own for each run of the integration tests, with simulated nodes; ready in seconds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import programs
from cluster.control_plane import ControlPlane
from cluster.fixtures import namespace, pytest_runtest_makereport, skip_as_one  # noqa: F401
from cluster.kube import Kube
from cluster.paths import CHECKOUT
from integration.operators import Operator


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Say once why these tests cannot run here."""
    absent = programs.missing(programs.CONTROL_PLANE)
    if absent:
        mine = [item for item in items if item.path.is_relative_to(Path(__file__).parent)]
        reason = f"not built yet: {', '.join(absent)} (make cluster-tools builds them once; it needs Go)"
        skip_as_one(config, items, mine, reason)


def started(cluster: ControlPlane) -> Iterator[ControlPlane]:
    """The cluster while the tests run, and no trace of it afterwards."""
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


@pytest.fixture(scope="session")
def cluster() -> Iterator[ControlPlane]:
    """The control plane, as one finds it on most clusters: PodGroup is not served."""
    yield from started(ControlPlane(f"it-{os.getpid()}"))


@pytest.fixture(scope="session")
def gang_cluster() -> Iterator[ControlPlane]:
    """A second control plane, which serves PodGroup."""
    yield from started(ControlPlane(f"gang-{os.getpid()}", nodes=0, gangs=True))


@pytest.fixture(scope="session")
def kube(cluster: ControlPlane) -> Kube:
    """A client with the administrator's rights."""
    return cluster.kube


@pytest.fixture(scope="session")
def crds(kube: Kube) -> None:
    """The project's CRDs, established."""
    for path in sorted((CHECKOUT / "crds").glob("*.yaml")):
        for crd in kube.apply(path):
            kube.wait_condition("CustomResourceDefinition", crd["metadata"]["name"], "Established", None)


@pytest.fixture
def operator(kube: Kube, namespace: str, tmp_path: Path) -> Iterator[Operator]:  # noqa: F811
    running = Operator(kube, namespace, tmp_path).start().wait_leading()
    yield running
    running.kill()
