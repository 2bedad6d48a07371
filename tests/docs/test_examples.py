"""The examples of docs/examples.md run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = (Path(__file__).parents[2] / "docs" / "examples.md").read_text()
BEGIN, *EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
TITLES = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
# The parts of a model that the last line of an example has run.
OUTPUTS = ("y", "logits")


def test_every_example_is_run() -> None:
    assert len(EXAMPLES) == len(TITLES) == 7


@pytest.mark.parametrize("title", TITLES)
def test_example(title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = EXAMPLES[TITLES.index(title)]
    if "transformers" in code:
        pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(compile(BEGIN, "begin", "exec"), names)
    exec(compile(code, title, "exec"), names)
    y = next(names[name] for name in OUTPUTS if name in names)
    assert y.isfinite().all()
    (package,) = tmp_path.iterdir()
    import sparse_engine as se

    assert se.io.inspect(package).skipped >= 0.79
