"""`plait verify`: a model folder, tried out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from plait.reports import Verification

__all__ = ["register", "show"]

_MARKS = {"ok": ("✓", "green"), "failed": ("✗", "bold red"), "skipped": ("·", "dim")}


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command()
    def verify(
        folder: Annotated[Path, typer.Argument(help="A model folder.")],
        load: Annotated[
            bool | None,
            typer.Option("--load/--no-load", help="Load and run it with transformers; by default where that fits."),
        ] = None,
        trust_remote_code: Annotated[
            bool, typer.Option("--trust-remote-code", help="Run code that the folder brings along.")
        ] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    ) -> None:
        """Try a model out: files, hashes, finite numbers, vocabulary; loading, logits, tokens, a few words.

        Exit code 1 if anything failed.
        """
        import json

        from plait.reports import verify as run

        found = run(folder, load=load, trust_remote_code=trust_remote_code)
        if as_json:
            typer.echo(json.dumps(found.as_dict(), indent=1))
        else:
            show(found)
        raise typer.Exit(0 if found.ok else 1)


def show(found: Verification) -> None:
    """Print one line for each step."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for step in found.steps:
        mark, style = _MARKS[step.state]
        console.print(Text(f" {mark} ", style=style).append(f"{step.name}: ").append(step.sentence, style="none"))
