"""The hidden states between the modules of stacks, and between recurrent networks."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from sparse_engine.errors import UsageError
from sparse_engine.modules.linears import is_linear
from sparse_engine.pruning.plan.stacks import find_stacks
from sparse_engine.pruning.statistics.segments import hidden_states
from sparse_engine.training.distillation.captured import Captured
from sparse_engine.training.distillation.pairs import paired


def capture_hidden(model: nn.Module, teacher: nn.Module) -> tuple[Captured, Captured]:
    """Capture the outputs of the layers of both models, in pairs.

    Raises:
        UsageError: if the model has no such layers, or those of the teacher do not match.
    """
    own = _stacks(model)
    if not own:
        raise UsageError(
            "distil: the model has no stack of modules, whose hidden states to compare; leave "
            "hidden out"
        )
    pairs = paired(own, _stacks(teacher), "hidden states")
    return (
        Captured(model, {name: (name, _states) for name, _ in pairs}),
        Captured(teacher, {name: (other, _states) for name, other in pairs}),
    )


def _stacks(model: nn.Module) -> list[list[str]]:
    """Names of the modules of each stack; of a model without any, of its recurrent networks."""
    linears = [name for name, module in model.named_modules() if is_linear(module)]
    recurrent = [name for name, module in model.named_modules() if isinstance(module, nn.RNNBase)]
    return find_stacks(model, linears) or [[name] for name in recurrent]


def _states(args: Any, kwargs: Any, output: Any) -> Tensor | None:
    first = output[0] if isinstance(output, tuple) and output else output
    if isinstance(output, PackedSequence) or isinstance(first, PackedSequence):
        packed: PackedSequence = output if isinstance(output, PackedSequence) else first
        return packed.data  # [tokens, features], without padding
    return hidden_states(output)
