"""Cut: structures are taken out at the events of a schedule, so that the weights become smaller."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from pydantic import PrivateAttr, field_validator

from sparse_engine.errors import UsageError
from sparse_engine.pruning.allocators import Allocator
from sparse_engine.pruning.calibration import read_calibration
from sparse_engine.pruning.criteria import Criterion
from sparse_engine.pruning.cutting import (
    BlockMethod,
    CutMethod,
    block_method,
    cut,
    cut_blocks,
    cut_method,
    find_layer,
    find_structures,
    sites_of,
    wanted_blocks,
)
from sparse_engine.pruning.plan import Selection
from sparse_engine.pruning.recovery import Recovery
from sparse_engine.pruning.report import PruneReport
from sparse_engine.pruning.run import Run
from sparse_engine.structures import Structure
from sparse_engine.structures.snapshot import Snapshot, unchanged_after_error
from sparse_engine.training.change import Numbered
from sparse_engine.training.kept import Kept
from sparse_engine.training.modifiers.scheduled import Scheduled, Seed
from sparse_engine.training.training import Training


class Cut(Scheduled):
    """Heads, units, filters or layers are taken out, and what is left is trained on.

    The sparsity is the share of the groups that the model had at first. The other options are the
    arguments of `se.prune`; calibration inputs are those of the `Pruner`. The optimizer gets the
    new, smaller parameters, and keeps what it has gathered for the weights that are left. In a
    recipe cuts come before anything is set to zero.

    Attributes:
        granularity: a structure, or several: "unit", ["head", "unit(round_to=16)"]. Layers are cut
            by a `cut` of their own.
        criterion: by default magnitude, for layers outputs.

    Example:
        Cut(sparsity=0.5, granularity=["head", "unit"], criterion="fisher", end="1ep")
    """

    name: ClassVar[str] = "cut"
    granularity: str | Structure | tuple[str | Structure, ...]
    criterion: str | Criterion | None = None
    recovery: str | Recovery | None = None
    allocator: str | Allocator = "uniform"
    layers: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    seed: Seed = 0

    _groups: dict[str, int] = PrivateAttr(default_factory=dict)  # of sites or stacks, at first

    @field_validator("granularity", mode="before")
    @classmethod
    def _texts(cls, granularity: Any) -> tuple[str, ...]:
        if not (found := find_structures(granularity)):
            raise UsageError(f"{granularity} is no structure; weights are set to zero by prune")
        return tuple(map(str, found))

    def begin(self, training: Training) -> None:
        if training.is_parallel:
            raise UsageError(
                f"{self.name}: parameters cannot be replaced under DistributedDataParallel; cut "
                "with se.prune before it is made"
            )
        for step, name in training.events:
            if name != self.name and step < self.events[-1]:
                raise UsageError(
                    f"{self.name} goes on until step {self.events[-1]}, but {name} acts at step "
                    f"{step}: begin it when all cuts are made"
                )
        method, selection = self._method(training, self.sparsity), self._selection
        if isinstance(method, BlockMethod):
            if (self.layers or self.ignore) and len(self.events) > 1:
                raise UsageError(
                    f"{self.name}: layers get other numbers when some are gone, so that patterns "
                    "fit only one event: choose schedule one_shot"
                )
            stacks = wanted_blocks(training.model, method, selection).stacks
            self._groups = {item.stack.name: len(item.stack.blocks) for item in stacks}
        else:
            sites = sites_of(training.model, method, selection, None)
            self._groups = {site.name: site.groups for site in sites}

    def at_step(self, training: Training) -> None:
        share = self.sparsity_at(training.step) if self.is_due(training) else 0.0
        if share <= 0:
            return
        if training.masks.sparsity > 0:
            raise UsageError(
                f"{self.name}: at step {training.step} weights have been set to zero already; cuts "
                "come first in a recipe"
            )
        model = training.model
        with unchanged_after_error(model) as snapshot:
            numbered = Numbered(model)
            report = self._cut(training, share, snapshot)
            if report is None:
                return
            kept = Kept.of(self._structures, report)
            kept.apply_(numbered.copy)
            training.follow(numbered.change(model))
        training.cuts.append(kept)
        left = sum(len(site.kept) for site in report.sites)
        kinds = " and ".join(f"{structure.name}s" for structure in self._structures)
        training.note(self.name, f"{left} of {sum(self._groups.values())} {kinds} are left")

    def _cut(self, training: Training, share: float, snapshot: Snapshot) -> PruneReport | None:
        """Take out groups until a share of those at first is gone; None if it is already."""
        method, selection = self._method(training, share), self._selection
        model, batches = training.model, []
        if method.needs_calibration:
            batches = read_calibration(model, training.calibration, training.loss is not None)
        run = Run(batches, training.loss, None, snapshot)
        if isinstance(method, CutMethod):
            return cut(model, method, selection, None, self.seed, run)
        if not wanted_blocks(model, method, selection).total:
            return None
        return cut_blocks(model, method, selection, self.seed, run)

    def _method(self, training: Training, share: float) -> CutMethod | BlockMethod:
        has_inputs = bool(training.calibration)
        if layer := find_layer(self._structures):
            of_blocks = block_method(
                layer, share, self.criterion, self.recovery, self.allocator, has_inputs
            )
            return replace(of_blocks, original=self._groups)
        of_sites = cut_method(
            self._structures, share, self.criterion, self.recovery, self.allocator, has_inputs
        )
        return replace(of_sites, original=self._groups)

    @property
    def _structures(self) -> tuple[Structure, ...]:
        return find_structures(self.granularity)

    @property
    def _selection(self) -> Selection:
        return Selection.of(self.layers, self.ignore)
