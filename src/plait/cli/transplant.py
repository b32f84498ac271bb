"""`plait transplant`: a model with another model's tokenizer."""

from __future__ import annotations

from typing import Annotated, Any

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command()
    def transplant(
        model: Annotated[str, typer.Argument(help="The model that gets a tokenizer.")],
        donor: Annotated[str, typer.Argument(help="The model whose tokenizer it gets.")],
        output: Annotated[str, typer.Option("--output", "-o", help="The folder to make, or a URL.")],
        by: Annotated[
            str, typer.Option(help="How rows of new tokens are made: omp, nearest, subword, mean, zero.")
        ] = "omp",
        k: Annotated[int, typer.Option("-k", help="By how many known tokens a new one is written.")] = 64,
        pad: Annotated[int | None, typer.Option(help="Round the number of rows up to a multiple of this.")] = None,
        memory: Annotated[str, typer.Option(help="Bound on tensor bytes in flight.")] = "4GiB",
        threads: Annotated[int | None, typer.Option(help="Threads; all cores by default.")] = None,
        overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing model folder.")] = False,
        quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    ) -> None:
        """Give a model the tokenizer of another one, without training.

        Tokens that both know keep their rows. New ones are written as sums of tokens that both know, in the donor's
        embedding, and get the same sum of the model's rows.
        """
        from plait._api import merge as run
        from plait._api import plan as compile_plan
        from plait.cli._progress import Display

        tokenizer: dict[str, Any] = {"transplant": donor, "by": by, "k": k}
        if pad is not None:
            tokenizer["pad_to_multiple_of"] = pad
        recipe = {"method": "passthrough", "experts": {"model": model}, "tokenizer": tokenizer}
        with Display(quiet) as display:
            plan = compile_plan(recipe)
            for note in plan.notes:
                display.note(f"note: {note}")
            run(plan, output, memory=memory, threads=threads, overwrite=overwrite, progress=display)
        if not quiet:
            typer.echo(f"{output}: {len(plan.jobs)} tensors")
