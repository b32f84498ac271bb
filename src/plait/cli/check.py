"""`plait check`: can these models be merged, what does it cost, and what suits them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from plait.reports import Check

__all__ = ["register"]

_MARKS = {"blocks": ("✗", "bold red"), "warns": ("!", "bold yellow"), "notes": ("·", "dim")}


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command()
    def check(
        recipe: Annotated[Path, typer.Argument(help="The recipe (YAML).")],
        full: Annotated[bool, typer.Option("--full", help="Read every tensor in search of NaN.")] = False,
        strict: Annotated[bool, typer.Option("--strict", help="Warnings count: their exit code, too.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
        memory: Annotated[str, typer.Option(help="Bound on tensors in flight that costs are predicted for.")] = "1GiB",
        threads: Annotated[int | None, typer.Option(help="Worker threads; all cores by default.")] = None,
        quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    ) -> None:
        """Look for reasons why a merge would fail or disappoint: ancestry, vocabulary, settings, licences, cost.

        The exit code is 0 if the models are fit to be merged, else that of the gravest reason: see docs/check.md.
        """
        import json

        from plait._api import _options
        from plait.cli._progress import Display
        from plait.reports import check as run

        with Display(quiet or as_json) as display:
            found = run(recipe, full=full, options=_options(memory, threads, "cpu"), progress=display)
        if as_json:
            typer.echo(json.dumps(found.as_dict(), indent=1))
        else:
            _print(found)
        raise typer.Exit(found.exit_code(strict))


def _print(found: Check) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for finding in found.findings:
        mark, style = _MARKS[finding.level]
        line = (
            Text(f" {mark} ", style=style)
            .append(f"{finding.kind}: ", style=style)
            .append(finding.sentence, style="none")
        )
        if finding.remedy:
            line.append(f" {finding.remedy}", style="dim")
        console.print(line)
    if found.findings:
        console.print()
    _figures(console, found)
    style = "bold green" if found.fit else "bold red"
    word, sign, rest = found.verdict.partition(":" if ":" in found.verdict else ",")
    console.print(Text(word, style=style).append(sign + rest, style="none"))


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.0f} %"


def _size(count: float) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _figures(console: Console, found: Check) -> None:
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, evidence in found.evidence.items():
        if evidence.distance is not None:
            table.add_row(f"{name} from {found.compared}", f"{_percent(evidence.distance)} of the size of its matrices")
    pairs = found.deltas.by_role()["all"]["pairs"] if found.deltas is not None else {}
    for pair, values in pairs.items():
        if values["cosine"] is not None:
            agree = "" if values["sign_agreement"] is None else f", same sign in {100 * values['sign_agreement']:.0f} %"
            table.add_row(pair, f"cosine {values['cosine']:+.3f}{agree} (a few matrices; `plait diff` for all)")
    if found.cost:
        cost = found.cost
        how = "; factorisations come on top" if cost["factorises"] else ""
        table.add_row(
            "reads",
            f"{_size(cost['read_bytes'])}: about {cost['seconds_of_reading']:,.1f} s at the speed seen here{how}",
        )
        table.add_row("memory", f"about {cost['memory_bytes'] / 2**20:,.0f} MiB for the whole process")
        table.add_row("disk", f"{_size(cost['disk_bytes'])}; {_size(cost['free_bytes'])} are free here")
    for i, suggestion in enumerate(found.suggestions):
        table.add_row("suits" if i == 0 else "", f"{suggestion.method}: {suggestion.reason}")
    read, every = found.looked
    if every:
        some = "all tensors" if read == every else f"{read} of {every} tensors (--full for all)"
        table.add_row("looked at", f"headers, and {some}")
    console.print(table)
    console.print()
