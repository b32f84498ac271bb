"""`plait push` and `plait export gguf`: where merged models go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the verbs."""

    @app.command()
    def push(
        folder: Annotated[Path, typer.Argument(help="A model folder with a card.")],
        repository: Annotated[str, typer.Argument(help="OWNER/NAME on the Hub.")],
        public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
        overwrite: Annotated[
            bool, typer.Option("--overwrite", help="Add a commit to a repository that already holds a model.")
        ] = False,
        token: Annotated[str | None, typer.Option(help="Access token; the stored one by default.")] = None,
        endpoint: Annotated[str | None, typer.Option(help="Another Hub than huggingface.co.")] = None,
    ) -> None:
        """Upload a model folder to the Hub, after reading it once for damage and NaN. Private unless told."""
        from plait.reports import push as run

        done = run(folder, repository, public=public, overwrite=overwrite, token=token, endpoint=endpoint)
        whose = "private" if done.private else "public"
        typer.echo(f"{done.url}: {done.files} files, {done.nbytes / 1e6:,.1f} MB, {whose}")

    exports = typer.Typer(help="Convert a merged model into another format.", no_args_is_help=True)
    app.add_typer(exports, name="export")

    @exports.callback()
    def _formats() -> None:
        """Convert a merged model into another format."""

    @exports.command()
    def gguf(
        folder: Annotated[Path, typer.Argument(help="A model folder.")],
        output: Annotated[Path | None, typer.Option("--output", "-o", help="The file to make.")] = None,
        outtype: Annotated[str, typer.Option(help="f32, f16, bf16, q8_0 or auto.")] = "auto",
        llama_cpp: Annotated[Path | None, typer.Option("--llama-cpp", help="A checkout of llama.cpp.")] = None,
        overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    ) -> None:
        """Make a GGUF file with llama.cpp's converter, after looking for what is known to break."""
        from plait.reports import export_gguf

        made = export_gguf(folder, output, outtype=outtype, llama_cpp=llama_cpp, overwrite=overwrite)
        typer.echo(f"{made}: {made.stat().st_size / 1e6:,.1f} MB")
