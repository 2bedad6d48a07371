"""Weights that modules compute from other tensors before each call, replaced by their values.

torch.nn.utils makes such modules: prune (`weight_orig` times `weight_mask`), weight_norm and
spectral_norm, old and new, and any other parametrization. `module.weight` may be out of date
between calls, as after `load_state_dict`, so values are computed from the original tensors here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from sparse_engine.errors import UsageError
from sparse_engine.modules.names import join

ORIGINAL, MASK = "_orig", "_mask"
# Called with the full name of a weight: whether it is folded.
WeightFilter = Callable[[str], bool]


def fold_(model: nn.Module, weight_filter: WeightFilter | None = None) -> dict[str, str]:
    """Replace weights that are computed before each call by their values, in place.

    The model computes what it computed in eval mode, and its state dict has the plain names. Values
    stay in the dtype of the tensors that they are computed from.

    Args:
        model: the module, and all modules in it.
        weight_filter: picks weights by their full name, as "encoder.fc.weight"; all by default.

    Returns:
        Names of modules, with what was folded into their weights.

    >>> layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 4))
    >>> fold_(torch.nn.Sequential(layer))
    {'0': 'weight norm folded in'}
    """
    found = {}
    for path, module in model.named_modules():
        folded = [
            fold(module, name)
            for name, fold in _computed(module)
            if weight_filter is None or weight_filter(join(path, name))
        ]
        if folded:
            found[path] = f"{', '.join(dict.fromkeys(folded))} folded in"
    return found


def check_plain(module: nn.Module) -> None:
    """Check that no weight in `module` is computed before each call.

    Raises:
        UsageError: One is.
    """
    for path, child in module.named_modules():
        for name, _ in _computed(child):
            raise UsageError(
                f"{join(path, name)} is computed from other tensors before each call: make it "
                "plain first, with sparse_engine.modules.effective.fold_(module) or torch's own "
                "remove functions"
            )


# The name of a weight, and a function that replaces it by its value and returns what was folded.
Fold = tuple[str, Callable[[Any, str], str]]


def _computed(module: nn.Module) -> tuple[Fold, ...]:
    """The weights of one module that are computed before each call."""
    return *_masked(module), *_parametrized(module), *_hooked(module)


def _masked(module: nn.Module) -> Iterator[Fold]:
    """Weights pruned by torch.nn.utils.prune, with its hook or without."""
    for original in list(module._parameters):
        name = original.removesuffix(ORIGINAL)
        if name != original and module._buffers.get(name + MASK) is not None:
            yield name, _fold_mask


def _fold_mask(module: Any, name: str) -> str:
    original = module._parameters.pop(name + ORIGINAL)
    mask = module._buffers.pop(name + MASK)
    _drop_hooks(module, lambda hook: _prunes(hook, name))
    # Where the mask is zero the value is zero, also where the original is inf or nan.
    value = original.detach().masked_fill(mask.to(original.device) == 0, 0)
    _set(module, name, value, original.requires_grad)
    return "mask of torch.nn.utils.prune"


def _prunes(hook: Any, name: str) -> bool:
    return isinstance(hook, BasePruningMethod) and hook._tensor_name == name


def _parametrized(module: nn.Module) -> Iterator[Fold]:
    if parametrize.is_parametrized(module):
        for name in list(module.parametrizations):  # type: ignore[arg-type]
            yield name, _fold_parametrization


def _fold_parametrization(module: Any, name: str) -> str:
    parts = module.parametrizations[name].eval()  # in training spectral norm updates its vectors
    tensors = [*parts.parameters(), *parts.buffers()]
    if any(tensor.is_meta for tensor in tensors):  # a model without weights: only shapes matter
        parts.to("meta")
    kinds = [_kind_name(type(part).__name__) for part in parts]
    trained = any(parameter.requires_grad for parameter in parts.parameters())
    with torch.no_grad():
        value = getattr(module, name).detach().clone()
    parametrize.remove_parametrizations(module, name)
    _set(module, name, value, trained)
    return " and ".join(dict.fromkeys(kinds))


def _hooked(module: nn.Module) -> Iterator[Fold]:
    """Weight norm and spectral norm of torch.nn.utils, which use hooks, not parametrizations."""
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, WeightNorm):
            yield hook.name, _fold_weight_norm
        elif isinstance(hook, SpectralNorm):
            yield hook.name, _fold_spectral_norm


def _fold_weight_norm(module: Any, name: str) -> str:
    trained = module._parameters[f"{name}_v"].requires_grad
    remove_weight_norm(module, name)
    getattr(module, name).requires_grad_(trained)
    return "weight norm"


def _fold_spectral_norm(module: Any, name: str) -> str:
    trained = module._parameters[name + ORIGINAL].requires_grad
    remove_spectral_norm(module, name)
    getattr(module, name).requires_grad_(trained)
    return "spectral norm"


def _kind_name(kind: str) -> str:
    return {"_WeightNorm": "weight norm", "_SpectralNorm": "spectral norm"}.get(kind, kind)


def _drop_hooks(module: nn.Module, dropped: Callable[[Any], bool]) -> None:
    for key in [key for key, hook in module._forward_pre_hooks.items() if dropped(hook)]:
        del module._forward_pre_hooks[key]


def _set(module: nn.Module, name: str, value: Tensor, trained: bool) -> None:
    """Make `value` a parameter; by setattr, so that recurrent networks update their own lists."""
    for attributes in (module.__dict__, module._buffers, module._parameters):
        attributes.pop(name, None)
    setattr(module, name, nn.Parameter(value, requires_grad=trained))
