from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers")

from tiny_testbeds import write_testbed


@pytest.fixture(scope="session")
def testbeds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    home = tmp_path_factory.mktemp("testbeds")
    return [write_testbed(home / f"tiny{seed}", seed) for seed in (0, 1)]
