"""One page for a study: self-contained, so that it opens offline and can be sent by mail."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from plait.errors import MissingExtraError
from plait.reports._bench_data import page_data

__all__ = ["bench_page", "check_viewer"]


def check_viewer() -> None:
    """Raise MissingExtraError unless plotly, whose script the page carries, is installed."""
    from importlib.util import find_spec

    if find_spec("plotly") is None:
        raise MissingExtraError("the page needs plotly; pip install 'plait[viz]', or leave it out: --no-html.")


def bench_page(results: Mapping[str, Any], costs: Sequence[Mapping[str, Any]]) -> str:
    """Return the page.

    Args:
        results: a study's results.json.
        costs: its costs.json.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    check_viewer()
    from plotly.offline import get_plotlyjs

    from plait import __version__

    parts = files("plait.reports") / "page"
    data = page_data(results, costs)
    filled = {
        "TITLE": html.escape(str(data["title"])),
        "STYLE": (parts / "bench.css").read_text(encoding="utf-8"),
        "PLOTLY": get_plotlyjs(),
        "SCRIPT": (parts / "bench.js").read_text(encoding="utf-8"),
        # in a script element only "</" could end it early
        "DATA": json.dumps(data, ensure_ascii=False).replace("</", "<\\/").replace("<!--", "<\\!--"),
        "VERSION": html.escape(__version__),
    }
    page = (parts / "bench.html").read_text(encoding="utf-8")
    pieces = page.split("%%")
    return "".join(filled[piece] if place % 2 else piece for place, piece in enumerate(pieces))
