"""Pooling: one vector for each token to one for each text.

Reimers and Gurevych 2019, arXiv:1908.10084; names and weights are those of sentence-transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from sparse_engine.errors import UnsupportedModelError

FLAG = "pooling_mode_"


def _first(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden[torch.arange(len(hidden)), mask.argmax(1)]


def _last(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden[torch.arange(len(hidden)), mask.shape[1] - 1 - mask.flip(1).argmax(1)]


def _largest(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).amax(1)


def _weighted(hidden: Tensor, weights: Tensor) -> Tensor:
    """sum of weight x hidden, over the sum of the weights [n, seq]."""
    weights = weights.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    return _weighted(hidden, mask)


def _mean_by_root(hidden: Tensor, mask: Tensor) -> Tensor:
    real = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * real).sum(1) / real.sum(1).sqrt()


def _by_position(hidden: Tensor, mask: Tensor) -> Tensor:
    """The n-th token counts n times (Muennighoff 2022, arXiv:2202.08904)."""
    return _weighted(hidden, mask * torch.arange(1, mask.shape[1] + 1))


# Of hidden [n, seq, h] and a mask int64 [n, seq] of 0 and 1, with the padding on the right. In the
# order in which a text's vectors are concatenated if a config sets several.
MODES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": _first,
    "max": _largest,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_by_root,
    "weightedmean": _by_position,
    "lasttoken": _last,
}
OLD_NAMES = {
    "cls_token": "cls",
    "max_tokens": "max",
    "mean_tokens": "mean",
    "weightedmean_tokens": "weightedmean",
}


@dataclass(frozen=True)
class Pooling:
    """How the states of tokens become one vector.

    Attributes:
        modes: names in MODES; the vectors of several are concatenated.
        include_prompt: whether the tokens of a prompt count.
    """

    modes: tuple[str, ...] = ("mean",)
    include_prompt: bool = True

    @classmethod
    def of_config(cls, config: dict[str, Any]) -> Self:
        """The pooling of a config of sentence-transformers, in either of its spellings.

        Raises:
            UnsupportedModelError: for a mode that is not known, or none.
        """
        if "pooling_mode" in config:
            value = config["pooling_mode"]
            modes = [str(mode) for mode in value] if isinstance(value, list) else [str(value)]
        else:
            flags = {
                key[len(FLAG) :]
                for key, on in config.items()
                if key.startswith(FLAG) and on is True
            }
            flags = {OLD_NAMES.get(flag, flag) for flag in flags}
            modes = [mode for mode in MODES if mode in flags] + sorted(flags - set(MODES))
        if not modes or not set(modes) <= set(MODES) or len(modes) > len(MODES):
            raise UnsupportedModelError(
                f"pooling {' + '.join(modes)[:80] or 'none'}: use some of {', '.join(MODES)}"
            )
        return cls(tuple(modes), config.get("include_prompt") is not False)

    @property
    def name(self) -> str:
        """The modes, as "mean" or "cls+max"."""
        return "+".join(self.modes)

    def __call__(self, hidden: Tensor, mask: Tensor, prompt: int = 0) -> Tensor:
        """One vector for each text, [n, h x modes].

        Args:
            hidden: float32 [n, seq, h].
            mask: int64 [n, seq] of 0 and 1, 0 for padding on the right.
            prompt: tokens of a prompt at the beginning of each text.
        """
        if prompt and not self.include_prompt:
            mask = mask.clone()
            mask[:, :prompt] = 0
        return torch.cat([MODES[mode](hidden, mask) for mode in self.modes], -1)
