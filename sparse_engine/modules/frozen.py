"""Parameters of sparse models take no gradients; which ones did is kept for `densify_`."""

from __future__ import annotations

from torch import nn

# On the module that was frozen: names below it of the parameters that took gradients.
KEPT = "_took_gradients"


def trained(model: nn.Module) -> tuple[str, ...]:
    """Names of the parameters that take gradients: to be asked for before layers are swapped."""
    named = model.named_parameters(remove_duplicate=False)
    return tuple(name for name, parameter in named if parameter.requires_grad)


def freeze_(model: nn.Module, names: tuple[str, ...]) -> None:
    """Let no parameter of `model` take gradients, and remember that `names` did.

    Names survive swaps there and back, parameters do not.
    """
    setattr(model, KEPT, tuple(dict.fromkeys((*vars(model).get(KEPT, ()), *names))))
    model.requires_grad_(False)


def thaw_(model: nn.Module) -> None:
    """Undo `freeze_` of `model` and of modules in it, for the parameters that are still there."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for path, module in model.named_modules():
        for name in vars(module).pop(KEPT, ()):
            full = f"{path}.{name}" if path else name
            if full in parameters:
                parameters[full].requires_grad_(True)
