"""A fingerprint of calibration inputs: whether two runs read the same, and how much it was."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_engine.pruning.calibration.batch import Batch


def fingerprint(batches: Sequence[Batch]) -> dict[str, Any]:
    """Plain values for JSON: a SHA-256 of all inputs, the rows of the batches, and their tokens.

    Equal inputs in the same order have the same hash on every machine and device. Tokens are those
    without padding; where a model reads no masks, the elements of its first tensor without features
    (integers), or the rows (floats).
    """
    digest = hashlib.sha256()
    rows = tokens = 0
    for batch in batches:
        for name, value in (*enumerate(batch.args), *sorted(batch.kwargs.items())):
            for part in _parts(value):
                digest.update(f"{name} {_header(part)}\n".encode())
                if isinstance(part, Tensor):
                    digest.update(_bytes(part))
        first = next(filter(_is_tensor, (*batch.args, *batch.kwargs.values())), torch.empty(0))
        rows += len(first) if first.dim() else 1
        tokens += _tokens(batch, first)
    return {"inputs_sha256": digest.hexdigest(), "rows": rows, "tokens": tokens}


def _tokens(batch: Batch, first: Tensor) -> int:
    if batch.masks:
        return int(batch.masks[0].sum())
    if not first.is_floating_point():
        return first.numel()
    return first.numel() // first.shape[-1] if first.dim() and first.shape[-1] else 0


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list):
        for item in value:
            yield from _parts(item)
    else:
        yield value


def _header(part: Any) -> str:
    return f"{part.dtype} {tuple(part.shape)}" if isinstance(part, Tensor) else repr(part)


def _bytes(part: Tensor) -> memoryview:
    flat = part.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
