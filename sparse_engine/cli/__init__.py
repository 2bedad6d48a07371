"""The command line: arguments in, one library call, a table or one line out."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point: every expected error is one line on stderr and its exit code."""
    try:
        # Imported here, so that Ctrl-C during imports is as quiet as it is later.
        from sparse_engine.cli.app import run

        sys.exit(run())
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)


__all__ = ["main"]
