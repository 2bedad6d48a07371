"""Checkpoints in the layouts of other tools, written from their published description."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tiny_bert import build
from torch import Tensor

SHARDS = 2
Edit = Callable[[dict[str, Tensor]], object]


def pruned(two_of_four: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    """A tiny BERT with zeros in the matrices of its encoder; 2:4 by magnitude, or 70 % anywhere."""
    model = build().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if weight.dim() != 2 or "encoder" not in name:
            continue
        if two_of_four:
            fours = weight.view(-1, 4)
            smallest = fours.abs().argsort(dim=1)[:, :2]
            fours.scatter_(1, smallest, 0.0)
        else:
            weight.mul_(torch.rand(weight.shape, generator=generator) < 0.3)
    return model.to(dtype)


def bitmask(weight: Tensor) -> dict[str, Tensor]:
    """The four tensors of "sparse-bitmask"."""
    kept = weight != 0
    counts = kept.sum(-1)
    return {
        "shape": torch.tensor(weight.shape),
        "compressed": weight[kept],
        "bitmask": packed(kept),
        "row_offsets": torch.cumsum(counts, 0) - counts,
    }


def bitmask_24(weight: Tensor) -> dict[str, Tensor]:
    """The three tensors of "sparse-24-bitmask": two of four, zeros too."""
    fours = weight.view(-1, 4)
    kept = torch.zeros_like(fours, dtype=torch.bool)
    kept = kept.scatter_(1, fours.abs().topk(2, dim=1).indices, True).view(weight.shape)
    return {
        "shape": torch.tensor(weight.shape).reshape(-1, 1),
        "compressed": weight[kept].view(weight.shape[0], -1),
        "bitmask": packed(kept),
    }


def packed(kept: Tensor) -> Tensor:
    """Eight columns a byte, the first in the lowest bit."""
    return torch.from_numpy(np.packbits(kept.numpy(), axis=-1, bitorder="little"))


def compress(state: dict[str, Tensor], two_of_four: bool, full_names: bool) -> dict[str, Tensor]:
    """A state dict as compressed-tensors stores it.

    Args:
        state: of the model, dense.
        two_of_four: the matrices of the encoder as "sparse-24-bitmask"; else all weights as
            "sparse-bitmask".
        full_names: as before version 0.9: all tensors, under their whole names.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        stem, _, leaf = name.rpartition(".")
        if two_of_four and leaf == "weight" and tensor.dim() == 2 and "encoder" in name:
            parts = bitmask_24(tensor)
        elif not two_of_four and (full_names or leaf == "weight"):
            parts = bitmask(tensor)
        else:
            found[name] = tensor
            continue
        found |= {f"{name if full_names else stem}.{part}": value for part, value in parts.items()}
    return found


def sparsity_config(format: str) -> dict[str, Any]:
    """What config.json says of it."""
    return {
        "quant_method": "compressed-tensors",
        "version": "0.12.2",
        "transform_config": {},
        "sparsity_config": {
            "format": format,
            "targets": ["Linear"],
            "ignore": ["pooler.dense"],
            "global_sparsity": 0.5,
            "sparsity_structure": "unstructured",
            "registry_requires_subclass": False,
        },
    }


def write(
    folder: Path, model: Any, config: dict[str, Any], state: dict[str, Tensor], shards: int = 1
) -> Path:
    """A folder of these tensors, in alternate shards, and of the model's config.json with more."""
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    edit_config(folder, lambda plain: plain.update(config))
    files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    where = {name: files[i % shards] for i, name in enumerate(state)}
    for file in files:
        save_file({n: t.contiguous() for n, t in state.items() if where[n] == file}, folder / file)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change config.json."""
    path = folder / "config.json"
    plain = json.loads(path.read_text())
    edit(plain)
    path.write_text(json.dumps(plain))
