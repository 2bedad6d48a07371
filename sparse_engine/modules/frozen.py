"""Parameters of sparse models take no gradients; `densify_` restores the flags."""

from __future__ import annotations

from torch import nn

from sparse_engine.modules.names import join

# Attribute of the frozen module: names below it of the parameters that took gradients.
TRAINABLE = "_took_gradients"


def trainable_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the parameters that take gradients; to be read before layers are replaced."""
    named = model.named_parameters(remove_duplicate=False)
    return tuple(name for name, parameter in named if parameter.requires_grad)


def freeze_(model: nn.Module, names: tuple[str, ...]) -> None:
    """Let no parameter of `model` take gradients, and record `names` as those that did.

    Names survive conversions in both directions; parameters do not.
    """
    setattr(model, TRAINABLE, tuple(dict.fromkeys((*vars(model).get(TRAINABLE, ()), *names))))
    model.requires_grad_(False)


def unfreeze_(model: nn.Module) -> None:
    """Undo `freeze_` of `model` and of modules in it, for the parameters that still exist."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for path, module in model.named_modules():
        for name in vars(module).pop(TRAINABLE, ()):
            full = join(path, name)
            if full in parameters:
                parameters[full].requires_grad_(True)
