"""Times of a whole call: the model as it is, and a copy whose zeros are skipped."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparse_engine.backends import backend_of
from sparse_engine.config import SparseConfig
from sparse_engine.convert.sparsify import sparsify_
from sparse_engine.errors import UsageError, one_line
from sparse_engine.pruning.calibration import Batch
from sparse_engine.pruning.evaluation import evaluation_mode
from sparse_engine.pruning.target.timing import inputs_of


class CallTimes(NamedTuple):
    """Milliseconds of a call, of dense torch and with the sparse kernels."""

    dense_ms: float
    ms: float


class CallTimer:
    """Times calls of a model with a number of tokens, with the kernels that a package would run.

    Args:
        model: the model.
        tokens: of a call. A model that reads token ids gets random ones; another model the first
            batch, repeated.
        batches: calibration inputs, for models that do not read token ids.

    Raises:
        UsageError: no inputs of so many tokens can be made for the model.
    """

    def __init__(self, model: nn.Module, tokens: int, batches: list[Batch]) -> None:
        if not isinstance(tokens, int) or tokens < 1:
            raise UsageError(f"tokens is {tokens!r}: give the number of tokens of a call, as 128")
        inputs = inputs_of(model, tokens, batches)
        self._args, self._kwargs = ((), inputs) if isinstance(inputs, Mapping) else (inputs, {})
        self._tensors = [
            x for x in (*self._args, *self._kwargs.values()) if isinstance(x, Tensor) and x.numel()
        ]
        self._tokens = tokens

    @property
    def conditions(self) -> str:
        """Where times are taken: tokens, processor and threads, in one line."""
        name = backend_of(self._tensors[0]).device_name(self._tensors[0].device)
        threads = torch.get_num_threads()
        return f"a call of {self._tokens} tokens, {name}, {threads} thread{'s'[: threads != 1]}"

    def __call__(self, model: nn.Module) -> CallTimes:
        """The times of a model, which stays as it is; its copy is in memory for that time."""
        sparse = copy.deepcopy(model)
        sparsify_(sparse, SparseConfig(tokens=(self._tokens,)))
        calls: dict[str, Callable[[], Any]] = {
            "dense": lambda: model(*self._args, **self._kwargs),
            "sparse": lambda: sparse(*self._args, **self._kwargs),
        }
        x = self._tensors[0]
        with evaluation_mode(model), evaluation_mode(sparse), one_line("the call to be timed"):
            times = backend_of(x).time(calls, x.device, self._tensors)
        return CallTimes(times["dense"] / 1000, times["sparse"] / 1000)
