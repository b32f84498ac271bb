"""The command line: one file per verb, words only; what is done lives in the rooms below."""

from __future__ import annotations

import os
import sys

import typer

from plait.cli._collector import farewell
from plait.cli._signals import listening
from plait.errors import InterruptedRunError, PlaitError

__all__ = ["app", "main"]

app = typer.Typer(
    name="plait",
    help="Merge neural-network checkpoints in weight space: a recipe and some models in, one model out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(wanted: bool) -> None:
    if wanted:
        from plait import __version__

        typer.echo(f"plait {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Carry the options of the program itself."""


def _register() -> None:
    from plait.cli import (
        adapter,
        bench,
        check,
        diff,
        eval,
        import_,
        inspect,
        merge,
        methods,
        publish,
        reproduce,
        schema,
        testbed,
        transplant,
        verify,
    )

    verbs = (
        merge,
        import_,
        methods,
        inspect,
        diff,
        adapter,
        check,
        testbed,
        eval,
        bench,
        reproduce,
        verify,
        publish,
        transplant,
        schema,
    )
    for module in verbs:
        module.register(app)


_register()


def main() -> None:
    """Run the program; errors are one message on standard error and an exit code, never a traceback."""
    with listening():
        try:
            app()
        except InterruptedRunError as error:
            _say(str(error))
            sys.stdout.flush()
            os._exit(error.exit_code)  # whatever is still at work is not waited for
        except PlaitError as error:
            _say(str(error))
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            _say("interrupted.")
            sys.exit(130)
        except BrokenPipeError:
            sys.exit(1)
        except OSError as error:  # what nobody has foreseen: still one message with the name of the file
            _say(f"{error.filename}: {error.strerror}." if error.filename else f"{error}.")
            sys.exit(1)
        finally:
            farewell()


def _say(text: str) -> None:
    tty = sys.stderr.isatty()
    print(f"\033[1;31merror:\033[0m {text}" if tty else f"error: {text}", file=sys.stderr, flush=True)
