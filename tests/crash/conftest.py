"""One warm process for each worker, and a tiny family of models with what an undisturbed merge makes of it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import Place, make_place
from warm import Warm


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    process = Warm()
    yield process
    process.close()


@pytest.fixture
def place(warm: Warm) -> Iterator[Place]:
    """In memory, where there is such a folder: a kill loses nothing there either, and syncing takes no time."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory, prefix="plait-crash-") as home:
        Path(home).chmod(0o755)  # one test merges as another user
        yield make_place(Path(home), warm)
