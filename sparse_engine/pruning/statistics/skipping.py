"""Runs a model without some blocks of its stacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from sparse_engine.pruning.statistics.capture import forward_hooks


@contextmanager
def skipping(blocks: Mapping[str, nn.Module]) -> Iterator[None]:
    """Each of these blocks returns the hidden states that it gets.

    It still runs, because later blocks may read what else it returns, such as the position biases
    of T5.

    Args:
        blocks: by any names.
    """

    def callback(_: str, args: Any, kwargs: Any, output: Any) -> Any:
        states = entering(args, kwargs)
        return states if isinstance(output, Tensor) else (states, *output[1:])

    with forward_hooks(dict(blocks), callback):
        yield


def entering(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The hidden states among the arguments of a block: the first of them."""
    return args[0] if args else next(iter(kwargs.values()))
