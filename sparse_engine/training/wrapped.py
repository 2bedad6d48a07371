"""The plain model inside of wrappers, and whether it is apart from its teacher."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from sparse_engine.errors import UnsupportedModelError, UsageError
from sparse_engine.modules.effective import check_plain

MAX_WRAPPERS = 10
"""One around another."""


def plain_model(model: Any) -> nn.Module:
    """The model inside of DistributedDataParallel, DataParallel and torch.compile.

    Args:
        model: a model, wrapped or not; it is not changed.

    Raises:
        UsageError: if it is no module, or holds adapters or weights that must be made plain first.
        UnsupportedModelError: if its parameters are split over processes.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"model is {model!r:.80}; give a torch.nn.Module")
    plain = model
    while (inner := _inside(plain)) is not None:
        plain = inner
    if plain is not model:
        check_plain(plain)  # a wrapper holds the parameters as they are now
    for name, module in plain.named_modules():
        if type(module).__module__.startswith("peft.tuners."):
            raise UsageError(
                f"{name} is an adapter of peft, whose sum with a pruned weight has no zeros: "
                "merge it first, model = model.merge_and_unload()"
            )
    for name, parameter in plain.named_parameters():
        if type(parameter.data).__name__ == "DTensor" or "Fully" in type(model).__name__:
            raise UnsupportedModelError(
                f"{name} is split over processes: train with DistributedDataParallel instead"
            )
    return plain


def _inside(model: nn.Module) -> nn.Module | None:
    """What a wrapper holds; None if the model is none."""
    if isinstance(model, DistributedDataParallel | DataParallel):
        inner = model.module
    else:  # of torch.compile
        inner = dict(model.named_children()).get("_orig_mod")
    return inner


def plain_optimizer(optimizer: Any) -> Any:
    """The optimizer inside of the wrappers of accelerate and Lightning."""
    for _ in range(MAX_WRAPPERS):
        optimizer = getattr(optimizer, "optimizer", optimizer)
    return optimizer


def check_apart(model: nn.Module, teacher: nn.Module | None) -> None:
    """Raise UsageError if training the model would change the teacher."""
    if teacher is None:
        return
    own = {p.data_ptr(): name for name, p in model.named_parameters() if p.requires_grad}
    for parameter in teacher.parameters():
        if parameter.numel() and parameter.data_ptr() in own:
            raise UsageError(
                f"the teacher shares {own[parameter.data_ptr()]} with the model: give a copy, "
                "copy.deepcopy(model)"
            )
