"""Shape annotations are checked in tests, and only there."""

from __future__ import annotations

import sys
from pathlib import Path

from jaxtyping import install_import_hook

sys.path.insert(0, str(Path(__file__).parent))

# Every function of these rooms checks the shapes and dtypes it declares while tests run.
install_import_hook(["plait.tensors"], "beartype.beartype")
