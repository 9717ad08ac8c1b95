"""The pure rooms work without torch, whose import would take each worker longer than the tests of most rooms."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def pure() -> Iterator[None]:
    before = "torch" in sys.modules
    yield
    assert before or "torch" not in sys.modules, "one of these tests has imported torch: it belongs to tests/trainer"


@pytest.fixture(scope="module")
def without_torch() -> Iterator[None]:
    """As where it is not installed: arguments do not look for a device that computes in bfloat16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        yield
