"""`plait methods`: what can be done, from the methods' own declarations."""

from __future__ import annotations

from typing import Annotated, Any

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command()
    def methods(
        name: Annotated[str | None, typer.Argument(help="One method to explain.")] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
        markdown: Annotated[bool, typer.Option("--markdown", help="All methods as one page of documentation.")] = False,
    ) -> None:
        """List the methods, or explain one: formula, needs, parameters with bounds and defaults, paper."""
        import json

        from plait.methods import find, find_composition
        from plait.methods import methods as registered

        if markdown:
            from plait.reports import methods_page

            typer.echo(methods_page(), nl=False)
            return
        chosen = [find(part) for part in find_composition(name)] if name else list(registered().values())
        if as_json:
            typer.echo(json.dumps([_facts(cls) for cls in chosen], indent=2, ensure_ascii=False))
        elif name:
            if len(chosen) > 1:
                typer.echo(f"{name} is {' → '.join(cls.name for cls in chosen)}\n")
            for cls in chosen:
                _explain(cls)
        else:
            _table(chosen)


def _facts(cls: Any) -> dict[str, Any]:
    paper = cls.paper
    return {
        "name": cls.name,
        "kind": cls.kind,
        "summary": cls.summary,
        "formula": cls.formula,
        "needs_base": cls.needs_base,
        "optional_base": cls.optional_base,
        "needs_data": sorted(cls.statistics),
        "weighted": cls.weighted,
        "symmetric": cls.symmetric,
        "experts": [cls.min_experts, cls.max_experts],
        "cost": cls.cost,
        "paper": None if paper is None else {"title": paper.title, "cite": paper.cite, "code": paper.code},
        "parameters": [
            {
                "name": p.label,
                "type": p.kind,
                "default": p.default,
                "bounds": str(p.bounds) if p.kind in ("int", "float") else None,
                "choices": list(p.choices),
                "per_expert": p.per_expert,
                "meaning": p.doc,
            }
            for p in cls.parameters().values()
        ],
    }


def _table(chosen: list[Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from plait.methods import compositions

    table = Table(box=None, header_style="bold", padding=(0, 1))
    for column in ("method", "kind", "base", "experts", "what it does"):
        table.add_column(column, no_wrap=column != "what it does")
    for cls in chosen:
        most = cls.max_experts
        few = cls.min_experts
        count = str(most) if most == few else f"{few}+" if most is None else f"{few}-{most}"
        needs = f" (needs {', '.join(sorted(cls.statistics))})" if cls.statistics else ""
        table.add_row(cls.name, cls.kind, _base(cls), count, cls.summary + needs)
    console = Console()
    console.print(table)
    for name in compositions():
        from plait.methods import find_composition

        console.print(f"[bold]{name}[/bold] = {' → '.join(find_composition(name))}", highlight=False)
    console.print(
        "\n`plait methods NAME` explains one: formula, parameters with bounds and defaults, paper.", highlight=False
    )


def _base(cls: Any) -> str:
    return "yes" if cls.needs_base else "optional" if cls.optional_base else "no"


def _explain(cls: Any) -> None:
    import inspect

    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(f"[bold]{cls.name}[/bold] ({cls.kind}): {cls.summary}", highlight=False)
    console.print(f"\n  {cls.formula}\n", markup=False, highlight=False)
    console.print(inspect.getdoc(cls) or "", markup=False, highlight=False)
    base = {"yes": "the base model", "no": "no base model", "optional": "a base model if the recipe names one"}
    needs = [base[_base(cls)], "no data" if not cls.statistics else "statistics"]
    from plait.reports import verification

    weights = "weights" if cls.weighted else "no weights"
    console.print(f"\nneeds {', '.join(needs)}; takes {weights}; cost: {cls.cost}", highlight=False)
    console.print(f"verified against {verification(cls.name)}\n", highlight=False)
    if cls.parameters():
        table = Table(box=None, header_style="bold", padding=(0, 1))
        for column in ("parameter", "type", "bounds", "default", "meaning"):
            table.add_column(column)
        for p in cls.parameters().values():
            bounds = " | ".join(p.choices) if p.choices else str(p.bounds) if p.kind in ("int", "float") else ""
            kind = p.kind + (" per expert" if p.per_expert else "")
            table.add_row(p.label, kind, bounds, str(p.default), p.doc)
        console.print(table)
