"""Every registered method obeys every law of the public conformance suite."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from plait.methods import Method, methods
from plait.testing import laws

CASES = [(cls, law) for cls in methods().values() for law in laws(cls)]


@pytest.mark.parametrize(("cls", "law"), CASES, ids=[f"{c.name}-{law.__name__}" for c, law in CASES])
def test_law(cls: type[Method], law: Callable[[type[Method]], None]) -> None:
    """One law, one method."""
    law(cls)
