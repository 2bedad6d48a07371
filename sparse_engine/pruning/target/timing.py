"""Times of whole models in turn, and the inputs of a call with a given number of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.errors import UsageError
from sparse_engine.models.inputs import inputs_of_texts, positions, vocabulary
from sparse_engine.pruning.calibration import Batch

# Rounds of all calls in turn: at least FEWEST, and more until SECONDS are spent, up to MOST.
FEWEST, MOST, SECONDS = 5, 40, 2.0
MAX_TOKENS = 1 << 20  # of a call


def in_turn(calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each call: the shortest of several rounds in turn.

    Before each sample the call runs once untimed, so that caches hold what they hold when a model
    is called again and again.
    """
    best = dict.fromkeys(calls, math.inf)
    began = perf_counter()
    for turn in range(MOST):
        for name, call in calls.items():
            call()
            start = perf_counter()
            call()
            best[name] = min(best[name], perf_counter() - start)
        if turn + 1 >= FEWEST and perf_counter() - began > SECONDS:
            break
    return best


def inputs_of(
    model: nn.Module, tokens: int, batches: list[Batch]
) -> dict[str, Any] | tuple[Any, ...]:
    """Arguments of one call with so many tokens.

    A model that reads token ids gets random ones, in as few rows as its positions allow. Another
    model gets its first calibration input, repeated along the batch dimension.

    Raises:
        UsageError: if there is no calibration input, or it cannot be repeated to so many tokens,
            or they are too many.
    """
    if tokens > MAX_TOKENS:
        raise UsageError(f"tokens {tokens}: calls of at most {MAX_TOKENS:,} tokens can be timed")
    rows = vocabulary(model)
    if rows is not None:
        length = min(tokens, positions(model) or tokens)
        count = -(-tokens // length)
        length = -(-tokens // count)
        ids = torch.randint(rows, (count, length), generator=torch.Generator().manual_seed(0))
        ids = ids.to(next(model.parameters()).device)
        try:
            return inputs_of_texts(model, ids, torch.ones_like(ids))
        except UsageError:
            pass  # the model reads something else than texts
    if not batches:
        raise UsageError("a call cannot be timed without calibration inputs; pass calibration=")
    first = batches[0]
    given = [x for x in (*first.args, *first.kwargs.values()) if isinstance(x, Tensor) and x.ndim]
    if not given:
        raise UsageError("the first calibration input has no tensor: its tokens are not known")
    leading = given[0].shape[:-1] if given[0].is_floating_point() else given[0].shape
    repeats = max(1, round(tokens / max(math.prod(leading), 1)))

    def repeated(x: Any) -> Any:
        same = isinstance(x, Tensor) and x.ndim and len(x) == len(given[0])
        return torch.cat([x] * repeats) if same else x

    if first.args:
        return tuple(map(repeated, first.args))
    return {name: repeated(x) for name, x in first.kwargs.items()}
