"""What is a URL and what is a path, told without any library."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from plait.errors import MissingModelError

__all__ = ["is_url", "local_path", "refuse_secrets"]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::[A-Za-z][A-Za-z0-9+.-]*)*://")


def is_url(text: object) -> bool:
    """Whether a reference names storage elsewhere (`s3://…`, `hf://…`); `file://` and paths are here."""
    word = str(text)
    return _URL.match(word) is not None and not word.startswith("file://")


def local_path(text: str) -> Path:
    """The path that a reference to a place on this machine means, without `file://`."""
    return Path(text.removeprefix("file://"))


def refuse_secrets(url: str) -> None:
    """Refuse a URL that carries credentials: an output carries its recipe, and would publish them.

    Raises:
        MissingModelError: naming the URL without what it should not hold.
    """
    parts = urlsplit(url.split("::")[-1])
    web = parts.scheme in ("http", "https")
    if parts.password is not None or (web and (parts.query or parts.username)):
        what = "a query" if web and parts.query else "a name or password"
        raise MissingModelError(
            f"the URL {parts.scheme}://{parts.hostname or ''}{parts.path} comes with {what}, which the merged model's "
            "recipe would publish. Give credentials through the environment or fsspec's own configuration."
        )
