"""Times of a whole call: the model as it is, and a copy whose zeros are skipped."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparse_engine.backends import backend_of
from sparse_engine.config import SparseConfig
from sparse_engine.convert.sparsify import sparsify_
from sparse_engine.pruning.calibration import read_calibration
from sparse_engine.pruning.evaluation import evaluation_mode


class CallTimes(NamedTuple):
    """Milliseconds of a call, of dense torch and with the sparse kernels."""

    dense_ms: float
    ms: float


class CallTimer:
    """Times a model on one input, with the kernels that a package of it would run.

    Args:
        model: the model.
        item: one input, as an item of calibration.
        config: how the copy stores its weights; by default the fastest formats for the tokens of
            the input are measured.

    Raises:
        UsageError: the input does not fit the model.
    """

    def __init__(self, model: nn.Module, item: Any, config: SparseConfig | None = None) -> None:
        (self._batch,) = read_calibration(model, [item])
        self.tokens = max(map(_tokens, self._tensors), default=1)
        self._config = config or SparseConfig(tokens=(self.tokens,))

    @property
    def _tensors(self) -> list[Tensor]:
        values = (*self._batch.args, *self._batch.kwargs.values())
        return [value for value in values if isinstance(value, Tensor) and value.numel()]

    @property
    def conditions(self) -> str:
        """Where times are taken: tokens, processor and threads, in one line."""
        device = self._tensors[0].device
        name = backend_of(self._tensors[0]).device_name(device)
        threads = torch.get_num_threads()
        return f"a call of {self.tokens} tokens, {name}, {threads} thread{'s'[: threads != 1]}"

    def __call__(self, model: nn.Module) -> CallTimes:
        """The times of a model, which stays as it is; its copy is in memory for that time."""
        sparse = copy.deepcopy(model)
        sparsify_(sparse, self._config)
        args, kwargs, inputs = self._batch.args, self._batch.kwargs, self._tensors
        calls = {
            "dense": lambda: model(*args, **kwargs),
            "sparse": lambda: sparse(*args, **kwargs),
        }
        with evaluation_mode(model), evaluation_mode(sparse), self._batch.naming_errors(model):
            times = backend_of(inputs[0]).time(calls, inputs[0].device, inputs)
        return CallTimes(times["dense"] / 1000, times["sparse"] / 1000)


def _tokens(x: Tensor) -> int:
    """Tokens of an input: its elements if it holds ids, its rows if it holds features."""
    return x.numel() // (x.shape[-1] if x.is_floating_point() and x.ndim > 1 else 1)
