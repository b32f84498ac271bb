"""`plait testbed`: bases with experts and tasks, built from what packages bring, to measure merges on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["register"]

_CACHE = Path(".cache/plait/testbeds")
_Cache = Annotated[Path, typer.Option(help="Where testbeds are kept.")]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    group = typer.Typer(no_args_is_help=True, help="Build and show testbeds: a base, real experts, tasks to score.")
    app.add_typer(group, name="testbed")

    @group.command()
    def build(
        name: Annotated[str, typer.Argument(help="Which testbed; `plait testbed list` knows them.")],
        size: Annotated[str, typer.Option(help="quick (about 5 CPU minutes) or full (up to 45).")] = "quick",
        seed: Annotated[int, typer.Option(min=0, help="Seed of everything random in it.")] = 0,
        cache: _Cache = _CACHE,
    ) -> None:
        """Build a testbed, or find it in the cache; a build that was killed goes on where it stopped."""
        from plait.bench.testbeds import build as make

        folder = make(name, size, seed, cache, lambda line: typer.echo(line, err=True))
        typer.echo(folder)

    @group.command("list")
    def list_(cache: _Cache = _CACHE) -> None:
        """List the testbeds that can be built, and those in the cache."""
        from rich.console import Console
        from rich.table import Table

        from plait.bench.testbeds import TESTBEDS
        from plait.bench.testbeds import built as find_built

        kinds, found = Table(box=None, header_style="bold", padding=(0, 1)), find_built(cache)
        for column in ("testbed", "what it is", "needs beside plait\\[bench]"):
            kinds.add_column(column)
        for kind in TESTBEDS.values():
            kinds.add_row(kind.name, kind.summary, kind.needs)
        console = Console()
        console.print(kinds)
        console.print(f"\nIn {cache}: {'' if found else 'none.'}", highlight=False)
        for entry in found:
            console.print(entry["folder"], soft_wrap=True, highlight=False)

    @group.command()
    def show(
        name: Annotated[str, typer.Argument(help="Which testbed.")],
        size: Annotated[str, typer.Option(help="quick or full.")] = "quick",
        seed: Annotated[int, typer.Option(min=0, help="Its seed.")] = 0,
        cache: _Cache = _CACHE,
    ) -> None:
        """Describe a testbed: what lies in the cache, or else what would be made."""
        from plait.bench.testbeds import built as find_built
        from plait.bench.testbeds import recipe_of

        recipe = recipe_of(name, size)
        for entry in find_built(cache):
            if (entry["name"], entry["size"], entry["seed"]) == (name, size, seed):
                typer.echo(f"{entry['folder']}\n")
                typer.echo((Path(entry["folder"]) / "README.md").read_text(encoding="utf-8"), nl=False)
                return
        typer.echo(f"{name}, {size}, seed {seed} is not in {cache}. It would be made with:\n")
        for line in _lines(recipe):
            typer.echo(line)


def _lines(recipe: Any) -> list[str]:
    from dataclasses import asdict

    lines: list[str] = []
    for key, value in asdict(recipe).items():
        if isinstance(value, dict):
            lines.append(f"{key}:")
            lines += [f"  {name}: {_short(entry)}" for name, entry in value.items()]
        else:
            lines.append(f"{key}: {_short(value)}")
    return lines


def _short(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
