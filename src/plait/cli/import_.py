"""`plait import`: a mergekit recipe in, the same recipe in plait's words out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("import")
    def import_(
        recipe: Annotated[Path, typer.Argument(help="A mergekit recipe, a YAML file of one or more documents.")],
        output: Annotated[
            Path | None, typer.Option("--output", "-o", help="Where to write the recipe; by default it is printed.")
        ] = None,
        stage: Annotated[
            str | None, typer.Option(help="Of several documents: the name of the one whose result is wanted.")
        ] = None,
        overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    ) -> None:
        """Write a mergekit recipe as one of plait's, and say what is not exactly the same.

        `plait merge` takes mergekit recipes as they are; this shows what it makes of them.
        """
        from plait._api import import_mergekit
        from plait.errors import OutputError
        from plait.recipes import recipe_yaml

        if output is not None and output.exists() and not overwrite:
            raise OutputError(f"{output} exists; choose another name, or say --overwrite.")
        found = import_mergekit(recipe, stage=stage, relative_to=output.parent if output is not None else None)
        text = recipe_yaml(found, str(recipe))
        if output is None:
            typer.echo(text, nl=False)
            return
        output.write_text(text, encoding="utf-8")
        for note in found.notes:
            typer.echo(f"note: {note}", err=True)
        typer.echo(f"{output}: {found.recipe['method']}, {len(found.notes)} notes")
