"""What happens before a command does its work: help, version, a wrong ISA, Ctrl-C."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise

import pytest

COMMANDS = (
    "prune model out",
    "convert model out",
    "run package -t text",
    "inspect package",
    "verify package",
    "info",
    "demo",
    "serve package",
    "bench kernel",
    "bench model package",
)
HEAVY = ("torch", "numpy", "scipy", "transformers", "matplotlib", "fastapi", "triton")


def python(code: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`code` in a fresh interpreter, with sys.argv as of `sparse-engine ARGUMENTS`."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        check=False,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        "--help",
        "--version",
        "bench --help",
        *(f"{' '.join(c.split()[:2])} --help" for c in COMMANDS),
    ],
)
def test_help_imports_nothing_heavy(arguments: str) -> None:
    code = (
        "import atexit, sys\n"
        f"heavy = set({HEAVY})\n"
        "atexit.register(lambda: print(*sorted(set(sys.modules) & heavy), file=sys.stderr))\n"
        "from sparse_engine.cli import main\n"
        "main()"
    )
    done = python(
        code, *arguments.replace(" model --", " --").replace(" package --", " --").split()
    )
    assert done.returncode == 0
    assert done.stdout.strip()
    assert done.stderr.strip() == ""


def test_version_is_the_library_s() -> None:
    done = python("from sparse_engine.cli import main; main()", "--version")
    assert (
        done.stdout
        == python("import sparse_engine as s; print('sparse-engine', s.__version__)").stdout
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_unknown_isa_is_one_line(command: str) -> None:
    code = "from sparse_engine.cli import main; main()"
    done = python(code, *command.split(), SPARSE_ENGINE_ISA="mmx")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: SPARSE_ENGINE_ISA: unknown ISA 'mmx'")


@pytest.mark.parametrize("module", ["sparse_engine.cli.app", "rich.console", "torch", "numpy"])
def test_ctrl_c_during_an_import_is_quiet(module: str) -> None:
    code = f"""
import sys
from itertools import pairwise
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
from sparse_engine.cli import main
main()
"""
    done = python(code, "info")
    assert done.returncode == 130
    assert done.stderr == "error: interrupted\n"


def test_every_public_name_is_found_at_first_use() -> None:
    """Names are imported lazily; modules beside them are found as well, others are not."""
    code = """
import sys, sparse_engine as se
assert "torch" not in sys.modules
assert set(se.__all__) <= set(dir(se))
for name in se.__all__:
    getattr(se, name)
assert se.io.load is se.load and se.prune is se.pruning.prune
assert not hasattr(se, "nonsense")
from sparse_engine import *
assert prune is se.prune
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_native_library_comes_after_torch() -> None:
    """Loaded first it would bring the system's OpenMP runtime beside torch's."""
    code = "from sparse_engine import _core; import sys; print('torch' in sys.modules)"
    assert python(code).stdout == "True\n"


@pytest.mark.parametrize("command", [("bench", "kernel"), ("bench", "compare"), ("convert",)])
def test_paragraphs_of_the_help_fill_their_lines(command: tuple[str, ...]) -> None:
    """A line ends where the next word would not fit: line ends of the source are not kept."""
    done = subprocess.run(
        [sys.executable, "-m", "sparse_engine", *command, "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "80", "TERM": "dumb"},
        check=True,
    )
    text = done.stdout.split("Usage:")[1].split("Example")[0]
    paragraphs = [p.splitlines() for p in "\n".join(map(str.strip, text.split("\n"))).split("\n\n")]
    pairs = [pair for p in paragraphs[1:] for pair in pairwise(p)]
    assert pairs
    for line, following in pairs:
        assert len(line) + 1 + len(following.split()[0]) > 78, line
