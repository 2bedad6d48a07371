"""Checkpoints of movement pruning while it trains: scores of a mask next to each weight.

X.mask_scores [out / rows, in / cols] has a score for each block of X.weight [out, in], and the
weight that is meant is zero where the score is low. Blocks are single weights in Sanh et al. 2020,
"Movement Pruning", arXiv:2005.07683, and larger in Lagunas et al. 2021, "Block Pruning For Faster
Transformers", arXiv:2109.04838. config.json has the model_type "masked_bert" and "pruning_method":

    topK                 the share `final_threshold` of the highest scores is kept
    threshold            scores above `final_threshold`
    sigmoied_threshold   the same of the scores' sigmoid; spelled so in these files
    magnitude            the share `final_threshold` of the largest weights; there are no scores
    l0                   weights times clamp(1.2 sigmoid(scores) - 0.1, 0, 1)

The last threshold of the schedule is an option of the training script, which config.json does not
have: it is read from the key "final_threshold", to be added by hand. A threshold keeps at least
0.5 % of the scores. Published PruneBERT models have the zeros in plain weights and need none of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sparse_engine.errors import InvalidFileError, UnsupportedModelError
from sparse_engine.io.foreign.base import Layout
from sparse_engine.io.tensorfile import Slot

MODEL_TYPE, PREFIX = "masked_bert", "Masked"
SCORES, WEIGHT = ".mask_scores", ".weight"
THRESHOLD = "final_threshold"
# Keys of masked_bert that BERT does not have.
KEYS = (
    "pruning_method",
    "mask_init",
    "mask_scale",
    "mask_block_rows",
    "mask_block_cols",
    "ampere_pruning_method",
    "ampere_mask_init",
    "ampere_mask_scale",
    "shuffling_method",
    "in_shuffling_group",
    "out_shuffling_group",
    THRESHOLD,
)
# Masks that scores alone do not give: a 2:4 pattern of its own, and permuted rows and columns.
REFUSED = ("ampere_pruning_method", "shuffling_method")
# Parts of names of the weights that are never masked.
NOT_MASKED = ("embeddings", "LayerNorm", "pooler", "classifier", "qa_output", "cls")
LEAST_KEPT = 0.005


class Method(Enum):
    """The "pruning_method" of config.json."""

    TOP_K = "topK"
    THRESHOLD = "threshold"
    SIGMOID = "sigmoied_threshold"
    MAGNITUDE = "magnitude"
    L0 = "l0"


@dataclass(frozen=True)
class MaskedBert(Layout):
    """A checkpoint of BERT with mask scores.

    Attributes:
        method: How a mask follows from scores.
        threshold: The last threshold of the training; None for l0, which has none.
    """

    title: ClassVar[str] = "movement pruning"
    method: Method
    threshold: float | None

    @classmethod
    def of(cls, config: dict[str, Any]) -> Self | None:
        """The layout of a config.json; None for any other model_type.

        Raises:
            InvalidFileError: An unknown method, or no threshold.
            UnsupportedModelError: Masks that scores alone do not give.
        """
        if config.get("model_type") != MODEL_TYPE:
            return None
        for key in REFUSED:
            if config.get(key) not in (None, "disabled"):
                raise UnsupportedModelError(f"config.json: {MODEL_TYPE} with {key} is not read")
        name = config.get("pruning_method", Method.TOP_K.value)
        if name not in [method.value for method in Method]:
            known = ", ".join(method.value for method in Method)
            raise InvalidFileError(
                f"config.json: pruning_method {str(name)[:40]!r} is none of {known}"
            )
        plain = {key: value for key, value in config.items() if key not in KEYS}
        plain["model_type"] = "bert"
        names = plain.get("architectures")
        if isinstance(names, list):
            plain["architectures"] = [str(n).removeprefix(PREFIX) for n in names]
        method = Method(name)
        return cls(plain, method, _threshold(config, method))

    def plain_slots(self, slots: Mapping[str, Slot]) -> dict[str, Slot]:
        """All tensors but the scores, which must have a whole number of blocks."""
        plain = {name: slot for name, slot in slots.items() if not name.endswith(SCORES)}
        for name, scores in self._masked(slots).items():
            if scores is not None:
                _block(slots[name].shape, slots[scores].shape, scores)
        return plain

    def plain_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """All weights with their masks multiplied in."""
        for name, scores_name in self._masked(state).items():
            weight = state[name]
            scores = weight.abs() if scores_name is None else state.pop(scores_name)
            if not bool(scores.isfinite().all()):
                raise InvalidFileError(f"tensor {scores_name or name!r} holds NaN or infinity")
            rows, cols = _block(weight.shape, scores.shape, scores_name or name)
            mask = MASKS[self.method](scores.float(), self.threshold or 0.0)
            mask = mask.repeat_interleave(rows, 0).repeat_interleave(cols, 1)
            state[name] = weight * mask.to(weight.dtype)
        return state

    def _masked(self, names: Collection[str]) -> dict[str, str | None]:
        """Names of the weights that are masked, and of their scores."""
        if self.method is Method.MAGNITUDE:
            return {
                name: None
                for name in names
                if name.endswith(WEIGHT) and not any(part in name for part in NOT_MASKED)
            }
        scores = [name for name in names if name.endswith(SCORES)]
        masked = {name.removesuffix(SCORES) + WEIGHT: name for name in scores}
        for name, score in masked.items():
            if name not in names:
                raise InvalidFileError(f"tensor {name!r} is missing: the file has {score!r} alone")
        return dict(masked)

    def __str__(self) -> str:
        """The tool and the method."""
        return f"{self.title} {self.method.value}"


def _threshold(config: dict[str, Any], method: Method) -> float | None:
    value = config.get(THRESHOLD)
    if method is Method.L0:
        return None
    share = method is not Method.THRESHOLD
    fine = type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
    if not fine or (share and not 0 <= value <= 1):  # type: ignore[operator]
        what = "a number from 0 to 1" if share else "a number"
        raise InvalidFileError(
            f'config.json: masks of {method.value} need "{THRESHOLD}", {what}: add the '
            f"--{THRESHOLD} that the model was trained with"
        )
    return float(value)  # type: ignore[arg-type]


def _block(weight: tuple[int, ...], scores: tuple[int, ...], name: str) -> tuple[int, int]:
    """Rows and columns that a score stands for."""
    fits = len(weight) == len(scores) == 2 and min(scores) > 0
    if not fits or weight[0] % scores[0] or weight[1] % scores[1]:
        shapes = ["x".join(map(str, shape)) for shape in (weight, scores)]
        raise InvalidFileError(f"tensor {name!r}: a weight {shapes[0]} has scores {shapes[1]}")
    return weight[0] // scores[0], weight[1] // scores[1]


def _top(scores: Tensor, share: float) -> Tensor:
    kept = scores.flatten().argsort(descending=True, stable=True)[: int(share * scores.numel())]
    return torch.zeros(scores.numel()).index_fill_(0, kept, 1).view(scores.shape)


def _above(scores: Tensor, threshold: float, sigmoid: bool = False) -> Tensor:
    mask = (scores.sigmoid() if sigmoid else scores) > threshold
    least = int(LEAST_KEPT * scores.numel()) + 1
    if int(mask.sum()) < least:
        mask = scores > scores.flatten().kthvalue(max(scores.numel() - least, 1)).values
    return mask.float()


MASKS: dict[Method, Callable[[Tensor, float], Tensor]] = {
    Method.TOP_K: _top,
    Method.MAGNITUDE: _top,
    Method.THRESHOLD: _above,
    Method.SIGMOID: lambda scores, threshold: _above(scores, threshold, sigmoid=True),
    Method.L0: lambda scores, _: (1.2 * scores.sigmoid() - 0.1).clamp(0, 1),
}
