"""Which block of a stack is removed next: what each costs, given those that are gone already."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from sparse_engine.errors import UsageError
from sparse_engine.named import Named, find
from sparse_engine.pruning.calibration import Batch
from sparse_engine.pruning.cutting.blocks.change import Change, measure_changes
from sparse_engine.pruning.statistics.skipping import skipping
from sparse_engine.pruning.target.outputs import OutputError


@dataclass(frozen=True)
class DenseBlocks:
    """The blocks of a dense model.

    Attributes:
        model: the whole model, in evaluation mode.
        blocks: those that may be removed, by dotted name, in the order in which they run.
        batches: calibration inputs.
        generator: the source of random numbers.
        working: receives what is being computed.
    """

    model: nn.Module
    blocks: dict[str, nn.Module]
    batches: list[Batch]
    generator: torch.Generator
    working: Callable[[str], None]


# costs(removed, candidates): of each candidate, where the removed ones are gone; lower goes first.
Costs = Callable[[Sequence[str], Sequence[str]], list[float]]


class BlockCriterion(Named):
    """Says what the removal of a block costs.

    Attributes:
        needs_calibration: whether the model is run.
    """

    kind = "criterion"
    needs_calibration: ClassVar[bool] = True

    @abstractmethod
    def costs(self, dense: DenseBlocks) -> Costs:
        """The costs of removing blocks of a model."""


class RandomBlocks(BlockCriterion):
    """Blocks in random order: a control."""

    name = "random"
    needs_calibration = False

    def costs(self, dense: DenseBlocks) -> Costs:
        drawn = torch.rand(len(dense.blocks), generator=dense.generator).tolist()
        return _fixed(dict(zip(dense.blocks, drawn, strict=True)))


class LastBlocks(BlockCriterion):
    """The last blocks of each stack: a control."""

    name = "last"
    needs_calibration = False

    def costs(self, dense: DenseBlocks) -> Costs:
        return _fixed({name: -float(name.rpartition(".")[2]) for name in dense.blocks})


class _ChangeCriterion(BlockCriterion):
    """How much a block changes the hidden states, in the dense model."""

    def costs(self, dense: DenseBlocks) -> Costs:
        changes = measure_changes(dense.model, dense.blocks, dense.batches, dense.working)
        return _fixed({name: self.of(change) for name, change in changes.items()})

    @abstractmethod
    def of(self, change: Change) -> float:
        """The cost of a block."""


class Influence(_ChangeCriterion):
    """Block influence: 1 - the mean cosine between what enters a block and what leaves it.

    Men et al. 2024, "ShortGPT: Layers in Large Language Models are More Redundant Than You
    Expect", arXiv:2403.03853.
    """

    name = "influence"

    def of(self, change: Change) -> float:
        return 1 - change.cosine


class BlockActivation(_ChangeCriterion):
    """The energy of what a block adds, relative to that of what enters: |y - x|^2 / |x|^2."""

    name = "activation"

    def of(self, change: Change) -> float:
        return change.energy


class Outputs(BlockCriterion):
    """Greedy search: the error of the model's outputs without the block and those already removed.

    The error is the KL divergence for language models, else the squared relative error; see
    `OutputError`. The model runs once for every block that is left, for every block that goes.
    """

    name = "outputs"

    def costs(self, dense: DenseBlocks) -> Costs:
        error = OutputError(dense.model, dense.batches)

        def costs(removed: Sequence[str], candidates: Sequence[str]) -> list[float]:
            found = []
            for candidate in candidates:
                dense.working(f"outputs without {candidate}")
                with skipping({name: dense.blocks[name] for name in (*removed, candidate)}):
                    found.append(error())
            return found

        return costs


CRITERIA: tuple[type[BlockCriterion], ...] = (
    RandomBlocks,
    LastBlocks,
    BlockActivation,
    Influence,
    Outputs,
)


def find_block_criterion(criterion: object) -> BlockCriterion:
    """The criterion of a text form.

    Raises:
        UsageError: if it is not known, or scores single weights.
    """
    if isinstance(criterion, BlockCriterion):
        return criterion
    if not isinstance(criterion, str):
        names = ", ".join(cls.name for cls in CRITERIA)
        raise UsageError(f"criterion {criterion} does not score layers; choose one of {names}")
    return find(criterion, CRITERIA)


def _fixed(costs: dict[str, float]) -> Costs:
    """Costs that do not depend on what is gone already."""
    return lambda removed, candidates: [costs[name] for name in candidates]
