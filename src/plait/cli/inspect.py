"""`plait inspect`: what a checkpoint holds, from its headers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command()
    def inspect(
        model: Annotated[str, typer.Argument(help="A folder, a weight file, a URL or a Hub id.")],
        match: Annotated[str, typer.Option(help="Only tensors whose names match this glob pattern.")] = "*",
        as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    ) -> None:
        """List tensors with shape, dtype, size and role; then totals by role."""
        import fnmatch
        import json

        from plait.architectures import roles_of
        from plait.checkpoints import Checkpoint, short

        checkpoint = Checkpoint.open(model)
        roles = roles_of(checkpoint.tensors)
        rows = [
            {
                "name": name,
                "shape": list(tensor.shape),
                "dtype": short(tensor.dtype),
                "bytes": tensor.nbytes,
                "role": roles[name].kind,
                "layer": roles[name].layer,
                "stack": roles[name].stack,
                "file": tensor.source,
            }
            for name, tensor in checkpoint.tensors.items()
            if fnmatch.fnmatchcase(name, match)
        ]
        if as_json:
            typer.echo(
                json.dumps(
                    {
                        "model": checkpoint.label,
                        "tied": checkpoint.ties,
                        "quantized": checkpoint.quantized,
                        "components": list(checkpoint.components),
                        "tensors": rows,
                    },
                    indent=1,
                )
            )
            return
        _print(rows, checkpoint.ties, checkpoint.label)
        if checkpoint.quantized:
            typer.echo(f"stored as {checkpoint.quantized}; dtypes and sizes are those of what is read")
        if checkpoint.components:
            typer.echo(f"components: {', '.join(checkpoint.components)}")


def _print(rows: Sequence[Mapping[str, object]], ties: dict[str, str], label: str) -> None:
    from collections import defaultdict
    from math import prod
    from typing import Any

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table(box=None, header_style="bold", padding=(0, 1))
    table.add_column("tensor", overflow="fold")
    table.add_column("shape", no_wrap=True)
    for column in ("dtype", "role", "layer"):
        table.add_column(column)
    table.add_column("size", justify="right", no_wrap=True)
    totals: dict[Any, list[int]] = defaultdict(lambda: [0, 0, 0])
    for row in rows:
        shape: Any = row["shape"]
        size: Any = row["bytes"]
        layer = "" if row["layer"] is None else str(row["layer"])
        text = " × ".join(map(str, shape)) or "scalar"
        table.add_row(
            escape(str(row["name"])), text, str(row["dtype"]), str(row["role"]), layer, f"{size / 1e6:,.2f} MB"
        )
        for total, value in zip((0, 1, 2), (1, prod(shape), size), strict=True):
            totals[row["role"]][total] += value
    console.print(table)
    summary = Table(box=None, header_style="bold", padding=(0, 1))
    for column in ("role", "tensors", "parameters", "size"):
        summary.add_column(column, justify="left" if column == "role" else "right")
    for role, (count, parameters, size) in totals.items():
        summary.add_row(str(role), str(count), f"{parameters:,}", f"{size / 1e6:,.2f} MB")
    every = [sum(t[i] for t in totals.values()) for i in range(3)]
    summary.add_row("[bold]all[/bold]", str(every[0]), f"{every[1]:,}", f"{every[2] / 1e6:,.2f} MB")
    console.print(f"\n{label}", highlight=False)
    console.print(summary)
    for alias, source in ties.items():
        console.print(f"{alias} is tied to {source}", highlight=False)
