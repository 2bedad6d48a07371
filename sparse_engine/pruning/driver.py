"""The entry point: validates, runs the steps, and restores the model after an error."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from sparse_engine.errors import UsageError
from sparse_engine.modules.effective import fold_
from sparse_engine.modules.readable import check_readable
from sparse_engine.pruning.allocators import Allocator
from sparse_engine.pruning.calibration import Batch, fingerprint, read_calibration
from sparse_engine.pruning.criteria import Criterion
from sparse_engine.pruning.cutting import BlockMethod, CutMethod, cut, cut_blocks
from sparse_engine.pruning.gradients import LossFunction, check_loss
from sparse_engine.pruning.mixed import MixedMethod, prune_mixed
from sparse_engine.pruning.overrides import Override
from sparse_engine.pruning.plan import Filter
from sparse_engine.pruning.progress import ProgressCallback
from sparse_engine.pruning.recipe import recipe_of_steps, versions
from sparse_engine.pruning.recovery import Recovery
from sparse_engine.pruning.report import PruneReport
from sparse_engine.pruning.run import Run
from sparse_engine.pruning.steps import Step, find_steps, naming_step
from sparse_engine.pruning.target.method import Granularities
from sparse_engine.pruning.target.target import Target
from sparse_engine.pruning.zeros import set_zeros
from sparse_engine.structures.snapshot import unchanged_after_error


def prune(
    model: nn.Module,
    sparsity: float | None = None,
    granularity: Granularities | None = None,
    criterion: str | Criterion | None = None,
    recovery: str | Recovery | None = None,
    calibration: Iterable[Any] | None = None,
    allocator: str | Allocator = "uniform",
    filter_fn: Filter | None = None,
    seed: int = 0,
    progress: ProgressCallback | None = None,
    layers: Iterable[str] = (),
    ignore: Iterable[str] = (),
    overrides: Iterable[Override | Mapping[str, Any]] = (),
    loss: LossFunction | None = None,
    target: Target | None = None,
    steps: Sequence[Mapping[str, Any]] | None = None,
) -> PruneReport:
    """Set a fraction of the weights of a model's linear layers to zero, in place.

    The weights of recurrent networks and cells, nn.MultiheadAttention, nn.Conv1d and fused experts
    are pruned as linear layers, named as in the sparse modules: lstm.ih_l0, cell.hh,
    self_attn.q_proj, conv.linears.0 (one for each group of channels), experts.gate_up_proj.3 (of
    expert 3). Heads, routers and weights that are tied to an embedding are left alone (see
    `make_plan`); the report names them.

    All arguments and weights are checked before anything changes. If an error or an interrupt
    happens later, the model is restored to what it was; a second copy of the weights that change
    is kept for that time. Weights that are zero already stay zero. Weights that are computed before
    each call (masks of torch.nn.utils.prune, weight norm, spectral norm, parametrizations) become
    plain ones of the same values, as `torch.nn.utils.prune.remove` makes them.

    Args:
        model: any module.
        sparsity: fraction of groups, or of structures, to remove, 0 <= sparsity < 1; NM fixes its
            own, and with a threshold of magnitude the weights decide.
        granularity: Element(), Block(rows, cols), NM(keep, of), or "element", "4x1", "1xall",
            "2:4"; the default is "element". Or one or several structures, which are taken out, so
            that the weights become smaller: Head(), Unit(), or "head", "unit(round_to=16)". Or
            Layer(), whole layers of a Transformer. With a target several granularities are
            possible, or "auto" for those that have fast kernels on the model's device, which is
            then the default; structures beside them are removed where that loses less.
        criterion: "random", "magnitude", "coupled", "activation", "wanda", "sparsegpt", "obs", of
            structures also "generator", or a Criterion. Options follow a name in brackets, as
            "magnitude(p=1)"; so do those of recoveries and allocators. The default is "magnitude",
            with a target "obs".
        recovery: "least_squares" (alias "lsq") refits the kept weights, and the biases; "bias"
            shifts the biases alone; None or "none" leaves them as they are. With a target the
            default is "least_squares".
        calibration: model inputs, each a dict of keyword arguments, a tuple or a tensor (or a
            numpy array, or a list of numbers). Needed by all criteria but random, magnitude
            and coupled, by recoveries, owl and sensitivity; not read otherwise. Tokens whose
            attention_mask is 0 are left out.
        allocator: "uniform" (alias "local") removes the same fraction from every layer, "erk" more
            from large ones; with "lamp" (alias "global") and "raw" the groups of all layers
            compete; "owl" removes less from blocks with many outliers, "sensitivity" less from
            layers whose outputs suffer more; "controller" is a policy that learns from the outputs.
        filter_fn: filter_fn(module, name) decides whether a linear layer is pruned, heads and tied
            weights included.
        seed: of the random numbers of the criterion.
        progress: called with (done, total, name) after every layer. While the model runs on
            calibration inputs it is called at most twice a second, with what is being read
            instead of the name.
        layers: patterns of the layers to prune, heads and tied weights included: dotted names
            ("encoder.layer.0" is all below it), globs over whole names ("*.query"), or "re:" and a
            regular expression. Without any, the rules of `make_plan` decide.
        ignore: patterns of layers that are left in any case.
        overrides: layers with a sparsity, granularity or criterion of their own, each a mapping
            such as {"match": "*.query", "sparsity": 0.5}; the first that matches counts.
        loss: loss(model, item) returns a scalar for a calibration item; taylor, snip and fisher
            take its gradients, other criteria do not call it. Items may then hold more than the
            model reads, such as targets: other names, or positional arguments at the end. None is
            the model's own loss where the items hold labels, and otherwise the distance to the
            outputs of the dense model (see docs/pruning.md).
        target: instead of a sparsity, what the converted model may cost, such as
            `Target(speedup=3.0)`: granularity and sparsity are then chosen for each layer, and
            the share of structures if `granularity` has some.
        steps: several runs in one, each a mapping of the arguments from `sparsity` to `allocator`,
            and of filter_fn, seed, layers, ignore, overrides and target, where they differ from the
            arguments of this call. Steps that remove structures come first. Calibration inputs are
            read once.

    Returns:
        What was pruned, and what was left alone and why; of several steps the report of the last,
        whose `steps` are those before it.

    Raises:
        UsageError: if an argument, the model or a calibration input cannot be used.

    Example:
        report = se.prune(
            model, 0.9, "4x1", "sparsegpt", recovery="least_squares", calibration=batches
        )
        print(report)

        steps = [
            {"granularity": ["head", "unit"], "sparsity": 0.25, "criterion": "obs"},
            {"granularity": "4x1", "sparsity": 0.8, "criterion": "sparsegpt"},
        ]
        se.prune(model, steps=steps, recovery="least_squares", calibration=batches)
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"model is {model!r:.80}; give a torch.nn.Module")
    defaults = {
        "sparsity": sparsity,
        "granularity": granularity,
        "criterion": criterion,
        "recovery": recovery,
        "allocator": allocator,
        "filter_fn": filter_fn,
        "seed": seed,
        "layers": layers,
        "ignore": ignore,
        "overrides": overrides,
        "target": target,
    }
    found = find_steps(steps, defaults, calibration is not None)
    check_loss(loss)
    if loss is not None and all(isinstance(step.method, BlockMethod) for step in found):
        raise UsageError("structure layer reads no loss: leave it out")
    with unchanged_after_error(model) as snapshot:
        check_readable(model)
        fold_(model)
        for number, step in enumerate(found[1:], 2):
            with naming_step(number):
                step.check(model)
        batches: list[Batch] = []
        if calibration is not None and any(step.method.needs_calibration for step in found):
            batches = read_calibration(model, calibration, loss is not None)
        # What a target compares with; a first step with a target makes its own copy.
        dense = None
        if any(step.target is not None for step in found[1:]):
            dense = copy.deepcopy(model).eval()
        reports: list[PruneReport] = []
        for number, step in enumerate(found, 1):
            own = batches if step.method.needs_calibration else []
            told = _of_step(progress, number, len(found))
            with naming_step(number if len(found) > 1 else None):
                reports += _step(model, step, Run(own, loss, told, snapshot, dense))
        *earlier, report = reports
        report.steps = earlier
        report.recipe = recipe_of_steps([one.recipe for one in reports])
        return report


def _step(model: nn.Module, step: Step, run: Run) -> list[PruneReport]:
    """The report of a step; of structures and zeros for one target one each."""
    selection, filter_fn, seed = step.selection, step.filter_fn, step.seed
    if isinstance(step.method, CutMethod):
        reports = [cut(model, step.method, selection, filter_fn, seed, run)]
    elif isinstance(step.method, BlockMethod):
        reports = [cut_blocks(model, step.method, selection, seed, run)]
    elif isinstance(step.method, MixedMethod):
        reports = prune_mixed(model, step.method, selection, filter_fn, seed, run)
    else:
        reports = [set_zeros(model, step.method, selection, filter_fn, seed, run)]
    for report in reports:
        report.versions = versions()
        report.calibration = fingerprint(run.batches) if run.batches else {}
    return reports


def _of_step(progress: ProgressCallback | None, number: int, count: int) -> ProgressCallback | None:
    """The callback of one of several steps, whose number it adds to the text."""
    if progress is None or count == 1:
        return progress
    return lambda done, total, text: progress(done, total, f"step {number} of {count}: {text}")
