"""A cache whose entries are whole or absent: written beside their place, then renamed into it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["cached_json", "digest_of", "new_folder"]


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


def cached_json(path: Path, make: Callable[[], Any]) -> Any:
    """Read `path` if it is there, else write to it what `make` returns; a file that is there is complete."""
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    value = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=False)
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
    return value
