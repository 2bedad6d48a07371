"""Times of a whole call: the model as it is, and a copy whose zeros are skipped."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import nn

from sparse_engine.backends import backend_of
from sparse_engine.config import SparseConfig
from sparse_engine.convert.sparsify import sparsify_
from sparse_engine.errors import UsageError
from sparse_engine.pruning.calibration import read_calibration
from sparse_engine.pruning.calibration.merge import tensors_of, tokens_of
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
        self._tensors = [tensor for tensor in tensors_of(self._batch) if tensor.numel()]
        if not self._tensors:
            raise UsageError("time_on holds no tensor; give one input of the model")
        self.tokens = tokens_of(self._batch)
        self._config = config or SparseConfig(tokens=(self.tokens,))

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
