"""Mutated packages with right hashes are refused in one line or compute; and what watches them
sees.
"""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

PROGRAM = Path(__file__).parents[1] / "fuzz" / "fuzz.py"
FUZZ: dict[str, Any] = runpy.run_path(str(PROGRAM))
MUTATIONS = 2000


def test_mutations_are_refused_or_run() -> None:
    command = [sys.executable, str(PROGRAM), "--mutations", str(MUTATIONS), "--seed", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-2000:]}"
    last = done.stdout.splitlines()[-1]
    match = re.fullmatch(r"(\d+) ran, (\d+) refused, 0 finding", last)
    assert match, last
    ran, refused = map(int, match.groups())
    assert ran + refused == MUTATIONS
    # Mutations that are all refused, or all harmless, would show nothing.
    assert min(ran, refused) > MUTATIONS // 10


CHILD = """
import ctypes, faulthandler, sys, time
print("ready", flush=True)
for line in sys.stdin:
    index = int(line)
    if index == 1:
        faulthandler.enable()
        ctypes.string_at(0)
    if index == 3:
        time.sleep(600)
    if index == 5:
        sys.exit("the end")
    print("ran", flush=True)
"""


def test_crashes_and_hangs_of_children_are_findings() -> None:
    outcomes: dict[int, str] = {}
    FUZZ["fuzz"]([sys.executable, "-c", CHILD], range(8), 2, 3.0, outcomes.__setitem__)
    assert sorted(outcomes) == list(range(8))
    assert "exit -11" in outcomes.pop(1)
    assert outcomes.pop(3).startswith("finding hang")
    assert "the end" in outcomes.pop(5)
    assert set(outcomes.values()) == {"ran"}


def test_other_errors_and_empty_messages_are_findings() -> None:
    from sparse_engine.errors import InvalidFileError, UsageError

    def fail(error: Exception) -> None:
        raise error

    kinds = {
        "refused": InvalidFileError("a tensor is missing"),
        "refused InvalidFileError: two lines": InvalidFileError("two\nlines"),
        "finding UsageError": UsageError(""),
        "finding IndexError": IndexError("1"),
        "finding MemoryError": MemoryError(),
    }
    for told, error in kinds.items():
        assert FUZZ["outcome"](lambda error=error: fail(error)).startswith(told)
    assert FUZZ["outcome"](lambda: None) == "ran"


def test_the_same_seed_gives_the_same_packages(tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAM), "--root", str(tmp_path), "--seed", "7", "--only"]
    told = [
        subprocess.run([*command, str(index)], capture_output=True, text=True, check=False).stdout
        for index in (1, 1, 16)
    ]
    assert told[0] == told[1] != told[2]
