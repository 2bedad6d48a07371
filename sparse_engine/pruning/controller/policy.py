"""A recurrent policy: an LSTM that chooses an action for one layer after another.

It is trained by REINFORCE: proposals whose reward is above the mean of their batch become more
probable. Williams 1992, "Simple Statistical Gradient-Following Algorithms for Connectionist
Reinforcement Learning". A policy of this kind chooses what is removed in Ashok et al. 2018, "N2N
Learning: Network to Network Compression via Policy Gradient Reinforcement Learning",
arXiv:1709.06030.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

UNITS = 32
ENTROPY = 0.01  # weight of the entropy, which keeps the policy from settling early


class Policy:
    """An LSTM over layers, with one of several actions for each.

    Args:
        features: float32 [layers, features], what it reads about each layer.
        actions: how many there are.
        rate: of Adam; 0 for a policy that never learns, whose proposals are random.
        generator: of initial weights and choices.
    """

    def __init__(
        self, features: Tensor, actions: int, rate: float, generator: torch.Generator
    ) -> None:
        spread = features.std(0, correction=0).clamp_min(1e-6)
        self._features = (features - features.mean(0)) / spread
        self._actions = actions
        self._generator = generator
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(1 << 31, (), generator=generator)))
            self._cell = nn.LSTMCell(features.shape[1] + actions, UNITS)
            self._head = nn.Linear(UNITS, actions)
        nn.init.zeros_(self._head.weight)  # at first all actions are equally probable
        nn.init.zeros_(self._head.bias)
        parameters = [*self._cell.parameters(), *self._head.parameters()]
        self._adam = torch.optim.Adam(parameters, lr=rate) if rate else None

    def propose(self) -> list[int]:
        """The action of each layer, drawn from the policy."""
        with torch.no_grad():
            chosen: list[int] = []
            for logits in self._steps(chosen):
                drawn = torch.multinomial(logits.softmax(-1), 1, generator=self._generator)
                chosen.append(int(drawn))
        return chosen

    def learn(self, proposals: Sequence[Sequence[int]], rewards: Sequence[float]) -> None:
        """One step of REINFORCE.

        Args:
            proposals: what was proposed, at least two.
            rewards: of each; only their differences relative to their spread matter.
        """
        found = torch.tensor(rewards)
        spread = float(found.std(correction=0))
        if self._adam is None or spread == 0:
            return
        advantages = (found - found.mean()) / spread
        loss = torch.zeros(())
        with torch.enable_grad():
            for proposal, advantage in zip(proposals, advantages, strict=True):
                logits = torch.stack([*self._steps(proposal)]).log_softmax(-1)
                taken = logits.gather(1, torch.tensor(proposal)[:, None]).sum()
                entropy = -(logits.exp() * logits).sum()
                loss = loss - (advantage * taken + ENTROPY * entropy) / len(proposals)
            self._adam.zero_grad()
            loss.backward()
        self._adam.step()

    def _steps(self, chosen: Sequence[int]) -> Iterator[Tensor]:
        """Logits [actions] of one layer after another; `chosen` may grow while they are read."""
        state = None
        before = torch.zeros(self._actions)
        for index, features in enumerate(self._features):
            state = self._cell(torch.cat([features, before])[None], state)
            yield self._head(state[0])[0]
            before = F.one_hot(torch.tensor(chosen[index]), self._actions).float()
