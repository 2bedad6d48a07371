"""Adjacent layers against derivatives of the running model: the reference of `find_links`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.modules.linears import is_linear, weight_of
from sparse_engine.pruning.coupling import Link, find_links


def dependent_rows(
    model: nn.Module, run: Callable[[], Any], link: Link, column: int
) -> tuple[set[int], bool]:
    """Rows of the producer on which one input of the reader depends, by derivatives.

    Every linear layer but the producer passes on a detached output, so that only what lies between
    the two layers is seen.

    Returns:
        The rows, and whether the reader ran after the producer at all.
    """
    made: list[Tensor] = []
    read: list[Tensor] = []
    linears = {name: module for name, module in model.named_modules() if is_linear(module)}

    def on_output(name: str) -> Callable[[Any, Any, Any], Tensor]:
        def hook(module: Any, args: Any, output: Tensor) -> Tensor:
            output = output.detach()
            if name == link.producer:
                output.requires_grad_()
                made.append(output)
            return output

        return hook

    handles = [module.register_forward_hook(on_output(name)) for name, module in linears.items()]
    handles.append(
        linears[link.reader].register_forward_pre_hook(lambda module, args: read.append(args[0]))
    )
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    wanted = [x[..., column].sum() for x in read if x.requires_grad]
    if not wanted or not made:
        return set(), False
    gradients = torch.autograd.grad(sum(wanted), made, allow_unused=True)  # type: ignore[arg-type]
    found: set[int] = set()
    for gradient in gradients:
        if gradient is not None:
            found |= set(gradient.flatten(0, -2).abs().sum(0).nonzero()[:, 0].tolist())
    return found, True


def check(model: nn.Module, run: Callable[[], Any]) -> list[Link]:
    """The links of a model, each compared with derivatives at a few columns."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    links = find_links(model)
    assert len({(link.producer, link.reader) for link in links}) == len(links)
    weights = {name: weight_of(m) for name, m in model.named_modules() if is_linear(m)}
    for link in links:
        assert link.rows.shape == (weights[link.producer].shape[0],)
        assert link.columns.shape == (weights[link.reader].shape[1],)
        seen = is_reached = False
        for column in (0, 1, len(link.columns) // 2, len(link.columns) - 1):
            unit = int(link.columns[column])
            rows, ran = dependent_rows(model, run, link, column)
            seen, is_reached = seen or bool(rows), is_reached or ran
            if unit < 0:
                assert not rows, (link.producer, link.reader, column)
            elif ran and rows:  # a unit of a ReLU may be off for all tokens
                expected = set((link.rows == unit).nonzero()[:, 0].tolist())
                assert rows <= expected, (link.producer, link.reader, column)
                assert rows == expected or len(expected) > 1
        assert seen or not is_reached, (link.producer, link.reader)
    return links


def names(links: list[Link]) -> list[str]:
    return sorted(f"{link.producer} > {link.reader}" for link in links)
