"""What the guides show works as shown."""

from __future__ import annotations

import re
from pathlib import Path

from plait.methods import methods
from plait.testing import check_method

ROOT = Path(__file__).parent.parent


def test_the_method_in_the_guide_is_a_method() -> None:
    """The example of CONTRIBUTING.md passes the conformance suite, from one piece of code."""
    found = re.search(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert found
    space: dict[str, object] = {"__name__": "guide"}
    import sys
    import types

    module = types.ModuleType("guide")
    sys.modules["guide"] = module
    try:
        exec(compile(found.group(1), "CONTRIBUTING.md", "exec"), module.__dict__)
        cls = module.__dict__["Median"]
        registered = methods()
        registered["median"] = cls  # type: ignore[index]
        check_method(cls)
    finally:
        methods().pop("median", None)  # type: ignore[attr-defined]
        sys.modules.pop("guide")
    assert space
