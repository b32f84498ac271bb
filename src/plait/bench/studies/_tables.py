"""The one table of a study: for the terminal, as CSV, as Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["csv_table", "markdown_table", "shown_figures", "terminal_table"]

_TITLES = {
    "normalised": "% of experts",
    "gain": "% of gain",
    "raw": "mean score",
    "forgetting": "% forgotten",
    "over_best": "over best expert",
    "beats_base": "P(> base)",
    "held_out": "held out, % of base",
}
_PERCENT = ("normalised", "gain", "forgetting", "beats_base", "held_out")


def shown_figures(results: Mapping[str, Any]) -> list[str]:
    """The figures that some row has, in the order of the table."""
    return [name for name in _TITLES if any(name in row["figures"] for row in results["table"])]


def title_of(figure: str) -> str:
    """A figure as a column's head."""
    return _TITLES[figure]


def shown(figure: str, interval: Mapping[str, float]) -> tuple[str, str, str]:
    """Value and bounds of a figure, as text."""
    factor, digits = (100, 1) if figure in _PERCENT else (1, 3)
    value, low, high = (f"{factor * interval[key]:.{digits}f}" for key in ("value", "low", "high"))
    return value, low, high


def terminal_table(results: Mapping[str, Any], costs: Sequence[Mapping[str, Any]]) -> Table:
    """Rows by rank, with the interval of the figure that ranks; seconds of one merge, and of the whole search."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    figures = shown_figures(results)
    table = Table(title=f"{results['title']}: test scores, settings chosen on validation", box=SIMPLE_HEAD)
    for title in ("arm", "k", "#", "method", "setting"):
        number = title in ("k", "#")
        table.add_column(title, justify="right" if number else "left", no_wrap=title != "setting", overflow="fold")
    for figure in figures:
        ranks = any(row["ranked_by"] == figure for row in results["table"])
        table.add_column(title_of(figure), justify="right", no_wrap=ranks)
    for title in ("p, best", "merge s", "search s"):
        table.add_column(title, justify="right", no_wrap=True)
    by_run = {cost["run"]: cost for cost in costs}
    before = None
    for row in results["table"]:
        if before is not None and (row["arm"], row["experts"]) != before:
            table.add_section()
        before = row["arm"], row["experts"]
        first = [row["arm"], str(row["experts"]), str(row["rank"])]
        setting = Text(" | ".join(row["settings"]))
        if row["error"]:
            setting = Text(row["error"], style="red")
        cells = []
        for figure in figures:
            if figure in row["figures"]:
                value, low, high = shown(figure, row["figures"][figure])
                # the other intervals are in the files: a terminal is narrow
                cells.append(f"{value} ({low}–{high})" if figure == row["ranked_by"] else value)
            else:
                cells.append("")
        merge, search = _seconds([by_run[n] for n in row["runs"] if n in by_run])
        table.add_row(*first, row["method"], setting, *cells, _p(row), merge, search)
    return table


def _p(row: Mapping[str, Any]) -> str:
    found = row.get("against_best")
    return "" if found is None else f"{found['p_holm']:.3f}"


def _seconds(costs: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    merge = [cost["merge_seconds"] for cost in costs if cost["merge_seconds"] is not None]
    search = [cost["total_seconds"] for cost in costs]
    return (
        f"{sum(merge) / len(merge):.1f}" if merge else "",
        f"{sum(search) / len(search):.0f}" if search else "",
    )


def csv_table(results: Mapping[str, Any]) -> str:
    """Every row with every figure and its bounds, with all digits."""
    figures = shown_figures(results)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ["arm", "experts", "rank", "method", "settings", "runs", "error"]
    writer.writerow([*head, *(f"{f}{end}" for f in figures for end in ("", "_low", "_high")), "p_holm_against_best"])
    for row in results["table"]:
        cells: list[Any] = [row["arm"], row["experts"], row["rank"], row["method"], " | ".join(row["settings"])]
        cells += [len(row["runs"]), row["error"]]
        for figure in figures:
            interval = row["figures"].get(figure, {})
            cells += [repr(interval[key]) if interval else "" for key in ("value", "low", "high")]
        writer.writerow([*cells, repr(row["against_best"]["p_holm"]) if "against_best" in row else ""])
    return out.getvalue()


def markdown_table(results: Mapping[str, Any]) -> str:
    """The table for documents, with the references, and each seed where there are several."""
    figures = shown_figures(results)
    several = [pool for pool in results["pools"] if len(results["pools"]) > 1]
    lines: list[str] = []
    for arm, size in dict.fromkeys((row["arm"], row["experts"]) for row in results["table"]):
        rows = [row for row in results["table"] if (row["arm"], row["experts"]) == (arm, size)]
        rule = rows[0]["ranked_by"]
        seeds = [pool["seed"] for pool in several if pool["arm"] == arm] if len(rows[0]["runs"]) == len(several) else []
        head = [
            "",
            "method",
            "setting",
            *(title_of(f) for f in figures),
            *(f"seed {s}" for s in seeds),
            "p against best",
        ]
        lines += ["", f"**{arm}, {size} experts**, ranked by {title_of(rule)}", "", f"| {' | '.join(head)} |"]
        lines.append(f"|{'---|' * len(head)}")
        for row in rows:
            cells = [
                str(row["rank"]),
                f"`{row['method']}`",
                " \\| ".join(row["settings"]) or row["error"].split("\n")[0],
            ]
            for figure in figures:
                value, low, high = shown(figure, row["figures"][figure]) if figure in row["figures"] else ("", "", "")
                cells.append(f"{value} ({low} to {high})" if value else "")
            for number in row["runs"] if seeds else ():
                one = results["runs"][number]["figures"].get(rule)
                cells.append(shown(rule, one)[0] if one else "")
            lines.append(f"| {' | '.join([*cells, _p(row)])} |")
    return "\n".join(lines).lstrip("\n") + "\n"
