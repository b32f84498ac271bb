"""plait: model merging in weight space.

`merge` and `plan` work on recipes and folders, `merge_state_dicts` on tensors in memory, `Checkpoint` opens a model
lazily. Importing this package loads neither torch nor any other heavy library; the names below do when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plait._api import greedy_soup, merge, merge_state_dicts, plan
    from plait.checkpoints import Checkpoint
    from plait.errors import PlaitError
    from plait.reports._check import check
    from plait.reports._reproduce import reproduce
    from plait.reports._verify import verify

__version__ = "0.1.0"
__all__ = [
    "Checkpoint",
    "PlaitError",
    "__version__",
    "check",
    "greedy_soup",
    "merge",
    "merge_state_dicts",
    "plan",
    "reproduce",
    "verify",
]

_HOMES = {
    "Checkpoint": "plait.checkpoints",
    "PlaitError": "plait.errors",
    "check": "plait.reports._check",
    "greedy_soup": "plait._api",
    "merge": "plait._api",
    "merge_state_dicts": "plait._api",
    "plan": "plait._api",
    "reproduce": "plait.reports._reproduce",
    "verify": "plait.reports._verify",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'plait' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
