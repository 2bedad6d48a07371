"""The loop of a controller: propose, evaluate, learn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from sparse_engine.pruning.controller.policy import Policy

BATCH = 5  # proposals that are compared with each other in one step of learning

T = TypeVar("T")


def control(
    features: Tensor,
    actions: int,
    make: Callable[[Sequence[int]], T],
    evaluate: Callable[[T], float],
    proceed: Callable[[float], bool],
    start: T,
    rate: float,
    seed: int,
) -> T:
    """The best of what a policy proposes while it learns.

    Args:
        features: float32 [layers, features], what the policy reads about each layer.
        actions: how many a layer has.
        make: turns the actions of all layers into a choice within the budget.
        evaluate: the error of a choice, not negative; the reward is -log of it.
        proceed: is called with the lowest error so far; False ends the search.
        start: a choice to compare with.
        rate: of learning; 0 for random proposals.
        seed: of the policy.

    Returns:
        The choice with the lowest error, `start` included.
    """
    policy = Policy(features, actions, rate, torch.Generator().manual_seed(seed))
    best, least = start, evaluate(start)
    proposals: list[list[int]] = []
    rewards: list[float] = []
    while proceed(least):
        proposal = policy.propose()
        choice = make(proposal)
        error = evaluate(choice)
        if error < least:
            best, least = choice, error
        proposals.append(proposal)
        rewards.append(-math.log(max(error, 1e-30)))
        if len(proposals) == BATCH:
            policy.learn(proposals, rewards)
            proposals, rewards = [], []
    return best
