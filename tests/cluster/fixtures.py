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


def skip_as_one(config: pytest.Config, items: list[pytest.Item], skipped: list[pytest.Item], reason: str) -> None:
    """Skip tests for a reason that they share, in one line: the first stands for all of them."""
    if skipped:
        skipped[0].add_marker(pytest.mark.skip(reason=f"{len(skipped)} tests: {reason}"))
        gone = set(skipped[1:])
        config.hook.pytest_deselected(items=list(gone))
        items[:] = [item for item in items if item not in gone]


@pytest.fixture
def namespace(kube: Kube, cluster, request) -> Iterator[str]:
    """A new namespace that enforces restricted Pod Security; gone after the test, saved before when it failed."""
    name = kube.namespace(f"test-{secrets.token_hex(4)}")
    yield name
    if request.node.stash.get(_FAILED, False):
        folder = CHECKOUT / "artefacts" / re.sub(r"[^\w.-]+", "-", request.node.nodeid)
        print(f"\nartefacts: {artefacts.save(kube, folder, [name], cluster.collect_logs())}")
    kube.delete("Namespace", name, namespace=None)
