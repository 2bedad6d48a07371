"""Controller: a recurrent policy proposes how much each layer keeps, and learns from the outputs.

Each layer has ACTIONS: its density is that of the model times exp(STEP a). The sparsities of a
proposal are then moved together until the total of the model is exact. The reward is the error of
the outputs of the whole model, all layers pruned and refitted by themselves.

He et al. 2018, "AMC: AutoML for Model Compression and Acceleration on Mobile Devices",
arXiv:1802.03494, learn such a choice; the policy is that of pruning/controller/policy.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_engine.errors import UsageError
from sparse_engine.pruning.allocators.base import Allocator, DenseModel, Setting, settings
from sparse_engine.pruning.allocators.bounds import Bounds
from sparse_engine.pruning.controller.search import control
from sparse_engine.pruning.seed import check_seed
from sparse_engine.pruning.target.levels import Level, level_of
from sparse_engine.pruning.target.trial import trying

ACTIONS = (-3, -2, -1, 0, 1, 2, 3)
STEP = 0.25
MEASURED = range(-4, 5)  # steps of density at which layers are pruned; others take the nearest
MOST_EPISODES = 100_000


@dataclass(frozen=True)
class Controller(Allocator):
    """What a policy found best, with the error of the whole model's outputs as its reward.

    Args:
        episodes: how many proposals are evaluated.
        rate: of learning; 0 for random proposals, the control for all others.
        seed: of the policy.
    """

    name = "controller"
    needs = ("hessian",)
    episodes: int = 200
    rate: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.episodes <= MOST_EPISODES:
            raise UsageError(
                f"controller: episodes={self.episodes} must lie between 1 and {MOST_EPISODES}"
            )
        check_seed(self.seed)
        if not 0 <= self.rate < 1:
            raise UsageError(f"controller: rate={self.rate} must be at least 0 and below 1")

    def allocate(self, dense: DenseModel, requested: Setting) -> dict[str, Setting]:
        layers = list(dense.layers)
        bounds = self.bounds(layers, requested)
        tables = _tables(dense, requested, bounds)
        output_error = dense.output_error()
        if output_error is None:
            raise UsageError(
                "allocator controller runs the whole model; take another with --stream"
            )
        done = 0

        def proceed(least: float) -> bool:
            nonlocal done
            done += 1
            dense.working(f"proposal {done} of {self.episodes}: output error {least:.4g}")
            return done <= self.episodes

        with trying(layers, tables, output_error) as error_of:

            def evaluate(removed: Tensor) -> float:
                shares = (removed / bounds.groups).tolist()
                return error_of(
                    [nearest(table, s) for table, s in zip(tables, shares, strict=True)]
                )

            removed = control(
                _features([layer.shape for layer in layers], tables),
                len(ACTIONS),
                lambda proposal: counts(proposal, requested.sparsity, bounds),
                evaluate,
                proceed,
                counts([ACTIONS.index(0)] * len(layers), requested.sparsity, bounds),
                self.rate,
                self.seed,
            )
        return settings(layers, requested, removed)


def counts(proposal: Sequence[int], sparsity: float, bounds: Bounds) -> Tensor:
    """How many groups each layer loses, int64 [layers].

    Args:
        proposal: by layer, the index of its action.
        sparsity: of the model.
        bounds: of the layers; the total is exact.
    """
    steps = torch.tensor([ACTIONS[action] for action in proposal], dtype=torch.float64)
    density = (1 - sparsity) * (STEP * steps).exp()
    return bounds.meet(1 - density, density)


def nearest(table: Sequence[Level], share: float) -> int:
    """The index of the level whose sparsity is nearest."""
    return min(range(len(table)), key=lambda i: abs(table[i].setting.sparsity - share))


def _tables(dense: DenseModel, requested: Setting, bounds: Bounds) -> list[list[Level]]:
    """By layer, what it is when dense, and at some sparsities around that of the model."""
    wanted = {}
    for index, layer in enumerate(dense.layers):
        groups, least, most = (int(t[index]) for t in (bounds.groups, bounds.least, bounds.most))
        shares = (1 - (1 - requested.sparsity) * math.exp(STEP * a) for a in MEASURED)
        removed = sorted({min(max(round(share * groups), least), most) for share in shares} - {0})
        wanted[layer.name] = {requested.granularity: [count / groups for count in removed]}
    found = {
        layer.name: [
            Level(Setting(requested.granularity, 0.0), "dense", 0.0, 0.0),
            *(level_of(candidate, "", 0.0) for candidate in candidates),
        ]
        for layer, candidates in dense.candidates(wanted)
    }
    return [found[layer.name] for layer in dense.layers]


def _features(shapes: Sequence[tuple[int, int]], tables: Sequence[Sequence[Level]]) -> Tensor:
    """What the policy reads of each layer: place, shape, and errors at three sparsities."""
    rows = []
    for index, ((out_features, in_features), table) in enumerate(zip(shapes, tables, strict=True)):
        errors = [table[at].error for at in (len(table) // 3, 2 * len(table) // 3, -1)]
        logs = torch.tensor([out_features, in_features, *(e + 1e-12 for e in errors)]).log()
        rows.append(torch.cat([torch.tensor([index / len(shapes)]), logs]))
    return torch.stack(rows)
