"""How a model runs while it is pruned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without a key-value cache, which grows if a module runs repeatedly."""
    training = [module for module in model.modules() if module.training]
    # Decoders inside a model have their own configs.
    configs: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    caching = [config for config in configs if getattr(config, "use_cache", None)]
    try:
        model.eval()
        for config in caching:
            config.use_cache = False
        yield
    finally:
        for module in training:
            module.training = True
        for config in caching:
            config.use_cache = True
