"""The command line: arguments in, one library call, a table or one line out."""

from __future__ import annotations

import sys
import traceback

import typer

from sparse_engine.cli import bench, convert, demo, info, inspect, prune, run, serve
from sparse_engine.cli.common import check_isa
from sparse_engine.errors import SparseEngineError

app = typer.Typer(
    name="sparse-engine",
    help="Prune language models and run them faster and smaller on ordinary CPUs and GPUs.\n\n"
    "Typical path: prune MODEL pruned --sparsity 0.9, convert pruned package, run or serve package.\n\n"
    "Errors are one line; with --traceback, anywhere, the rest is shown as well.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("prune")(prune.prune)
app.command("convert")(convert.convert)
app.command("run")(run.run)
app.command("inspect")(inspect.inspect)
app.command("verify")(inspect.verify)
app.command("info")(info.info)
app.add_typer(bench.app, name="bench")
app.command("serve")(serve.serve)


def main() -> None:
    """Entry point: every expected error is one line on stderr and its exit code."""
    whole = "--traceback" in sys.argv[1:]
    sys.argv[1:] = [argument for argument in sys.argv[1:] if argument != "--traceback"]
    try:
        check_isa()
        sys.exit(app(prog_name="sparse-engine", standalone_mode=False) or 0)
    except SparseEngineError as error:
        message, code = str(error), error.exit_code
        if whole:
            traceback.print_exception(error)
    except (KeyboardInterrupt, typer.Abort):
        message, code = "interrupted", 130
    except OSError as error:
        message, code = f"{error.filename or 'file'}: {error.strerror or error}", 2
    except Exception as error:
        # Typer carries its own copy of click's usage errors: know them by what they offer.
        told = getattr(error, "format_message", None)
        if told is None:
            raise
        if type(error).__name__ == "NoArgsIsHelpError":  # the help is on the screen already
            sys.exit(2)
        message, code = told(), 2
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


__all__ = ["app", "main"]
