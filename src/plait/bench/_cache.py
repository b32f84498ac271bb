"""A cache whose entries are whole or absent: written beside their place, then renamed into it."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["digest_of", "new_folder"]


def digest_of(settings: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that stand for settings; whatever changes the result must be among them."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


@contextmanager
def new_folder(path: Path) -> Generator[Path, None, None]:
    """Give an empty sibling folder to fill; rename it to `path` at the end, or remove it if anything fails.

    A process that is killed leaves the sibling behind, under a name that is never read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield draft
        draft.chmod(0o755)  # mkdtemp's 0700 is for secrets
        try:
            draft.rename(path)
        except OSError:
            if not path.is_dir():  # otherwise another process was faster, and its entry is as good
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
