"""`plait reproduce`: rebuild a merged model and compare it with what lies there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command()
    def reproduce(
        folder: Annotated[Path, typer.Argument(help="A folder that plait has made.")],
        model: Annotated[
            list[str] | None, typer.Option("--model", help="NAME=PATH: where an input lies now, if it has moved.")
        ] = None,
        memory: Annotated[str, typer.Option(help="Bound on tensor bytes in flight.")] = "1GiB",
        threads: Annotated[int | None, typer.Option(help="Worker threads; all cores by default, 4 on a GPU.")] = None,
        device: Annotated[str, typer.Option(help="Where to compute.")] = "cpu",
        quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    ) -> None:
        """Rebuild a model from its own provenance and compare every tensor; exit code 1 if anything differs."""
        from plait._api import _options
        from plait.cli._progress import Display
        from plait.cli._signals import stoppable
        from plait.errors import RecipeError
        from plait.reports._reproduce import reproduce as run

        moved: dict[str, str] = {}
        for item in model or []:
            name, sign, path = item.partition("=")
            if not (name and sign and path):
                raise RecipeError(f"--model {item!r}: write NAME=PATH.")
            moved[name] = path
        with Display(quiet) as display, stoppable("The copy is removed; the model is as it was."):
            found = run(folder, models=moved, options=_options(memory, threads, device), progress=display)
        found.check()
        if not quiet:
            typer.echo(f"identical: all {found.tensors} tensors of {folder} come out the same, bit for bit.")
