"""All commands, and the exit code and message of each error."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer

from sparse_engine import __version__
from sparse_engine.cli import (
    bench,
    convert,
    demo,
    export,
    info,
    inspect,
    prune,
    prune_until,
    sensitivity,
    serve,
)
from sparse_engine.cli import run as run_package
from sparse_engine.cli.common import Command
from sparse_engine.errors import SparseEngineError

app = typer.Typer(
    name="sparse-engine",
    help="Prune language models and run them faster and smaller on ordinary CPUs and GPUs.\n\n"
    "Typical path: prune MODEL pruned --sparsity 0.9, convert pruned package, run package.\n\n"
    "Errors are one line. With --traceback, anywhere, the traceback is shown as well.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo", cls=Command)(demo.demo)
app.command("prune", cls=Command)(prune.prune)
app.command("prune-until", cls=Command)(prune_until.prune_until)
app.command("sensitivity", cls=Command)(sensitivity.sensitivity)
app.command("convert", cls=Command)(convert.convert)
app.command("export", cls=Command)(export.export)
app.command("run", cls=Command)(run_package.run)
app.command("inspect", cls=Command)(inspect.inspect)
app.command("verify", cls=Command)(inspect.verify)
app.command("info", cls=Command)(info.info)
app.add_typer(bench.app, name="bench")
app.command("serve", cls=Command)(serve.serve)


def _show_version(requested: bool) -> None:
    if requested:
        print(f"sparse-engine {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Options of the program itself."""


def run() -> int:
    """Run the command in sys.argv; its exit code, after one line on stderr where it failed.

    KeyboardInterrupt and unexpected errors are left to the caller.
    """
    whole = "--traceback" in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != "--traceback"]
    try:
        code = app(arguments, prog_name="sparse-engine", standalone_mode=False) or 0
    except SparseEngineError as error:
        message, code = str(error), error.exit_code
        if whole:
            traceback.print_exception(error)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except OSError as error:
        message, code = f"{error.filename or 'file'}: {error.strerror or error}", 2
    except Exception as error:
        # Typer has its own copy of click's usage errors; only those can format their message.
        format_message = getattr(error, "format_message", None)
        if format_message is None:
            raise
        if type(error).__name__ == "NoArgsIsHelpError":  # the help is on the screen already
            return 2
        message, code = format_message(), 2
    else:
        if code == 130:  # typer's exit code of Ctrl-C
            raise KeyboardInterrupt
        return code
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code
