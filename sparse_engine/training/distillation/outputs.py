"""Outputs and hidden states of the model and of its teacher."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sparse_engine.errors import UsageError
from sparse_engine.modules.linears import is_linear
from sparse_engine.pruning.plan.stacks import find_stacks
from sparse_engine.pruning.statistics.segments import hidden_states


class Captured:
    """The outputs of some modules in the last forward pass.

    Args:
        model: the model.
        names: of the modules.
    """

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        self._names = names
        self._states: dict[str, Tensor] = {}
        self._hooks: list[RemovableHandle] = []
        for name in names:
            hook = model.get_submodule(name).register_forward_hook(self._keeper(name))
            self._hooks.append(hook)

    def _keeper(self, name: str) -> Any:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            states = hidden_states(output)
            if states is not None:
                self._states[name] = states

        return keep

    @property
    def states(self) -> list[Tensor]:
        """The outputs, in the order of the names."""
        return [self._states[name] for name in self._names if name in self._states]

    def remove(self) -> None:
        """Take the hooks out of the model."""
        for hook in self._hooks:
            hook.remove()
        self._states.clear()


def capture(model: nn.Module, teacher: nn.Module) -> tuple[Captured, Captured]:
    """Capture the outputs of the modules of stacks that both models have.

    Raises:
        UsageError: if the model has no stack, or the teacher lacks a module of it.
    """
    linears = [name for name, module in model.named_modules() if is_linear(module)]
    names = [name for stack in find_stacks(model, linears) for name in stack]
    if not names:
        raise UsageError(
            "distil: the model has no stack of modules, whose hidden states to compare"
        )
    known = {name for name, _ in teacher.named_modules()}
    for name in names:
        if name not in known:
            raise UsageError(
                f"distil: the teacher has no module {name}; give a copy of the dense model"
            )
    return Captured(model, names), Captured(teacher, names)


def output_of(output: Any) -> tuple[Tensor, bool]:
    """The tensor of an output that is compared, and whether it holds logits.

    Raises:
        UsageError: if the output holds no floating-point tensor.
    """
    logits = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits, True
    values = output.values() if isinstance(output, dict) else [hidden_states(output)]
    states = next((value for value in values if isinstance(value, Tensor)), None)
    if states is None or not states.is_floating_point():
        raise UsageError(f"distil: the model returns a {type(output).__name__} without any tensor")
    return states, False
