"""Scripts of examples/ as modules."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "examples"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """script(name): a script of examples/, or a module of its package `common`."""
    own = {path.stem for path in FOLDER.glob("*.py")} | {"common"}
    monkeypatch.syspath_prepend(str(FOLDER))
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)
    for name in list(sys.modules):
        if name.partition(".")[0] in own:
            del sys.modules[name]
