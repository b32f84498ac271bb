"""`plait merge`: a recipe in, a model folder out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from plait.cli._collector import loading

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command()
    def merge(
        recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
        output: Annotated[
            str | None,
            typer.Option(
                "--output", "-o", help="The folder to make, or a URL (s3://bucket/name); it is a model when complete."
            ),
        ] = None,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")] = False,
        memory: Annotated[
            str, typer.Option(help="Bound on tensor bytes in flight, e.g. 512MiB; of each task.")
        ] = "1GiB",
        threads: Annotated[
            int | None, typer.Option(help="Threads, or CPUs of a Ray task; all cores by default, 4 on a GPU.")
        ] = None,
        device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda or cuda:N.")] = "cpu",
        factors: Annotated[
            Path | None,
            typer.Option(help="Keep factorisations of spectral methods in this folder for later runs and sweeps."),
        ] = None,
        compile: Annotated[
            str,
            typer.Option(help="Compile elementwise methods into one loop: auto (large models), always, never."),
        ] = "auto",
        overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing model folder.")] = False,
        spool: Annotated[
            Path | None,
            typer.Option(help="For a URL as output: where at most two shards wait for their upload."),
        ] = None,
        executor: Annotated[str, typer.Option(help="Who works: threads of this process, or ray.")] = "threads",
        address: Annotated[
            str | None, typer.Option(help="Ray cluster to join; RAY_ADDRESS or one on this machine by default.")
        ] = None,
        target: Annotated[
            str | None, typer.Option("--for", help="Of an adapter as output: keep the limits of vllm.")
        ] = None,
        verify: Annotated[
            bool | None,
            typer.Option(
                "--verify/--no-verify",
                help="Load and run the result with transformers; by default in a terminal, where it is installed.",
            ),
        ] = None,
        quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    ) -> None:
        """Merge models as a recipe says.

        Killed at any moment, the same command continues where it stopped and gives the same bytes.
        """
        with loading():
            from plait._api import merge as run
            from plait._api import plan as compile_plan
            from plait.adapters import for_target
            from plait.cli._plan_table import print_plan
            from plait.cli._progress import Display
            from plait.cli._signals import stoppable
            from plait.cli._timings import since_start, write_timings
            from plait.errors import RecipeError

        if output is None and not dry_run:
            raise RecipeError("say where the merged model should go: plait merge RECIPE -o FOLDER (or --dry-run).")
        began = since_start()
        with loading():  # a plan lives as long as the process too
            plan = for_target(compile_plan(recipe), target)
        planned = since_start()
        if dry_run:
            print_plan(plan, output, memory=memory, threads=threads, device=device, overwrite=overwrite, spool=spool)
            return
        assert output is not None
        options: dict[str, Any] = {
            "memory": memory,
            "threads": threads,
            "device": device,
            "overwrite": overwrite,
            "factors": factors,
            "compile": compile,
            "spool": spool,
            "executor": executor,
            "address": address,
        }
        with Display(quiet) as display:
            for note in plan.notes:
                display.note(f"note: {note}")
            with stoppable():
                result = run(plan, output, progress=display, **options)
        write_timings(result, began, planned)
        if not quiet:
            resumed = f", {result.resumed} of them from an earlier run" if result.resumed else ""
            if hasattr(result, "kept"):
                typer.echo(f"{output}: {_kept(result)}")
                return
            size = f"{plan.parameters:,} parameters, {plan.layout.nbytes / 1e6:,.1f} MB"
            typer.echo(f"{_path_taken(result.path)}", err=True)
            typer.echo(f"{output}: {len(plan.jobs)} tensors{resumed}, {size}")
        if plan.recipe.output is None and _tried_out(verify, output, quiet):
            _try_out(output)


def _tried_out(asked: bool | None, output: str, quiet: bool) -> bool:
    """Whether the result is loaded and run: if asked to; by default where a person watches and that is possible."""
    import importlib.util
    import sys

    from plait.checkpoints import is_url

    if asked is not None:
        return asked
    watched = sys.stderr.isatty() and not quiet and not is_url(output)
    return watched and importlib.util.find_spec("transformers") is not None


def _try_out(output: str) -> None:
    from plait.cli.verify import show
    from plait.reports import verify

    found = verify(output, contents=False)
    show(found)
    if not found.ok:
        typer.echo(f"The merged model is complete in {output}, but does not work; see above.", err=True)
        raise typer.Exit(1)


def _kept(result: Any) -> str:
    """One line: how much of each module's change the adapter holds."""
    ranks = [kept.rank for kept in result.kept.values()]
    worst = max(result.kept.items(), key=lambda item: item[1].error)
    return (
        f"an adapter of {len(ranks)} modules, ranks {min(ranks)} to {max(ranks)}; of {worst[0]}, the least exact, "
        f"{worst[1].error:.2%} of the change is left out"
    )


def _path_taken(path: Mapping[str, Any]) -> str:
    """One line: how elementwise steps were computed."""
    kernels, compiled = path.get("kernels", 0), path.get("compiled", 0)
    if not kernels:
        reasons = ", ".join(path.get("blocks", {})) or "small model, whole matrices, or copies"
        return f"computed by torch, in blocks ({reasons})"
    others = f"; in blocks: {', '.join(path['blocks'])}" if path.get("blocks") else ""
    return f"computed by {kernels} compiled loops ({compiled} of them compiled now){others}"
