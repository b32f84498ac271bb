"""The picture: wall seconds per method for the floor, plait and mergekit. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from perf.cases import CASES
from perf.results import Results

__all__ = ["plot"]

_STYLES = {
    "floor": ("floor: read once, write once", "#8a8f98", "|", 90),
    "plait": ("plait, whole command", "#0b6bcb", "o", 46),
    "mergekit": ("mergekit, whole command", "#d9730d", "s", 40),
}
_INK = "#24292f"


def _seconds(entry: dict[str, Any]) -> float:
    return float(entry["median"]["work" if entry["tool"] == "floor" else "wall"])


def _panel(axes: Any, results: Results, size: str, methods: list[str]) -> None:
    """One size: a row per method, a mark per tool, a line from plait to mergekit."""
    for row, method in enumerate(methods):
        found: dict[str, float] = {}
        for tool, (_, colour, marker, area) in _STYLES.items():
            entry = results.one(suite="methods", where="memory", size=size, method=method, tool=tool)
            if entry is not None:
                found[tool] = _seconds(entry)
                axes.scatter(found[tool], row, s=area, color=colour, marker=marker, linewidths=2.2, zorder=3)
        if "plait" in found and "mergekit" in found:
            axes.plot([found["plait"], found["mergekit"]], [row, row], color="#d0d7de", linewidth=2.5, zorder=1)
            factor = found["mergekit"] / found["plait"]
            text = f"{factor:.0f}×" if factor >= 9.5 else f"{factor:.1f}×"
            middle = (found["plait"] * found["mergekit"]) ** 0.5
            axes.annotate(
                text, (middle, row), (0, 3), textcoords="offset points", ha="center", color=_INK, fontsize=8.5
            )
    axes.set_xscale("log")
    axes.set_title(f"{size.replace('b', ' B')} parameters, base and three experts", fontsize=11, color=_INK, loc="left")
    axes.set_xlabel("seconds", color=_INK)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(axis="x", which="major", color="#e4e7eb", zorder=0)
    axes.tick_params(which="both", colors=_INK, length=0)
    axes.set_ylim(len(methods) - 0.4, -0.6)
    axes.margins(x=0.06)
    for side in axes.spines.values():
        side.set_visible(False)


def plot(results: Results, picture: Path) -> None:
    """Draw one panel per size that was measured in memory."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams |= {"svg.hashsalt": "plait", "svg.fonttype": "path", "font.size": 10}
    entries = results.find(suite="methods", where="memory")
    measured = list(dict.fromkeys(e["size"] for e in entries))
    sizes = [s for s in ("0.5b", "1b") if s in measured] or measured
    methods = [m for m in CASES if any(e["method"] == m and e["size"] in sizes for e in entries)]
    if not methods:
        raise SystemExit("no results of methods in memory to plot")
    figure, panels = plt.subplots(
        1, len(sizes), sharey=True, squeeze=False, figsize=(1.6 + 4.2 * len(sizes), 1.5 + 0.34 * len(methods))
    )
    for axes, size in zip(panels[0], sizes, strict=True):
        _panel(axes, results, size, methods)
    panels[0][0].set_yticks(range(len(methods)), methods)
    marks = [
        plt.Line2D(
            [], [], color=colour, marker=marker, linestyle="", markeredgewidth=2 if marker == "|" else 0, label=label
        )
        for label, colour, marker, _ in _STYLES.values()
    ]
    figure.legend(handles=marks, loc="upper center", ncols=3, frameon=False, labelcolor=_INK, handletextpad=0.3)
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=160, metadata={"Date": None} if picture.suffix == ".svg" else None)
