"""`plait diff`: what experts changed, before choosing a method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from plait.reports import Diff

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command()
    def diff(
        base: Annotated[str, typer.Argument(help="The base model.")],
        experts: Annotated[list[str], typer.Argument(help="Experts: a path, or NAME=PATH.")],
        layers: Annotated[bool, typer.Option("--layers", help="Show every layer too.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Machine-readable, down to single tensors.")] = False,
        threads: Annotated[int | None, typer.Option(help="Worker threads; all cores by default.")] = None,
        quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    ) -> None:
        """Compare what experts changed: norms, density, rank; cosine, sign agreement and shared subspace of pairs."""
        import json

        from plait._api import _options
        from plait.cli._progress import Display
        from plait.errors import RecipeError
        from plait.reports import diff as run

        named: dict[str, str] = {}
        for item in experts:
            name, sign, path = item.partition("=")
            name, path = (name, path) if sign else (item.rstrip("/").rsplit("/", 1)[-1], item)
            if name in named:
                raise RecipeError(f"two experts are called {name!r}; name them: NAME=PATH.")
            named[name] = path
        with Display(quiet or as_json) as display:
            found = run(base, named, options=_options("1GiB", threads, "cpu"), progress=display)
        if as_json:
            typer.echo(json.dumps(found.as_dict(), indent=1))
        else:
            _print(found, layers)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}"


def _rank(value: int | None) -> str:
    from plait.tensors.sketch import WIDTH

    return "" if value is None else f"≥{value}" if value >= WIDTH else str(value)


def _print(found: Diff, layers: bool) -> None:
    from rich.console import Console

    console = Console()
    groups = found.by_role()
    console.print(_experts_table("what each expert changed, by role", groups))
    if len(found.experts) > 1:
        console.print(_pairs_table("how pairs of experts agree, by role", groups))
    if layers:
        console.print(_experts_table("what each expert changed, by layer", found.by_layer()))
        if len(found.experts) > 1:
            console.print(_pairs_table("how pairs of experts agree, by layer", found.by_layer()))
    console.print(
        "‖τ‖/‖θ₀‖: size of the change; density: entries that moved; rank: median numerical rank\n"
        "of the changed matrices. cosine and sign agreement: 1 and 100 % for one direction, 0\n"
        "and 50 % for unrelated changes; subspace: share of the leading directions in common.",
        highlight=False,
        style="dim",
    )


def _table(title: str, columns: tuple[str, ...]) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, header_style="bold", padding=(0, 1))
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i > 1 else "left", no_wrap=True)
    return table


def _experts_table(title: str, groups: dict[str, Any]) -> Any:
    table = _table(title, ("", "expert", "‖τ‖/‖θ₀‖", "density", "rank"))
    for group, figures in groups.items():
        for n, (name, e) in enumerate(figures["experts"].items()):
            cells = (_percent(e["relative_norm"]), _percent(e["density"]), _rank(e["median_rank"]))
            table.add_row(group if n == 0 else "", name, *cells)
    return table


def _pairs_table(title: str, groups: dict[str, Any]) -> Any:
    table = _table(title, ("", "pair", "cosine", "sign agreement", "subspace"))
    for group, figures in groups.items():
        for n, (name, p) in enumerate(figures["pairs"].items()):
            cells = (_number(p["cosine"]), _percent(p["sign_agreement"]), _percent(p["subspace_overlap"]))
            table.add_row(group if n == 0 else "", name, *cells)
    return table
