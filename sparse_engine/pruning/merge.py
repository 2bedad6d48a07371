"""Small calibration batches of one shape are run together: a thousand short texts as fast as thirty.

Tensors are joined along their first dimension, with nothing padded, and only where the model gives
for two batches at once what it gives for each of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.pruning.calibration import Batch

TOKENS = 4096  # of a merged batch, at most
# Largest difference of outputs, of their largest value, that rounding makes.
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-8}
HALF_TOLERANCE = 2e-2


@torch.no_grad()
def merge(model: nn.Module, batches: list[Batch]) -> list[Batch]:
    """Batches of one shape together, up to TOKENS; all others, and their order, as they are."""
    shapes: dict[Any, list[Batch]] = defaultdict(list)
    for place, batch in enumerate(batches):
        shapes[_shape(batch) or place].append(batch)
    allowed: dict[Any, bool] = {}
    merged = []
    for alike in shapes.values():
        if len(alike) == 1:
            merged += alike
            continue
        kind = _kind(alike[0])
        if kind not in allowed:
            allowed[kind] = _are_independent(model, alike[0], alike[1])
        if not allowed[kind]:
            merged += alike
            continue
        size = max(TOKENS // _tokens(alike[0]), 1)
        merged += [join(alike[at : at + size]) for at in range(0, len(alike), size)]
    return merged


def join(batches: list[Batch]) -> Batch:
    """Batches of one shape as one."""
    if len(batches) == 1:
        return batches[0]
    first = batches[0]
    rows = len(next(_tensors(first)))
    return replace(
        first,
        args=tuple(_cat(values) for values in zip(*(b.args for b in batches), strict=True)),
        kwargs={key: _cat(tuple(b.kwargs[key] for b in batches)) for key in first.kwargs},
        real=tuple(torch.cat(masks) for masks in zip(*(b.real for b in batches), strict=True)),
        items=tuple(item for batch in batches for item in batch.items * rows),
    )


def _cat(values: tuple[Any, ...]) -> Any:
    return torch.cat(values) if isinstance(values[0], Tensor) else values[0]


def _values(batch: Batch) -> Iterator[tuple[int | str, Any]]:
    yield from enumerate(batch.args)
    yield from batch.kwargs.items()


def _tensors(batch: Batch) -> Iterator[Tensor]:
    yield from (value for _, value in _values(batch) if isinstance(value, Tensor))


def _shape(batch: Batch) -> tuple[Any, ...] | None:
    """What batches must have in common to be joined; None for one that cannot be."""
    tensors = list(_tensors(batch))
    if not tensors or any(t.ndim == 0 or t.layout != torch.strided for t in tensors):
        return None
    if not tensors[0].numel() or len({len(t) for t in tensors}) != 1:
        return None
    found: list[Any] = []
    for name, value in _values(batch):
        if isinstance(value, Tensor):
            found.append((name, value.dtype, tuple(value.shape)))
        elif value is None or isinstance(value, bool | int | float | str):
            found.append((name, type(value), value))
        else:
            return None
    return tuple(found)


def _kind(batch: Batch) -> tuple[Any, ...]:
    """Names, types and numbers of dimensions: what was shown for one shape holds for all of them."""
    return tuple(
        (name, v.dtype, v.ndim) if isinstance(v, Tensor) else (name, v)
        for name, v in _values(batch)
    )


def _tokens(batch: Batch) -> int:
    """Of the largest tensor: all of its integers, or all rows of its floats."""
    return max(
        t.numel() // (t.shape[-1] if t.is_floating_point() and t.ndim > 1 else 1)
        for t in _tensors(batch)
    )


def _are_independent(model: nn.Module, a: Batch, b: Batch) -> bool:
    """Whether the model gives for both batches at once what it gives for each."""
    outputs = []
    for batch in (a, b):
        with batch.running(model):
            outputs.append(list(_floats(model(*batch.args, **batch.kwargs))))
    both = join([a, b])
    try:
        joined = list(_floats(model(*both.args, **both.kwargs)))
    except Exception:  # whatever a model raises for arguments that are not joined like this
        return False
    if not joined or {len(found) for found in outputs} != {len(joined)}:
        return False
    return all(map(_is_both, joined, *outputs))


def _is_both(joined: Tensor, a: Tensor, b: Tensor) -> bool:
    if a.ndim == 0 or joined.shape != (len(a) + len(b), *a.shape[1:]) or a.shape != b.shape:
        return False
    truth = torch.cat([a, b])
    tolerance = TOLERANCES.get(truth.dtype, HALF_TOLERANCE)
    return bool((joined - truth).abs().max() <= tolerance * truth.abs().max())


def _floats(output: Any) -> Iterator[Tensor]:
    """Floating-point outputs that have elements; a loss, which is a single number, is none."""
    if isinstance(output, Tensor):
        if output.is_floating_point() and output.numel() and output.ndim:
            yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _floats(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from _floats(value)
