"""No test of the Trainer leaves anything to the next one: what it changed for the whole process fails it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer import leaks


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    leaks.seed()
    before = leaks.look()
    yield
    if left := leaks.left(before, leaks.look()):
        pytest.fail("left to the next test: " + "; ".join(left[:8]), pytrace=False)


@pytest.fixture(autouse=True, scope="module")
def nothing_left_of_a_file() -> Iterator[None]:
    """What the fixtures of a whole file leave."""
    before = leaks.look()
    yield
    if left := leaks.left(before, leaks.look()):
        pytest.fail("left to the next file: " + "; ".join(left[:8]), pytrace=False)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory, where there is one: durability costs time and is not what is tested here."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        yield Path(name)
