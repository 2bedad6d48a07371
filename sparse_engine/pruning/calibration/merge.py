"""Merges small calibration batches of one shape, so that a thousand short texts run fast.

Tensors are concatenated along their first dimension without padding. Batches are merged only if
the model computes for two of them at once what it computes for each of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.pruning.calibration.batch import Batch

MAX_TOKENS = 4096  # of a merged batch
# Largest difference of outputs that counts as rounding, relative to their largest value.
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-8}
HALF_TOLERANCE = 2e-2


@torch.no_grad()
def merge_batches(model: nn.Module, batches: list[Batch]) -> list[Batch]:
    """Merge batches of one shape up to MAX_TOKENS; the others stay as they are, in their order."""
    by_shape: dict[Any, list[Batch]] = defaultdict(list)
    for index, batch in enumerate(batches):
        by_shape[shape_of(batch) or index].append(batch)
    independent: dict[Any, bool] = {}
    merged = []
    for alike in by_shape.values():
        if len(alike) == 1:
            merged += alike
            continue
        signature = signature_of(alike[0])
        if signature not in independent:
            independent[signature] = are_independent(model, alike[0], alike[1])
        if not independent[signature]:
            merged += alike
            continue
        size = max(MAX_TOKENS // tokens_of(alike[0]), 1)
        merged += [_concatenate(alike[at : at + size]) for at in range(0, len(alike), size)]
    return merged


def _concatenate(batches: list[Batch]) -> Batch:
    """One batch of batches that have one shape."""
    if len(batches) == 1:
        return batches[0]
    first = batches[0]
    rows = len(next(tensors_of(first)))
    return replace(
        first,
        args=tuple(_cat(values) for values in zip(*(b.args for b in batches), strict=True)),
        kwargs={key: _cat(tuple(b.kwargs[key] for b in batches)) for key in first.kwargs},
        masks=tuple(torch.cat(masks) for masks in zip(*(b.masks for b in batches), strict=True)),
        items=tuple(item for batch in batches for item in batch.items * rows),
        item=None,
    )


def _cat(values: tuple[Any, ...]) -> Any:
    return torch.cat(values) if isinstance(values[0], Tensor) else values[0]


def _arguments(batch: Batch) -> Iterator[tuple[int | str, Any]]:
    yield from enumerate(batch.args)
    yield from batch.kwargs.items()


def tensors_of(batch: Batch) -> Iterator[Tensor]:
    """The tensors among the arguments of a batch."""
    yield from (value for _, value in _arguments(batch) if isinstance(value, Tensor))


def shape_of(batch: Batch) -> tuple[Any, ...] | None:
    """The key of batches that can be concatenated; None if this batch cannot be."""
    tensors = list(tensors_of(batch))
    if not tensors or any(t.ndim == 0 or t.layout != torch.strided for t in tensors):
        return None
    if not tensors[0].numel() or len({len(t) for t in tensors}) != 1:
        return None
    key: list[Any] = []
    for name, value in _arguments(batch):
        if isinstance(value, Tensor):
            key.append((name, value.dtype, tuple(value.shape)))
        elif value is None or isinstance(value, bool | int | float | str):
            key.append((name, type(value), value))
        else:
            return None
    return tuple(key)


def signature_of(batch: Batch) -> tuple[Any, ...]:
    """Names, dtypes and numbers of dimensions; independence is tested once for each signature."""
    return tuple(
        (name, v.dtype, v.ndim) if isinstance(v, Tensor) else (name, v)
        for name, v in _arguments(batch)
    )


def tokens_of(batch: Batch) -> int:
    """Number of tokens of the largest tensor: its elements if integer, its rows if floating."""
    return max(
        t.numel() // (t.shape[-1] if t.is_floating_point() and t.ndim > 1 else 1)
        for t in tensors_of(batch)
    )


def are_independent(model: nn.Module, a: Batch, b: Batch) -> bool:
    """Whether the model computes for both batches at once what it computes for each."""
    outputs = []
    for batch in (a, b):
        with batch.naming_errors(model):
            outputs.append(list(_floats(model(*batch.args, **batch.kwargs))))
    both = _concatenate([a, b])
    try:
        merged = list(_floats(model(*both.args, **both.kwargs)))
    except Exception:  # any error of a model whose arguments cannot be concatenated
        return False
    if not merged or {len(found) for found in outputs} != {len(merged)}:
        return False
    return all(map(_is_concatenation, merged, *outputs))


def _is_concatenation(merged: Tensor, a: Tensor, b: Tensor) -> bool:
    if a.ndim == 0 or merged.shape != (len(a) + len(b), *a.shape[1:]) or a.shape != b.shape:
        return False
    expected = torch.cat([a, b])
    tolerance = TOLERANCES.get(expected.dtype, HALF_TOLERANCE)
    return bool((merged - expected).abs().max() <= tolerance * expected.abs().max())


def _floats(output: Any) -> Iterator[Tensor]:
    """Floating-point tensors of an output that have elements, without scalars such as a loss."""
    if isinstance(output, Tensor):
        if output.is_floating_point() and output.numel() and output.ndim:
            yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _floats(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from _floats(value)
