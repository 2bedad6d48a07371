"""The interface of a pruning criterion: element scores [out, in] of a weight."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from sparse_engine.errors import UsageError
from sparse_engine.named import Named
from sparse_engine.pruning.criteria.groups import Groups, Removals
from sparse_engine.pruning.criteria.inputs import Inputs
from sparse_engine.pruning.granularity.base import Granularity
from sparse_engine.pruning.statistics.needs import Statistic


class Criterion(Named):
    """Scores weights; a granularity turns the scores into a mask.

    Scores are energies (squares), so that the scores of the elements of a group add up. A criterion
    whose loss of a group is not a sum over elements overrides `prune`. Options are the fields of a
    frozen dataclass.

    Attributes:
        needs: fields of `Inputs` that `score` and `prune` read; calibration collects exactly these.
        per_row: whether weights are compared within an output row instead of within the layer.
        needs_coupling: whether `score` reads `Inputs.coupling`, which needs no calibration.
        needs_whole_rows: whether all weights of a row have one score, so that only granularities of
            whole rows make sense.
        needs_structures: whether only structures have scores, single weights and blocks do not.
        fits: whether `prune` returns the least-squares fit, in the norm of the Hessian, to the
            weight that it gets.
        for_elements: options that mean something to single weights alone; structures refuse them.
        scores_outputs: whether scores of structures are squared errors of outputs, so that those of
            different layers are compared as shares of the energy of their outputs.
        averages: whether scores of structures are means over their weights, or do not depend on how
            many layers a group has a part of; other scores are sums over these layers.
    """

    kind = "criterion"
    needs: ClassVar[tuple[Statistic, ...]] = ()
    per_row: bool = False
    needs_coupling: ClassVar[bool] = False
    needs_whole_rows: ClassVar[bool] = False
    needs_structures: ClassVar[bool] = False
    fits: ClassVar[bool] = False
    for_elements: ClassVar[tuple[str, ...]] = ()
    scores_outputs: ClassVar[bool] = False
    averages: ClassVar[bool] = False

    @property
    def decides_sparsity(self) -> bool:
        """Whether `quota` follows from the weights alone, so that no sparsity is given."""
        return False

    @property
    def keeps_rows(self) -> bool:
        """Whether the best group of every row of groups is kept."""
        return False

    @abstractmethod
    def score(self, weight: Tensor, inputs: Inputs, generator: torch.Generator) -> Tensor:
        """Compute the importance of each weight; the lowest scores are removed first.

        Args:
            weight: [out, in], float32.
            inputs: the statistics that `needs` names.
            generator: the source of random numbers, on the CPU.

        Returns:
            [out, in], not negative.
        """

    def element_scores(
        self, weight: Tensor, inputs: Inputs, granularity: Granularity, generator: torch.Generator
    ) -> Tensor:
        """Scores of single weights whose mean over a group is the score of the group.

        By default `score`. A criterion whose loss of a group is not the sum over its weights
        overrides this method.

        Args:
            weight: [out, in], float32.
            inputs: the statistics that `needs` names.
            granularity: which weights are removed together.
            generator: the source of random numbers, on the CPU.

        Returns:
            [out, in], not negative.
        """
        return self.score(weight, inputs, generator)

    def group_scores(self, groups: Groups, generator: torch.Generator) -> Tensor:
        """Scores of the groups of a structure.

        By default the sum of `score` over all columns that read a group.

        Args:
            groups: the groups, with the statistics that `needs` names. Instead of gradients of
                weights they have those of the groups.
            generator: the source of random numbers, on the CPU.

        Returns:
            float64 [groups], not negative.
        """
        scores = [
            self.score(reader.weight, reader.inputs, generator).sum(0) for reader in groups.readers
        ]
        return groups.of_columns(scores)

    def removals(self, groups: Groups, generator: torch.Generator) -> Removals:
        """The groups of a structure in the order of their removal, by default of their scores.

        A criterion for which a removal changes the cost of the next one overrides this method.

        Args:
            groups: as for `group_scores`.
            generator: the source of random numbers, on the CPU.

        Raises:
            UsageError: if a score is NaN.
        """
        scores = self.group_scores(groups, generator)
        if scores.isnan().any():
            raise UsageError(f"criterion {self.name} gives NaN as a score, which cannot be ordered")
        ordered = scores.sort(stable=True)
        return Removals(ordered.indices, ordered.values)

    def group_quota(self, groups: Groups, removals: Removals) -> int:
        """How many groups of a structure are removed, if the criterion decides that.

        Args:
            groups: as for `group_scores`.
            removals: what `removals` returned for them.
        """
        raise NotImplementedError

    def fisher_width(self, span: int) -> int:
        """Width of the blocks of `Inputs.fisher`, for groups of `span` columns; 1 is a diagonal."""
        return 1

    def note(self, inputs: Inputs) -> str:
        """How the scores of a layer differ from those of others, or ""."""
        return ""

    def quota(
        self, weight: Tensor, scores: Tensor, granularity: Granularity, sparsity: float
    ) -> int:
        """Number of groups to remove.

        Args:
            weight: [out, in].
            scores: [out, in].
            granularity: which weights are removed together.
            sparsity: fraction of groups to remove.
        """
        return granularity.quota(weight.shape[0], weight.shape[1], sparsity)

    def prune(
        self,
        weight: Tensor,
        inputs: Inputs,
        granularity: Granularity,
        sparsity: float,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Remove the groups of the lowest scores.

        A criterion that also changes the weights that it keeps overrides this method.

        Args:
            weight: [out, in], float32; it is not changed.
            inputs: the statistics that `needs` names.
            granularity: which weights are removed together.
            sparsity: fraction of groups to remove.
            generator: the source of random numbers, on the CPU.

        Returns:
            The pruned weight, float32 [out, in], and the keep mask, bool [out, in].

        Raises:
            UsageError: if a score is NaN, or more is to be removed than the rows can lose.
        """
        scores = self.element_scores(weight, inputs, granularity, generator)
        if scores.isnan().any():
            raise UsageError(f"criterion {self.name} gives NaN as a score, which cannot be ordered")
        drop = self.quota(weight, scores, granularity, sparsity)
        if self.keeps_rows:
            scores = protect_rows(scores, granularity, drop)
        keep = granularity.mask(scores, drop, self.per_row)
        return weight * keep, keep

    def trace(
        self,
        weight: Tensor,
        inputs: Inputs,
        granularity: Granularity,
        sparsities: Sequence[float],
        generator: torch.Generator,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Prune one weight to several sparsities; what an allocator compares.

        A criterion that removes groups step by step overrides this method, so that all sparsities
        come from one pass. With a single sparsity the result is that of `prune`; with several, each
        mask may lie within the one before it, and so differ from that of `prune`.

        Args:
            weight: [out, in], float32; it is not changed.
            inputs: the statistics that `needs` names.
            granularity: which weights are removed together.
            sparsities: fractions of groups to remove, ascending.
            generator: the source of random numbers, on the CPU.

        Yields:
            For each sparsity, what `prune` returns.
        """
        for sparsity in sparsities:
            yield self.prune(weight, inputs, granularity, sparsity, generator)


def protect_rows(scores: Tensor, granularity: Granularity, drop: int) -> Tensor:
    """The scores with infinity at the best group of every row of groups, rows of zeros excepted.

    Args:
        scores: [out, in].
        granularity: which weights are removed together.
        drop: how many groups will be removed.

    Raises:
        UsageError: if `drop` leaves less than one group a row.
    """
    if granularity.fixed_sparsity is not None:  # the pattern keeps some weights of every row
        return scores
    of_groups = granularity.group_scores(scores)
    spare = of_groups.numel() - len(of_groups)
    if drop > max(spare, int((of_groups == 0).sum())):
        raise UsageError(
            f"keep_rows keeps one of the {of_groups.shape[1]} groups of every row of a layer, so "
            f"{drop} of its {of_groups.numel()} cannot be removed; lower the sparsity"
        )
    return scores.masked_fill(granularity.mask(scores, spare, per_row=True), torch.inf)
