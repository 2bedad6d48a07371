"""Random damage to the parts of bitmask layouts: a weight of bounded size, or InvalidFileError."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from sparse_engine.errors import InvalidFileError
from sparse_engine.io.foreign import CompressedTensors
from sparse_engine.io.foreign.compressed_tensors import SparseFormat
from sparse_engine.io.tensorfile import Slot

DTYPES = (torch.float32, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool)


def parts(two_of_four: bool, generator: torch.Generator) -> dict[str, Tensor]:
    weight = torch.randn(6, 12, generator=generator)
    kept = torch.rand(6, 12, generator=generator) < 0.4
    if two_of_four:
        kept = (torch.arange(12) % 4 < 2).expand(6, 12)
    bits = torch.zeros(6, 2, dtype=torch.uint8)
    for row in range(6):
        for column in range(12):
            bits[row, column // 8] |= int(kept[row, column]) << column % 8
    found = {"shape": torch.tensor([6, 12]), "bitmask": bits, "compressed": weight[kept]}
    if two_of_four:
        return found | {"compressed": weight[kept].view(6, 6)}
    counts = kept.sum(1)
    return found | {"row_offsets": counts.cumsum(0) - counts}


def damaged(tensor: Tensor, rng: random.Random) -> Tensor:
    how = rng.randrange(5)
    if how == 0 and tensor.numel():
        flat = tensor.clone().flatten()
        flat[rng.randrange(flat.numel())] = rng.choice((0, 1, 3, 77, 255))
        return flat.view(tensor.shape)
    if how == 1:
        return tensor.to(rng.choice(DTYPES))
    if how == 2:
        return tensor[: rng.randrange(len(tensor) + 1)]
    if how == 3:
        return tensor.flatten().repeat(rng.randrange(3)).reshape(-1, 1)
    huge = [1 << 62, -1, 0, 1, 6, 12, 13, 1 << 31]
    return torch.tensor([rng.choice(huge) for _ in range(rng.randrange(10))])


@pytest.mark.parametrize("two_of_four", [False, True])
def test_damage(two_of_four: bool) -> None:
    format = SparseFormat.BITMASK_24 if two_of_four else SparseFormat.BITMASK
    layout, rng = CompressedTensors({}, format), random.Random(0)
    generator = torch.Generator().manual_seed(0)
    accepted = refused = 0
    for _ in range(600):
        state = {f"x.{key}": tensor for key, tensor in parts(two_of_four, generator).items()}
        name = rng.choice(list(state))
        state[name] = damaged(state[name], rng)
        slots = {
            name: Slot(tensor.dtype, tuple(tensor.shape), 0, tensor.nbytes)
            for name, tensor in state.items()
        }
        most = 8 * state["x.bitmask"].numel()
        try:
            layout.plain_slots(slots)
            weight = layout.plain_state(state)["x.weight"]
        except InvalidFileError:
            refused += 1
        else:
            assert weight.numel() <= most
            accepted += 1
    assert accepted > 20
    assert refused > 200
