"""What save refuses, and what it copies beside the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sparse_engine.errors import UsageError
from sparse_engine.io import save
from sparse_engine.nn import SparseLinear


class Stateful(nn.Module):
    def get_extra_state(self) -> Any:
        return {"x": 1}

    def set_extra_state(self, state: Any) -> None:
        pass


def complex_buffer() -> nn.Module:
    module = nn.Module()
    module.register_buffer("z", torch.zeros(2, dtype=torch.complex64))
    return module


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: SparseLinear(3, 4), "wrap it in nn.Sequential"),
        (lambda: nn.Sequential(Stateful()), "0: Stateful keeps extra state"),
        (complex_buffer, "'z' cannot be stored: it is torch.strided complex64 on cpu"),
        (lambda: nn.Linear(2, 2, device="meta"), "'weight' cannot be stored: .* on meta"),
    ],
)
def test_what_a_package_cannot_hold(model: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        save(model(), tmp_path / "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("recipe", [{"x": float("nan")}, {"x": object()}, {"x": {1, 2}}])
def test_recipe_must_be_json(recipe: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="recipe is not plain JSON"):
        save(nn.Linear(2, 2), tmp_path / "a", recipe=recipe)
    assert not list(tmp_path.iterdir())


def test_companions_are_copied_from_a_closed_list(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "1_Pooling").mkdir(parents=True)
    for name in ("tokenizer.json", "vocab.txt", "1_Pooling/config.json", "run.py", "a.bin"):
        (source / name).write_text(name)
    noted: dict[str, Any] = {"sparsity": 0.9, "examples": [{"text": "mine"}]}
    noted["layers"] = [{"name": "a", "density": {"packed": "a picture"}}, 3]
    (source / "pruning.json").write_text(json.dumps(noted))
    save(nn.Linear(2, 2), tmp_path / "a", source=source)
    files = {str(p.relative_to(tmp_path / "a")) for p in (tmp_path / "a").rglob("*") if p.is_file()}
    assert files == {
        "sparse_engine.safetensors",
        "sparse_engine.json",
        "tokenizer.json",
        "vocab.txt",
        "1_Pooling/config.json",
    }
    assert (tmp_path / "a/1_Pooling/config.json").read_text() == "1_Pooling/config.json"
    manifest = json.loads((tmp_path / "a/sparse_engine.json").read_bytes())
    assert manifest["recipe"] == {"sparsity": 0.9, "layers": [{"name": "a"}, 3]}
