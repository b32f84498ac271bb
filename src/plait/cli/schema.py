"""`plait schema`: the JSON schema of recipes, for editors."""

from __future__ import annotations

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command()
    def schema() -> None:
        """Print the JSON schema of recipes.

        With `# yaml-language-server: $schema=plait.schema.json` as a recipe's first line, editors complete and
        check it.
        """
        import json

        from plait.recipes import json_schema

        typer.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))
