"""What integration and end-to-end tests share: a namespace of their own, and artefacts when they fail."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator

import pytest

from cluster import artefacts
from cluster.kube import Kube
from cluster.paths import CHECKOUT

_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Remember that a test failed, for the fixtures that are taken down after it."""
    report = yield
    item.stash[_FAILED] = item.stash.get(_FAILED, False) or report.failed
    return report


@pytest.fixture
def namespace(kube: Kube, cluster, request) -> Iterator[str]:
    """A new namespace that enforces restricted Pod Security; gone after the test, saved before when it failed."""
    name = kube.namespace(f"test-{secrets.token_hex(4)}")
    yield name
    if request.node.stash.get(_FAILED, False):
        folder = CHECKOUT / "artefacts" / re.sub(r"[^\w.-]+", "-", request.node.nodeid)
        print(f"\nartefacts: {artefacts.save(kube, folder, [name], cluster.logs)}")
    kube.delete("Namespace", name, namespace=None)
