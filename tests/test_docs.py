"""Generated documentation is what the code generates, and claims no more than the tests show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from make_golden_digests import VERIFIED, evidence
from plait.methods import methods
from plait.reports import methods_page

ROOT = Path(__file__).parent.parent


def test_the_page_of_methods_is_current() -> None:
    """`plait methods --markdown > docs/methods.md` has been run."""
    assert (ROOT / "docs" / "methods.md").read_text(encoding="utf-8") == methods_page()


def test_nothing_is_listed_as_verified_that_is_not() -> None:
    """What the package says of itself equals what the carried goldens and their tables give."""
    assert json.loads(VERIFIED.read_text(encoding="utf-8")) == evidence()


@pytest.mark.parametrize("name", methods())
def test_every_method_is_accounted_for(name: str) -> None:
    assert name in evidence()
