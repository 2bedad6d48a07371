"""Everything of a model that an error must leave as it was, and errors at any call."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import nn


class Picture:
    """The modules, tensors, values, attributes, hooks and configs of a model at one time."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = list(model.named_modules())  # kept, so that no id is used again
        self.classes = [type(module) for _, module in self.modules]
        self.attributes = [shallow(module.__dict__) for _, module in self.modules]
        self.configs = [str(getattr(module, "config", "")) for _, module in self.modules]
        tensors = [
            tensor
            for _, module in self.modules
            for tensor in (*module._parameters.values(), *module._buffers.values())
            if tensor is not None
        ]
        self.tensors = [(t, t.data_ptr(), t.requires_grad, t.detach().clone()) for t in tensors]

    def check(self, model: nn.Module) -> None:
        """Fail unless the model is as it was."""
        now = Picture(model)
        assert [(name, id(m)) for name, m in now.modules] == [
            (name, id(m)) for name, m in self.modules
        ]
        assert now.classes == self.classes
        for (name, _), found, expected in zip(
            self.modules, now.attributes, self.attributes, strict=True
        ):
            for attribute in found.keys() | expected.keys():
                assert found.get(attribute) == expected.get(attribute), (name, attribute)
        assert now.configs == self.configs
        assert [parts[1:3] for parts in now.tensors] == [parts[1:3] for parts in self.tensors]
        for (one, *_, a), (other, *_, b) in zip(now.tensors, self.tensors, strict=True):
            assert one is other
            assert torch.equal(a, b)


def shallow(value: Any) -> Any:
    """Containers with what they hold, and of everything else who it is."""
    if isinstance(value, dict):
        return {name: shallow(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [shallow(item) for item in value]
    if isinstance(value, bool | int | float | str | type(None)):
        return value
    return id(value)


def calls_of(run: Callable[[], object], fails_at: int | None = None) -> int:
    """How many functions of sparse_engine a run calls; KeyboardInterrupt at the start of one.

    What restores a model is left out.
    """
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        code = frame.f_code
        path = code.co_filename
        if code.co_flags & inspect.CO_GENERATOR:  # errors in one that is thrown away are lost
            return
        if event == "call" and "/sparse_engine/" in path and not path.endswith("snapshot.py"):
            count += 1
            if count == fails_at:
                raise KeyboardInterrupt

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    return count
