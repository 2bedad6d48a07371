"""Block reconstruction: one module of a stack at a time is fitted to the output of the dense one.

After the layers of a block have been pruned and refitted by least squares, Adam changes the kept
weights and the biases of all of them together, to minimise

    |B(x) - Bd(xd)|^2 over the calibration tokens

with B and x the pruned block and its input, Bd and xd those of the dense model. No labels are
needed. Unlike least squares this sees the attention and the activations between the layers.

Guo et al. 2024, "EBFT: Effective and Block-Wise Fine-Tuning for Sparse LLMs", arXiv:2402.12419.
Kingma and Ba 2015, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call

from sparse_engine.errors import UsageError
from sparse_engine.pruning.recovery.base import Block, BlockReport
from sparse_engine.pruning.recovery.least_squares import LeastSquares
from sparse_engine.pruning.statistics.segments import hidden_states

WARM_UP = 0.1  # share of the steps over which the learning rate rises


@dataclass(frozen=True)
class Blocks(LeastSquares):
    """Least squares for every layer, then a few hundred steps of Adam for every block.

    The weights with the lowest error over all calibration tokens are kept, so that no block gets
    worse. Layers outside of the stacks are refitted by least squares only.

    Attributes:
        steps: of Adam for each block; one calibration batch is one step.
        rate: the highest learning rate, relative to the root mean square of the kept weights of
            each layer. It falls to zero along a cosine.
    """

    name = "blocks"
    aliases = ()
    tunes_blocks = True
    steps: int = 200
    rate: float = 0.03

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UsageError(f"recovery blocks: steps={self.steps} must be at least 1")
        if not 0 < self.rate < 1:
            raise UsageError(f"recovery blocks: rate={self.rate} must lie between 0 and 1")

    def tune(
        self, block: Block, generator: torch.Generator, working: Callable[[str], None]
    ) -> BlockReport:
        started = time.perf_counter()
        fit = _Fit(block)
        before = best = fit.error()
        best_values = fit.values()
        with torch.enable_grad():
            optimiser = torch.optim.Adam(
                [{"params": [p], "scale": scale} for p, scale in fit.scaled_parameters()]
            )
            order = _batch_order(len(block.inputs), generator)
            check_every = max(self.steps // 4, 1)
            for step in range(1, self.steps + 1):
                for group in optimiser.param_groups:
                    group["lr"] = self.rate * group["scale"] * _schedule(step, self.steps)
                fit.differentiate(next(order))
                optimiser.step()
                working(f"block {block.name}, step {step} of {self.steps}")
                if step % check_every == 0 or step == self.steps:
                    with torch.no_grad():
                        error = fit.error()
                    if error < best:
                        best, best_values = error, fit.values()
        fit.write(best_values)
        return BlockReport(block.name, before, best, time.perf_counter() - started)


class _Fit:
    """The parameters of one block that change, and the error of its output."""

    def __init__(self, block: Block) -> None:
        self._block = block
        owners = {id(p): p for layer in block.layers for p in layer.linear.parameters()}
        named = block.module.named_parameters(remove_duplicate=False)
        self._names = {name: id(p) for name, p in named if id(p) in owners}
        self._originals = owners
        # A weight that is zero stays zero; a bias changes everywhere.
        weights = {id(layer.linear.weight) for layer in block.layers}
        self._masks = {key: p != 0 for key, p in owners.items() if key in weights}
        self._parameters = {
            key: p.detach().float().clone().requires_grad_() for key, p in owners.items()
        }
        self._energy = sum(float(target.float().square().sum()) for target in block.targets)

    def scaled_parameters(self) -> Iterator[tuple[Tensor, float]]:
        """Each parameter, and the root mean square of the kept weights of its layer."""
        for layer in self._block.layers:
            weight = self._parameters[id(layer.linear.weight)].detach()
            kept = int(self._masks[id(layer.linear.weight)].sum())
            scale = float((weight.square().sum() / max(kept, 1)).sqrt())
            for p in layer.linear.parameters():
                yield self._parameters[id(p)], scale

    def differentiate(self, index: int) -> None:
        """Set the gradients to those of the error of one calibration batch.

        The parameters of the model itself, such as those of norms, get no gradients.
        """
        share = len(self._block.inputs) / max(self._energy, 1e-30)
        parameters = list(self._parameters.values())
        loss = self._squared_error(index) * share
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient  # None for the layer of an expert that no token reaches

    def error(self) -> float:
        """|B(x) - Bd(xd)| / |Bd(xd)| over all calibration tokens."""
        total = sum(float(self._squared_error(i)) for i in range(len(self._block.inputs)))
        return float((total / max(self._energy, 1e-30)) ** 0.5)

    def values(self) -> dict[int, Tensor]:
        """A copy of the parameters."""
        return {key: p.detach().clone() for key, p in self._parameters.items()}

    def write(self, values: dict[int, Tensor]) -> None:
        """Write parameters into the block."""
        for key, value in values.items():
            mask = self._masks.get(key)
            self._originals[key].data.copy_(value if mask is None else value * mask)

    def _squared_error(self, index: int) -> Tensor:
        batch, target = self._block.inputs[index], self._block.targets[index]
        masked = {key: self._masked(key) for key in self._parameters}
        parameters = {name: masked[key] for name, key in self._names.items()}
        output = functional_call(self._block.module, parameters, batch.args, batch.kwargs)
        states = hidden_states(output)
        assert states is not None
        rows = batch.token_rows(states, self._block.name)
        return (rows.float() - target.float()).square().sum()

    def _masked(self, key: int) -> Tensor:
        value, mask = self._parameters[key], self._masks.get(key)
        return (value if mask is None else value * mask).to(self._originals[key].dtype)


def _schedule(step: int, steps: int) -> float:
    """A linear rise over WARM_UP of the steps, then a cosine down to zero."""
    rise = max(round(WARM_UP * steps), 1)
    if step <= rise:
        return step / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / (steps - rise)))


def _batch_order(count: int, generator: torch.Generator) -> Iterator[int]:
    """Indices of batches without end, every batch once in each round."""
    while True:
        yield from torch.randperm(count, generator=generator).tolist()
