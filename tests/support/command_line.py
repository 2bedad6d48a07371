"""Running the command line in this process."""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass

import pytest

from sparse_engine.cli import main

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *"the cat sat on a mat and dog ran far away now".split(),
]


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def run(*arguments: object, **env: str) -> Done:
    """The command in this process: what `sparse-engine ARGUMENTS` prints and exits with."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sparse-engine", *map(str, arguments)])
        for name, value in {"NO_COLOR": "1", "COLUMNS": "200", **env}.items():
            patch.setenv(name, value)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as stop:
                code = int(stop.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


def ok(*arguments: object, **env: str) -> str:
    done = run(*arguments, **env)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def refused(code: int, *arguments: object, **env: str) -> str:
    """The one line on stderr of a command that must fail with `code`."""
    done = run(*arguments, **env)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == code, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]
