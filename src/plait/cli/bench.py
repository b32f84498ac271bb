"""`plait bench`: methods × settings × seeds, compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command()
    def bench(
        target: Annotated[
            str, typer.Argument(help="A testbed's name or folder, a study's YAML, or a protocol's name.")
        ],
        size: Annotated[str | None, typer.Option(help="Size of a testbed by name: quick or full.")] = None,
        methods: Annotated[
            str | None, typer.Option("--methods", "-m", help="Methods, separated by commas; by default the study's.")
        ] = None,
        seeds: Annotated[str | None, typer.Option(help="Seeds of the testbeds, separated by commas.")] = None,
        out: Annotated[
            Path | None, typer.Option("--out", "-o", help="Folder of the results; bench-TARGET by default.")
        ] = None,
        cache: Annotated[Path, typer.Option(help="Where testbeds lie.")] = Path(".cache/plait/testbeds"),
        factors: Annotated[
            Path | None, typer.Option(help="Where factorisations are kept; in the results by default.")
        ] = None,
        threads: Annotated[
            int | None, typer.Option(help="Threads of the evaluation; its last digits depend on them. 1 by default.")
        ] = None,
        limit: Annotated[int | None, typer.Option(help="Score at most this many examples of a task and split.")] = None,
        html: Annotated[bool, typer.Option("--html/--no-html", help="Write report.html; needs the extra viz.")] = True,
        landscape: Annotated[
            int | None, typer.Option(help="Points along an edge of the loss plane; 0 leaves it out.")
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
        markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
        quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    ) -> None:
        """Compare methods on real experts: settings chosen on validation, scores with intervals on test.

        Killed at any moment, the same command goes on after the last finished merge.
        """
        import json

        from plait.bench.studies import bench as run
        from plait.bench.studies import markdown_table, study_of, terminal_table
        from plait.cli._signals import stoppable

        config, home = study_of(target, size=size, seeds=_numbers(seeds))
        changes = {"threads": threads, "landscape": landscape}
        config = config.model_copy(update={key: value for key, value in changes.items() if value is not None})
        if limit is not None:
            limits = config.limit.model_copy(update={"validation": limit, "test": limit})
            config = config.model_copy(update={"limit": limits})
        folder = out or Path(f"bench-{Path(target).stem}" + (f"-{size}" if size else ""))
        chosen = [name.strip() for name in methods.split(",") if name.strip()] if methods else []
        with stoppable():
            results, costs = run(
                config,
                folder,
                home=home,
                methods=chosen,
                cache=cache,
                factors=factors,
                html=html,
                report=_silent if quiet else _say,
            )
        if as_json:
            typer.echo(json.dumps(results, indent=1, ensure_ascii=False))
        elif markdown:
            typer.echo(markdown_table(results), nl=False)
        else:
            from rich.console import Console

            console = Console()
            if not console.is_terminal:
                console.width = 160
            console.print(terminal_table(results, costs))
        if not quiet:
            page = f"; the page: {folder / 'report.html'}" if html else ""
            _say(f"results in {folder}: results.json, costs.json, table.csv, table.md{page}")


def _numbers(text: str | None) -> list[int]:
    from plait.errors import RecipeError

    try:
        return [int(part) for part in (text or "").split(",") if part.strip()]
    except ValueError:
        raise RecipeError(f"--seeds {text}: seeds are whole numbers separated by commas.") from None


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _silent(line: str) -> None:
    del line
