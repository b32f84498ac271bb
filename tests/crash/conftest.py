"""One warm process for each worker, and a tiny family of models with what an undisturbed merge makes of it."""

from __future__ import annotations

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
def place(tmp_path: Path, warm: Warm) -> Place:
    return make_place(tmp_path, warm)
