"""`plait eval`: score one model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from plait.bench import ModelScores

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command()
    def eval(
        model: Annotated[Path, typer.Argument(help="The model's folder.")],
        task: Annotated[
            list[Path] | None,
            typer.Option(
                "--task", "-t", help="A task.json, a folder with one, or a testbed; may be given several times."
            ),
        ] = None,
        results: Annotated[
            list[Path] | None,
            typer.Option(help="Folder that lm-eval wrote for this model with --log_samples; read, not run."),
        ] = None,
        split: Annotated[str, typer.Option(help="Which split of the tasks.")] = "test",
        limit: Annotated[int | None, typer.Option(help="Score at most this many examples of a task.")] = None,
        cache: Annotated[Path | None, typer.Option(help="Keep scores here by the content of model and task.")] = None,
        threads: Annotated[int, typer.Option(help="Threads; the last digits of scores depend on their number.")] = 1,
        seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
        as_json: Annotated[
            bool, typer.Option("--json", help="Machine-readable, with the score of every example.")
        ] = False,
        card: Annotated[bool, typer.Option("--card", help="Write the scores into the model's README.md.")] = False,
        quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    ) -> None:
        """Score a model on tasks, with intervals; on a testbed also against the base and the experts."""
        import json

        from plait.bench import score_model
        from plait.reports import add_results

        found = score_model(
            model,
            task or [],
            lm_eval_results=results or [],
            split=split,
            limit=limit,
            cache=cache,
            threads=threads,
            seed=seed,
            progress=None if quiet or as_json else _say,
        )
        if card:
            path = add_results(model, found.card_results())
            if not quiet:
                typer.echo(f"written into {path}", err=True)
        if as_json:
            typer.echo(json.dumps(found.as_dict(), indent=1))
        elif not quiet:
            _print(found)


def _say(name: str) -> None:
    typer.echo(f"scoring {name}", err=True)


def _print(found: ModelScores) -> None:
    from rich.console import Console
    from rich.table import Table

    compared = any(row.expert is not None for row in found.rows)
    table = Table(box=None, header_style="bold", padding=(0, 1))
    columns = [
        "task",
        "metric",
        "score",
        "95 % interval",
        "examples",
        *(("base", "expert", "of expert") if compared else ()),
    ]
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < 2 else "right", no_wrap=True)
    for row in found.rows:
        cells = [row.task, row.metric, f"{row.interval.value:.4f}"]
        cells += [f"{row.interval.low:.4f} – {row.interval.high:.4f}", str(row.examples)]
        if compared:
            share = None if row.normalised is None else f"{100 * row.normalised:.1f} %"
            cells += [_number(row.base), _number(row.expert), share or ""]
        table.add_row(*cells)
    console = Console()
    if not console.is_terminal:
        console.width = 120
    console.print(table)
    for name, interval in found.totals.items():
        if name == "mean score":  # of accuracies or of losses: no share of anything
            console.print(f"{name}: {interval.value:.4f} ({interval.low:.4f} – {interval.high:.4f})", highlight=False)
            continue
        value, low, high = (100 * x for x in (interval.value, interval.low, interval.high))
        console.print(f"{name}: {value:.1f} % ({low:.1f} – {high:.1f})", highlight=False)


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4f}"
